"""How the keys or values of remembered context move: last value, slope and bend of every row, in few bits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .extrapolation import bend_factor, derivatives
from .offload import HostMemory
from .packed import Channels, Rows, pieces, total

FADE = 2.0  # as of predictions
LEAST = 1e-3  # of an evaluation: closer places may be one in float32
Fetched = list[list[Tensor]]


class Trajectory:
    """Rows ``[B, M, heads, head_dim]`` as they change along the schedule.

    Args:
        position: of the evaluation that computed them.
        rows: the first values; where they are not packed, kept, not copied.
        order: 0 holds the last values, 1 extrapolates their slope, 2 their bend too.
        bits, turn_bits: of the values, and of slopes and bends; None keeps them as they come.
        host: where all that is kept, if not on the rows' device.
    """

    def __init__(
        self,
        position: float,
        rows: Tensor,
        order: int,
        bits: int | None = None,
        turn_bits: int | None = None,
        host: HostMemory | None = None,
    ):
        self._packed, self._dtype = bits is not None or turn_bits is not None, rows.dtype
        turns = self._measure(rows)
        self._values = Rows(rows, bits, self._channels, host)
        self._turns = [Rows(torch.zeros_like(rows), turn_bits, turns, host) for _ in range(order)]
        self._recorded_at = self._renewed_at = position
        self._spanned = False  # whether all rows have been computed at two positions
        self._computed_at = torch.full((rows.shape[1],), float(position), device=rows.device)
        self._span = torch.zeros_like(self._computed_at)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept, the rows' times among it."""
        times = sum(t.numel() * t.element_size() for t in (self._computed_at, self._span))
        channels = self._channels.bytes if self._channels else 0
        return times + channels + sum(rows.bytes for rows in (self._values, *self._turns))

    def fetch(self, device: torch.device) -> Fetched:
        """What is kept, on a device; without waiting where it comes from pinned memory."""
        return [rows.fetch(device) for rows in (self._values, *self._turns)]

    def settle(self) -> None:
        """Let go of what is on the device, where it is kept on the host: what was recorded last stays until then."""
        for rows in (self._values, *self._turns):
            rows.settle()

    def record(self, position: float, rows: Tensor, fetched: Fetched | None = None) -> None:
        """Take in all rows, computed anew; ``fetched`` is from :meth:`fetch`."""
        turns = self._measure(rows)
        fetched = self.fetch(rows.device) if self._turns and fetched is None else fetched
        kept = [(self._values, self._channels, []), *((turn, turns, []) for turn in self._turns)]
        start, moved = 0, position - max(self._recorded_at, self._renewed_at) > LEAST
        for piece in pieces(rows):
            some = slice(start, start := start + piece.shape[1])
            turned = self._turned(position, piece, some, fetched, moved and self._spanned) if self._turns else ()
            for (each, channels, coded), part in zip(kept, (piece, *turned), strict=True):
                coded.append(each.coded(part, channels))
        for each, channels, coded in kept:
            each.keep(coded, channels)
        self._recorded_at, self._spanned = position, self._spanned or moved
        self._computed_at.fill_(position)

    def renew(self, position: float, slots: Tensor, rows: Tensor, fetched: Fetched | None = None) -> None:
        """Take in the rows of some slots ``[K]``, ``[B, K, heads, head_dim]``, computed anew.

        Args:
            fetched: from :meth:`fetch`; renewed as well.
        """
        fetched = self.fetch(rows.device) if fetched is None else fetched
        turned = self._turned(position, rows, slots, fetched) if self._turns else ()
        for kept, new, here in zip((self._values, *self._turns), (rows, *turned), fetched, strict=True):
            kept.renew(slots, new, here)
        self._renewed_at = position
        self._computed_at.index_fill_(0, slots, position)  # an index and a number would wait for the device

    def at(
        self,
        position: float,
        damping: float | Tensor = 1.0,
        fetched: Fetched | None = None,
        slots: Tensor | slice = slice(None),
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows as they are expected at a position, ``[B, M, heads, head_dim]`` (not to be written to).

        Args:
            damping: factor on slope and bend. fetched: from :meth:`fetch`. slots: of the rows wanted. out: where to
                write them.
        """
        turns = () if position == self._recorded_at else self._turns  # all rows are as old as that at most
        if fetched is None:
            fetched = [rows.fetch(self._computed_at.device) for rows in (self._values, *turns)]
        age = _columns(position - self._computed_at[slots])
        factors = [damping * age, damping * bend_factor(age, _columns(self._span[slots]), FADE)]
        turns = list(zip(turns, fetched[1:], factors, strict=False))
        packed, plain = ([t for t in turns if t[0].packed is which] for which in (True, False))
        levels = [turn.levels(here, slots, factor) for turn, here, factor in packed]
        if self._values.packed:
            rows, levels = None, [self._values.levels(fetched[0], slots), *levels]
        else:
            rows = self._values.get(fetched[0], slots)
        if levels:
            measures = self._values if self._values.packed else packed[0][0]
            measured = measures.measured(total(levels, self._dtype), rows, out)
            rows = measured if out is None else out
        for turn, here, factor in plain:
            rows = torch.addcmul(rows, turn.get(here, slots), factor.to(rows.dtype), out=out)
        return rows if out is None or levels or plain else out.copy_(rows)

    def _turned(
        self, position: float, rows: Tensor, slots: Tensor | slice, fetched: Fetched, known: bool = False
    ) -> tuple[Tensor, ...]:
        """Slope and bend of some slots after their rows were computed anew; renews their spans. ``known``: all of them
        are older than that and had been computed twice."""
        age, span = position - self._computed_at[slots], self._span[slots].clone()
        self._span[slots] = torch.where(age > 0, age, span)
        change = rows - self._values.get(fetched[0], slots)
        rounding = self._values.rounding(fetched[0], slots)
        if rounding is not None:  # Wiener's factor: how much of the change is not the rounding of the old value
            norm = torch.linalg.vector_norm(change, dim=(2, 3), keepdim=True, dtype=torch.float32)
            power = norm.square() / change[0, 0].numel()
            change *= (1 - rounding / power.clamp_min(1e-12)).clamp_min(0).to(change.dtype)
        times = (_columns(t).to(change.dtype) for t in (age, span))
        slope, *bend = (turn.get(here, slots) for turn, here in zip(self._turns, fetched[1:], strict=True))
        return derivatives(change, *times, slope, *(bend or [None]), known)

    def _measure(self, rows: Tensor) -> Channels | None:
        """Find what values are measured in; slopes and bends have the same spread, nearly, but no centre."""
        self._channels = Channels.of(rows) if self._packed else None
        return self._channels and replace(self._channels, centre=None)


def _columns(times: Tensor) -> Tensor:
    return times[:, None, None]
