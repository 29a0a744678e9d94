"""What a run has come to, small enough to send after every evaluation; and its token map, for whoever draws it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .setup import RunSetup
from .stats import RunStats

# What a token of the map is. The dearer use names a token that has two.
FORECAST, REMEMBERED, COMPUTED, MARGIN, GENERATIVE = range(5)


class Observer(Protocol):
    """Watches runs while they go on, on the thread that samples. What it raises ends the watching, not the run."""

    def began(self, stats: RunStats, setup: RunSetup | None) -> None:
        """A run is planned and about to compute; no setup where it is left to the host altogether."""

    def evaluated(self, stats: RunStats) -> None:
        """An evaluation was answered, all its streams."""

    def ended(self, stats: RunStats, finished: bool) -> None:
        """The run is over: finished, or by an error or an interrupt."""


def snapshot(stats: RunStats, total: int, wait: bool = False) -> dict:
    """A run as it stands, ready for JSON, about 1 kB.

    Args:
        stats: of the run.
        total: evaluations it is going to have.
        wait: whether to wait for a device that still works on the last evaluations, rather than leave them out.
    """
    view = stats if wait else stats.so_far()
    records, policy = view.records, stats.policy
    aims = policy.method == "plan" and not policy.schedule
    return {
        "total": total,
        "planned": view.planned,
        "decisions": view.decisions,
        "seconds": [round(r.seconds, 4) for r in records],
        "speed": view.speed if records else None,
        "estimated": view.speed_is_estimated,
        "target": policy.speed if aims else None,
        "predicted": view.predicted_speed,
        "saved_seconds": round(max(view.seconds * (view.speed - 1), 0.0), 3),
        "mask_fraction": round(view.mask_fraction, 4),
        "held_bytes": records[-1].context_bytes + records[-1].block_bytes if records else 0,
        "peak_held_bytes": view.peak_context_bytes + view.peak_block_bytes,
        "planned_bytes": view.planned_context_bytes + view.planned_block_bytes,
        "budget_bytes": round(policy.memory_budget_mb * 2**20),
        "note": view.note,
        "warnings": list(view.warnings),
    }


def token_map(stats: RunStats) -> np.ndarray | None:
    """What became of every token, uint8 ``[T, h, w]`` (FORECAST ... GENERATIVE); None for a run without a mask.

    COMPUTED are the context tokens of the last partial evaluation; they change from one to the next.
    """
    classes = stats.classes
    if classes is None:
        return None
    uses = np.full(classes.grid.size, FORECAST, np.uint8)
    for tokens, use in ((stats.remembered, REMEMBERED), (stats.last_selection, COMPUTED),
                        (classes.margin, MARGIN), (classes.generative, GENERATIVE)):  # fmt: skip
        if tokens is not None:
            uses[tokens.cpu().numpy()] = use
    return uses.reshape(classes.grid.shape)
