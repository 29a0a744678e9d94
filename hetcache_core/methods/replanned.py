"""A plan that mends itself: where predictions change otherwise than its profile says, the rest is planned anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..error_model import PARTIAL, Rules, missed
from ..forecast import Seen
from ..plan import Plan, plan
from ..profile import ErrorProfile
from . import Planned

DEPARTURE = 1.5  # measured change over the profile's, either way, at which the rest is planned anew
OBSERVATIONS = 3  # computed evaluations that must have spoken before that
MOST = 3  # plans anew in a run; each takes a fraction of a second
MEMORY = 0.7  # share of the past in the running mean of logarithms


class Replanned(Planned):
    """Follows a plan and compares, at every computed evaluation, two changes with those its profile foretells: the miss
    of the generative tokens' forecast (the price of reuse) and the drift of the context (the price of partials).

    Both are measured on the watched stream, so the same run gives the same plan again. A common factor changes hardly a
    plan; what does is their ratio, and a departure from the profile.

    Args:
        plan: the first one.
        sigmas, speed, rules, profile: what it was made from.
        notice: told of every new plan, with the reason.
    """

    watches = True

    def __init__(
        self, plan: Plan, sigmas: Sequence[float], speed: float, rules: Rules, profile: ErrorProfile,
        notice: Callable[[Plan, str], None] = lambda plan, reason: None,
    ):  # fmt: skip
        super().__init__(plan)
        self.notice = notice
        # the cool-down stays what the first plan settled on
        self._rules = replace(rules, cooldown=plan.cooldown, spare_cooldown=False)
        self._sigmas, self._speed, self._profile = sigmas, speed, profile
        self._second, self._drift = profile.at("second", sigmas), profile.at("context_first", sigmas)
        self._spacing: float | None = None
        self._means: dict[str, float] = {}
        self._used = {"predictions": 0.0, "context": 0.0}
        self._count = self._made = 0
        self._partials = PARTIAL in plan.decisions  # what partials need was prepared for, or was not

    def expects(self, decision: str, evaluation: int) -> bool:
        return decision in self.plan.decisions[max(evaluation + 1, 0) :]  # a new plan may want it sooner

    def observe_forecast(self, evaluation: int, seen: Seen) -> None:
        spacing, self._spacing = self._spacing, seen.gap
        if spacing is None or evaluation >= len(self._second):
            return
        foretold = min(self._second[evaluation] * missed(seen.gap), 1.0)
        self._note("predictions", seen.miss, foretold)
        if seen.drift is not None:
            self._note("context", seen.drift, self._drift[evaluation])
        self._count += 1
        if self._count < OBSERVATIONS or self._made >= MOST:
            return
        if any(abs(mean - self._used[what]) > math.log(DEPARTURE) for what, mean in self._means.items()):
            self._plan_anew(evaluation)

    def _note(self, what: str, measured: float, foretold: float) -> None:
        if measured > 0 and foretold > 0:
            ratio = math.log(measured / foretold)
            self._means[what] = MEMORY * self._means.get(what, ratio) + (1 - MEMORY) * ratio

    def _plan_anew(self, evaluation: int) -> None:
        self._made += 1
        self._used |= self._means
        factors = {what: math.exp(value) for what, value in self._used.items()}
        profile, done = self._profile.scaled(**factors), self.plan.decisions[: evaluation + 1]
        rules = replace(self._rules, partials=self._rules.partials and self._partials)
        new = plan(self._sigmas, self.plan.costs, self._speed, rules, profile, done)
        if new.decisions != self.plan.decisions:
            reason = (
                f"planned anew at evaluation {evaluation + 1}: predictions change {factors['predictions']:.1f} times, "
                f"the surroundings {factors['context']:.1f} times as much as the profile says"
            )
            self.plan = new
            self.notice(new, reason)
