"""The whole way, thin: stock bytes at speed 1.0, every kind of evaluation otherwise, nothing held afterwards."""

import pytest
import torch
from small import Scene, cached, load, psnr, sample

from hetcache_core import CachePolicy


@pytest.fixture(scope="module")
def model():
    return load()


def test_speed_one_is_stock(model):
    assert torch.equal(cached(model, Scene(), CachePolicy(speed=1.0))[0], sample(model, Scene()))


def test_schedule_is_followed(model):
    result, report = cached(model, Scene())
    assert report.runs[-1].decisions == "FFPRPFPF"
    assert psnr(result, sample(model, Scene())) > 30
    assert report.runs[-1].peak_context_bytes > 0


def test_the_model_is_as_before(model):
    before = sample(model, Scene())
    cached(model, Scene())
    assert torch.equal(sample(model, Scene()), before)
