"""MixCache's online decision (arXiv 2508.12691): when to cache, what to cache, and for how long.

From the paper: three granularities, the step (both predictions are reused), cfg (cond is computed, guidance is reused)
and block (some blocks are reused); caching starts when the context allows it; every cached evaluation takes the
granularity of least penalty ``P = D * I``, its distance at the last computed evaluations times its impact, measured by
Gaussian perturbation; the granularity used last pays five times its penalty; the caching interval shrinks where
quality deviates by more than one bound and grows where it deviates by less than another. A step excludes the other two;
guidance is never derived from a cached step; a cached step renews nothing.

The paper's body gives no thresholds, tables or exact trigger in what could be read of it. Our choices: the trigger (at
least a tenth of the evaluations and the rules' warm-up are over, and the change per evaluation stayed below ``trigger``
twice in a row; the rules' cool-down ends it, of which 8 evaluations and fewer have none); all distances on generative
tokens, that of blocks on 64 of them and as the mean over runs of blocks, whose deltas are kept as one; an interval of 1
to 4 cached evaluations between full ones, which begins at 1 and changes by 1 at every full one; deviation as how far
the full evaluation after them would have been missed by a forecast from what was computed last, weighted by the
granularity's impact over the step's, with the lower bound a third of the upper; what is reused is forecast as
everywhere here, not held (``forecast_order`` 0 holds it); and what a cfg or block evaluation made of what it computed
counts as the newest prediction, from which a step after it is served, and that of a block evaluation, which computes
both streams, renews their difference too. One granularity an evaluation: the paper lets cfg and block combine, which
our decision does not, and knows no partial evaluations, on which guidance may be reused too (H, in plans and
schedules).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..error_model import BLOCKS, FULL, GUIDANCE, REUSE, Rules
from ..forecast import Seen
from . import Method

LONGEST = 4  # cached evaluations between full ones
REPEATED = 5.0  # penalty's factor for the granularity used last
CALM = 2  # computed evaluations in a row whose change must lie below the trigger
LOWER = 1 / 3  # the lower quality bound, over the upper
NAMES = {REUSE: "step", GUIDANCE: "cfg", BLOCKS: "block"}


class MixCache(Method):
    """Full, reuse (step), guidance (cfg) or blocks (block) by the least penalty.

    Args:
        trigger: change per evaluation (relative L1) below which caching may begin.
        deviation: quality bound above which the interval shrinks; below a third of it, it grows.
        positions: of the run's evaluations along the schedule; those at one noise level share one.
        rules: warm-up, cool-down, most reuse in a row.
        impact: by decision letter, final error per relative error of what is cached; granularities that are not in it
            are not used.
    """

    watches = True

    def __init__(
        self,
        trigger: float,
        deviation: float,
        positions: Sequence[float],
        rules: Rules,
        impact: Mapping[str, float],
    ):
        self.trigger, self.deviation = trigger, deviation
        self.positions, self.rules, self.impact = positions, rules, dict(impact)
        self.interval = 1
        self._distances: dict[str, float] = {}
        self._misses: dict[str, float] = {}
        self._captured = 0  # evaluation at which the blocks' change was seen last
        self._rate, self._calm = math.inf, 0
        self._left = self._reused = 0
        self._last = self._decision = FULL
        self._used: set[str] = set()
        self._shown = {REUSE}  # what may be chosen: steps, and what the last full evaluation showed

    def expects(self, decision: str, evaluation: int) -> bool:
        return decision in self.impact and evaluation < len(self.positions) - self.rules.cooldown - 1

    def decide(self, evaluation: int) -> tuple[str, str]:
        if self._decision == FULL and evaluation:
            self._begin_interval()
        self._decision, reason = self._judge(evaluation)
        if self._decision == FULL:
            self._shown = {REUSE}
        self._reused = self._reused + 1 if self._decision == REUSE else 0
        if self._decision == FULL:
            self._left = 0
        else:
            self._left -= 1
            self._last = self._decision
            self._used.add(self._decision)
        return self._decision, reason

    def observe_forecast(self, evaluation: int, seen: Seen) -> None:
        self._rate = self._distances[REUSE] = seen.change / seen.gap
        self._misses[REUSE] = seen.miss
        self._calm = self._calm + 1 if self._rate < self.trigger else 0

    def observe_guidance(self, evaluation: int, seen: Seen | None) -> None:
        self._shown.add(GUIDANCE)
        if seen:
            self._distances[GUIDANCE] = seen.change / seen.gap
            self._misses[GUIDANCE] = seen.miss

    def observe_blocks(self, evaluation: int, change: float) -> None:
        self._shown.add(BLOCKS)
        gap = self.positions[evaluation] - self.positions[self._captured]
        if gap > 0:
            self._distances[BLOCKS] = change / gap
            self._misses[BLOCKS], self._captured = change, evaluation

    def lose(self, kind: str) -> None:
        self.impact.pop(kind, None)

    def _begin_interval(self) -> None:
        """What the last full evaluation showed decides how long the next one may wait."""
        if self._used:
            impacts = {kind: self.impact.get(kind, 0.0) / self.impact[REUSE] for kind in self._used}
            worst = max(self._misses.get(kind, 0.0) * impact for kind, impact in impacts.items())
            if worst > self.deviation:
                self.interval = max(self.interval - 1, 1)
            elif worst < self.deviation * LOWER:
                self.interval = min(self.interval + 1, LONGEST)
        self._used.clear()
        self._left = self.interval

    def _judge(self, evaluation: int) -> tuple[str, str]:
        rules = self.rules
        evaluations = len(self.positions)
        if evaluation < max(rules.warmup, math.ceil(0.1 * evaluations)):
            return FULL, "warm-up"
        if evaluation >= evaluations - rules.cooldown:
            return FULL, "cool-down"
        if self._calm < CALM:
            return FULL, f"change {self._rate:.3f} not below {self.trigger:g} twice in a row"
        if not self._left:
            return FULL, f"interval of {self.interval} is over"
        penalties = {
            kind: distance * self.impact[kind] * (REPEATED if kind == self._last else 1.0)
            for kind, distance in self._distances.items()
            if kind in self._shown.intersection(self.impact) and (kind != REUSE or self._reused < rules.max_reuse)
        }
        if not penalties:
            return FULL, "nothing may be reused here"
        least = min(penalties, key=penalties.get)
        return least, ", ".join(f"{NAMES[kind]} {penalty:.4f}" for kind, penalty in penalties.items())
