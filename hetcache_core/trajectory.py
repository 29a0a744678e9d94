"""How the keys or values of remembered context move: last value, slope and bend of every row, in few bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from .extrapolation import bend_factor, derivatives

FP8 = torch.float8_e4m3fn
FADE = 2.0  # as of predictions
# float8 keeps its precision over a wide range: a derivative needs no scale of its own, a power of two serves.
FINER = 4.0
ROUNDING = 0.026  # RMS error of float8_e4m3fn over the RMS of what is rounded: steps of 1/8 to 1/16, uniform


class Trajectory:
    """Rows ``[B, M, heads, head_dim]`` as they change along the schedule.

    Args:
        position: of the evaluation that computed them.
        rows: the first values, kept, not copied.
        order: 0 holds the last values, 1 extrapolates their slope, 2 their bend too.
        fp8, fp8_turns: whether values, and slopes and bends, are kept as float8_e4m3fn, with one scale per head
            channel.
        offload: whether they are kept in (pinned) host memory.
    """

    def __init__(
        self,
        position: float,
        rows: Tensor,
        order: int,
        fp8: bool = False,
        fp8_turns: bool = False,
        offload: bool = False,
    ):
        self._dtype, self._offload, self._fp8 = rows.dtype, offload, (fp8, *(order * [fp8_turns]))
        self._scale = _scale(rows) if any(self._fp8) else None
        still = (torch.zeros_like(rows) for _ in range(order))
        self._parts = [self._stored(part, i) for i, part in enumerate((rows, *still))]
        self._computed_at = torch.full((rows.shape[1],), float(position), device=rows.device)
        self._span = torch.zeros_like(self._computed_at)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept; the rows' times are not counted."""
        kept = self._parts if self._scale is None else [*self._parts, self._scale]
        return sum(t.numel() * t.element_size() for t in kept)

    def parts(self, device: torch.device) -> list[Tensor]:
        """What is kept, on a device; without waiting where it comes from pinned memory."""
        return [part.to(device, non_blocking=True) for part in self._parts]

    def record(self, position: float, rows: Tensor) -> None:
        """Take in all rows, computed anew."""
        turned = self._turned(position, rows, slice(None), self.parts(rows.device)) if len(self._parts) > 1 else ()
        self._scale = None if self._scale is None else _scale(rows)
        self._parts = [self._stored(part, i) for i, part in enumerate((rows, *turned))]
        self._computed_at.fill_(position)

    def renew(self, position: float, slots: Tensor, rows: Tensor, parts: list[Tensor] | None = None) -> None:
        """Take in the rows of some slots ``[K]``, ``[B, K, heads, head_dim]``, computed anew.

        Args:
            parts: from :meth:`parts`, where they were fetched before.
        """
        parts = self.parts(rows.device) if parts is None else parts
        turned = self._turned(position, rows, slots, parts) if len(parts) > 1 else ()
        for i, part in enumerate((rows, *turned)):
            source = self._rounded(part, i)
            # index_copy_ has no float8 kernel; bytes are bytes
            target, source = (t.view(torch.uint8) if t.dtype == FP8 else t for t in (self._parts[i], source))
            target.index_copy_(1, slots.to(target.device), source.to(target.device))
        self._computed_at[slots] = position

    def at(self, position: float, damping: float | Tensor = 1.0, parts: list[Tensor] | None = None) -> Tensor:
        """Rows as they are expected at a position, ``[B, M, heads, head_dim]`` (not to be written to).

        Args:
            damping: factor on slope and bend. parts: from :meth:`parts`, where they were fetched before.
        """
        parts = self.parts(self._computed_at.device) if parts is None else parts
        value, *turns = (self._exact(part, i) for i, part in enumerate(parts))
        if not turns:
            return value
        age = _columns(position - self._computed_at)
        factors = (age, bend_factor(age, _columns(self._span), FADE))
        for turn, factor in zip(turns, factors, strict=False):
            value = torch.addcmul(value, turn, (factor * damping).to(self._dtype))
        return value

    def _turned(
        self, position: float, rows: Tensor, slots: Tensor | slice, parts: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Slope and bend of some slots after their rows were computed anew; renews their spans."""
        age, span = position - self._computed_at[slots], self._span[slots].clone()
        self._span[slots] = torch.where(age > 0, age, span)
        old, slope, *bend = (self._exact(part[:, slots], i) for i, part in enumerate(parts))
        change = rows - old
        if self._fp8[0]:  # Wiener's factor: how much of the change is not the rounding of the old value
            noise, power = (t.float().square().mean(dim=(0, 2, 3), keepdim=True) for t in (ROUNDING * old, change))
            change *= (1 - noise / power.clamp_min(1e-12)).clamp_min(0).to(self._dtype)
        times = (_columns(t).to(self._dtype) for t in (age, span))
        return derivatives(change, *times, slope, *(bend or [None]))

    def _stored(self, part: Tensor, i: int) -> Tensor:
        part = self._rounded(part, i)
        return _to_host(part) if self._offload else part

    def _rounded(self, part: Tensor, i: int) -> Tensor:
        return _to_fp8(part, self._scale / FINER**i) if self._fp8[i] else part

    def _exact(self, part: Tensor, i: int) -> Tensor:
        return part.to(self._dtype) * (self._scale / FINER**i).to(self._dtype) if self._fp8[i] else part


def _columns(times: Tensor) -> Tensor:
    return times[:, None, None]


def _scale(rows: Tensor) -> Tensor:
    """Per head channel float32 scale ``[1, 1, heads, head_dim]`` that leaves half of float8's range for renewals."""
    return rows.abs().amax(dim=(0, 1), keepdim=True).float().clamp_(min=1e-6) / 224.0


def _to_fp8(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows.float() / scale).clamp_(-448.0, 448.0).to(FP8)


def _to_host(rows: Tensor) -> Tensor:
    if rows.device.type == "cpu":
        return rows
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return host.copy_(rows)
