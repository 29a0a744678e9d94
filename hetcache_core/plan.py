"""The planner: sigmas, costs and a target speed -> what to do at every evaluation, before sampling.

A Lagrangian dynamic programme finds sequences on the lower hull of error over cost; a local search then spends what is
left of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .costs import Costs
from .error_model import FULL, REUSE, ErrorModel, Rules, total_cost
from .local_search import spend
from .policy import FEW_STEPS
from .profile import ErrorProfile

SEAM = 1.26  # 2 dB: what a cool-down may add to the predicted error, which knows nothing of the seam it mends
LEASH = 1.5  # 3.5 dB: what full evaluations at their usual distance may add to it, which underrates long absences
ALLOW = ", and so would max_reuse 1, which lets single evaluations be forecast"
DEAREST = 1e4  # a price of an evaluation beyond what any error is worth
MOST_VERTICES = 40  # of the hull to look at; some ten are enough, this bounds very long schedules
# Decisions come in lumps, with few steps in large ones: a plan may miss its budget by this much rather than waste most
# of an evaluation.
SLACK, FEW_SLACK = 1.01, 1.03


@dataclass(frozen=True)
class Plan:
    """A planned sampling run.

    Args:
        decisions: one letter an evaluation: F(ull), P(artial), R(euse); B and G reuse background blocks, guidance; H is
            a partial one that reuses guidance.
        predicted_speed: full evaluations' cost over this plan's.
        predicted_error: the model's sum, relative to the prediction's size; compares plans, promises no PSNR.
        note: why the target was missed, in plain words, or empty.
        costs, cooldown: it was made with.
    """

    decisions: str
    predicted_speed: float
    predicted_error: float
    note: str = ""
    costs: Costs = field(default_factory=lambda: Costs(1.0))
    cooldown: int = 0

    def __getitem__(self, evaluation: int) -> str:
        """Decision of an evaluation; full beyond the planned ones."""
        return self.decisions[evaluation] if 0 <= evaluation < len(self.decisions) else FULL

    @classmethod
    def full(cls, evaluations: int, note: str = "", cooldown: int = 0) -> Plan:
        return cls(FULL * evaluations, 1.0, 0.0, note, cooldown=cooldown)

    @classmethod
    def given(cls, schedule: str, evaluations: int, costs: Costs) -> Plan:
        """A schedule the user wrote, cut or filled with full evaluations to length; its error is not predicted."""
        decisions = schedule[:evaluations].ljust(evaluations, FULL)
        note = (
            "" if len(schedule) == evaluations else f"the schedule has {len(schedule)} letters for {evaluations} steps"
        )
        return cls(decisions, evaluations / total_cost(decisions, costs), math.nan, note, costs)


def slack(evaluations: int) -> float:
    """How many times its budget a plan may cost."""
    return FEW_SLACK if evaluations <= FEW_STEPS else SLACK


def plan(
    sigmas: Sequence[float], costs: Costs, speed: float, rules: Rules, profile: ErrorProfile, done: str = ""
) -> Plan:
    """Plan a run.

    Args:
        sigmas: noise levels, one an evaluation, and the final one: ``[n + 1]``.
        costs: of partial and reuse evaluations.
        speed: wanted speed-up of the loop.
        rules: what the sequence must obey.
        profile: how fast predictions change.
        done: decisions already taken, which the plan begins with.

    Returns:
        The least predicted error at ``speed`` with runs of reuse as short as that allows (``rules.usual_reuse``); when
        the rules forbid that speed, the fastest plan with a note.
    """
    sigmas = tuple(float(s) for s in sigmas)

    def best(rules: Rules) -> Plan:
        shortest = 0 if rules.spare_cooldown else rules.cooldown
        shorter = [replace(rules, cooldown=c) for c in range(rules.cooldown, shortest - 1, -1)]
        return _first([_plan(sigmas, costs, float(speed), r, profile, done) for r in shorter], SEAM)

    usual, most = rules.refresh, max(len(sigmas) - 1, 1)
    apart = {min(r, most) for r in (usual, round(usual * 4 / 3), most)} if rules.spare_refresh else {usual}

    def planned(rules: Rules) -> Plan:
        return _first([best(replace(rules, refresh=r)) for r in sorted(apart)], LEASH)

    found = planned(rules)
    if found.note:
        return found
    for longest in range(rules.usual_reuse, rules.max_reuse) if rules.usual_reuse else ():
        if REUSE * (longest + 1) in found.decisions:
            shorter = planned(replace(rules, max_reuse=longest))
            if not shorter.note:
                return shorter
    return found


def _first(plans: list[Plan], margin: float) -> Plan:
    """The first that errs by no more than so many times the best of those that reach the speed, or the last."""
    reachable = [p for p in plans if not p.note] or plans[-1:]
    least = min(p.predicted_error for p in reachable)
    return next(p for p in reachable if p.predicted_error <= least * margin)


def forget() -> None:
    """Let go of plans made before, so that the next one takes its time: for measuring what planning costs."""
    _plan.cache_clear()


@lru_cache(maxsize=256)  # a queue of prompts, or a slider that moves to and fro, asks the same again
def _plan(
    sigmas: tuple[float, ...], costs: Costs, speed: float, rules: Rules, profile: ErrorProfile, done: str
) -> Plan:
    evaluations = len(sigmas) - 1
    if speed <= 1.0 or evaluations <= rules.warmup + rules.cooldown:
        note = "" if speed <= 1.0 else f"{evaluations} evaluations are no more than warm-up and cool-down; all are full"
        return Plan.full(max(evaluations, 0), note, rules.cooldown)
    model = ErrorModel(sigmas, profile, costs, rules, done)
    budget = evaluations / speed * slack(evaluations)
    decisions, note = _cheapest_error(model, budget), ""
    cost = model.cost(decisions)
    if cost > budget:
        reached = evaluations / cost
        also = "" if rules.max_reuse else ALLOW
        if rules.partials:
            note = (
                f"speed {speed:g} is out of reach, {reached:.2f} is the most: {rules.warmup} warm-up and "
                f"{rules.cooldown} cool-down evaluations are full and a partial one costs {costs.partial:.0%} of a "
                f"full one; a smaller mask, more steps or a shorter warm-up would help{also}"
            )
        else:
            note = (
                f"speed {speed:g} is out of reach, {reached:.2f} is the most: {rules.warmup} warm-up and "
                f"{rules.cooldown} cool-down evaluations are full; more steps or a shorter warm-up would help{also}"
            )
    else:
        decisions = spend(model, decisions, budget)
        cost = model.cost(decisions)
    return Plan("".join(decisions), evaluations / cost, model.error(decisions), note, costs, rules.cooldown)


def _cheapest_error(model: ErrorModel, budget: float) -> list[str]:
    """Least error whose cost fits, on the hull; the cheapest sequence where none fits.

    From one end of the hull and the other, the price at which two points are worth the same shows what lies below the
    line between them, until nothing does.
    """
    dear, cheap = model.best(0.0), model.best(DEAREST)
    if model.cost(dear) <= budget:
        return dear
    for _ in range(MOST_VERTICES if model.cost(cheap) <= budget else 0):
        saved = model.reckoned(dear) - model.reckoned(cheap)
        price = (model.error(cheap) - model.error(dear)) / max(saved, 1e-9)
        between = model.best(price)
        worth, line = (model.error(d) + price * model.reckoned(d) for d in (between, cheap))
        if worth >= line * (1 - 1e-9):
            break
        if model.cost(between) > budget:
            dear = between
        else:
            cheap = between
    return cheap
