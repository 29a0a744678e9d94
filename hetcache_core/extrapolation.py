"""Newton's parabola through the last three values of something that changes along the schedule, row by row.

Rows are computed at different times, so each has its own age (evaluations since its last value) and span (from the
value before to the last one). What comes k evaluations after the last of three values, which came h after the second::

    last + k * slope + exp(-k / (fade * h)) * k * (k + h) * bend

the bend trusted less the further it looks beyond what it was taken from.
"""

from __future__ import annotations

import torch
from torch import Tensor


def derivatives(
    change: Tensor, age: Tensor, span: Tensor, slope: Tensor, bend: Tensor | None, known: bool = False
) -> tuple[Tensor, ...]:
    """Slope and, where there was a bend, bend after values have changed.

    Args:
        change: of the values over ``age``; consumed.
        age, span: of the rows before the change, to broadcast with it. Where the age is 0, as at the corrector of a
            two-stage sampler, only the value is renewed.
        slope, bend: so far.
        known: whether all ages and spans are above 0, which saves asking.
    """
    if known:
        new = change.div_(age)
        return (new,) if bend is None else (new, (new - slope).div_(age + span))
    moved = age > 0
    new = torch.where(moved, change.div_(age.clamp_min(1e-6)), slope)
    if bend is None:
        return (new,)
    known = moved & (span > 0)  # two slopes make a bend
    return new, torch.where(known, (new - slope).div_((age + span).clamp_min(1e-6)), bend)


def bend_factor(age: Tensor, span: Tensor, fade: float) -> Tensor:
    """Factor of the bend ``age`` evaluations ahead; 0 where there is no span yet."""
    return torch.exp(-age / (fade * span).clamp_min(1e-6)) * age * (age + span)
