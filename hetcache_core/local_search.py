"""The planner's local search: what is left of a budget, spent on a sequence change by change."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .error_model import FULL, HISTORY, PARTIAL, PARTS, REUSE, ErrorModel

MOST_IMPROVEMENTS = 30  # rounds; it settles in fewer, this bounds very long schedules
NEIGHBOURS = 3  # evaluations apart that may be swapped


class Around:
    """A sequence, and what others that differ from it in a place or two err and cost.

    Both are sums over evaluations with a short memory: how long ago one was computed, and a full one, from the left;
    whether stored context is still awaited, from the right. So only the places from the first change to where that
    memory is what it was before are worked out anew.

    Args:
        model: of the run. decisions: a sequence that breaks no rule.
    """

    def __init__(self, model: ErrorModel, decisions: list[str]):
        self.model, self.decisions = model, decisions
        n = len(decisions)
        self._states, errors = [(0, 0)], []
        for i, decision in enumerate(decisions):
            g, *state = model.step(decision, i, *self._states[-1])
            self._states.append(tuple(state))
            errors.append(model.erring(decision, i, g, state[1]))
        self._needed, costs = [0] * (n + 1), [0.0] * n
        for i in reversed(range(n)):
            costs[i], self._needed[i] = self._priced(decisions[i], self._needed[i + 1])
        self._errors, self._costs = _sums(errors), _sums(costs)

    def error(self, changes: Mapping[int, str]) -> float:
        """Predicted error with some decisions changed, infinite where that breaks a rule."""
        first, last = min(changes), max(changes)
        state, total = self._states[first], self._errors[0][first]
        for i in range(first, len(self.decisions)):
            if i > last and state == self._states[i]:
                return total + self._errors[1][i]
            decision = changes.get(i, self.decisions[i])
            step = self.model.step(decision, i, *state)
            if step is None:
                return math.inf
            state = step[1:]
            total += self.model.erring(decision, i, step[0], state[1])
        return total

    def cost(self, changes: Mapping[int, str]) -> float:
        """Its cost in full evaluations that keep nothing."""
        first, last = min(changes), max(changes)
        needed, total = self._needed[last + 1], self._costs[1][last + 1]
        for i in reversed(range(last + 1)):
            if i < first and needed == self._needed[i + 1]:
                return total + self._costs[0][i + 1]
            cost, needed = self._priced(changes.get(i, self.decisions[i]), needed)
            total += cost
        return total

    def _priced(self, decision: str, needed: int) -> tuple[float, int]:
        """An evaluation's cost, and for how many full ones before it context is awaited (as `error_model.awaited`)."""
        cost = self.model.price[decision]
        if PARTIAL in PARTS.get(decision, decision):
            return cost, HISTORY
        if decision != FULL:
            return cost, needed
        return cost + self.model.costs.storing * (needed > 0), max(needed - 1, 0)


def spend(model: ErrorModel, decisions: list[str], most: float) -> list[str]:
    """Improve a sequence as far as its cost stays within `most`: dearer decisions where they fit, and swaps of
    neighbours."""
    decisions, error = list(decisions), model.error(decisions)
    kinds = (FULL, *model.rules.renewing, REUSE)
    for _ in range(MOST_IMPROVEMENTS if math.isfinite(error) else 0):  # what is done may have broken a rule
        around = Around(model, decisions)
        options = [(c, changes) for changes in _changes(model, decisions, kinds) if (c := around.cost(changes)) <= most]
        found = [(around.error(changes), cost, place) for place, (cost, changes) in enumerate(options)]
        best = min(found, default=None)
        if best is None or best[0] >= error - 1e-12:
            break
        error = best[0]
        for i, decision in options[best[2]][1].items():
            decisions[i] = decision
    return decisions


def _changes(model: ErrorModel, decisions: list[str], kinds: tuple[str, ...]) -> list[dict[int, str]]:
    found = []
    for i in range(len(model.done), len(decisions)):
        old = decisions[i]
        found += [{i: new} for new in kinds if new != old]
        for j in range(i + 1, min(i + 1 + NEIGHBOURS, len(decisions))):
            if decisions[j] != old:
                found.append({i: decisions[j], j: old})
    return found


def _sums(values: list[float]) -> tuple[list[float], list[float]]:
    """Of what comes before each place, and of what comes from it on."""
    before, after = [0.0], [0.0]
    for value in values:
        before.append(before[-1] + value)
    for value in reversed(values):
        after.append(after[-1] + value)
    return before, after[::-1]
