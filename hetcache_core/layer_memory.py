"""What one layer remembers of its keys, or of its values, in every stream."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from .packed import Channels, Rows
from .tiers import MemoryTier
from .trajectory import Trajectory

Fetched = dict[Hashable, list[list[Tensor]]]


class Apart:
    """Rows ``[B, M, heads, head_dim]`` of a stream of which only the difference from the first one's is kept.

    What streams have in common, most of their rows and nearly all of their movement, is the first one's trajectory.
    """

    def __init__(self, first: Trajectory, position: float, rows: Tensor, bits: int, offload: bool):
        self._first = first
        difference = rows - first.at(position)
        self._channels = Channels.of(difference)
        self._rows = Rows(difference, bits, self._channels, offload)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return self._channels.bytes + self._rows.bytes

    def fetch(self, device: torch.device) -> list[list[Tensor]]:
        """What is kept, on a device."""
        return [self._rows.fetch(device)]

    def record(self, position: float, rows: Tensor) -> None:
        """Take in all rows, computed anew."""
        difference = rows - self._first.at(position)
        self._channels = Channels.of(difference)
        self._rows.set(difference, self._channels)

    def renew(self, slots: Tensor, rows: Tensor, first: Tensor, fetched: list[list[Tensor]]) -> None:
        """Take in rows ``[B, K, heads, head_dim]`` of some slots ``[K]`` and the first stream's beside them."""
        self._rows.set_at(slots, rows - first, fetched[0])

    def beside(self, first: Tensor, fetched: list[list[Tensor]]) -> Tensor:
        """All rows, where the first stream's are expected to be ``first``."""
        return first + self._rows.get(fetched[0])


class LayerMemory:
    """Rows ``[B, M, heads, head_dim]`` of every stream, in one layer.

    The stream that comes first has a :class:`Trajectory`. By the tier, others have their own, are kept as their
    difference from the first, or are taken for equal to it.
    """

    def __init__(self, tier: MemoryTier):
        self._tier = tier
        self._first: Hashable = None
        self._kept: dict[Hashable, Trajectory | Apart] = {}

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(kept.bytes for kept in self._kept.values())

    def has(self, stream: Hashable) -> bool:
        """Whether a stream's rows are here."""
        return bool(self._kept) if self._tier.apart_bits == 0 else stream in self._kept

    def record(self, stream: Hashable, position: float, rows: Tensor) -> None:
        """Take in all of a stream's rows, computed anew at a position."""
        tier, kept = self._tier, self._kept.get(stream)
        if not self._kept:
            self._first = stream
        if kept is not None:
            kept.record(position, rows)
        elif self._leads(stream):
            how = (tier.order, tier.bits, tier.turn_bits, tier.offload)
            self._kept[stream] = Trajectory(position, rows, *how)
        elif tier.apart_bits:
            self._kept[stream] = Apart(self._kept[self._first], position, rows, tier.apart_bits, tier.offload)

    def fetch(self, streams: tuple[Hashable, ...], device: torch.device) -> Fetched:
        """What is kept of some streams, on a device; without waiting where it comes from pinned memory."""
        wanted = set(streams) if self._tier.apart_bits is None else {self._first, *streams}
        return {stream: self._kept[stream].fetch(device) for stream in wanted & self._kept.keys()}

    def expected(
        self, streams: tuple[Hashable, ...], position: float, damping: float | Tensor, fetched: Fetched
    ) -> dict[Hashable, Tensor]:
        """Rows of some streams as they are expected at a position (not to be written to).

        Args:
            damping: factor on slopes and bends. fetched: from :meth:`fetch`.
        """
        rows = {s: self._kept[s].at(position, damping, here) for s, here in fetched.items() if self._leads(s)}
        for stream in streams:
            if not self._leads(stream):
                first, kept = rows[self._first], self._kept.get(stream)
                rows[stream] = first if kept is None else kept.beside(first, fetched[stream])
        return rows

    def renew(
        self, rows: dict[Hashable, Tensor], position: float, damping: float | Tensor, slots: Tensor, fetched: Fetched
    ) -> None:
        """Take in some slots ``[K]`` of some streams, ``[B, K, heads, head_dim]`` each, computed anew.

        Args:
            damping, fetched: as in :meth:`expected`; what was fetched is renewed as well.
        """
        for stream in sorted(rows.keys() & self._kept.keys(), key=self._leads, reverse=True):
            kept, here = self._kept[stream], fetched[stream]
            if self._leads(stream):
                kept.renew(position, slots, rows[stream], here)
            else:  # the first one's, renewed or expected
                first = self._kept[self._first].at(position, damping, fetched[self._first], slots)
                kept.renew(slots, rows[stream], first, here)

    def _leads(self, stream: Hashable) -> bool:
        return self._tier.apart_bits is None or stream == self._first
