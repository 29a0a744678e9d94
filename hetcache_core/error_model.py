"""What a sequence of evaluations costs and how far it is expected to miss: the model behind the planner.

The predicted error of a sequence is a sum over evaluations, each weighted by how much an error there matters in the end
(measured: nearly the same along a schedule whose shift suits the model, a little more at its start) and by the step
that is taken by it:

* reuse, g evaluations after the last computed one: a parabola misses by the third differences up to there, which grow
  as ``g (g + 1) (g + 2) / 6`` and whose size follows the second difference (a held prediction misses by the first
  difference times g, and so does what follows a single computed evaluation);
* partial, G evaluations after the last full one: generative tokens see context remembered G evaluations ago, which
  costs ``G ** AGEING``, whether it is extrapolated or, at a higher price, held, per change of the clean clip (sigma
  times that of the prediction, which low noise enlarges); what is forecast from partial evaluations has seen no newer
  context either;
* both: the context's own forecast error, a share of which spills into the edit;
* guidance reused, G evaluations after the last full one: its difference was forecast so far, at the profile's price;
* blocks reused, G evaluations after the last full one: their deltas were held so far, at the profile's price;
* half: a partial evaluation with guidance reused, which errs as both do.

Neither forecasts nor stale context miss by more than the whole of a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .costs import Costs
from .policy import FEW_STEPS, CachePolicy
from .profile import ErrorProfile

FULL, PARTIAL, REUSE, BLOCKS, GUIDANCE, HALF = "F", "P", "R", "B", "G", "H"
NAMES = {  # dearest first
    FULL: "full", BLOCKS: "blocks", GUIDANCE: "guidance", PARTIAL: "partial", HALF: "half", REUSE: "reuse"
}  # fmt: skip
PARTS = {HALF: PARTIAL + GUIDANCE}  # what a kind is made of, where it is not itself alone
NO_ERROR = (0.0, 0.0, 0.0)
HISTORY = 3  # full evaluations that show how context moves: its value, its slope, its bend


# Context twice as old costs half as much again. Our choice: exponents from 0.4 to 1.3 foretell nano's errors about as
# well; the staleness of the shipped profiles was fitted with this one.
AGEING = 0.6
FEW_AGEING = 0.8  # with few steps, which are longer (`benchmarks.few_forecasts`)
# What ends a schedule is brief up to this share of its mean step in all. A forecast for it can hardly spoil the result,
# so that it may be had even where steps are few; and what a cool-down mends it mends by the longer step before.
BRIEF = 0.25
FEWEST = 6  # evaluations up to which only short steps are forecast by default
SHORT = 0.5  # of the mean step by noise: as the first ones of schedules for few steps are, and a brief last one
# With few steps, so much of what forecasts are reckoned to miss by counts beside stale context, but for a brief ending,
# where all of it does (`benchmarks.few_forecasts`).
FEW_FORECAST = 0.22
FEW_STALE = 0.87  # with few steps context costs so much less beside forecasts (`benchmarks.foretold`)


@dataclass(frozen=True)
class Rules:
    """What a plan must obey.

    Args:
        warmup, cooldown: full evaluations at the start (at least 1) and at the end.
        max_reuse: most reuse evaluations in a row. usual_reuse: the same where that reaches the target, if not 0.
        refresh: most evaluations from one full evaluation to the next.
        partials: whether partial evaluations are possible at all.
        guidance, blocks: whether guidance may be reused, and background blocks.
        hold: whether predictions are held rather than extrapolated.
        held: whether remembered context is, or may as well be.
        spare_cooldown: whether the cool-down may be shortened where the target leaves too little for it.
        spare_refresh: whether full evaluations may lie further apart where the target leaves too little for them.
        brief: whether short steps may be reused one by one where max_reuse is 0, and a brief ending does not count as
            cool-down while a longer step goes without.
    """

    warmup: int
    cooldown: int
    max_reuse: int
    refresh: int
    partials: bool = True
    hold: bool = False
    held: bool = False
    spare_cooldown: bool = False
    guidance: bool = False
    blocks: bool = False
    brief: bool = False
    spare_refresh: bool = False
    usual_reuse: int = 0

    def __post_init__(self):
        if self.warmup < 1 or self.cooldown < 0 or self.max_reuse < 0 or self.refresh < 1:
            raise ValueError(f"impossible planning rules: {self}")

    @classmethod
    def of(
        cls,
        policy: CachePolicy,
        profile: ErrorProfile,
        evaluations: int,
        partials: bool = True,
        streams: int = 1,
        blocks: bool = False,
        held: bool = False,
    ) -> Rules:
        """The policy's rules, with the gaps filled for this many evaluations."""
        few = evaluations <= FEW_STEPS
        warmup = policy.warmup or (1 if few else max(2, round(profile.warmup * evaluations)))
        cooldown = policy.cooldown if policy.cooldown is not None else (0 if few else profile.cooldown)
        sparing = few and policy.method == "plan"  # the papers' methods know of no such rule
        longest = min(max(round(evaluations / 6), 2), 5)  # more of a short run forecast is no edit
        if sparing:
            longest = 1 if evaluations > FEWEST else 0
        max_reuse = policy.max_reuse if policy.max_reuse is not None else longest
        refresh = policy.refresh or max(FEW_STEPS + 1, round(0.3 * evaluations))
        spare = policy.cooldown is None and cooldown > 0
        guided = streams > 1 and profile.guidance is not None
        reusing = {"guidance": guided, "blocks": blocks and profile.blocks is not None}
        reusing["brief"] = policy.max_reuse is None and policy.cooldown is None
        reusing["spare_refresh"] = policy.refresh is None
        # Measured: the model underrates runs of more than a tenth of a schedule, by 3 to 7 dB at their worst.
        reusing["usual_reuse"] = max(round(evaluations / 10), 3) if policy.max_reuse is None and not few else 0
        hold = policy.forecast_order == 0
        return cls(warmup, cooldown, max_reuse, refresh, partials, hold, held, spare, **reusing)

    @cached_property
    def renewing(self) -> tuple[str, ...]:
        """Kinds of evaluation short of a full one that compute something."""
        allowed = {
            PARTIAL: self.partials, GUIDANCE: self.guidance, HALF: self.partials and self.guidance, BLOCKS: self.blocks
        }  # fmt: skip
        return tuple(kind for kind, may in allowed.items() if may)


def prices(costs: Costs) -> dict[str, float]:
    """What each kind of evaluation costs, in full ones."""
    return {
        FULL: 1.0, PARTIAL: costs.partial, REUSE: costs.reuse, BLOCKS: costs.blocks, GUIDANCE: costs.guidance,
        HALF: costs.half,
    }  # fmt: skip


def awaited(decisions: Sequence[str]) -> list[bool]:
    """By evaluation, whether context stored then is still needed: a partial one comes before so many more full ones
    that they show alone how the context moves."""
    found, needed = [], 0
    for decision in reversed(decisions):
        found.append(needed > 0)
        if PARTIAL in PARTS.get(decision, decision):
            needed = HISTORY
        elif decision == FULL:
            needed = max(needed - 1, 0)
    return found[::-1]


def total_cost(decisions: Sequence[str], costs: Costs) -> float:
    """What a sequence costs, in full evaluations that keep nothing."""
    price = prices(costs)
    computed = sum(price[d] for d in decisions)
    if not costs.storing:
        return computed
    return computed + costs.storing * sum(w for d, w in zip(decisions, awaited(decisions), strict=True) if d == FULL)


def error_terms(
    decisions: str, sigmas: Sequence[float], profile: ErrorProfile, costs: Costs, rules: Rules
) -> tuple[float, float, float] | None:
    """Predicted error of a schedule by cause: forecasts, stale context, spill of context forecasts.

    For fitting a profile's ``staleness`` and ``spill``. None where the schedule breaks a rule.
    """
    return ErrorModel(tuple(float(s) for s in sigmas), profile, costs, rules).terms(decisions)


class ErrorModel:
    """Costs and errors of the sequences of one run.

    Args:
        sigmas, profile, costs, rules, done: as :func:`~hetcache_core.plan.plan` takes them.
    """

    def __init__(self, sigmas: Sequence[float], profile: ErrorProfile, costs: Costs, rules: Rules, done: str = ""):
        self.done = done
        self.n, levels = len(sigmas) - 1, sigmas[:-1]
        self.weight = profile.at("weight", sigmas) / len(profile.sigmas)
        self.first, self.second = profile.at("first", sigmas), profile.at("second", sigmas)
        staleness = profile.staleness_held if rules.held else profile.staleness
        self.stale = staleness * profile.at("context_first", sigmas) * np.asarray(levels)
        if self.n <= FEW_STEPS:
            # Measured: the long steps at low noise ask still less of the context. Without this a second full evaluation
            # would come at the end, where it does least.
            self.stale = self.stale * np.asarray(levels) * FEW_STALE
        self.spill = profile.spill * profile.at("context_second", sigmas)
        self.guided = (profile.guidance or 0.0) * self.second
        self.blocked = (profile.blocks or 0.0) * self.first
        self.rules, self.costs, self.price = rules, costs, prices(costs)
        self.reckon = self.price | {FULL: self.price[FULL] + costs.storing * rules.partials}
        steps, drops = profile.steps(sigmas), -np.diff(sigmas)
        brief = np.cumsum(steps[::-1])[::-1] < BRIEF * steps.mean()
        short = (drops < SHORT * drops.mean()) & (brief | (drops > 0).all())
        self.ageing = FEW_AGEING if self.n <= FEW_STEPS else AGEING
        self.missing = np.where(brief | (self.n > FEW_STEPS), 1.0, FEW_FORECAST)
        self.most_reuse = np.maximum(rules.max_reuse, short & rules.brief)  # in a row, up to each evaluation
        ending = max(rules.cooldown, 1 + int(brief.sum()) * rules.brief)
        self._cooldown = range(self.n - ending, self.n - ending + rules.cooldown)
        self._known: dict[tuple[str, int, int, int], tuple[float, float, float]] = {}  # sequences differ in few places

    def cost(self, decisions) -> float:
        return total_cost(decisions, self.costs)

    def reckoned(self, decisions) -> float:
        """The same as :meth:`best` reckons: with every full evaluation storing."""
        return sum(self.reckon[d] for d in decisions)

    def forced_full(self, i: int) -> bool:
        return i < self.rules.warmup or i in self._cooldown

    def _renewed(self, kind: str, i: int, age):
        """Error of a renewing kind by cause: forecast, stale context, spill; ``age``: since the last full one."""
        forecast = stale = spill = 0.0 * age
        if kind in (GUIDANCE, HALF):
            forecast = self.guided[i] * age * (age + 1) / 2
        elif kind == BLOCKS:
            forecast = self.blocked[i] * age
        if kind in (PARTIAL, HALF):
            stale, spill = self._stale(i, age), self.spill[i] * age * age
        return tuple(self.weight[i] * term for term in (forecast, stale, spill))

    def _miss(self, i: int, g):
        """How far a forecast misses g evaluations after the last computed one."""
        curved = (g < i) & (not self.rules.hold)  # after a single computed one there is nothing but to hold it
        return self.missing[i] * np.minimum(np.where(curved, self.second[i] * missed(g), self.first[i] * g), 1.0)

    def _stale(self, i: int, age):
        return np.minimum(self.stale[i] * age**self.ageing, 1.0)

    def _reused(self, i: int, g, age):
        """The same of a reuse g evaluations after the last computed one."""
        ahead = self._miss(i, g)
        stale = np.where(age > g, self._stale(i, age), 0.0)  # the last one computed was not a full one
        return tuple(self.weight[i] * term for term in (ahead, stale, self.spill[i] * age * age))

    def by_evaluation(self, decisions) -> list[tuple[float, float, float]] | None:
        """Error of each evaluation by cause: forecasts, stale context, spill. None where the sequence breaks a rule."""
        found, g, age = [], 0, 0
        for i, decision in enumerate(decisions):
            step = self.step(decision, i, g, age)
            if step is None:
                return None
            reached, g, age = step
            found.append(self._at(decision, i, reached, age))
        return found

    def step(self, decision: str, i: int, g: int, age: int) -> tuple[int, int, int] | None:
        """How long ago the last computed evaluation was at one, and then after it, and the last full one after it, from
        how long ago they were before it; None where it breaks a rule."""
        if decision == FULL:
            return 0, 0, 0
        g, age = g + 1, age + 1
        if age >= self.rules.refresh or self.forced_full(i):
            return None
        if decision == REUSE:
            return None if g > self.most_reuse[i] else (g, g, age)
        return (0, 0, age) if decision in self.rules.renewing else None

    def erring(self, decision: str, i: int, g: int, age: int) -> float:
        """Error of one evaluation that breaks no rule, ``g`` and ``age`` as :meth:`step` has them."""
        if decision == FULL:
            return 0.0
        renewed, reused = self._listed
        return reused[i][g - 1][age - 1] if decision == REUSE else renewed[i][decision][age - 1]

    def _at(self, kind: str, i: int, g: int, age: int) -> tuple[float, float, float]:
        """Error of one evaluation by cause, worked out once."""
        if kind == FULL:
            return NO_ERROR
        place = (kind, i, g, age)
        if place not in self._known:
            causes = self._reused(i, g, age) if kind == REUSE else self._renewed(kind, i, age)
            self._known[place] = tuple(float(cause) for cause in causes)
        return self._known[place]

    def terms(self, decisions) -> tuple[float, float, float] | None:
        """The sum over the evaluations of :meth:`by_evaluation`."""
        found = self.by_evaluation(decisions)
        return None if found is None else tuple(sum(cause) for cause in zip(*found, strict=True))

    def error(self, decisions) -> float:
        """Predicted error of a sequence, infinite where it breaks a rule."""
        terms = self.terms(decisions)
        return math.inf if terms is None else sum(terms)

    def best(self, price: float) -> list[str]:
        """Sequence of least ``error + price * reckoned``, by dynamic programming over (g, age).

        Every full evaluation is taken to store context where partial ones may come: which need not is not known yet.
        """
        rules = self.rules
        full, reuse = price * self.reckon[FULL], price * self.price[REUSE]
        kinds = rules.renewing or (PARTIAL,)
        prices = price * np.array([self.price[k] for k in kinds])
        options = self._errors[0] + prices[:, None]
        chosen, least = np.array(kinds)[options.argmin(1)], options.min(1)
        reach, ages = int(self.most_reuse.max(initial=0)) + 1, rules.refresh
        older, aged = slice(0, ages - 1), np.arange(1, ages)
        value = np.full((reach, ages), np.inf)
        value[self._start(value.shape)] = 0.0
        states, moves = np.arange(value.size).reshape(value.shape), []
        for i in range(len(self.done), self.n):
            new, back = np.full_like(value, np.inf), np.zeros(value.shape, dtype=np.int64)
            best = int(value.argmin())
            new[0, 0], back[0, 0] = value.flat[best] + full, best
            if not self.forced_full(i) and ages > 1:
                if rules.renewing:
                    freshest = value.argmin(axis=0)[older]
                    new[0, 1:] = value[freshest, aged - 1] + least[i]
                    back[0, 1:] = states[freshest, aged - 1]
                if most := self.most_reuse[i]:
                    new[1 : most + 1, 1:] = value[:most, older] + self._errors[1][i] + reuse
                    back[1 : most + 1, 1:] = states[:most, older]
            moves.append(back)
            value = new
        state, decisions = int(value.argmin()), []
        for i in reversed(range(len(self.done), self.n)):
            g, a = divmod(state, ages)
            decisions.append(REUSE if g else str(chosen[i, a - 1]) if a else FULL)
            state = int(moves[i - len(self.done)][g, a])
        return [*self.done, *decisions[::-1]]

    @cached_property
    def _errors(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """What :meth:`best` weighs at every price: errors of renewing kinds ``[n, kinds, refresh - 1]`` by age, and by
        evaluation those of a reuse ``[most, refresh - 1]`` by evaluations since the last computed one and by age."""
        aged, kinds = np.arange(1, self.rules.refresh), self.rules.renewing
        renewed = [[sum(self._renewed(k, i, aged)) for k in kinds or (PARTIAL,)] for i in range(self.n)]
        gaps = [np.arange(1, most + 1)[:, None] for most in self.most_reuse]
        return np.array(renewed), [sum(self._reused(i, gaps[i], aged[None])) for i in range(self.n)]

    @cached_property
    def _listed(self) -> tuple[list[dict[str, list[float]]], list[list[list[float]]]]:
        """The same as plain numbers, those of renewing kinds by kind."""
        renewed, reused = self._errors
        kinds = self.rules.renewing
        return [dict(zip(kinds, row, strict=False)) for row in renewed.tolist()], [table.tolist() for table in reused]

    def _start(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Where the programme begins: (g, age) after what is done; at first as if one had just been computed."""
        g, age = 0, 0
        for decision in self.done:
            g, age = g + 1, age + 1
            if decision != REUSE:
                g, age = 0, 0 if decision == FULL else age
        return tuple(min(place, size - 1) for place, size in zip((g, age), shape, strict=True))


def missed(g):
    """How a forecast's miss grows with the evaluations since the last computed one: 1 at one, 4 at two, 10 at three."""
    return g * (g + 1) * (g + 2) / 6
