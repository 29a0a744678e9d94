"""Guidance reuse and MixCache on diffusers."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler

from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.hosts import diffusers as host
from hetcache_core.hosts.diffusers_calls import Schedule
from tests.hosts.small_wan import cached, control, noise, prompts, relative, sample


def rows_of(model, run):
    """What `run` gives, and how many rows the model's first block computed meanwhile."""
    rows = []
    hook = model.blocks[0].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        return run(), sum(rows)
    finally:
        hook.remove()


@pytest.mark.parametrize("named", [True, False])
def test_guidance_reuse_computes_one_stream_and_stays_near_the_stock_result(vace, named):
    policy = CachePolicy(schedule="FFFGGFGGFF" + "FF")
    kwargs = {"controls": control(), "named": named}
    (result, stats), rows = rows_of(vace, lambda: cached(vace, policy, **kwargs))
    stock, all_rows = rows_of(vace, lambda: sample(vace, **kwargs))
    assert stats.decisions == policy.schedule and not stats.warnings
    assert (rows, all_rows) == (2 * 8 + 4, 2 * 12)
    assert not torch.equal(result, stock) and relative(result, stock) < 0.02


@pytest.mark.parametrize("named", [True, False])
def test_half_evaluations_compute_one_stream_of_a_selection(vace, named):
    policy = CachePolicy(schedule="FFFHPHRHFFFF", context_share=0.2)
    kwargs = {"controls": control(), "named": named}
    (result, stats), rows = rows_of(vace, lambda: cached(vace, policy, **kwargs))
    assert stats.decisions == policy.schedule and not stats.warnings
    assert rows == 2 * 7 + 3 + 2
    stock = sample(vace, **kwargs)
    assert not torch.equal(result, stock) and relative(result, stock) < 0.05


def test_guidance_reuse_at_an_unchanged_input_gives_both_streams_again(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(12)
    policy = CachePolicy(schedule="FG", forecast_order=0)
    with host.apply(vace, policy, scheduler=scheduler) as handle:
        outputs = []
        for _ in range(2):
            for name, text in zip(("cond", "uncond"), prompts(), strict=True):
                with vace.cache_context(name):
                    outputs.append(vace(noise(), scheduler.timesteps[:1], text, None, control(), return_dict=False)[0])
            # as if the clock stood still between the two evaluations
            handle._hook.calls.schedule = Schedule((1000.0,) * 12, handle._hook.calls.schedule.sigmas)
        assert handle.stats.decisions == "FG"
    assert torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[1], outputs[3], rtol=0, atol=1e-6)
    assert not torch.equal(outputs[0], outputs[1])


def test_guidance_reuse_without_guidance_gives_the_stock_bytes(vace):
    policy = CachePolicy(schedule="FFGGGGGGGGGG")
    result, stats = cached(vace, policy, controls=control(), cfg=1.0)
    assert torch.equal(result, sample(vace, controls=control(), cfg=1.0))
    assert stats.decisions == "F" * 12 and "there is one stream" in stats.summary()


@pytest.mark.parametrize(("step", "kinds"), [(1.0, "FGB"), (0.3, "FRB")])
def test_mixcache_reuses_what_harms_least(vace, tmp_path, step, kinds):
    profile = tmp_path / "step.json"
    profile.write_text(replace(ErrorProfile.load("wan"), impact=(step, 1.0, 1.0)).to_json())
    policy = CachePolicy(method="mixcache", trigger=5.0, deviation=5.0, warmup=2, profile=str(profile))
    result, stats = cached(vace, policy, controls=control(), steps=24)
    assert set(stats.decisions) == set(kinds) and not stats.warnings, stats.summary()
    assert stats.peak_block_bytes > 0 and stats.decisions.endswith("F")
    assert relative(result, sample(vace, controls=control(), steps=24)) < 0.05
