"""Streams of a run that come late, leave, come back, or are called in another order."""

from types import SimpleNamespace

import pytest
import torch

from hetcache_core import CachePolicy, Engine
from hetcache_core.costs import Costs
from hetcache_core.packing import pack
from hetcache_core.stats import RunStats
from hetcache_core.tokens import TokenGrid
from tests.core.test_engine import LAYERS, STEPS, H, Model, T, W, setup


def test_a_stream_that_appears_midway_is_computed_in_full():
    engine = Engine(CachePolicy(speed=3.0), setup())
    model = Model(engine)
    for evaluation in range(STEPS):
        model.run(evaluation, ("cond",))
        if evaluation >= 9:
            late = model.run(evaluation, ("late",))
            if evaluation == 9:
                assert torch.equal(late, model.velocity(evaluation))
    assert "a stream not seen before" in {r.reason for r in engine.stats.records}


def test_a_stream_that_leaves_the_run_speaks_no_longer():
    """An online method goes by the streams still there: it decides after the prompt's turn as it does without one."""

    def decisions(prompts):
        engine = Engine(CachePolicy(method="hetcache", threshold=0.2, warmup=2, cooldown=1), setup(steps=40))
        model = Model(engine)
        for evaluation in range(40):
            model.run(evaluation, (prompts[evaluation // 20],))
        return engine.stats.decisions

    turned, same = decisions(("early", "late")), decisions(("only", "only"))
    assert turned[20] == "F" and turned[21:] == same[21:] and set(same[21:]) == {"F", "P", "R"}


@pytest.mark.parametrize("away", [range(8, 13), range(9, 10)])
@pytest.mark.parametrize("apart", [16, 4, 0])
def test_a_stream_that_comes_back_is_computed_in_full_first(away, apart):
    """Where it missed a full evaluation, as with guidance turned off for a part of the run."""
    policy = CachePolicy(schedule="FFFRPRPRPRFRPRPRPRPF", memory_bits=8, memory_turn_bits=4, memory_apart_bits=apart)
    engine = Engine(policy, setup())
    model, back = Model(engine), away[-1] + 1
    for evaluation in range(STEPS):
        model.run(evaluation, ("cond",))
        if evaluation not in away:
            late = model.run(evaluation, ("uncond",))
            if evaluation == back and 10 in away:
                assert torch.equal(late, model.velocity(evaluation))
    reasons = [r.reason for r in engine.stats.records if r.index == back]
    assert ("a stream that was away when all was computed" in reasons) == (10 in away)
    assert engine.stats.decisions[back + 1 :] == policy.schedule[back + 1 :]  # the others remember what they did


def test_what_is_computed_is_the_same_whichever_stream_a_host_calls_first():
    """The streams' predictions differ, and so does how far each may be extrapolated."""

    def run(order):
        engine = Engine(CachePolicy(schedule="FFFRRFRRPRRP"), setup(steps=12, conditional="cond"))
        streams, seen, noise = ("cond", "uncond"), [], torch.Generator().manual_seed(0)
        wobble = torch.randn(2, 12, 1, 16, T, H, W, generator=noise)
        for evaluation in range(12):
            for which in order if evaluation else (0, 1):

                def compute(selection, which=which, evaluation=evaluation):
                    full = 1 + 0.1 * evaluation + (0.02, 0.5)[which] * wobble[which, evaluation]
                    output = full if selection is None else pack(full, selection)
                    rows = torch.full((1, output[0, 0].numel() // 4, 2, 128), 1.0 + evaluation**2)
                    if engine.routes_attention:
                        for layer in range(LAYERS):
                            engine.self_attention(layer, rows, rows, rows, lambda q, k, v, w: seen.append(k.sum()) or q)
                    return output

                engine.evaluate(evaluation, (streams[which],), torch.zeros(1, 16, T, H, W), compute)
        assert engine.stats.decisions == "FFFRRFRRPRRP"
        return sorted(map(float, seen))

    assert run((1, 0)) == run((0, 1))


def timed(evaluations):
    """Statistics of evaluations of so many streams, of a kind, in so many seconds."""
    stats = RunStats(CachePolicy(), TokenGrid(1, 4, 4), None)
    for index, (kind, streams, seconds) in enumerate(evaluations):
        watch = SimpleNamespace(stop=lambda: None, seconds=seconds, finished=True)
        stats.add(index, 1.0, kind, "", 16, watch, 0, 0, streams=streams)
    return stats


def test_what_a_guider_saves_is_not_claimed():
    """Guidance in the first steps only: later ones cost half of those, with or without us."""
    stats = timed([("F", 2, 9.0), ("F", 2, 2.0), ("F", 2, 2.0), ("F", 1, 1.0), ("R", 1, 0.0), ("F", 1, 1.0)])
    assert stats.speed == pytest.approx((3 * 2 + 3 * 1) / 15) and not stats.speed_is_estimated
    stats = timed([("F", 2, 2.0), ("F", 2, 2.0), ("R", 1, 0.0), ("P", 1, 0.5)])
    assert stats.speed == pytest.approx((2 * 2 + 2 * 1) / 4.5) and stats.speed_is_estimated  # none of one stream timed
    cold = timed([("F", 2, 9.0), ("P", 2, 1.0), ("P", 1, 0.5)])
    cold.costs = Costs(partial=0.5)
    assert cold.speed == pytest.approx((2 + 2 + 1) / (2 + 1.5)) and cold.speed_is_estimated
