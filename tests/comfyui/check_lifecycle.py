"""State is born with a run and dies with it: queues of prompts, two samplers, interrupts, failures."""

import contextlib
import gc
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import CurrentNodeContext
from small import FAST, QUICK, VARIANTS, cached, load, psnr, sample

from hetcache_core import CachePolicy, Engine
from hetcache_core.hosts import comfyui as host
from hetcache_core.hosts.comfyui_setup import Sampling

PREDICT = WrappersMP.PREDICT_NOISE
Interrupt = comfy.model_management.InterruptProcessingException


# ---- nothing is left


@pytest.fixture
def engines(monkeypatch):
    """Every engine that is alive."""
    alive = weakref.WeakSet()

    class Watched(Engine):
        def __init__(self, *args):
            super().__init__(*args)
            alive.add(self)

    monkeypatch.setattr(host, "Engine", Watched)
    return alive


def float_bytes() -> int:
    """Bytes of all floating-point tensors there are."""
    gc.collect()
    found = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.is_floating_point())
    return sum(t.numel() * t.element_size() for t in found)


def at_step(number, error):
    """A sampler's callback that raises after a step."""

    def callback(step, *_):
        if step == number:
            raise error

    return callback


def in_a_partial(error):
    """A model with an attention override that raises in a partial evaluation."""

    def override(function, q, k, v, *args, **kwargs):
        if k.shape[1] > q.shape[1]:
            raise error
        return function(q, k, v, *args, **kwargs)

    model = load().clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def in_the_second_call(error):
    """A model with a wrapper that raises in its second call."""
    model, calls = load().clone(), []

    def wrapper(executor, *args, **kwargs):
        calls.append(0)
        if len(calls) == 2:
            raise error
        return executor(*args, **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    return model


ENDS = {
    "to the end": (load, {}, ()),
    "interrupted after a full one": (load, {"callback": at_step(1, Interrupt)}, Interrupt),
    "interrupted after a partial one": (load, {"callback": at_step(2, Interrupt)}, Interrupt),
    "interrupted in a partial one": (partial(in_a_partial, Interrupt), {}, Interrupt),
    "failed after a full one": (load, {"callback": at_step(0, RuntimeError)}, RuntimeError),
    "failed in a full one": (partial(in_the_second_call, torch.OutOfMemoryError), {}, torch.OutOfMemoryError),
}


@pytest.mark.parametrize(("load_model", "kwargs", "error"), ENDS.values(), ids=ENDS)
def test_nothing_is_left_of_a_run(load_model, kwargs, error, engines):
    options = []

    def around(executor, *args, **kw):
        options.append(executor.class_obj.model_options)
        try:
            return executor(*args, **kw)
        finally:
            options.append(executor.class_obj.model_options)

    model = load_model().clone()
    model.add_wrapper(WrappersMP.OUTER_SAMPLE, around)
    patched, report = host.apply(model, FAST)
    sample(load(), QUICK)
    before = float_bytes()
    with pytest.raises(error) if error else contextlib.nullcontext():
        sample(patched, QUICK, **kwargs)
    assert options[0] is options[1] and host.KEY not in options[0]["transformer_options"]["wrappers"].get(PREDICT, {})
    options.clear()
    assert report.runs[-1].peak_context_bytes > 0 or error in (RuntimeError, torch.OutOfMemoryError)
    after = float_bytes()
    assert not engines and after <= before


def test_a_run_after_an_interrupt_is_like_the_first():
    patched, report = host.apply(load(), FAST)
    first = sample(patched, QUICK)
    with pytest.raises(Interrupt):
        sample(patched, QUICK, callback=at_step(2, Interrupt))
    assert report.runs[-1].decisions == "FFP"
    assert torch.equal(sample(patched, QUICK), first)


# ---- queues of prompts


def test_the_same_prompt_twice_and_the_node_bypassed_in_between():
    before = sample(load(), QUICK)
    patched, report = host.apply(load(), FAST)
    first, decisions = sample(patched, QUICK), report.runs[-1].decisions
    assert torch.equal(sample(load(), QUICK), before)
    assert torch.equal(cached(load(), QUICK, CachePolicy(method="off"))[0], before)
    assert torch.equal(sample(patched, QUICK), first) and report.runs[-1].decisions == decisions


def test_resolution_length_and_batch_change_between_prompts():
    patched, report = host.apply(load(), FAST)
    for change in ({}, {"height": 12}, {"frames": 3}, {"batch": 2}, {"references": 1}, {"copies": 2}, {}):
        scene = replace(QUICK, **change)
        result = sample(patched, scene)
        assert report.runs[-1].decisions == FAST.schedule and not report.runs[-1].warnings
        assert torch.equal(result, cached(load(), scene)[0])


def test_models_change_between_prompts():
    variants = [VARIANTS[name] for name in ("vace, every 5th block", "text, noise mask", "vace, every 2nd block")]
    patched = [host.apply(v.model, FAST)[0] for v in variants]
    fresh = [cached(v.model, v.scene)[0] for v in variants]
    for model, variant, expected in zip(patched * 2, variants * 2, fresh * 2):
        assert torch.equal(sample(model, variant.scene), expected)


def test_applying_twice_is_applying_once():
    once, _ = host.apply(load(), FAST)
    twice, report = host.apply(host.apply(load(), CachePolicy(schedule="FRRRRR"))[0], FAST)
    assert torch.equal(sample(twice, QUICK), sample(once, QUICK))
    assert report.runs[-1].decisions == FAST.schedule


def test_runs_of_one_prompt_are_kept_and_those_of_the_one_before_let_go():
    patched, report = host.apply(load(), FAST)
    for prompt, runs in (("a", 1), ("a", 2), ("b", 1)):
        with CurrentNodeContext(prompt, "1"):
            sample(patched, QUICK)
        assert len(report.runs) == runs


def test_statistics_can_be_read_in_the_middle_of_a_run():
    patched, report = host.apply(load(), FAST)
    seen = []
    sample(patched, QUICK, callback=lambda *_: seen.append((report.runs[-1].decisions, report.runs[-1].summary())))
    assert [decisions for decisions, _ in seen] == ["F", "FF", "FFP", "FFPR", "FFPRP", "FFPRPF"]


def test_a_run_without_steps_is_left_alone():
    patched, report = host.apply(load(), FAST)
    assert torch.equal(sample(patched, QUICK, start_step=6), QUICK.latent) and not report.runs


def test_a_setup_that_fails_leaves_the_run_to_the_host(monkeypatch):
    def broken(*args):
        raise KeyError("something new")

    monkeypatch.setattr(host, "read_setup", broken)
    result, stats = cached(load(), QUICK)
    assert torch.equal(result, sample(load(), QUICK))
    assert stats.note.startswith("setting up failed (KeyError: 'something new'); ") and stats.decisions == "FFFFFF"


# ---- two samplers, two experts


@pytest.mark.parametrize(("free", "dynamic", "unloaded"), [(900, False, 0), (300, False, 500), (300, True, 0)])
def test_room_is_made_beside_what_a_call_takes_in_our_own_weights_last(monkeypatch, free, dynamic, unloaded):
    """700 for a call and 100 for the context; a host that evicts weights by itself is left to do so."""
    patcher, told = load().clone(), []
    monkeypatch.setattr(type(patcher), "memory_required", lambda self, shape: 700 if shape == [2, 16, 3, 8, 8] else 0)
    monkeypatch.setattr(type(patcher), "is_dynamic", lambda self: dynamic, raising=False)
    monkeypatch.setattr(type(patcher), "partially_unload", lambda self, device, size: told.append((device, size)))
    management, others = comfy.model_management, []
    monkeypatch.setattr(management, "free_memory", lambda size, device, keep_loaded: others.append(size))
    monkeypatch.setattr(management, "get_free_memory", lambda device: free)
    sampling = Sampling(SimpleNamespace(model_patcher=patcher), None, None, None, None, None, 1.0)
    sampling.make_room(100, torch.zeros(2, 16, 3, 8, 8))
    assert others == [800] and told == ([(patcher.offload_device, unloaded)] if unloaded else [])


def two_stages(high, low, **kwargs):
    """The first half of the steps on one model, the rest on another, as with the experts of Wan 2.2."""
    noisy = sample(high, QUICK, steps=8, last_step=4, **kwargs)
    kwargs |= {"latent": noisy, "disable_noise": True, "force_full_denoise": True}
    return sample(low, QUICK, steps=8, start_step=4, **kwargs)


def test_two_experts_each_plan_their_part():
    high, low = load(), load(seed=1)
    stock = two_stages(high, low)
    assert torch.equal(two_stages(*(host.apply(m, CachePolicy(speed=1.0))[0] for m in (high, low))), stock)
    patched, reports = zip(*(host.apply(m, CachePolicy(schedule="FPRF")) for m in (high, low)))
    assert psnr(two_stages(*patched), stock) > 20
    assert [r.runs[-1].decisions for r in reports] == ["FPRF", "FPRF"]
    sigmas = [record.sigma for r in reports for record in r.runs[-1].records]
    assert sigmas == sorted(sigmas, reverse=True)


def test_two_samplers_on_one_node_make_two_runs():
    patched, report = host.apply(load(), CachePolicy(schedule="FPRF"))
    with CurrentNodeContext("a", "1"):
        two_stages(patched, patched)
    assert [run.decisions for run in report.runs] == ["FPRF", "FPRF"] and not any(run.warnings for run in report.runs)


# ---- plans, and what the control says


def test_a_speed_is_planned_and_followed():
    for speed in (1.5, 2.0):
        result, stats = cached(load(), QUICK, CachePolicy(speed=speed), steps=12)
        assert stats.predicted_speed == pytest.approx(speed, rel=0.1)
        assert stats.decisions == stats.planned and not stats.warnings
        assert psnr(result, sample(load(), QUICK, steps=12)) > 20


def test_the_online_method_saves_too():
    _, stats = cached(load(), QUICK, CachePolicy(method="hetcache", threshold=0.5, warmup=2), steps=12)
    assert set(stats.decisions) > {"F"} and not stats.warnings


def test_another_control_gives_another_edit():
    scenes = QUICK, replace(QUICK, control=6)
    stock = [sample(load(), scene) for scene in scenes]
    edits = [cached(load(), scene)[0] for scene in scenes]
    for own, other in ((0, 1), (1, 0)):
        assert psnr(edits[own], stock[own]) > psnr(edits[own], stock[other]) + 3
