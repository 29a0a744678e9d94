"""Methods turn what is known about a run into a decision per evaluation: full, partial, reuse or blocks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..plan import FULL, Plan


class Method(Protocol):
    """Decides evaluations in order. ``decide`` may be asked once per evaluation; ``observe`` sees every prediction."""

    def decide(self, evaluation: int) -> tuple[str, str]:
        """Decision letter and the reason, in a few plain words."""

    def expects(self, decision: str, evaluation: int) -> bool:
        """Whether this decision may follow this evaluation before the next full one, so that what it needs (remembered
        context, blocks' deltas) is worth keeping; for evaluation -1, whether it may come at all."""

    def observe(self, evaluation: int, patches: Tensor, generative: Tensor) -> None:
        """See what was computed of the first stream, patches ``[rows, C, N, 2, 2]``; ``generative``: bool ``[N]``."""

    def close(self) -> None:
        """Let go of all tensors."""


class Planned:
    """Follows a :class:`~hetcache_core.plan.Plan`."""

    def __init__(self, plan: Plan, reason: str = "planned"):
        self.plan, self.reason = plan, reason

    def decide(self, evaluation: int) -> tuple[str, str]:
        return self.plan[evaluation], self.reason

    def expects(self, decision: str, evaluation: int) -> bool:
        ahead = self.plan.decisions[evaluation + 1 :]
        return decision in (ahead if evaluation < 0 else ahead.split(FULL)[0])

    def observe(self, evaluation: int, patches: Tensor, generative: Tensor) -> None:
        """A plan is settled beforehand."""

    def close(self) -> None:
        """A plan holds no tensors."""
