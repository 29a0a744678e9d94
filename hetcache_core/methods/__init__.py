"""Methods turn what is known about a run into a decision per evaluation, a letter of `error_model.NAMES`."""

from __future__ import annotations

from ..error_model import FULL, PARTIAL, PARTS, awaited
from ..forecast import Seen
from ..plan import Plan


class Method:
    """Decides evaluations in order. ``decide`` may be asked once per evaluation.

    ``watches``: whether it wants to know what every computed evaluation showed of the forecasts.
    """

    watches = False

    def notice(self, plan: Plan, reason: str) -> None:
        """Called where a plan is made anew; who keeps the statistics puts a function of its own here."""

    def decide(self, evaluation: int) -> tuple[str, str]:
        """Decision letter and the reason, in a few plain words."""
        raise NotImplementedError

    def expects(self, decision: str, evaluation: int) -> bool:
        """Whether this decision may follow this evaluation before the next full one, so that what it needs (blocks'
        deltas) is worth keeping; of partial ones, also after more of them, since how the context moves is known only
        from several full ones. For evaluation -1, whether it may come at all."""
        return False

    def observe_forecast(self, evaluation: int, seen: Seen) -> None:
        """See how that prediction differed from the last one and from its forecast."""

    def observe_guidance(self, evaluation: int, seen: Seen | None) -> None:
        """See the same of its difference to another stream, where both were computed; None where that is the first, or
        of a noise level seen before."""

    def observe_blocks(self, evaluation: int, change: float) -> None:
        """See the relative change of the background blocks' deltas since they were captured before."""

    def lose(self, kind: str) -> None:
        """Learn that this kind of evaluation failed and is computed in full for the rest of the run."""


class Planned(Method):
    """Follows a :class:`~hetcache_core.plan.Plan`."""

    def __init__(self, plan: Plan, reason: str = "planned"):
        self.plan, self.reason = plan, reason

    def decide(self, evaluation: int) -> tuple[str, str]:
        return self.plan[evaluation], self.reason

    def expects(self, decision: str, evaluation: int) -> bool:
        decisions = self.plan.decisions
        if decision == PARTIAL and evaluation >= 0:
            return evaluation < len(decisions) and awaited(decisions)[evaluation]
        ahead = decisions if evaluation < 0 else decisions[evaluation + 1 :].split(FULL)[0]
        return any(decision in PARTS.get(kind, kind) for kind in ahead)
