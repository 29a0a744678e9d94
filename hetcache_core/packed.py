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
        self._kept, self._recent = Copied([]), None
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
        rows, spread, centre = _grouped(rows), channels.spread, channels.centre
        rows = rows / spread if centre is None else (rows - centre).div_(spread)
        half = (2**self._bits - 1) / 2
        largest, length = (torch.linalg.vector_norm(rows, order, dim=3, keepdim=True) for order in (math.inf, 2))
        steps = torch.minimum(largest / half, length * (WIDEST[self._bits] / math.sqrt(rows.shape[3]))).to(STEP)
        middle = rows.new_full((), half + 0.5)  # a half on top: bytes round down
        codes = torch.addcmul(middle, rows, 1 / steps.float().clamp_min(1e-30), out=rows)
        return [*_planes(codes.clamp_(0, 2 * half + 0.5).to(torch.uint8), self._bits), steps]

    def keep(self, pieces: list[list[Tensor]], channels: Channels | None) -> None:
        """Take in all rows, coded piece by piece."""
        parts = pieces[0] if len(pieces) == 1 else [torch.cat(part, dim=1) for part in zip(*pieces, strict=True)]
        if self._host is None:
            self._kept = Copied(parts)
        else:
            self._kept, self._recent = self._host.take(parts, self._kept.tensors), parts
        self._channels = channels

    def settle(self) -> None:
        """Let go of what :meth:`keep` left on the device, where rows are kept on the host."""
        self._recent = None

    def renew(self, slots: Tensor, rows: Tensor, fetched: list[Tensor]) -> None:
        """Take in rows ``[B, K, heads, head_dim]`` of some slots ``[K]``, also in what was fetched before."""
        for here, part in zip(fetched, self.coded(rows, self._channels), strict=True):
            _put(here, slots, part)
        if fetched[0] is not self._kept.tensors[0]:  # all of it goes back: to pick rows out would keep the host busy
            self._kept, self._recent = self._host.take(fetched, self._kept.tensors), None

    def fetch(self, device: torch.device) -> list[Tensor]:
        """What is kept, on a device; without waiting where it comes from pinned memory."""
        if self._host is None:
            return self._kept.tensors
        return self._host.bring(self._kept, device) if self._recent is None else self._recent

    def get(self, fetched: list[Tensor], slots: Tensor | slice = _ALL) -> Tensor:
        """The rows of some slots, from what was fetched (not to be written to)."""
        if not self.packed:
            return fetched[0][:, slots]
        return self.measured(total([self.levels(fetched, slots)], self._dtype))

    def levels(self, fetched: list[Tensor], slots: Tensor | slice = _ALL, factor: Tensor | None = None) -> Levels:
        """Packed rows of some slots, times a factor ``[K, 1, 1]``, as so many spreads from the centre."""
        codes = _joined([plane[:, slots] for plane in fetched[:-1]], self._bits)
        steps = fetched[-1][:, slots].float()
        return Levels(codes, steps if factor is None else steps * factor, (2**self._bits - 1) / 2)

    def measured(self, spreads: Tensor, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Rows of so many spreads from the centre, ``[B, K, heads, head_dim]``.

        Args:
            spreads: from :func:`total`; taken to pieces. onto: rows they are added to. out: where to write.
        """
        spread, centre = self._channels.spread.to(self._dtype), self._channels.centre
        start = centre if onto is None else _grouped(onto)
        out = spreads if out is None else _grouped(out)
        if start is None:
            rows = torch.mul(spreads, spread, out=out)
        else:
            rows = torch.addcmul(start.to(self._dtype), spreads, spread, out=out)
        if onto is not None and centre is not None:
            rows.add_(centre.to(self._dtype))
        return rows.flatten(2).unflatten(2, self._heads)

    def rounding(self, fetched: list[Tensor], slots: Tensor | slice = _ALL) -> Tensor | None:
        """Mean square of what rounding changes in each row, float32 ``[B, K, 1, 1]``, clipping left out; None where
        nothing is rounded."""
        if not self.packed:
            return None
        units = self._channels.spread.square().mean(dim=3, keepdim=True)
        return (fetched[-1][:, slots].float().square() * units).mean(dim=2, keepdim=True) / 12


@dataclass(frozen=True)
class Levels:
    """Numbers ``(codes - middle) * steps``: codes uint8 ``[B, K, groups, channels]``, steps float32 ``[B, K, groups,
    1]``."""

    codes: Tensor
    steps: Tensor
    middle: float


def total(levels: list[Levels], dtype: torch.dtype) -> Tensor:
    """Their sum, ``[B, K, groups, channels]``, in one pass over the codes of each."""
    first, *rest = levels
    numbers = torch.empty(first.codes.shape, dtype=dtype, device=first.codes.device)
    torch.addcmul(-sum(each.steps * each.middle for each in levels), first.codes, first.steps, out=numbers)
    for each in rest:
        numbers.addcmul_(each.codes, each.steps)
    return numbers


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
        part = codes >> rest if rest else codes
        plane, *others = (part & (2**width - 1) if width < 8 else part).chunk(8 // width, dim=-1)
        for i, piece in enumerate(others, start=1):
            plane = torch.add(plane, piece, alpha=2 ** (width * i))
        planes.append(plane)
    return planes


def _joined(planes: list[Tensor], bits: int) -> Tensor:
    codes = None
    for width, plane in zip(_widths(bits), planes, strict=True):
        part = plane if width == 8 else _unpacked(plane, width)
        codes = part if codes is None else torch.add(part, codes, alpha=2**width)
    return codes


def _unpacked(plane: Tensor, width: int) -> Tensor:
    """Pieces of 4 or 2 bits, each in a byte, written where they belong."""
    codes = plane.new_empty(*plane.shape[:-1], plane.shape[-1] * (8 // width))
    *low, high = codes.chunk(8 // width, dim=-1)
    for i, piece in enumerate(low):
        torch.bitwise_and(plane >> (width * i) if i else plane, 2**width - 1, out=piece)
    torch.bitwise_right_shift(plane, 8 - width, out=high)
    return codes


def _put(rows: Tensor, slots: Tensor, part: Tensor) -> None:
    """``index_copy_``, in words of eight bytes where rows have such: bytes alone take a CPU several times as long."""
    if rows.is_contiguous() and part.is_contiguous() and rows[0, 0].numel() * rows.itemsize % 8 == 0:
        rows, part = (t.flatten(2).view(torch.int64) for t in (rows, part))
    rows.index_copy_(1, slots, part)
