"""Small random models of every kind the diffusers host knows."""

import pytest

from tests.hosts.small_wan import SMALL, randomised


@pytest.fixture(scope="module")
def vace():
    diffusers = pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")
    return randomised(
        diffusers.WanVACETransformer3DModel(**SMALL, num_layers=4, vace_layers=[0, 2], vace_in_channels=96)
    )


@pytest.fixture(scope="module")
def plain():
    diffusers = pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")
    return randomised(diffusers.WanTransformer3DModel(**SMALL, num_layers=3))
