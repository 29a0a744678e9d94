"""Rows of keys or values in a few bits a number.

A number is kept as its distance from its channel's centre, measured in its channel's spread (models have channels that
stick out) and rounded to steps of its own row and group of channels. Steps are as wide as is best for normally
distributed numbers (Max, "Quantizing for minimum distortion", 1960, table II), or finer where they then still reach the
largest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .offload import Copied, HostMemory

WIDEST = {2: 0.9957, 4: 0.3352, 6: 0.1041, 8: 1.0}  # step over RMS; 256 levels always reach the largest number
GROUP = 128  # channels that share a row's step: one head of Wan
STEP = torch.bfloat16
_ALL = slice(None)
_AT_ONCE = 2**23  # numbers whose movement is worked out at a time: all of a long clip's would take gigabytes


def packed_bytes(bits: int | None, rows: int, dim: int, itemsize: int) -> int:
    """Bytes of so many rows of ``dim`` numbers: ``bits`` each and the steps, or, without ``bits``, ``itemsize``."""
    if bits is None:
        return rows * dim * itemsize
    return rows * (dim * bits // 8 + dim // math.gcd(dim, GROUP) * STEP.itemsize)


@dataclass(frozen=True)
class Channels:
    """What numbers are measured from and in: centre (or None, for 0) and spread of every channel, float32
    ``[1, 1, groups, channels]``."""

    centre: Tensor | None
    spread: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Channels:
        """Those of rows ``[B, M, heads, head_dim]``."""
        spread, centre = torch.std_mean(_grouped(rows), dim=(0, 1), keepdim=True, correction=0)
        return cls(centre.float(), spread.float().clamp_min_(1e-6))

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.centre, self.spread) if t is not None)


class Rows:
    """Rows ``[B, M, heads, head_dim]``, packed or as they are.

    Args:
        rows: the first ones; where they are not packed, kept, not copied.
        bits: of a number, a key of :data:`WIDEST`; None keeps rows as they are.
        channels: what they are measured in.
        host: where they are kept, if not on their device.
    """

    def __init__(
        self, rows: Tensor, bits: int | None, channels: Channels | None = None, host: HostMemory | None = None
    ):
        self._dtype, self._heads, self._bits, self._host = rows.dtype, rows.shape[2:], bits, host
        self._kept = Copied([])
        self.keep([self.coded(piece, channels) for piece in pieces(rows)], channels)

    @property
    def packed(self) -> bool:
        """Whether numbers are coded."""
        return self._bits is not None

    @property
    def bytes(self) -> int:
        """Bytes of what is kept; what numbers are measured in is not counted."""
        return self._kept.bytes

    def coded(self, rows: Tensor, channels: Channels | None) -> list[Tensor]:
        """Rows as they are kept."""
        if not self.packed:
            return [rows]
        rows = _grouped(rows).float()
        rows = (rows if channels.centre is None else rows - channels.centre) / channels.spread
        half = (2**self._bits - 1) / 2
        largest, usual = rows.abs().amax(dim=3, keepdim=True), rows.square().mean(dim=3, keepdim=True).sqrt()
        steps = torch.minimum(largest / half, WIDEST[self._bits] * usual).to(STEP)
        codes = rows.div_(steps.float().clamp_min(1e-30)).add_(half).round_().clamp_(0, 2 * half).to(torch.uint8)
        return [*_planes(codes, self._bits), steps]

    def keep(self, pieces: list[list[Tensor]], channels: Channels | None) -> None:
        """Take in all rows, coded piece by piece."""
        parts = pieces[0] if len(pieces) == 1 else [torch.cat(part, dim=1) for part in zip(*pieces, strict=True)]
        self._kept = Copied(parts) if self._host is None else self._host.take(parts, self._kept.tensors)
        self._channels = channels

    def renew(self, slots: Tensor, rows: Tensor, fetched: list[Tensor]) -> None:
        """Take in rows ``[B, K, heads, head_dim]`` of some slots ``[K]``, also in what was fetched before."""
        for here, part in zip(fetched, self.coded(rows, self._channels), strict=True):
            _put(here, slots, part)
        if fetched[0] is not self._kept.tensors[0]:  # all of it goes back: to pick rows out would keep the host busy
            self._kept = self._host.take(fetched, self._kept.tensors)

    def fetch(self, device: torch.device) -> list[Tensor]:
        """What is kept, on a device; without waiting where it comes from pinned memory."""
        return self._kept.tensors if self._host is None else self._host.bring(self._kept, device)

    def get(self, fetched: list[Tensor], slots: Tensor | slice = _ALL) -> Tensor:
        """The rows of some slots, from what was fetched (not to be written to)."""
        return self.measured(self.spreads(fetched, slots)) if self.packed else fetched[0][:, slots]

    def spreads(
        self, fetched: list[Tensor], slots: Tensor | slice = _ALL, factor: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Packed rows of some slots as so many spreads from the centre, ``[B, K, groups, channels]``.

        Args:
            factor: of the rows, ``[K, 1, 1]``. onto: what they are added to, in place.
        """
        codes = _joined([plane[:, slots] for plane in fetched[:-1]], self._bits)
        levels = codes.to(self._dtype).sub_((2**self._bits - 1) / 2)  # which the model's dtype holds exactly
        steps = fetched[-1][:, slots]
        steps = (steps if factor is None else steps * factor).to(self._dtype)
        return levels.mul_(steps) if onto is None else onto.addcmul_(levels, steps)

    def measured(self, spreads: Tensor, onto: Tensor | None = None) -> Tensor:
        """Rows of so many spreads from the centre, ``[B, K, heads, head_dim]``; added to ``onto``."""
        spread, centre = self._channels.spread.to(self._dtype), self._channels.centre
        if onto is None:
            rows = spreads.mul_(spread) if centre is None else torch.addcmul(centre.to(self._dtype), spreads, spread)
        else:
            rows = torch.addcmul(_grouped(onto), spreads, spread)
            rows = rows if centre is None else rows.add_(centre.to(self._dtype))
        return rows.flatten(2).unflatten(2, self._heads)

    def rounding(self, fetched: list[Tensor], slots: Tensor | slice = _ALL) -> Tensor | None:
        """Mean square of what rounding changes in each row, float32 ``[B, K, 1, 1]``, clipping left out; None where
        nothing is rounded."""
        if not self.packed:
            return None
        units = self._channels.spread.square().mean(dim=3, keepdim=True)
        return (fetched[-1][:, slots].float().square() * units).mean(dim=2, keepdim=True) / 12


def pieces(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in pieces whose arithmetic takes little memory at a time."""
    return rows.split(max(1, _AT_ONCE // max(1, rows[:, :1].numel())), dim=1)


def _grouped(rows: Tensor) -> Tensor:
    dim = rows.shape[2] * rows.shape[3]
    return rows.flatten(2).unflatten(2, (-1, math.gcd(dim, GROUP)))


def _widths(bits: int) -> tuple[int, ...]:
    return tuple(width for width in (8, 4, 2) if bits & width)


def _planes(codes: Tensor, bits: int) -> list[Tensor]:
    """Codes below ``2**bits`` as bytes full of pieces of 8, 4 or 2 bits, the highest first."""
    planes, rest = [], bits
    for width in _widths(bits):
        rest -= width
        pieces = ((codes >> rest) & (2**width - 1)).chunk(8 // width, dim=-1)
        planes.append(sum(piece << (width * i) for i, piece in enumerate(pieces)))
    return planes


def _joined(planes: list[Tensor], bits: int) -> Tensor:
    codes = None
    for width, plane in zip(_widths(bits), planes, strict=True):
        part = plane
        if width < 8:
            part = torch.cat([(plane >> (width * i)) & (2**width - 1) for i in range(8 // width)], dim=-1)
        codes = part if codes is None else (codes << width) | part
    return codes


def _put(rows: Tensor, slots: Tensor, part: Tensor) -> None:
    """``index_copy_``, in words of eight bytes where rows have such: bytes alone take a CPU several times as long."""
    if rows.is_contiguous() and part.is_contiguous() and rows[0, 0].numel() * rows.itemsize % 8 == 0:
        rows, part = (t.flatten(2).view(torch.int64) for t in (rows, part))
    rows.index_copy_(1, slots, part)
