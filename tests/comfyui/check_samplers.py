"""The rehearsed schedule is what every sampler of the host asks for, and a plan can follow it."""

from itertools import pairwise

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from small import QUICK, Scene, cached, load, psnr, sample

from hetcache_core import CachePolicy
from hetcache_core.hosts import comfyui as host
from hetcache_core.hosts.comfyui_schedule import EvaluationSchedule
from hetcache_core.hosts.comfyui_setup import Sampling

SMALL = Scene("text", height=4, width=4)
ADAPTIVE = "dpm_adaptive"


def rehearse_and_run(sampler, seed, **kwargs):
    """(rehearsed schedule, noise levels asked for, result) of a run of six steps, always from the same noise."""
    found, asked = [], []

    def around(executor, *args, **kw):
        before = torch.get_rng_state()
        found.append(EvaluationSchedule.of(Sampling.of(executor.class_obj, args, kw)))
        assert torch.equal(before, torch.get_rng_state())
        return executor(*args, **kw)

    def listen(executor, x, timestep, *args, **kw):
        asked.append(float(timestep.max()))
        return executor(x, timestep, *args, **kw)

    model = load(layers=1, vace_layers=0, dim=128).clone()
    model.add_wrapper(WrappersMP.OUTER_SAMPLE, around)
    model.add_wrapper(WrappersMP.PREDICT_NOISE, listen)
    noise = comfy.sample.prepare_noise(SMALL.latent, 7)
    torch.manual_seed(seed)
    with torch.inference_mode():
        result = comfy.sample.sample(model, noise, 6, 1.0, sampler, "simple", *SMALL.conds(), SMALL.latent,
                                     seed=seed, disable_pbar=True, **kwargs)  # fmt: skip
    return found[0], asked, result


def is_as_rehearsed(schedule, asked):
    return len(schedule.sigmas) - 1 == len(asked) and all(schedule.has(i, sigma) for i, sigma in enumerate(asked))


@pytest.mark.parametrize("sampler", [s for s in comfy.samplers.SAMPLER_NAMES if s != ADAPTIVE])
def test_a_rehearsal_finds_the_schedule_and_whether_noise_is_added(sampler):
    schedule, asked, result = rehearse_and_run(sampler, seed=1)
    again, asked_again, other = rehearse_and_run(sampler, seed=2)
    middle, asked_in_the_middle, _ = rehearse_and_run(sampler, seed=1, start_step=1, last_step=4)
    assert is_as_rehearsed(schedule, asked), (schedule, asked)
    assert is_as_rehearsed(middle, asked_in_the_middle), (middle, asked_in_the_middle)
    assert again == schedule and asked_again == asked
    assert schedule.stochastic == (not torch.equal(result, other))
    levels = sorted(set(schedule.sigmas))
    assert all(above - below > 1e-4 for below, above in pairwise(levels)), "one level looks like two"


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_samplers_follow_a_plan(sampler):
    evaluations = 11 if sampler == "heun" else 6
    policy = CachePolicy(schedule="FFPRPFPRRPF"[:evaluations])
    stock = sample(load(), QUICK, sampler=sampler)
    assert torch.equal(cached(load(), QUICK, CachePolicy(speed=1.0), sampler=sampler)[0], stock)
    result, stats = cached(load(), QUICK, policy, sampler=sampler)
    assert stats.decisions == policy.schedule and not stats.warnings, stats.summary()
    assert psnr(result, stock) > 20


@pytest.mark.parametrize("sampler", ["exp_heun_2_x0", "exp_heun_2_x0_sde"])
def test_levels_worked_out_again_are_the_schedules(sampler):
    if sampler not in comfy.samplers.SAMPLER_NAMES:
        pytest.skip("this host has no such sampler")
    steps = rehearse_and_run("heun", seed=1)[0].sigmas
    found = rehearse_and_run(sampler, seed=1)[0].sigmas
    assert set(found[1:]) == set(steps[1:]) and len(found) == len(steps)  # the first it moves off pure noise


def test_a_sampler_that_goes_back_to_noisier_steps_is_computed_in_full():
    stock = sample(load(), QUICK, sampler="heunpp2")
    result, stats = cached(load(), QUICK, CachePolicy(speed=2.0), sampler="heunpp2")
    assert set(stats.decisions) == {"F"} and "heunpp2" in stats.note and torch.equal(result, stock)


def test_a_sampler_that_chooses_its_steps_is_given_up():
    result, stats = cached(load(), QUICK, CachePolicy(schedule="FRFRFR"), sampler=ADAPTIVE, cfg=1.0)
    (warning,) = stats.warnings
    assert "take one with fixed steps" in warning
    assert set(stats.decisions[6:]) == {"F"}
    assert psnr(result, sample(load(), QUICK, sampler=ADAPTIVE, cfg=1.0)) > 20


def test_an_unknown_sampler_is_taken_to_evaluate_once_a_step_and_to_add_noise():
    found = []

    class Other(comfy.samplers.KSAMPLER):
        pass

    def around(executor, *args, **kw):
        found.append(EvaluationSchedule.of(Sampling.of(executor.class_obj, args, kw)))
        return executor(*args, **kw)

    patched, report = host.apply(load(), CachePolicy(schedule="FPRF"))
    patched.add_wrapper(WrappersMP.OUTER_SAMPLE, around)
    sampler = Other(comfy.samplers.sampler_object("euler").sampler_function)
    with torch.inference_mode():
        comfy.sample.sample_custom(patched, comfy.sample.prepare_noise(QUICK.latent, 7), 1.0, sampler,
                                   torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0]), *QUICK.conds(), QUICK.latent,
                                   disable_pbar=True, seed=7)  # fmt: skip
    assert report.runs[-1].decisions == "FPRF"
    assert found[0].stochastic and len(found[0].sigmas) == 5
