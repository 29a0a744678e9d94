"""The diffusers host's life: applied and removed, its schedules, beside other hooks, and on bad input."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)

from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from tests.hosts.small_wan import cached, control, noise, prompts, sample

# ---- applying and removing


def test_remove_leaves_no_trace(vace):
    attributes = set(vace.__dict__)
    processors = [m.processor for m in vace.modules() if hasattr(m, "processor")]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vace.modules()]
    registry = "_diffusers_hook" in attributes
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    handle = host.apply(vace, CachePolicy(), scheduler=scheduler)
    sample(vace, scheduler, controls=control())
    handle.remove()
    assert set(vace.__dict__) - {"_diffusers_hook"} == attributes - {"_diffusers_hook"}
    assert registry or "_diffusers_hook" not in vace.__dict__
    assert [m.processor for m in vace.modules() if hasattr(m, "processor")] == processors
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vace.modules()] == hooks
    handle.remove()


def test_applying_twice_is_applying_once(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    host.apply(vace, CachePolicy(speed=4.0), scheduler=scheduler)
    result, _ = cached(vace, CachePolicy(speed=1.0), scheduler, controls=control())
    assert torch.equal(result, sample(vace, controls=control()))


def test_other_models_are_refused_by_name():
    with pytest.raises(TypeError, match="this is Linear"):
        host.apply(torch.nn.Linear(2, 2), CachePolicy())


def test_a_transformer_compiled_whole_is_refused_with_what_to_do_instead(vace, monkeypatch):
    with pytest.raises(TypeError, match="compile_repeated_blocks"):
        host.apply(torch.compile(vace, backend="eager"), CachePolicy())
    monkeypatch.setattr(vace, "_compiled_call_impl", vace._call_impl)  # what vace.compile() sets
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        host.apply(vace, CachePolicy())
    monkeypatch.undo()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(vace, CachePolicy(speed=2.0), scheduler=scheduler) as handle:
        monkeypatch.setattr(vace, "_compiled_call_impl", vace._call_impl)
        sample(vace, scheduler, controls=control())
    assert "P" not in handle.stats.decisions and "compile_repeated_blocks" in handle.stats.summary()


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"mask": torch.zeros(5, 96, 96)}, "5 frames but the clip has 9"),
        ({"mask": torch.zeros(9, 32, 96)}, "scale the mask"),
        ({"mask": torch.zeros(9, 96, 96)}, "mask is empty"),
        ({"mask": torch.ones(9, 96, 96)}, "covers 100%"),
        ({"mask": torch.full((9, 96, 96), float("nan"))}, "NaN"),
    ],
)
def test_unusable_masks_compute_in_full_and_say_why(vace, kwargs, reason):
    result, stats = cached(vace, CachePolicy(speed=2.0), controls=control(), **kwargs)
    assert set(stats.decisions) == {"F"} and reason in stats.summary()
    assert torch.equal(result, sample(vace, controls=control()))


def test_no_schedule_no_mask_and_odd_sizes_compute_in_full_and_say_why(vace, plain):
    with host.apply(vace, CachePolicy(speed=2.0)) as handle:
        sample(vace, controls=control())
        assert "scheduler=pipe.scheduler" in handle.stats.summary()
    assert "there is no mask" in cached(plain, CachePolicy(speed=2.0))[1].summary()


def test_stats_before_any_run_say_so(vace):
    with host.apply(vace, CachePolicy()) as handle, pytest.raises(RuntimeError, match="nothing has run"):
        _ = handle.stats


def test_a_foreign_attention_processor_is_kept_and_memory_goes_off(vace):
    class Foreign(host.WanAttnProcessor):
        pass

    stock, foreign = vace.blocks[0].attn1.processor, Foreign()
    vace.blocks[0].attn1.set_processor(foreign)
    try:
        result, stats = cached(vace, CachePolicy(speed=2.0, warmup=2, profile="wan"), controls=control())
        assert vace.blocks[0].attn1.processor is foreign
        assert stats.peak_context_bytes == 0 and set(stats.decisions) == {"F", "R"}
        assert "attention processor Foreign" in stats.summary() and torch.isfinite(result).all()
    finally:
        vace.blocks[0].attn1.set_processor(stock)


# ---- schedules


def test_a_scheduler_chosen_after_apply_is_found_through_the_pipeline(vace):
    class Pipeline:
        transformer, scheduler = vace, FlowMatchEulerDiscreteScheduler(shift=1.0)

    pipe = Pipeline()
    with host.apply(pipe, CachePolicy(speed=2.0, warmup=2, profile="wan")) as handle:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        sample(vace, pipe.scheduler, controls=control(), steps=16)
        assert handle.stats.decisions == handle.stats.planned and len(handle.stats.planned) == 16


def test_a_scheduler_that_is_not_the_one_in_use_means_full_with_the_reason(vace):
    other = FlowMatchEulerDiscreteScheduler(shift=1.0)
    other.set_timesteps(7)
    other.timesteps = other.timesteps - 3.3
    with host.apply(vace, CachePolicy(speed=2.0), scheduler=other) as handle:
        result = sample(vace, controls=control())
        assert set(handle.stats.decisions) == {"F"} and "is not the one in use" in handle.stats.summary()
    assert torch.equal(result, sample(vace, controls=control()))


def test_a_run_that_begins_inside_the_schedule_plans_what_is_left(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(20)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2, profile="wan"), scheduler=scheduler) as handle:
        for t in scheduler.timesteps[8:]:
            with vace.cache_context("cond"):
                vace(noise(), t[None], prompts()[0], None, control())
        assert handle.stats.decisions == handle.stats.planned
        assert len(handle.stats.planned) == 12 and handle.stats.planned.startswith("FF")


def test_two_evaluations_at_one_timestep_are_two(vace):
    """Heun-like samplers call the model twice at the same noise level."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(8)
    scheduler.timesteps = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[1:].repeat_interleave(2)])
    scheduler.sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:].repeat_interleave(2)])
    for named in (True, False):
        with host.apply(vace, CachePolicy(speed=1.0), scheduler=scheduler) as handle:
            for t in scheduler.timesteps:
                for name, text in zip(("cond", "uncond"), prompts(), strict=True):
                    if named:
                        with vace.cache_context(name):
                            vace(noise(), t[None], text, None, control())
                    else:
                        vace(noise(), t[None], text, None, control())
            assert len(handle.stats.decisions) == 15


@pytest.mark.parametrize("name", ["FlowMatchLCMScheduler", "EulerAncestralDiscreteScheduler", "SASolverScheduler"])
def test_stochastic_schedulers_are_known(name):
    from hetcache_core.hosts.diffusers_setup import _stochastic

    assert _stochastic(type(name, (), {"config": {}})())
    assert not _stochastic(FlowMatchEulerDiscreteScheduler())


# ---- beside others


def test_setting_up_never_kills_a_run(vace, monkeypatch):
    def broken(*args):
        raise KeyError("unheard of")

    monkeypatch.setattr("hetcache_core.hosts.diffusers.read_setup", broken)
    result, stats = cached(vace, CachePolicy(speed=2.0), controls=control())
    assert "setting up failed (KeyError" in stats.summary()
    assert torch.equal(result, sample(vace, controls=control()))


def test_wrong_masks_and_profiles_are_refused_when_applied(vace):
    with pytest.raises(TypeError, match="must be a torch tensor"):
        host.apply(vace, CachePolicy(), mask=[[0]])
    with pytest.raises(ValueError, match="neither shipped"):
        host.apply(vace, CachePolicy(profile="nope.json"))


def test_gradients_pass_an_exact_policy(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(4)
    x = noise().requires_grad_()
    with host.apply(vace, CachePolicy(speed=1.0), scheduler=scheduler):
        assert vace(x, scheduler.timesteps[:1], prompts()[0], None, control()).sample.requires_grad


def test_an_older_handle_leaves_the_newer_patch_alone(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    old = host.apply(vace, CachePolicy(speed=1.0), scheduler=scheduler)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2, profile="wan"), scheduler=scheduler) as new:
        old.remove()
        sample(vace, scheduler, controls=control(), steps=16)
        assert "P" in new.stats.decisions


def test_accelerate_hooks_added_afterwards_survive_removal(vace):
    hooks = pytest.importorskip("accelerate.hooks")
    seen = []

    class Spy(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(True)
            return args, kwargs

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    handle = host.apply(vace, CachePolicy(speed=1.0), scheduler=scheduler)
    hooks.add_hook_to_module(vace, Spy())
    handle.remove()
    vace(noise(), torch.tensor([900.0]), prompts()[0], None, control())
    assert seen
    hooks.remove_hook_from_module(vace)
    vace.__dict__.pop("forward", None)
    vace.__dict__.pop("_diffusers_hook", None)
    assert torch.equal(sample(vace, controls=control()), sample(vace, controls=control()))


def test_an_offloaded_model_is_cached_in_every_run(vace):
    """`enable_model_cpu_offload` puts accelerate's hook on anew after each run; ours stays beneath."""
    hooks = pytest.importorskip("accelerate.hooks")
    scheduler, policy = FlowMatchEulerDiscreteScheduler(shift=5.0), CachePolicy(speed=2.0, warmup=2, profile="wan")
    stock, seen = sample(vace, scheduler, controls=control(), steps=16), []

    class Spy(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(True)
            return args, kwargs

    hooks.add_hook_to_module(vace, Spy())
    handle = host.apply(vace, policy, scheduler=scheduler)
    first = sample(vace, scheduler, controls=control(), steps=16)
    hooks.remove_hook_from_module(vace)
    hooks.add_hook_to_module(vace, Spy())
    before = handle.stats
    second = sample(vace, scheduler, controls=control(), steps=16)
    assert handle.stats is not before and "P" in handle.stats.decisions and torch.equal(first, second)
    assert len(seen) == 2 * 2 * 16
    handle.remove()
    assert torch.equal(sample(vace, scheduler, controls=control(), steps=16), stock) and len(seen) == 3 * 2 * 16
    hooks.remove_hook_from_module(vace)
    vace.__dict__.pop("forward", None)
    vace.__dict__.pop("_diffusers_hook", None)


def test_another_cache_on_the_transformer_means_full_with_the_reason(vace):
    diffusers = pytest.importorskip("diffusers.hooks")
    if not hasattr(diffusers, "MagCacheConfig"):
        pytest.skip("this diffusers has no MagCache")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    config = diffusers.MagCacheConfig(mag_ratios=[1.0] * 12, num_inference_steps=12, retention_ratio=0.2)

    def mag(run):
        vace.enable_cache(config)
        try:
            return run()
        finally:
            vace.disable_cache()

    alone = mag(lambda: sample(vace, scheduler, controls=control()))
    result, stats = mag(lambda: cached(vace, CachePolicy(speed=2.0), scheduler, controls=control()))
    assert set(stats.decisions) == {"F"} and "disable_cache()" in stats.summary()
    assert torch.equal(result, alone) and not torch.equal(alone, sample(vace, scheduler, controls=control()))
    again = cached(vace, CachePolicy(speed=2.0), scheduler, controls=control())[1]
    assert "P" in again.decisions  # it is off again


def test_a_pipeline_of_two_transformers_is_told_to_patch_each(vace, plain):
    class Pipeline:
        transformer, transformer_2, scheduler = vace, plain, FlowMatchEulerDiscreteScheduler()

    with pytest.raises(ValueError, match="apply to each"):
        host.apply(Pipeline(), CachePolicy())
