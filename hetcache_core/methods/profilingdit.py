"""ProfilingDiT's schedule (arXiv 2504.03140, section 3.3): full at intervals, background blocks reused between.

The paper computes everything up to step s0, then at steps s with ``s mod T_s = 0``, where
``T_s = Tmax - (Tmax - Tmin) (s - s0) / (S - s0)``; its code for Wan has s0 = 6 of 50 and T = 6 throughout.
"""

from __future__ import annotations

from ..error_model import BLOCKS, FULL

PAPER_STEPS = 30, 50  # what the published settings were made for
PAPER_WARMUP = 6


def timeline(
    evaluations: int, interval: int = 6, interval_min: int | None = None, warmup: int | None = None, cooldown: int = 0
) -> str:
    """The decisions of a run, a letter each: F full, B background blocks reused.

    Ours: ``s mod T_s`` has no meaning for a T_s that is no whole number and changes; an evaluation is full when T_s
    evaluations, rounded, have passed since the last full one after s0. For a constant T that divides s0 it is the
    same. Below 30 and above 50 evaluations the interval and s0 shrink and grow with their number, so that deltas serve
    for no longer a part of the schedule, and for no shorter one, than between 30 and 50.

    Args:
        evaluations: of the run, S.
        interval: evaluations from one full one to the next, Tmax.
        interval_min: the same at the end, Tmin; None keeps it constant.
        warmup: s0, the full evaluations before the one that begins the first interval; None: 6, scaled.
        cooldown: full evaluations at the end; the paper has none.
    """
    usual = min(max(evaluations, PAPER_STEPS[0]), PAPER_STEPS[1])
    scale = evaluations / usual
    start = max(round(PAPER_WARMUP * scale), 1) if warmup is None else warmup
    longest = max(interval * scale, min(interval, 2))
    shortest = longest if interval_min is None else max(interval_min * scale, min(interval_min, 2))
    decisions, last = [], None
    for s in range(evaluations):
        wait = longest - (longest - shortest) * (s - start) / max(evaluations - start, 1)
        full = s <= start or s - last >= round(wait) or s >= evaluations - cooldown
        last = s if full else last
        decisions.append(FULL if full else BLOCKS)
    return "".join(decisions)
