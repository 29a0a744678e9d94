"""The benchmark's EasyCache decides and answers as the host's own node does."""

import uuid
from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheHolder, easycache_calc_cond_batch_wrapper, easycache_forward_wrapper

from benchmarks.rivals.rules import EasyCache, shifted

STREAMS = ("cond", "uncond")
SHAPE = (1, 16, 3, 12, 12)


def walk(steps, forward, begin, wild=0.05):
    """A denoising loop on a made-up model that bends from step to step; (which streams were computed, all answers)."""
    random = torch.Generator().manual_seed(1)
    x, calls, answers = torch.randn(SHAPE, generator=random), [], []
    bends = torch.randn((steps, *SHAPE), generator=random) * wild
    for i in range(steps):
        share = 1 - i / steps
        sigma, following = shifted(1 - share, 5.0), shifted(1 - share + 1 / steps, 5.0)
        begin()
        made = []
        for stream in STREAMS:

            def compute(stream=stream, i=i, x=x):
                calls.append((i, stream))
                return torch.tanh(x) * (1 + STREAMS.index(stream)) + bends[i] * (0.2 + i / steps)

            made.append(forward(stream, x.clone(), sigma, compute))
        answers += made
        x = x + (following - sigma) * (made[1] + 3 * (made[0] - made[1]))
    return calls, torch.stack(answers)


def by_rule(steps, threshold, start, end):
    rule = EasyCache(threshold, shifted(start, 5.0), shifted(end, 5.0))
    return walk(steps, rule, rule.begin_evaluation)


def by_node(steps, threshold, start, end):
    ids = {stream: uuid.uuid4() for stream in STREAMS}
    sampling = SimpleNamespace(percent_to_sigma=lambda percent: shifted(percent, 5.0))
    holder = EasyCacheHolder(threshold, start, end, 8, False, output_channels=16).prepare_timesteps(sampling)

    def forward(stream, x, sigma, compute):
        options = {"easycache": holder, "sigmas": torch.tensor([sigma]), "uuids": [ids[stream]]}
        return easycache_forward_wrapper(lambda *_: compute(), x, options)

    def begin():
        easycache_calc_cond_batch_wrapper(lambda *_: None, {"transformer_options": {"easycache": holder}})

    return walk(steps, forward, begin)


@pytest.mark.parametrize("steps", [6, 30])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.6, 3.0])
@pytest.mark.parametrize(("start", "end"), [(0.15, 0.95), (0.0, 1.0), (0.5, 0.6)])
def test_the_rule_is_the_nodes(steps, threshold, start, end):
    calls, answers = by_rule(steps, threshold, start, end)
    theirs, expected = by_node(steps, threshold, start, end)
    assert calls == theirs
    assert torch.equal(answers, expected)


def test_the_signal_is_one_that_is_skipped_on_at_times():
    counts = [len(by_rule(30, threshold, 0.15, 0.95)[0]) for threshold in (0.0, 0.05, 0.2, 0.6, 3.0)]
    assert counts[0] == 60 and counts == sorted(set(counts), reverse=True)


def test_the_node_adds_into_its_input():
    """Why the benchmark hands it a copy: of 16-bit models the host makes one, nano's 32 bits go through as they are."""
    stream = uuid.uuid4()
    holder = EasyCacheHolder(0.1, 0.15, 0.95, 8, False, output_channels=16)
    holder.uuid_cache_diffs[stream] = torch.ones(SHAPE)
    x = torch.zeros(SHAPE)
    assert holder.apply_cache_diff(x, [stream]) is x and (x == 1).all()
