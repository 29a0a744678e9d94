"""The diffusers host against the untouched model: exact where it promises exactness, the kv oracle elsewhere."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from hetcache_core.hosts.diffusers_calls import Schedule
from hetcache_core.packing import pack, pack_timesteps, to_patches, unpack
from tests.hosts.small_wan import TOKENS, H, T, W, cached, control, noise, prompts, relative, sample

# ---- exactness


@pytest.mark.parametrize("policy", [CachePolicy(speed=1.0), CachePolicy(method="off"), CachePolicy(warmup=12)])
def test_all_full_plans_give_the_stock_bytes(vace, policy):
    result, stats = cached(vace, policy, controls=control())
    assert stats.decisions == "F" * 12
    assert torch.equal(result, sample(vace, controls=control()))


def test_capturing_context_changes_no_byte(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(12)
    args = (noise(), torch.tensor([1000.0]), prompts()[0], None, control())
    stock = vace(*args, return_dict=False)[0]
    with host.apply(vace, CachePolicy(speed=2.0, warmup=1), scheduler=scheduler) as handle:
        first = vace(*args, return_dict=False)[0]
        assert handle.stats.records[0].context_bytes > 0
    assert torch.equal(first, stock)


@pytest.mark.parametrize("order", [torch.arange(TOKENS), torch.randperm(TOKENS)], ids=["in order", "permuted"])
def test_packed_with_all_tokens_equals_stock(vace, order):
    x, c, t, text = noise(), control(), torch.tensor([700.0]), prompts()[0]
    stock = vace(x, t, text, None, c, return_dict=False)[0]
    with host.rotary_rows(vace.rope, x, order):
        packed = vace(pack(x, order), t, text, None, pack(c, order), return_dict=False)[0]
    rows = to_patches(stock)[:, :, order]
    if torch.equal(order, torch.arange(TOKENS)):
        assert torch.equal(unpack(packed), rows)
    assert relative(unpack(packed), rows) < 1e-5


def test_packed_per_token_timesteps(plain):
    order = torch.randperm(TOKENS)
    x, text = noise(), prompts()[0]
    t = torch.tensor([0.0, 400.0, 400.0]).repeat_interleave(TOKENS // T)[None]
    stock = plain(x, t, text, return_dict=False)[0]
    with host.rotary_rows(plain.rope, x, order):
        packed = plain(pack(x, order), pack_timesteps(t, order, TOKENS // T, TOKENS), text, return_dict=False)[0]
    assert relative(unpack(packed), to_patches(stock)[:, :, order]) < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_kv_oracle(vace, batch):
    """A subset plus the remembered keys and values of the rest, at the same input, is the full evaluation."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(12)
    policy = CachePolicy(schedule="FP", context_share=0.3)
    args = (noise(batch), prompts(batch)[0], None, control(batch))
    with host.apply(vace, policy, scheduler=scheduler) as handle:
        hook = handle._hook
        with vace.cache_context("cond"):
            vace(args[0], scheduler.timesteps[0].expand(batch), *args[1:], return_dict=False)
            # as if the clock stood still between the two evaluations
            hook.calls.schedule = Schedule((1000.0,) * 12, hook.calls.schedule.sigmas)
            result = vace(args[0], scheduler.timesteps[0].expand(batch), *args[1:], return_dict=False)[0]
        selection = hook._engine.partials.selection
        assert handle.stats.decisions == "FP" and 0 < len(selection) < TOKENS
    stock = vace(args[0], scheduler.timesteps[0].expand(batch), *args[1:], return_dict=False)[0]
    assert relative(to_patches(result)[:, :, selection], to_patches(stock)[:, :, selection]) < 1e-5


# ---- whole runs


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("speed", [1.5, 2.5])
def test_runs_mix_decisions_and_stay_near_the_stock_result(vace, scheduler, speed):
    kwargs = {"shift": 5.0} if scheduler is FlowMatchEulerDiscreteScheduler else {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}  # fmt: skip  # noqa: E501
    policy = CachePolicy(speed=speed, warmup=2, profile="wan")
    result, stats = cached(vace, policy, scheduler(**kwargs), steps=16, controls=control())
    stock = sample(vace, scheduler(**kwargs), steps=16, controls=control())
    assert stats.decisions == stats.planned and "P" in stats.decisions
    assert relative(result, stock) < 0.05


@pytest.mark.parametrize(
    "kwargs", [{"named": False}, {"batched": True}, {"cfg": 1.0}, {"x": noise(2), "controls": control(2)}]
)
def test_streams_named_unnamed_batched_single_and_batches(vace, kwargs):
    kwargs = {"controls": control(), "steps": 16, **kwargs}
    result, stats = cached(vace, CachePolicy(speed=2.0, warmup=2, profile="wan"), **kwargs)
    assert "P" in stats.decisions and stats.decisions == stats.planned
    assert relative(result, sample(vace, **kwargs)) < 0.05


def test_named_and_batched_streams_agree(vace):
    policy = CachePolicy(speed=2.0, warmup=2, profile="wan", memory_share=1.0, memory_bits=16, memory_apart_bits=16)
    apart, first = cached(vace, policy, controls=control(), steps=16)
    together, second = cached(vace, policy, controls=control(), steps=16, batched=True)
    assert first.decisions == second.decisions
    assert relative(together, apart) < 1e-4


def test_control_still_steers_cached_runs(vace):
    policy = CachePolicy(speed=2.5, warmup=2, profile="wan")
    other = control()
    other[:, :32] += 1
    assert relative(cached(vace, policy, controls=other)[0], cached(vace, policy, controls=control())[0]) > 0.01


def test_a_model_without_control_takes_a_mask(plain):
    mask = torch.zeros(1 + 4 * (T - 1), 8 * H, 8 * W)
    mask[:, 30:60, 30:60] = 1
    policy = CachePolicy(speed=2.0, warmup=2, profile="wan")
    result, stats = cached(plain, policy, mask=mask, steps=16)
    latent_mask, again = torch.zeros(T, H, W), None
    latent_mask[:, 3:8, 3:8] = 1
    again = cached(plain, policy, mask=latent_mask, steps=16)[1]
    assert "P" in stats.decisions
    assert stats.mask_fraction == again.mask_fraction == pytest.approx(9 / 36)
    assert relative(result, sample(plain, steps=16)) < 0.05


def test_reference_frames_are_context(vace):
    _, stats = cached(vace, CachePolicy(speed=2.0, warmup=2), controls=control(references=1))
    assert stats.classes.reference_frames == 1
    assert not stats.classes.generative[: TOKENS // T].any()


@pytest.mark.parametrize("references", [0, 1])
def test_hetcache_decides_as_in_its_paper(vace, references):
    """Online, with what it prunes chosen by content; reference images are computed every time."""
    policy, controls = CachePolicy(method="hetcache", threshold=0.3, warmup=2), control(references=references)
    result, stats = cached(vace, policy, controls=controls, steps=16)
    assert "P" in stats.decisions and stats.peak_context_bytes == 0 and not stats.warnings, stats.summary()
    assert stats.last_selection[: references * TOKENS // T].tolist() == list(range(references * TOKENS // T))
    assert relative(result, sample(vace, steps=16, controls=controls)) < 0.2


@pytest.mark.parametrize("budget", [0.0, 0.2, 0.6, 64.0])
def test_every_memory_tier_runs_within_its_budget(vace, budget):
    policy = CachePolicy(speed=2.0, warmup=2, profile="wan", memory_budget_mb=budget)
    result, stats = cached(vace, policy, controls=control(), steps=16)
    assert stats.peak_context_bytes == stats.planned_context_bytes <= budget * 2**20
    assert relative(result, sample(vace, steps=16, controls=control())) < 0.1


def test_two_runs_in_a_row_are_equal_and_share_nothing(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2), scheduler=scheduler) as handle:
        first = sample(vace, scheduler, controls=control())
        one = handle.stats
        second = sample(vace, scheduler, controls=control())
        assert handle.stats is not one
    assert torch.equal(first, second)


def test_an_interrupted_run_leaves_nothing_behind(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(12)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2), scheduler=scheduler) as handle:
        for t in scheduler.timesteps[:4]:
            vace(noise(), t[None], prompts()[0], None, control())
        engine = handle._hook._engine
        assert engine._forecasts
        foreign = host.WanAttnProcessor()
        stock = handle._hook._processors[0][1]
        vace.blocks[0].attn1.set_processor(foreign)  # between the calls, as a callback may
        handle.reset()
        assert not engine._forecasts and handle._hook._engine is None
        assert vace.blocks[0].attn1.processor is foreign
        vace.blocks[0].attn1.set_processor(stock)
        whole = sample(vace, scheduler, controls=control())
    assert torch.equal(whole, cached(vace, CachePolicy(speed=2.0, warmup=2), controls=control())[0])


def test_a_new_size_starts_a_new_run(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2), scheduler=scheduler) as handle:
        sample(vace, scheduler, controls=control())
        small = sample(vace, scheduler, controls=control()[..., :8, :8], x=noise(size=(8, 8)))
        assert handle.stats.grid == (T, 4, 4)
    assert small.shape[-2:] == (8, 8)
