"""A plan that mends itself: where predictions change otherwise than its profile says, the rest is planned anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..error_model import BLOCKS, GUIDANCE, PARTIAL, PARTS, Rules, missed
from ..forecast import Seen
from ..plan import Plan, plan
from ..profile import ErrorProfile
from . import Planned

DEPARTURE = 2.0  # measured ratio of the two changes over the profile's, either way, at which the rest is planned anew
# What a run sees, over its profile, where that is right: a profile's curves are of neighbouring evaluations, forecasts
# bend as well, and what moves to and fro comes less far over a gap. Medians on tuning clips (`benchmarks.foretold`).
SEEN_MISS, SEEN_DRIFT = 0.5, 0.67
FURTHEST = 10.0  # a single change counts as so many times the profile's at most, either way
OBSERVATIONS = 3  # computed evaluations that must have spoken before that
MOST = 3  # plans anew in a run; each takes a fraction of a second
MEMORY = 0.7  # share of the past in the running mean of logarithms


class Replanned(Planned):
    """Follows a plan and compares, at every computed evaluation, two changes with those its profile foretells: the miss
    of the generative tokens' forecast (the price of reuse) and the drift of the context (the price of partials).

    Both are measured on the watched stream, so the same run gives the same plan again. A common factor changes hardly a
    plan; what does is their ratio.

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
        # What the first plan does not use nothing was prepared for; and the cool-down stays what it settled on.
        used = {part for decision in plan.decisions for part in PARTS.get(decision, decision)}
        able = {
            "partials": rules.partials and PARTIAL in used, "guidance": rules.guidance and GUIDANCE in used,
            "blocks": rules.blocks and BLOCKS in used,
        }  # fmt: skip
        self._rules = replace(rules, cooldown=plan.cooldown, spare_cooldown=False, **able)
        self._sigmas, self._speed, self._profile = sigmas, speed, profile
        self._second, self._drift = profile.at("second", sigmas), profile.at("context_first", sigmas)
        self._spacing: float | None = None
        self._means: dict[str, float] = {}  # of the logarithm of measured over foretold
        self._used = {"predictions": 0.0, "context": 0.0}
        self._count = self._made = 0

    def expects(self, decision: str, evaluation: int) -> bool:
        ahead = self.plan.decisions[max(evaluation + 1, 0) :]  # a new plan may want it sooner
        return any(decision in PARTS.get(kind, kind) for kind in ahead)

    def observe_forecast(self, evaluation: int, seen: Seen) -> None:
        spacing, self._spacing = self._spacing, seen.gap
        if spacing is None or evaluation >= len(self._second):
            return
        self._note("predictions", seen.miss, SEEN_MISS * min(self._second[evaluation] * missed(seen.gap), 1.0))
        if seen.drift is not None:
            self._note("context", seen.drift, SEEN_DRIFT * self._drift[evaluation])
        self._count += 1
        spoken = self._count >= OBSERVATIONS and len(self._means) == len(self._used)
        if spoken and self._made < MOST and abs(_ratio(self._means) - _ratio(self._used)) > math.log(DEPARTURE):
            self._plan_anew(evaluation)

    def _note(self, what: str, measured: float, foretold: float) -> None:
        if foretold > 0:
            ratio = math.log(min(max(measured / foretold, 1 / FURTHEST), FURTHEST))
            self._means[what] = MEMORY * self._means.get(what, ratio) + (1 - MEMORY) * ratio

    def _plan_anew(self, evaluation: int) -> None:
        self._made += 1
        self._used |= self._means
        factors = {what: math.exp(value) for what, value in self._used.items()}
        profile, done = self._profile.scaled(**factors), self.plan.decisions[: evaluation + 1]
        new = plan(self._sigmas, self.plan.costs, self._speed, self._rules, profile, done)
        if new.decisions != self.plan.decisions and not new.note:
            reason = (
                f"planned anew at evaluation {evaluation + 1}: predictions change {factors['predictions']:.1f} times, "
                f"the surroundings {factors['context']:.1f} times as much as the profile says"
            )
            self.plan = new
            self.notice(new, reason)


def _ratio(changes: dict[str, float]) -> float:
    return changes["predictions"] - changes["context"]
