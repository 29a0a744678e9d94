"""For all tests: one CPU thread. The models are too small for more, and threads on a busy machine wait for minutes."""

import torch

torch.set_num_threads(1)
