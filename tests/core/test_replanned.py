"""Plans that are made anew while they run, and plans that reuse guidance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hetcache_core import CachePolicy, Engine
from hetcache_core.costs import Costs
from hetcache_core.error_model import Rules, missed
from hetcache_core.forecast import Seen
from hetcache_core.methods.replanned import MOST, SEEN_DRIFT, SEEN_MISS, Replanned
from hetcache_core.packing import pack
from hetcache_core.plan import Plan, plan
from hetcache_core.profile import ErrorProfile
from tests.core.test_engine import H, T, W, setup
from tests.core.test_plan import euler, sigmas

NANO, COSTS = ErrorProfile.load("nano"), Costs(0.3, guidance=0.5)
RULES = Rules(warmup=2, cooldown=2, max_reuse=5, refresh=10)
SIGMAS = tuple(float(s) for s in sigmas(30))


def follow(predictions=1.0, context=1.0, profile=NANO, rules=RULES):
    """(decisions, first plan, reasons) of a run whose change is this many times the profile's."""
    first, reasons = plan(SIGMAS, COSTS, 3.0, rules, profile), []
    method = Replanned(first, SIGMAS, 3.0, rules, profile, lambda plan, reason: reasons.append(reason))
    truth = {c: profile.at(c, SIGMAS) for c in ("first", "second", "context_first")}
    done, last, spacing = "", 0, None
    for i in range(30):
        done += method.decide(i)[0]
        if done[-1] == "R" or not i:
            continue
        gap = i - last
        miss = truth["second"][i] * missed(gap) if spacing else truth["first"][i] * gap
        drift = context * SEEN_DRIFT * truth["context_first"][i] if done[-1] == "F" else None
        method.observe_forecast(i, Seen(gap, 0.0, predictions * SEEN_MISS * miss, drift))
        last, spacing = i, gap
    return done, first.decisions, reasons


def test_new_plans_keep_the_cooldown_that_the_first_settled_on():
    sigmas, costs = euler(30), Costs(0.4)
    rules = replace(RULES, spare_cooldown=True, brief=True)
    first = plan(sigmas, costs, 4.0, rules, NANO)
    assert (first.cooldown, first.decisions[-2]) == (1, "F")
    method = Replanned(first, sigmas, 4.0, rules, NANO)
    for i in range(20):
        if method.decide(i)[0] != "R":
            method.observe_forecast(i, Seen(2.0, 0.0, 0.0001, 0.1))
    assert method.plan is not first and method.plan.decisions[-2] == "F"


def test_where_the_profile_fits_the_plan_is_kept():
    done, first, reasons = follow()
    assert done == first and not reasons
    assert follow(1.3, 0.8)[2] == []


def test_a_common_factor_changes_no_plan():
    done, first, reasons = follow(4.0, 4.0)
    assert done == first and not reasons


def test_where_the_surroundings_are_still_more_is_computed_in_part():
    done, first, reasons = follow(2.0, 0.2, replace(NANO, staleness=3.0))
    assert reasons and "2.0 times" in reasons[0] and done != first
    assert done.count("P") > first.count("P")
    lively, first, _ = follow(predictions=0.3, context=5.0)
    assert lively.count("P") < first.count("P")


@pytest.mark.parametrize(("predictions", "context"), [(3.0, 0.3), (0.3, 3.0), (1.0, 3.0), (10.0, 0.1)])
def test_new_plans_keep_the_budget_and_the_rules(predictions, context):
    done, first, reasons = follow(predictions, context)
    price = {"F": 1.0, "P": 0.3, "R": COSTS.reuse}
    assert sum(price[d] for d in done) <= 30 / 3.0 * 1.02
    assert done[:2] == "FF" and done[-2:] == "FF" and "R" * 6 not in done
    assert max(len(part) for part in done.split("F")) < 10 and len(reasons) <= MOST


def test_what_was_never_prepared_is_not_planned():
    """A first plan without partials remembers no context for later ones."""
    rules = replace(RULES, partials=False)
    method = Replanned(plan(SIGMAS, COSTS, 3.0, rules, NANO), SIGMAS, 3.0, RULES, NANO)
    for i in range(30):
        if method.decide(i)[0] == "F" and i:
            method.observe_forecast(i, Seen(1.0, 0.0, 1.0, 1e-6))
    assert "P" not in method.plan.decisions


def test_new_plans_reuse_guidance_only_where_the_first_did():
    """Differences of guidance are kept from the first evaluation on, or not at all."""
    profile, rules = replace(NANO, guidance=0.01), replace(RULES, guidance=True)
    for first in (plan(SIGMAS, COSTS, 2.0, allowed, profile) for allowed in (RULES, replace(rules, partials=False))):
        method = Replanned(first, SIGMAS, 2.0, rules, profile)
        for i in range(12):
            if method.decide(i)[0] != "R" and i:
                method.observe_forecast(i, Seen(1.0, 0.0, 0.01, 2.0))
        later = method.plan.decisions[12:]
        assert later != first.decisions[12:] and ("G" in later) == ("G" in first.decisions), (first, method.plan)


def test_what_half_evaluations_are_made_of_is_prepared():
    method = Replanned(Plan.given("FFHFGF", 6, COSTS), SIGMAS, 2.0, RULES, NANO)
    assert method.expects("P", -1) and method.expects("G", -1) and method.expects("P", 1)
    assert not method.expects("P", 3) and method.expects("G", 3) and not method.expects("G", 4)


def test_a_plan_goes_on_from_what_is_done():
    for done in ("FFR", "FFPRRF", "FFRRRRR", "FFPPPPP"):
        whole = plan(SIGMAS, COSTS, 3.0, RULES, NANO, done)
        assert whole.decisions.startswith(done) and len(whole.decisions) == 30
    best = plan(SIGMAS, COSTS, 3.0, RULES, NANO)
    again = plan(SIGMAS, COSTS, 3.0, RULES, NANO, best.decisions[:12])
    assert again.predicted_error <= best.predicted_error * 1.02


def growing(policy, steps=30):
    """A run of the engine on predictions that curve, over surroundings that stand still."""
    engine = Engine(policy, setup(steps=steps))
    base = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(0))
    edit = engine.setup.classes.generative.view(1, 1, T, H // 2, W // 2)
    edit = edit.repeat_interleave(2, -1).repeat_interleave(2, -2)
    outputs = []
    for evaluation in range(steps):

        def compute(selection, stream=None, evaluation=evaluation):
            output = base * (1 + edit * (0.3 * np.sin(evaluation)))
            output = output if selection is None else pack(output, selection)
            if engine.routes_attention:
                qkv = torch.ones(1, output[0, 0].numel() // 4, 2, 128)
                for layer in range(engine.setup.shape.attention_layers):
                    engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, weights: q)
            return output

        outputs.append(engine.evaluate(evaluation, ("cond",), torch.zeros(1, 16, T, H, W), compute))
    return engine.stats, outputs


def test_a_run_says_that_it_was_planned_anew_and_is_the_same_every_time():
    policy = CachePolicy(speed=2.5, warmup=2, profile="wan", replan=True)
    (stats, first), (again, second) = growing(policy), growing(policy)
    assert "planned anew at evaluation" in stats.summary() and "the surroundings 0.1 times" in stats.summary()
    assert stats.decisions == stats.planned
    assert stats.decisions == again.decisions and not stats.warnings
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    settled, _ = growing(replace(policy, replan=False))
    assert "planned anew" not in settled.summary() and settled.decisions != stats.decisions


# ---- guidance in plans


def test_guidance_is_reused_only_where_the_profile_says_what_it_costs_and_it_pays():
    cheap, dear = (replace(NANO, guidance=g) for g in (0.01, 0.73))
    assert "G" not in plan(SIGMAS, COSTS, 1.5, RULES, cheap).decisions
    rules = replace(RULES, guidance=True)
    found = plan(SIGMAS, COSTS, 1.5, rules, cheap)
    assert "G" in found.decisions and found.predicted_speed >= 1.49
    assert found.predicted_error < plan(SIGMAS, COSTS, 1.5, RULES, cheap).predicted_error
    for speed in (2.0, 3.0, 4.0):
        assert "G" not in plan(SIGMAS, COSTS, speed, rules, dear).decisions


def test_half_evaluations_are_planned_where_both_their_parts_may_be():
    cheap = replace(NANO, guidance=0.0001)
    rules = replace(RULES, guidance=True)
    costs = Costs(0.5, guidance=0.5)
    assert "H" in plan(SIGMAS, costs, 3.0, rules, cheap).decisions
    assert "H" not in plan(SIGMAS, costs, 3.0, replace(rules, partials=False), cheap).decisions


def test_blocks_are_planned_only_where_the_profile_says_what_they_cost_and_they_pay():
    cheap, dear = (replace(NANO, blocks=b) for b in (0.001, 10.0))
    costs, rules = Costs(0.9, blocks=0.6), replace(RULES, blocks=True)
    assert "B" not in plan(SIGMAS, costs, 1.5, RULES, cheap).decisions
    assert "B" in plan(SIGMAS, costs, 1.5, rules, cheap).decisions
    assert "B" not in plan(SIGMAS, costs, 1.5, rules, dear).decisions


def test_rules_allow_guidance_with_two_streams_and_a_measured_profile():
    policy, known = CachePolicy(), replace(NANO, guidance=0.5)
    assert Rules.of(policy, known, 30, streams=2).guidance
    assert not Rules.of(policy, known, 30, streams=1).guidance
    assert not Rules.of(policy, replace(NANO, guidance=None), 30, streams=2).guidance
