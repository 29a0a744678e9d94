"""Which context tokens a partial evaluation computes, which are remembered as keys and values, and for how many each
of them counts.

A key that stands for w tokens gets ``log(w)`` added to its attention logit; without it the softmax mass of the absent
context goes to the keys that are left (proportional attention, as in ToMe, arXiv 2210.09461, eq. 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .tokens import TokenClasses, TokenGrid

SAMPLING = ("none", "stride", "rotating", "stalest")
_GOLDEN = (math.sqrt(5) - 1) / 2
_BANDS = 3
_R3 = 1.22074408460575947536  # the root of x**4 = x + 1


@dataclass(frozen=True)
class RememberedContext:
    """Context tokens whose keys and values are kept.

    Args:
        indices: sorted token indices ``[M]``.
        weights: float32 ``[M]``, how many context tokens each key stands for.
    """

    indices: Tensor
    weights: Tensor

    @cached_property
    def uniform(self) -> bool:
        """Whether every key stands for itself alone, so that attention needs no bias."""
        return bool((self.weights == 1).all()) if len(self.weights) else True


def remember(classes: TokenClasses, share: float) -> RememberedContext:
    """Choose the context to remember: the nearer the edit the denser, as the inverse of the distance.

    The nearest rings are whole. Beyond, tokens are picked by a low-discrepancy sequence over frames, rows and columns
    (Roberts' R3), which no row of the grid can fall in step with, and stand for as many as were passed over, so that
    sums over the context stay unbiased; of these there are three bands of one weight each, since attention takes keys
    of one weight together. Reference images, which the edit is to show, are whole where they take no more than half,
    and otherwise count as next to the edit.

    Args:
        classes: the run's token classes.
        share: share of the context to keep, 0 to 1.
    """
    context, references = classes.context, len(classes.references)  # which are the first tokens there are
    total = len(context)
    count = min(total, round(share * total))
    if count in (0, total):
        return RememberedContext(context[:count], torch.ones(count, device=context.device))
    distance = classes.distance[context].clamp_min(1).cpu()
    if 2 * references > count:
        distance[:references] = 1
        return _thinned(classes.grid, context, distance, count)
    rest = _thinned(classes.grid, context[references:], distance[references:], count - references)
    ones = torch.ones(references, device=context.device)
    return RememberedContext(torch.cat([context[:references], rest.indices]), torch.cat([ones, rest.weights]))


def _thinned(grid: TokenGrid, context: Tensor, distance: Tensor, count: int) -> RememberedContext:
    """``count`` of some context tokens ``[N]``, which lie so many rings from the edit (on the CPU)."""
    whole, density = _near_and_far(torch.bincount(distance).tolist(), count)
    chance = torch.where(distance <= whole, 1.0, density / distance).double()
    order = torch.where(distance <= whole, 0.0, _scattered(grid, context.cpu()) / chance)
    picked = order.argsort(stable=True)[:count].sort().values
    far = distance[picked][distance[picked] > whole].double()
    inner = far.quantile(torch.linspace(0, 1, _BANDS + 1, dtype=far.dtype)[1:-1], interpolation="lower")
    band = torch.bucketize(distance.double(), torch.cat([torch.full((1,), whole, dtype=far.dtype), inner]))
    band = band.clamp_max(band[picked].max())
    weights = torch.bincount(band)[band[picked]] / torch.bincount(band[picked])[band[picked]]
    return RememberedContext(context[picked.to(context.device)], weights.to(context.device))


def _near_and_far(rings: list[int], count: int) -> tuple[int, float]:
    """How many of the nearest rings can be kept whole, and the density times the distance beyond, for ``count`` of
    the tokens whose number at each distance is ``rings``."""
    for whole in range(len(rings)):
        left = count - sum(rings[: whole + 1])
        density = left / sum(n / d for d, n in enumerate(rings) if d > whole)
        if density <= whole + 1:
            break
    return whole, density


def _scattered(grid: TokenGrid, tokens: Tensor) -> Tensor:
    """A number from 0 to 1 for each token, evenly spread in every neighbourhood, float64."""
    places = (tokens // (grid.height * grid.width), tokens // grid.width % grid.height, tokens % grid.width)
    return sum(place.double() / _R3**power for power, place in enumerate(places, start=1)) % 1


class ContextSampler:
    """Picks the context tokens a partial evaluation computes: always the same number, in token order.

    Args:
        pool: sorted token indices to pick from ``[P]``.
        mode: ``none``; ``stride`` (evenly spaced, always the same); ``rotating`` (evenly spaced, shifted every time);
            ``stalest`` (those computed longest ago, evenly spread among equals).
        share: share of the pool to pick.
    """

    def __init__(self, pool: Tensor, mode: str, share: float):
        if mode not in SAMPLING:
            raise ValueError(f"unknown context sampling {mode!r}; choose one of {', '.join(SAMPLING)}")
        self.pool = pool
        self.mode = mode
        self.count = 0 if mode == "none" else min(len(pool), round(share * len(pool)))
        # a low-discrepancy order: any first few of it are spread evenly over the pool
        spread = (torch.arange(len(pool), dtype=torch.float64) * _GOLDEN) % 1.0
        self._rank = spread.argsort().argsort().to(pool.device)
        self._picks = 0

    def pick(self, computed_at: Tensor) -> Tensor:
        """Next pick, sorted ``[count]``.

        Args:
            computed_at: position of the evaluation that computed each token last, ``[L]``.
        """
        if not self.count:
            return self.pool[:0]
        turn, self._picks = self._picks, self._picks + 1
        if self.mode == "stalest":
            order = (computed_at[self.pool].long() * len(self.pool) + self._rank).argsort()
            return self.pool[order[: self.count]].sort().values
        shift = 0.0 if self.mode == "stride" else (turn * _GOLDEN) % 1.0
        return self.pool[even_positions(len(self.pool), self.count, shift, self.pool.device)]

    @property
    def log_weights(self) -> Tensor:
        """Log of how many tokens each picked one stands for, float32 ``[count]``."""
        return torch.full((self.count,), math.log(len(self.pool) / max(self.count, 1)), device=self.pool.device)


def even_positions(total: int, count: int, shift: float = 0.0, device: torch.device | None = None) -> Tensor:
    """``count`` different, evenly spaced, sorted positions below ``total``; ``shift`` in [0, 1) moves them all."""
    step = total / max(count, 1)
    positions = (torch.arange(count, dtype=torch.float64) + shift) * step
    return positions.floor().long().clamp_(max=total - 1).to(device or torch.device("cpu"))
