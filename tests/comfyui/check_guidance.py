"""One decision for all streams of an evaluation, however the host orders, batches or adds to them."""

from dataclasses import replace

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_slg as slg
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from small import FAST, QUICK, cached, load, never_batched, psnr, sample

from hetcache_core import CachePolicy
from hetcache_core.hosts import comfyui as host

THREE = replace(QUICK, prompts=(8, 8, 8))


def counted(model):
    """(a clone of the model, list of the batch sizes of the calls it gets)."""
    model, calls = model.clone(), []

    def count(executor, x, *args, **kwargs):
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, count)
    return model, calls


def check(run):
    """Stock bytes at speed 1.0, and the scheduled decisions near the stock otherwise."""
    patched = {policy: host.apply(load(), policy) for policy in (CachePolicy(speed=1.0), FAST)}
    (exact, _), (fast, report) = patched.values()
    stock = run(load())
    assert torch.equal(run(exact), stock)
    assert psnr(run(fast), stock) > 20
    assert report.runs[-1].decisions == FAST.schedule and not report.runs[-1].warnings, report.runs[-1].summary()
    return report.runs[-1]


def guided(guider_class, cfg, conds=None, **kwargs):
    """A run through a guider of the host."""

    def run(model):
        guider = guider_class(model)
        guider.set_conds(*(conds or THREE.conds()))
        guider.set_cfg(*cfg, **kwargs)
        sampler = comfy.samplers.sampler_object("euler")
        noise = torch.randn(THREE.latent.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 6)
            return guider.sample(noise, THREE.latent, sampler, sigmas, disable_pbar=True, seed=1)

    return run


def test_guidance_off_is_one_stream():
    model, calls = counted(load())
    check(lambda m: sample(m, QUICK, cfg=1.0))
    sample(model, QUICK, cfg=1.0)
    assert calls == [1] * 6


def test_a_sampler_that_wants_both_streams_without_guidance():
    check(lambda m: sample(m, QUICK, cfg=1.0, sampler="euler_cfg_pp"))


def test_a_sampler_that_wants_both_streams_in_two_calls_has_context_for_both(monkeypatch):
    """The sampler says so itself, on its way; what is remembered is sized before."""
    never_batched(monkeypatch)
    _, stats = cached(load(), QUICK, cfg=1.0, sampler="euler_cfg_pp")
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()


def test_guidance_in_one_batch():
    model, calls = counted(load())
    sample(model, QUICK)
    assert calls == [2] * 6
    check(lambda m: sample(m, QUICK))


def test_guidance_in_two_calls(monkeypatch):
    batched, _ = cached(load(), QUICK)
    never_batched(monkeypatch)
    model, calls = counted(load())
    sample(model, QUICK)
    assert calls == [1] * 12
    check(lambda m: sample(m, QUICK))
    assert psnr(cached(load(), QUICK)[0], batched) > 80


def test_prompts_of_unequal_length():
    scene = replace(QUICK, prompts=(8, 5))
    model, calls = counted(load())
    sample(model, scene)
    assert calls == [1] * 12
    check(lambda m: sample(m, scene))


def test_batching_that_flips_between_steps(monkeypatch):
    asked = []
    steady, _ = cached(load(), QUICK)
    never_batched(monkeypatch, when=lambda: asked.append(0) or len(asked) % 2)
    model, calls = counted(load())
    sample(model, QUICK)
    assert {1, 2} == set(calls)
    result, stats = cached(load(), QUICK)
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    assert psnr(result, steady) > 80


def test_packed_context_when_the_host_gives_up_batching(monkeypatch):
    """It then begins with the stream that leaned on the other, which must not be told apart from where that one was."""
    packed = replace(FAST, memory_bits=8, memory_turn_bits=2, memory_apart_bits=8)
    steady, _ = cached(load(), QUICK, packed)
    evaluations = []
    never_batched(monkeypatch, when=lambda: len(evaluations) > 1)
    patched, report = host.apply(load(), packed)
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, lambda run, *args, **kw: evaluations.append(0) or run(*args, **kw))
    patched, calls = counted(patched)
    result, stats = sample(patched, QUICK), report.runs[-1]
    assert calls == [2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    assert psnr(result, steady) > 78


@pytest.mark.parametrize("nested", [False, True])
def test_three_streams_of_dual_guidance(nested):
    stats = check(guided(custom.Guider_DualCFG, (3.0, 2.0), nested=nested))
    two = cached(load(), QUICK)[1]
    assert stats.planned_context_bytes == 1.5 * two.planned_context_bytes


def test_two_prompts_combined():
    first, second, negative = THREE.conds()
    check(guided(comfy.samplers.CFGGuider, (4.0,), conds=(first + second, negative)))


def late(scene):
    """A second prompt that joins in the middle of the run."""
    first, second, negative = scene.conds()
    second[0][1]["start_percent"] = 0.2
    return first + second, negative


def test_a_prompt_that_joins_later_is_computed_in_full_first():
    run = guided(comfy.samplers.CFGGuider, (4.0,), conds=late(THREE))
    policy = CachePolicy(schedule="FPPPPP")
    patched, report = host.apply(load(), policy)
    stock = run(load())
    assert psnr(run(patched), stock) > 20
    reasons = [r.reason for r in report.runs[-1].records]
    assert "a stream not seen before" in reasons
    exact, _ = host.apply(load(), CachePolicy(speed=1.0))
    assert torch.equal(run(exact), stock)


def skipping(model):
    """Skip-layer guidance: a third stream, beside the model's guidance."""
    return slg.SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "2", "").result[0]


def test_skip_layer_guidance_is_a_stream_beyond_the_budget():
    stock = sample(skipping(load()), QUICK)
    assert not torch.equal(stock, sample(load(), QUICK))
    assert torch.equal(cached(skipping(load()), QUICK, CachePolicy(speed=1.0))[0], stock)
    patched, report = host.apply(load(), FAST)
    for model in (skipping(patched), host.apply(skipping(load()), FAST)[0]):
        assert psnr(sample(model, QUICK), stock) > 20
    stats = report.runs[-1]
    assert stats.decisions == "FFFRFF" and not stats.warnings, stats.summary()
    assert stats.records[2].reason == "more prompts than the 2 that context memory was shared out for"
    assert stats.peak_context_bytes <= stats.planned_context_bytes


class ByStep(comfy.samplers.CFGGuider):
    """A strength for every step, as KJNodes' scheduled guidance keeps them."""

    def predict_noise(self, x, timestep, model_options, seed):
        kept, self.step = self.cfg, getattr(self, "step", -1) + 1
        self.cfg = kept[self.step]
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.cfg = kept


def test_a_strength_for_every_step_is_no_reason_to_stop():
    check(guided(ByStep, ([4.0] * 6,), conds=QUICK.conds()))
    run = guided(ByStep, ([1.0, 1.0, 4.0, 4.0, 4.0, 4.0],), conds=QUICK.conds())
    patched, report = host.apply(load(), CachePolicy(schedule="FFFFPF"))
    run(patched)
    (stats,) = report.runs
    assert stats.decisions == "FFFFPF" and not stats.warnings and stats.records[1].streams == 1, stats.summary()


@pytest.mark.skipif(not hasattr(custom, "CFGOverride"), reason="this host cannot override guidance")
def test_guidance_that_begins_in_mid_run_has_memory_for_both_prompts():
    def late(model):
        return custom.CFGOverride.execute(model, 4.0, 0.2, 1.0).result[0]

    policy = CachePolicy(schedule="FFFFPF")
    patched, report = host.apply(load(), policy)
    stock = sample(late(load()), QUICK, cfg=1.0)
    assert psnr(sample(late(patched), QUICK, cfg=1.0), stock) > 20
    (stats,) = report.runs
    assert stats.decisions == policy.schedule and not stats.warnings, stats.summary()
    assert [r.streams for r in stats.records] == [1, 1, 2, 2, 2, 2]


@pytest.mark.skipif(not hasattr(custom, "Guider_DualModel"), reason="this host has no guider of two models")
def test_a_guiders_second_model_is_not_given_the_firsts_context():
    other = load(seed=3)

    def run(model):
        def guider(model):
            return custom.Guider_DualModel(model, other)

        return guided(guider, (4.0,), conds=QUICK.conds())(model)

    patched, report = host.apply(load(), FAST)
    assert psnr(run(patched), run(load())) > 20
    (stats,) = report.runs
    assert stats.decisions == FAST.schedule and {r.streams for r in stats.records} == {1}, stats.summary()
    assert stats.warnings == ["the guider asks a second model too, which is computed in full"]
