"""The diffusers host against the untouched model: exact where it promises exactness, the kv oracle elsewhere."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from hetcache_core.packing import pack, pack_timesteps, to_patches, unpack

T, H, W = 3, 12, 12
TOKENS = T * H * W // 4
SMALL = dict(num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=64, ffn_dim=256)


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.02)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vace():
    return randomised(WanVACETransformer3DModel(**SMALL, num_layers=4, vace_layers=[0, 2], vace_in_channels=96))


@pytest.fixture(scope="module")
def plain():
    return randomised(WanTransformer3DModel(**SMALL, num_layers=3))


def control(batch=1, references=0):
    control = torch.randn(batch, 96, T, H, W, generator=torch.Generator().manual_seed(3))
    control[:, 32:] = 0
    control[:, 32:, references:, 4:8, 4:8] = 1
    control[:, 16:32, :references] = 0
    return control


def noise(batch=1, size=(H, W)):
    return torch.randn(batch, 16, T, *size, generator=torch.Generator().manual_seed(1))


def prompts(batch=1):
    return torch.randn(2, batch, 5, 64, generator=torch.Generator().manual_seed(2)).unbind(0)


def sample(model, scheduler=None, steps=12, cfg=3.0, controls=None, named=True, batched=False, x=None):
    """A pipeline's denoising loop."""
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(steps)
    x = noise() if x is None else x
    texts = dict(zip(("cond", "uncond")[: 1 + (cfg != 1)], prompts(len(x)), strict=False))
    extra = {"control_hidden_states": controls} if controls is not None else {}
    for t in scheduler.timesteps:
        out = []
        if batched:
            both = {k: torch.cat([v, v]) for k, v in extra.items()}
            text = torch.cat(list(texts.values()))
            out = model(torch.cat([x, x]), t.expand(2 * len(x)), text, **both, return_dict=False)[0].chunk(2)
        else:
            for name, text in texts.items():
                if named:
                    with model.cache_context(name):
                        out.append(model(x, t.expand(len(x)), text, **extra, return_dict=False)[0])
                else:
                    out.append(model(x, t.expand(len(x)), text, **extra, return_dict=False)[0])
        v = out[0] if cfg == 1 else out[1] + cfg * (out[0] - out[1])
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


def cached(model, policy, scheduler=None, mask=None, **kwargs):
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(model, policy, mask=mask, scheduler=scheduler) as handle:
        result = sample(model, scheduler, **kwargs)
        stats = handle.stats
    return result, stats


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


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
            hook._schedule = type(hook._schedule)((1000.0,) * 12, hook._schedule.sigmas)
            result = vace(args[0], scheduler.timesteps[0].expand(batch), *args[1:], return_dict=False)[0]
        selection = hook._engine._selection
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
    policy = CachePolicy(speed=2.0, warmup=2, profile="wan", memory_share=1.0, memory_fp8=False, memory_shared=False)
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
        vace._reset_stateful_cache()  # what a pipeline does when it ends
        assert not engine._forecasts and handle._hook._engine is None
        whole = sample(vace, scheduler, controls=control())
    assert torch.equal(whole, cached(vace, CachePolicy(speed=2.0, warmup=2), controls=control())[0])


def test_a_new_size_starts_a_new_run(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(vace, CachePolicy(speed=2.0, warmup=2), scheduler=scheduler) as handle:
        sample(vace, scheduler, controls=control())
        small = sample(vace, scheduler, controls=control()[..., :8, :8], x=noise(size=(8, 8)))
        assert handle.stats.grid == (T, 4, 4)
    assert small.shape[-2:] == (8, 8)


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
    with pytest.raises(ValueError, match="neither shipped nor a file"):
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
