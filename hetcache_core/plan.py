"""The planner: sigmas, costs and a target speed -> full, partial or reuse for every evaluation, before sampling.

The predicted error of a sequence is a sum over evaluations, each weighted by how much an error there matters in the end
(measured: nearly the same along a schedule whose shift suits the model, a little more at its start):

* reuse, g evaluations after the last computed one, which came h after the one before: a line through those two misses a
  curve with second difference s by ``s g (g + h) / 2`` (a held prediction misses by the first difference times g);
* partial, G evaluations after the last full one: generative tokens see context that is G evaluations old;
* both: the context's own forecast error, a share of which spills into the edit;
* guidance reused, G evaluations after the last full one: its difference was forecast so far, at the profile's price.

A Lagrangian dynamic programme finds sequences on the lower hull of error over cost; a local search then spends what is
left of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .costs import Costs
from .policy import FEW_STEPS, CachePolicy
from .profile import ErrorProfile

FULL, PARTIAL, REUSE, BLOCKS, GUIDANCE = "F", "P", "R", "B", "G"
NAMES = {FULL: "full", BLOCKS: "blocks", GUIDANCE: "guidance", PARTIAL: "partial", REUSE: "reuse"}  # dearest first
MOST_IMPROVEMENTS = 30  # rounds of local search; it settles in fewer, this bounds very long schedules
SEAM = 1.26  # 2 dB: what a cool-down may add to the predicted error, which knows nothing of the seam it mends
SLACK = 1.01  # decisions come in lumps: a plan may miss its budget by this much rather than waste most of an evaluation


@dataclass(frozen=True)
class Rules:
    """What a plan must obey.

    Args:
        warmup, cooldown: full evaluations at the start (at least 1) and at the end.
        max_reuse: most reuse evaluations in a row.
        refresh: most evaluations from one full evaluation to the next.
        partials: whether partial evaluations are possible at all.
        guidance: whether guidance may be reused.
        hold: whether predictions are held rather than extrapolated.
        spare_cooldown: whether the cool-down may be shortened where the target leaves too little for it.
    """

    warmup: int
    cooldown: int
    max_reuse: int
    refresh: int
    partials: bool = True
    hold: bool = False
    spare_cooldown: bool = False
    guidance: bool = False

    def __post_init__(self):
        if self.warmup < 1 or self.cooldown < 0 or self.max_reuse < 0 or self.refresh < 1:
            raise ValueError(f"impossible planning rules: {self}")

    @classmethod
    def of(
        cls, policy: CachePolicy, profile: ErrorProfile, evaluations: int, partials: bool = True, streams: int = 1
    ) -> Rules:
        """The policy's rules, with the gaps filled for this many evaluations."""
        few = evaluations <= FEW_STEPS
        warmup = policy.warmup or (1 if few else max(2, round(profile.warmup * evaluations)))
        cooldown = policy.cooldown if policy.cooldown is not None else (0 if few else profile.cooldown)
        max_reuse = policy.max_reuse if policy.max_reuse is not None else (0 if few else 5)
        refresh = policy.refresh or (max(evaluations, 2) if few else max(4, round(0.3 * evaluations)))
        spare = policy.cooldown is None and cooldown > 0
        guided = streams > 1 and profile.guidance is not None
        return cls(warmup, cooldown, max_reuse, refresh, partials, policy.forecast_order == 0, spare, guided)


@dataclass(frozen=True)
class Plan:
    """A planned sampling run.

    Args:
        decisions: one letter an evaluation: F(ull), P(artial), R(euse); B and G reuse background blocks, guidance.
        predicted_speed: full evaluations' cost over this plan's.
        predicted_error: the model's sum, relative to the prediction's size; compares plans, promises no PSNR.
        note: why the target was missed, in plain words, or empty.
    """

    decisions: str
    predicted_speed: float
    predicted_error: float
    note: str = ""
    costs: Costs = field(default_factory=lambda: Costs(1.0))

    def __getitem__(self, evaluation: int) -> str:
        """Decision of an evaluation; full beyond the planned ones."""
        return self.decisions[evaluation] if 0 <= evaluation < len(self.decisions) else FULL

    @classmethod
    def full(cls, evaluations: int, note: str = "") -> Plan:
        return cls(FULL * evaluations, 1.0, 0.0, note)

    @classmethod
    def given(cls, schedule: str, evaluations: int, costs: Costs) -> Plan:
        """A schedule the user wrote, cut or filled with full evaluations to length; its error is not predicted."""
        decisions = schedule[:evaluations].ljust(evaluations, FULL)
        note = (
            "" if len(schedule) == evaluations else f"the schedule has {len(schedule)} letters for {evaluations} steps"
        )
        price = prices(costs)
        return cls(decisions, evaluations / sum(price[d] for d in decisions), math.nan, note, costs)

    def counts(self) -> dict[str, int]:
        return {letter: self.decisions.count(letter) for letter in NAMES}


def prices(costs: Costs) -> dict[str, float]:
    """What each kind of evaluation costs, in full ones."""
    return {FULL: 1.0, PARTIAL: costs.partial, REUSE: costs.reuse, BLOCKS: costs.blocks, GUIDANCE: costs.guidance}


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
        The least predicted error at ``speed`` or, when the rules forbid that speed, the fastest plan with a note.
    """
    sigmas = tuple(float(s) for s in sigmas)
    if not rules.spare_cooldown:
        return _plan(sigmas, costs, float(speed), rules, profile, done)
    shorter = [replace(rules, cooldown=c) for c in range(rules.cooldown, -1, -1)]
    plans = [_plan(sigmas, costs, float(speed), r, profile, done) for r in shorter]
    reachable = [p for p in plans if not p.note] or plans[-1:]
    least = min(p.predicted_error for p in reachable)
    return next(p for p in reachable if p.predicted_error <= least * SEAM)


@lru_cache(maxsize=64)  # a queue of prompts, or a slider that moves to and fro, asks the same again
def _plan(
    sigmas: tuple[float, ...], costs: Costs, speed: float, rules: Rules, profile: ErrorProfile, done: str
) -> Plan:
    evaluations = len(sigmas) - 1
    if speed <= 1.0 or evaluations <= rules.warmup + rules.cooldown:
        note = "" if speed <= 1.0 else f"{evaluations} evaluations are no more than warm-up and cool-down; all are full"
        return Plan.full(max(evaluations, 0), note)
    model = _ErrorModel(sigmas, profile, costs, rules, done)
    budget = evaluations / speed
    decisions, note = _cheapest_error(model, budget), ""
    cost = model.cost(decisions)
    if cost > budget * SLACK:
        reached = evaluations / cost
        note = (
            f"speed {speed:g} is out of reach, {reached:.2f} is the most: {rules.warmup} warm-up and {rules.cooldown} "
            f"cool-down evaluations are full and a partial one costs {costs.partial:.0%} of a full one; "
            "a smaller mask, more steps or a shorter warm-up would help"
        )
    else:
        decisions = _spend(model, decisions, budget)
        cost = model.cost(decisions)
    return Plan("".join(decisions), evaluations / cost, model.error(decisions), note, costs)


def error_terms(
    decisions: str, sigmas: Sequence[float], profile: ErrorProfile, costs: Costs, rules: Rules
) -> tuple[float, float, float] | None:
    """Predicted error of a schedule by cause: forecasts, stale context, spill of context forecasts.

    For fitting a profile's ``staleness`` and ``spill``. None where the schedule breaks a rule.
    """
    return _ErrorModel(tuple(float(s) for s in sigmas), profile, costs, rules).terms(decisions)


class _ErrorModel:
    def __init__(self, sigmas: Sequence[float], profile: ErrorProfile, costs: Costs, rules: Rules, done: str = ""):
        self.done = done
        self.n, levels = len(sigmas) - 1, sigmas[:-1]
        self.weight = profile.at("weight", levels) / len(profile.sigmas)
        self.first, self.second = profile.at("first", levels), profile.at("second", levels)
        self.stale = profile.staleness * profile.at("context_first", levels)
        self.spill = profile.spill * profile.at("context_second", levels)
        self.guided = (profile.guidance or 0.0) * self.second
        self.costs, self.rules = costs, rules
        self.price = prices(costs)

    def cost(self, decisions) -> float:
        return sum(self.price[d] for d in decisions)

    def forced_full(self, i: int) -> bool:
        return i < self.rules.warmup or i >= self.n - self.rules.cooldown

    def forecast_error(self, i: int, g, h):
        return self.first[i] * g if self.rules.hold else self.second[i] * g * (g + h) / 2

    def reuse_error(self, i: int, g, h, age):
        return self.weight[i] * (self.forecast_error(i, g, h) + self.spill[i] * age * age)

    def partial_error(self, i: int, age):
        return self.weight[i] * (self.stale[i] * age + self.spill[i] * age * age)

    def guidance_error(self, i: int, age):
        return self.weight[i] * self.guided[i] * age * (age + 1) / 2

    def terms(self, decisions) -> tuple[float, float, float] | None:
        """Error of a sequence by cause: forecasts, stale context, spill. None where it breaks a rule."""
        forecast = stale = spill = 0.0
        g, h, age, rules = 0, 1, 0, self.rules
        for i, decision in enumerate(decisions):
            g, age = g + 1, age + 1
            if decision == FULL:
                g, h, age = 0, g, 0
                continue
            if self.forced_full(i) or age >= rules.refresh:
                return None
            if decision == GUIDANCE:
                if not rules.guidance:
                    return None
                forecast += self.guidance_error(i, age)
                g, h = 0, g
                continue
            spill += self.weight[i] * self.spill[i] * age * age
            if decision == PARTIAL:
                if not rules.partials:
                    return None
                stale += self.weight[i] * self.stale[i] * age
                g, h = 0, g
            else:
                if g > rules.max_reuse:
                    return None
                forecast += self.weight[i] * self.forecast_error(i, g, h)
        return forecast, stale, spill

    def error(self, decisions) -> float:
        """Predicted error of a sequence, infinite where it breaks a rule."""
        terms = self.terms(decisions)
        return math.inf if terms is None else sum(terms)

    def best(self, price: float) -> list[str]:
        """Sequence of least ``error + price * cost``, by dynamic programming over (g, h, age)."""
        rules = self.rules
        reach, ages = rules.max_reuse + 1, rules.refresh
        gap = np.arange(reach)[:, None, None]
        spacing = np.arange(1, reach + 1)[None, :, None]
        age = np.arange(ages)[None, None, :]
        value = np.full((reach, reach, ages), np.inf)
        value[self._start(value.shape)] = 0.0
        moves = []
        for i in range(len(self.done), self.n):
            kinds = np.full(ages, PARTIAL)
            new = np.full_like(value, np.inf)
            back = np.zeros(value.shape, dtype=np.int64)
            best_by_gap = value.min(axis=(1, 2))  # full: the new spacing is the old gap + 1, age and gap are 0
            new[0, :, 0] = best_by_gap + price
            back[0, :, 0] = [_flat(value, g, value[g]) for g in range(reach)]
            if not self.forced_full(i) and ages > 1:
                older = slice(0, ages - 1)
                if rules.partials or rules.guidance:
                    partial, guided = np.full((2, ages - 1), np.inf)
                    if rules.partials:
                        partial = self.partial_error(i, age[0, 0, 1:]) + price * self.costs.partial
                    if rules.guidance:
                        guided = self.guidance_error(i, age[0, 0, 1:]) + price * self.costs.guidance
                    kinds[1:][guided < partial] = GUIDANCE
                    new[0, :, 1:] = value.min(axis=1)[:, older] + np.minimum(partial, guided)
                    spacings = value.argmin(axis=1)[:, older]
                    back[0, :, 1:] = np.ravel_multi_index(
                        (np.arange(reach)[:, None], spacings, np.arange(ages - 1)[None, :]), value.shape
                    )
                if rules.max_reuse:
                    step = value[:-1, :, older] + self.reuse_error(i, gap[:-1] + 1, spacing, age[..., older] + 1)
                    new[1:, :, 1:] = step + price * self.costs.reuse
                    back[1:, :, 1:] = np.arange(value.size).reshape(value.shape)[:-1, :, older]
            moves.append((back, kinds))
            value = new
        state, decisions = int(value.argmin()), []
        for back, kinds in reversed(moves):
            g, _, a = np.unravel_index(state, value.shape)
            decisions.append(REUSE if g else str(kinds[a]) if a else FULL)
            state = int(back.reshape(-1)[state])
        return [*self.done, *decisions[::-1]]

    def _start(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Where the programme begins: (g, h - 1, age) after what is done; at first as if one had just been computed."""
        g, h, age = 0, 1, 0
        for decision in self.done:
            g, age = g + 1, age + 1
            if decision != REUSE:
                g, h, age = 0, g, 0 if decision == FULL else age
        return tuple(min(place, size - 1) for place, size in zip((g, h - 1, age), shape, strict=True))


def _flat(value: np.ndarray, g: int, plane: np.ndarray) -> int:
    return g * plane.size + int(plane.argmin())


def _cheapest_error(model: _ErrorModel, budget: float) -> list[str]:
    """Least error whose cost fits, on the hull; the cheapest sequence where none fits."""
    low, high = 0.0, 1.0
    best = model.best(high)
    while model.cost(best) > budget * SLACK and high < 1e9:
        low, high = high, high * 8
        best = model.best(high)
    for _ in range(40):
        middle = (low + high) / 2
        candidate = model.best(middle)
        if model.cost(candidate) > budget * SLACK:
            low = middle
        else:
            high, best = middle, candidate
        if high - low < 1e-9 * high:
            break
    return best


def _spend(model: _ErrorModel, decisions: list[str], budget: float) -> list[str]:
    """Improve a sequence within the budget: dearer decisions where they fit, and swaps of neighbours."""
    decisions = list(decisions)
    error, cost = model.error(decisions), model.cost(decisions)
    kinds = (FULL, PARTIAL, REUSE, GUIDANCE) if model.rules.guidance else (FULL, PARTIAL, REUSE)
    for _ in range(MOST_IMPROVEMENTS):
        options = []
        for i in range(len(model.done), len(decisions)):
            old = decisions[i]
            for new in kinds:
                if new != old:
                    options.append([*decisions[:i], new, *decisions[i + 1 :]])
            for j in range(i + 1, min(i + 4, len(decisions))):
                if decisions[j] != old:
                    swapped = list(decisions)
                    swapped[i], swapped[j] = swapped[j], swapped[i]
                    options.append(swapped)
        fitting = [(model.error(o), model.cost(o), o) for o in options if model.cost(o) <= budget * SLACK]
        candidate = min(fitting, default=None, key=lambda option: option[:2])
        if candidate is None or candidate[0] >= error - 1e-12:
            break
        error, cost, decisions = candidate
    return decisions
