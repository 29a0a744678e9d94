"""HetCache's online decision (arXiv 2603.24260, section 3): accumulated relative change against D and 1.5 D."""

from __future__ import annotations

from collections.abc import Sequence

from ..error_model import FULL, PARTIAL, REUSE, Rules
from ..forecast import Seen
from . import Method


class HetCache(Method):
    """Full, partial or reuse by how far the prediction is expected to have moved since it was last computed.

    The paper accumulates the relative L1 change of the timestep-modulated input, which its code takes from the timestep
    embedding alone: a constant of the schedule. Here, by our choice, the change is that of what is kept of the
    predictions (with samplers that add noise, of the clean clip they stand for) on generative tokens: the rate seen
    between the last two computed noise levels is added for every level since. It takes two to be known: where warm-up
    is one evaluation, the second is computed too.

    Direction as in the paper's code: up to ``threshold`` an evaluation is reused, up to ``threshold * partial_factor``
    it is partial, beyond it is full; so a higher threshold is faster. Every computed evaluation resets the sum.

    The paper averages its output cache, ``(1 - gamma) old + gamma new`` on partial evaluations, and gives no gamma;
    here gamma is 1: what is computed replaces what was kept, and what is not is held. Partial evaluations compute the
    edit, a margin of one token (the paper's is adjacent to the mask and says no more), and of the context the top 70%
    of each of 16 clusters (:mod:`hetcache_core.semantic`), and see only what they compute. Ours is that a context token
    counts for as many as it stands for, and so are warm-up, cool-down, the most evaluations reused in a row and the
    most without a full one, as for plans (at high thresholds these last two decide; the paper's code means to have the
    first two; of 8 evaluations and fewer warm-up is one and there is no cool-down, or nothing would be left to cache),
    and that nothing is partial where that would cost 95% of a full evaluation. A policy may say otherwise
    of each: with ``memory_share`` partial evaluations attend to remembered context, with ``forecast_order`` predictions
    are followed.

    Args:
        threshold: D. partial_factor: 1.5 in the paper.
        positions: of the run's evaluations along the schedule; those at one noise level share one.
        rules: warm-up, cool-down, longest reuse, refresh.
    """

    watches = True

    def __init__(self, threshold: float, partial_factor: float, positions: Sequence[float], rules: Rules):
        self.threshold, self.partial_factor = threshold, partial_factor
        self.positions, self.rules = positions, rules
        self._accumulated = 0.0
        self._rate: float | None = None
        self._reused = self._age = 0

    def decide(self, evaluation: int) -> tuple[str, str]:
        decision, reason = self._judge(evaluation)
        self._reused = self._reused + 1 if decision == REUSE else 0
        self._age = 0 if decision == FULL else self._age + 1
        if decision != REUSE:
            self._accumulated = 0.0
        return decision, reason

    def expects(self, decision: str, evaluation: int) -> bool:
        possible = decision == PARTIAL and self.rules.partials
        return possible and evaluation < len(self.positions) - self.rules.cooldown - 1

    def observe_forecast(self, evaluation: int, seen: Seen) -> None:
        self._rate = seen.change / seen.gap

    def _judge(self, evaluation: int) -> tuple[str, str]:
        rules = self.rules
        if evaluation < rules.warmup or self._rate is None:
            return FULL, "warm-up"
        if evaluation >= len(self.positions) - rules.cooldown:
            return FULL, "cool-down"
        if self._age + 1 >= rules.refresh:
            return FULL, "refresh"
        self._accumulated += self._rate * (self.positions[evaluation] - self.positions[evaluation - 1])
        change = f"change {self._accumulated:.3f}"
        if self._accumulated <= self.threshold and self._reused < rules.max_reuse:
            return REUSE, f"{change} <= {self.threshold:g}"
        limit = self.threshold * self.partial_factor
        if self._accumulated > limit:
            return FULL, f"{change} > {limit:g}"
        if not rules.partials:
            return FULL, f"{change} <= {limit:g}, but partial evaluations are off"
        return PARTIAL, f"{change} <= {limit:g}"
