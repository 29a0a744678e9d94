"""Which run, evaluation and stream a call of a diffusers model belongs to, by its calls alone and on a model."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler

from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from hetcache_core.hosts.diffusers_calls import Calls, Schedule
from tests.hosts.small_wan import control, noise, prompts, sample

SCHEDULE = Schedule((1000.0, 800.0, 500.0, 200.0), (1.0, 0.8, 0.5, 0.2, 0.0))


def placed(*calls, streams=2):
    """Where calls (latent's number, timestep, name) belong: evaluation, stream, and what begins there."""
    follow, found = Calls(streams), []
    for number, timestep, name in calls:
        place = follow.place(torch.full((1, 2), float(number)), timestep, name)
        if place.begins:
            follow.schedule = Schedule.starting_at(timestep, SCHEDULE)
        begins = "several" if place.several else "doubtful" if place.doubtful else "begins" if place.begins else ""
        found.append((place.evaluation, place.stream, begins))
    return found


def test_named_calls_follow_the_schedule():
    calls = [(i, t, name) for i, t in enumerate(SCHEDULE.timesteps) for name in ("cond", "uncond")]
    assert placed(*calls) == [
        (i, name, "begins" if (i, name) == (0, "cond") else "") for i in range(4) for name in ("cond", "uncond")
    ]


@pytest.mark.parametrize("streams", [1, 2])
def test_unnamed_calls_are_as_many_as_the_first_evaluation_has(streams):
    calls = [(i, t, None) for i, t in enumerate(SCHEDULE.timesteps) for _ in range(2)]
    assert [place[:2] for place in placed(*calls, streams=streams)] == [
        (i, f"call {j}") for i in range(4) for j in range(2)
    ]


def test_guidance_that_starts_late_is_another_stream():
    assert placed((0, 1000, None), (1, 800, None), (1, 800, None), (2, 500, None), (2, 500, None), streams=1) == [
        (0, "call 0", "begins"), (1, "call 0", ""), (1, "call 1", ""), (2, "call 0", ""), (2, "call 1", "")
    ]  # fmt: skip


def test_a_run_that_begins_anew_after_one_step_is_not_the_old_one_s_second_stream():
    """With guidance off and nothing named, only the latent tells them apart."""
    assert placed((0, 1000, None), (7, 1000, None), (8, 800, None)) == [
        (0, "call 0", "begins"), (0, "call 0", "doubtful"), (1, "call 0", "")
    ]  # fmt: skip
    assert placed((0, 1000, None), (1, 800, None), (7, 1000, None))[-1] == (0, "call 0", "begins")


@pytest.mark.parametrize("name", [None, "cond"])
def test_windows_of_one_step_are_never_mixed_with_a_run(name):
    found = placed(*[(10 * i + window, t, name) for i, t in enumerate(SCHEDULE.timesteps) for window in range(3)])
    assert [begins for _, _, begins in found[:3]] == ["begins", "doubtful", "doubtful"]
    assert [begins for _, _, begins in found[3:]] == ["", "several", *[""] * 7]
    again = placed((0, 1000, name), (1, 1000, name), (10, 800, name), (11, 800, name), (7, 1000, name), (8, 800, name))
    assert [begins for _, _, begins in again] == ["begins", "doubtful", "", "several", "begins", ""]


@pytest.mark.parametrize(("method", "begins"), [("plan", "FFF"), ("profilingdit", "FFFFFFF")])
def test_a_run_that_may_be_another_latent_of_the_same_step_warms_up_as_long_as_any(vace, method, begins):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(30)
    policy = CachePolicy(method=method, speed=2.0, profile="wan", cooldown=None if method == "plan" else 0)
    decisions = []
    for broken_off in (False, True):
        with host.apply(vace, policy, scheduler=scheduler) as handle:
            if broken_off:
                vace(noise().flip(2), scheduler.timesteps[:1], prompts()[0], None, control())
            for t in scheduler.timesteps:
                vace(noise(), t[None], prompts()[0], None, control())
            decisions.append(handle.stats.decisions)
    assert decisions[0] == decisions[1] and decisions[0].startswith(begins)


def test_windows_are_computed_in_full_on_a_model(vace):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(4)
    windows = [noise(), noise().flip(2)]
    with host.apply(vace, CachePolicy(speed=2.0), scheduler=scheduler) as handle:
        for t in scheduler.timesteps:
            for x in windows:
                with vace.cache_context("cond"):
                    cached = vace(x, t[None], prompts()[0], None, control()).sample
                assert set(handle.stats.decisions) == {"F"}
        assert "several latents a step" in handle.stats.summary()
    assert torch.equal(cached, vace(windows[-1], scheduler.timesteps[-1:], prompts()[0], None, control()).sample)


def test_a_call_before_the_run_leaves_nothing_of_its_prompt(vace):
    """A warm-up call, or a run broken off after its first step, and then one of four steps without guidance."""
    scheduler, policy = FlowMatchEulerDiscreteScheduler(shift=5.0), CachePolicy(speed=3.0, memory_share=1.0)
    with host.apply(vace, policy, scheduler=scheduler) as handle:
        scheduler.set_timesteps(4)
        vace(noise().flip(2), scheduler.timesteps[:1], prompts()[1], None, control())
        after = sample(vace, scheduler, steps=4, cfg=1.0, controls=control(), named=False)
        assert len(handle.stats.decisions) == 4 and handle.stats.decisions.startswith("FF")
        handle.reset()
        alone = sample(vace, scheduler, steps=4, cfg=1.0, controls=control(), named=False)
        assert handle.stats.decisions.startswith("FP")
    warm = CachePolicy(speed=3.0, memory_share=1.0, warmup=2)
    with host.apply(vace, warm, scheduler=scheduler):
        assert torch.equal(after, sample(vace, scheduler, steps=4, cfg=1.0, controls=control(), named=False))
    assert not torch.equal(after, alone)
