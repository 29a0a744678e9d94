"""MixCache's decisions, on changes made up for the purpose, and in runs of the engine."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hetcache_core import CachePolicy
from hetcache_core.error_model import Rules
from hetcache_core.forecast import Seen
from hetcache_core.guidance import Guidance
from hetcache_core.methods.mixcache import LONGEST, MixCache
from hetcache_core.profile import ErrorProfile
from tests.core.test_guidance import sampled
from tests.core.test_guidance import velocity as of_stream

RULES = Rules(warmup=2, cooldown=2, max_reuse=5, refresh=100)
EQUAL = {"R": 1.0, "G": 1.0, "B": 1.0}


def run(method, evaluations, step=0.01, miss=0.01, cfg=0.01, cfg_miss=0.01, block=None):
    """Decisions of a run in which every computed evaluation shows these changes (numbers or functions of it)."""
    done, last, full = "", 0, 0
    for i in range(evaluations):
        decision, reason = method.decide(i)
        assert reason
        done += decision
        values = (v(i) if callable(v) else v for v in (step, miss, cfg, cfg_miss, block))
        step_, miss_, cfg_, cfg_miss_, block_ = values
        if decision == "R" or not i:
            continue
        method.observe_forecast(i, Seen(i - last, step_ * (i - last), miss_))
        last = i
        if decision != "G" and cfg_ is not None:
            method.observe_guidance(i, Seen(i - full, cfg_ * (i - full), cfg_miss_))
        if decision == "F" and block_ is not None:
            method.observe_blocks(i, block_ * (i - full))
        full = i if decision == "F" else full
    return done


def cache(evaluations=40, trigger=0.1, deviation=0.1, impact=EQUAL, rules=RULES):
    return MixCache(trigger, deviation, [float(i) for i in range(evaluations)], rules, impact)


def test_caching_waits_for_warm_up_and_for_two_calm_evaluations_and_ends_for_the_cool_down():
    done = run(cache(), 40, step=lambda i: 0.5 if i < 8 else 0.01)
    assert done.startswith("F" * 10) and "F" * 11 not in done[:11] and done.endswith("FF")
    assert run(cache(), 40, step=0.2) == "F" * 40
    assert run(cache(), 40).startswith("FFFF")  # a tenth of forty, though the rules' warm-up is two


def test_it_stops_where_change_returns():
    done = run(cache(), 40, step=lambda i: 0.5 if 20 <= i < 30 else 0.01)
    assert set(done[22:29]) == {"F"} and set(done[4:18]) > {"F"} and set(done[33:37]) > {"F"}


def test_the_least_product_of_distance_and_impact_is_taken():
    only = {"impact": {"R": 1.0, "G": 0.01}}
    assert "R" not in run(cache(**only), 40)  # five times the penalty of the last is still less
    assert "G" not in run(cache(impact={"R": 0.01, "G": 1.0}), 40)
    assert "G" in run(cache(impact={"R": 1.0, "G": 1.0}), 40, step=0.05, cfg=0.001)


def test_the_granularity_used_last_pays_five_times():
    done = run(cache(), 40, block=0.01).replace("F", "")
    assert not any(a == b for a, b in pairwise(done)) and len(set(done)) > 1
    assert "RR" in run(cache(), 40, cfg=0.06).replace("F", "")  # six times as far: still dearer than a repeated step


@pytest.mark.parametrize(("cfg", "block", "kinds"), [(None, None, "FR"), (0.01, None, "FRG"), (0.01, 0.01, "FRGB")])
def test_a_granularity_that_was_never_seen_is_never_chosen(cfg, block, kinds):
    """Without guidance there is no cfg, on a model whose blocks cannot be left out no block."""
    impact = {"R": 1.0, "G": 0.9, "B": 0.1}
    assert set(run(cache(impact=impact), 40, cfg=cfg, block=block)) <= set(kinds)
    if block:
        assert "B" in run(cache(impact=impact), 40, cfg=cfg, block=block)


def test_guidance_that_has_ended_is_chosen_no_more():
    """A negative prompt for some of the steps: a lone stream's guidance would be computed at the price of all of it."""
    done = run(cache(impact={"R": 1.0, "G": 0.01}), 40, cfg=lambda i: 0.01 if i < 20 else None)
    assert "G" in done[:20] and "G" not in done[23:] and "R" in done[23:]


def test_what_failed_is_chosen_no_more():
    method = cache(impact={"R": 1.0, "G": 0.01})
    assert "G" in run(method, 20)
    method.lose("G")
    assert "G" not in run(method, 20) and not method.expects("G", 0)


def test_blocks_change_by_noise_level():
    impact, change = {"R": 1.0, "B": 1.0}, {}
    for positions in ([0.0, 1.0, 2.0], [0.0, 1.0, 1.0]):
        method = MixCache(0.1, 0.1, positions, RULES, impact)
        method.observe_blocks(2, 0.4)
        change[positions[-1]] = method._distances["B"]
    assert change == {2.0: 0.2, 1.0: 0.4}


def longest(done):
    return max(len(part) for part in done.split("F"))


def test_the_interval_follows_the_deviation_between_two_bounds():
    assert longest(run(cache(), 40, miss=0.001, cfg_miss=0.001)) == LONGEST
    assert longest(run(cache(), 40, miss=0.5, cfg_miss=0.5)) == 1
    assert longest(run(cache(), 40, miss=0.05, cfg_miss=0.05)) == 1  # between the bounds it stays
    method = cache(80)
    done = run(method, 80, miss=lambda i: 0.001 if i < 40 else 0.5, cfg=None)
    assert longest(done[:40]) == LONGEST and longest(done[60:]) == 1 == method.interval


def test_deviation_counts_by_impact():
    quiet, loud = (cache(impact={"R": 1.0, "G": g}) for g in (0.01, 1.0))
    args = dict(step=0.09, cfg=0.001, miss=0.001, cfg_miss=0.5)
    assert longest(run(quiet, 40, **args)) > longest(run(loud, 40, **args)) == 1


def test_no_more_reuse_in_a_row_than_the_rules_allow():
    rules = Rules(warmup=2, cooldown=2, max_reuse=1, refresh=100)
    done = run(cache(rules=rules), 40, miss=0.001, cfg=None)
    assert "RR" not in done and "R" in done


def test_deltas_are_kept_as_long_as_blocks_may_be_reused():
    method = cache(impact={"R": 1.0, "B": 1.0})
    assert method.expects("B", 0) and not method.expects("B", 38) and not method.expects("P", 0)


# ---- in the engine


@pytest.fixture
def profile(tmp_path):
    """An error profile whose impacts are equal."""
    path = tmp_path / "equal.json"
    path.write_text(replace(ErrorProfile.load("wan"), impact=(1.0, 1.0, 1.0)).to_json())
    return str(path)


def mixed(calls, profile, steps=24):
    def policy(schedule):
        return CachePolicy(method="mixcache", warmup=2, profile=profile, trigger=0.2)

    return sampled("F" * steps, calls, bend=0.0, policy=policy)


@pytest.mark.parametrize("calls", [[("cond", "uncond")], [("cond",), ("uncond",)], [("uncond",), ("cond",)]])
def test_a_run_mixes_steps_and_guidance_and_keeps_to_the_truth_where_it_is_linear(calls, profile):
    engine, rows, outputs = mixed(calls, profile)
    done = engine.stats.decisions
    assert set(done) == {"F", "R", "G"} and done.startswith("FFF") and done.endswith("FF")
    assert not engine.stats.warnings and engine.stats.predicted_speed is None
    for i, decision in enumerate(done):
        assert len(rows[i]) == {"F": 2, "G": 1, "R": 0}[decision]
        for stream, output in outputs[i].items():
            torch.testing.assert_close(output, of_stream(stream, i), rtol=1e-3, atol=1e-3)


def test_guidance_is_never_derived_from_a_reused_step(profile, monkeypatch):
    """Every evaluation with guidance reused computes its anchor; what it adds was kept where both were computed."""
    kept, real = [], Guidance.record

    def record(self, position, *rest):
        renewed = real(self, position, *rest)
        kept.extend([position] * renewed)
        return renewed

    monkeypatch.setattr(Guidance, "record", record)
    engine, rows, _ = mixed([("cond",), ("uncond",)], profile)
    done = engine.stats.decisions
    assert all(rows[i] == ["cond"] for i, decision in enumerate(done) if decision == "G")
    full = {engine.setup.position(i) for i, decision in enumerate(done) if decision == "F"}
    assert kept and set(kept) <= full


def test_without_guidance_it_reuses_steps_alone(profile):
    engine, _, _ = mixed([("cond",)], profile)
    assert set(engine.stats.decisions) == {"F", "R"} and not engine.stats.warnings


def test_same_settings_same_bytes(profile):
    (a, _, first), (b, _, second) = (mixed([("cond",), ("uncond",)], profile) for _ in range(2))
    assert a.stats.decisions == b.stats.decisions
    assert all(torch.equal(x[s], y[s]) for x, y in zip(first, second, strict=True) for s in x)


def test_impact_comes_with_the_profile():
    nano = ErrorProfile.load("nano")
    assert set(nano.impacts) == {"R", "G", "B"}
    assert ErrorProfile.from_json(nano.to_json()) == nano
    with pytest.raises(ValueError, match="impact"):
        ErrorProfile(**{**vars(nano), "impact": (1.0, 0.0, 1.0)})
