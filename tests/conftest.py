"""For all tests: one CPU thread. The models are too small for more, and threads on a busy machine wait for minutes."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """A command under test may set its own number, by which sums over a whole tensor differ in their last bit."""
    yield
    torch.set_num_threads(1)
