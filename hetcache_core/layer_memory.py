"""What one layer remembers of its keys, or of its values, in every stream."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from .offload import HostMemory
from .packed import Channels, Rows, pieces, total
from .tiers import MemoryTier
from .trajectory import Trajectory

Fetched = dict[Hashable, list[list[Tensor]]]


class Apart:
    """Rows ``[B, M, heads, head_dim]`` of a stream of which only the difference from the first one's is kept.

    What streams have in common, most of their rows and nearly all of their movement, is the first one's trajectory.
    """

    def __init__(self, first: Trajectory, position: float, rows: Tensor, bits: int, host: HostMemory | None):
        self._first = first
        difference = rows - first.at(position)
        self._channels = Channels.of(difference)
        self._rows = Rows(difference, bits, self._channels, host)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return self._channels.bytes + self._rows.bytes

    def fetch(self, device: torch.device) -> list[list[Tensor]]:
        """What is kept, on a device."""
        return [self._rows.fetch(device)]

    def settle(self) -> None:
        """As of :class:`Trajectory`."""
        self._rows.settle()

    def record(self, position: float, rows: Tensor, first: list[list[Tensor]] | None = None) -> None:
        """Take in all rows, computed anew; ``first`` is what the first one's :meth:`Trajectory.fetch` gave."""
        difference = rows - self._first.at(position, fetched=first)
        self._channels = Channels.of(difference)
        self._rows.keep([self._rows.coded(piece, self._channels) for piece in pieces(difference)], self._channels)

    def shift(self, slots: Tensor, by: Tensor) -> None:
        """Add to the difference of some slots ``[K]``, ``[B, K, heads, head_dim]``."""
        fetched = self._rows.fetch(by.device)
        self._rows.renew(slots, self._rows.get(fetched, slots) + by, fetched)

    def renew(self, slots: Tensor, rows: Tensor, first: Tensor, fetched: list[list[Tensor]]) -> None:
        """Take in rows ``[B, K, heads, head_dim]`` of some slots ``[K]`` and the first stream's beside them."""
        self._rows.renew(slots, rows - first, fetched[0])

    def beside(self, first: Tensor, fetched: list[list[Tensor]], out: Tensor | None = None) -> Tensor:
        """All rows, where the first stream's are expected to be ``first``; ``out`` is where to write them."""
        return self._rows.measured(total([self._rows.levels(fetched[0])], first.dtype), first, out)


class LayerMemory:
    """Rows ``[B, M, heads, head_dim]`` of every stream, in one layer.

    One stream leads, it has a :class:`Trajectory`. By the tier, others have their own, are kept as their difference
    from the leading one, or are taken for equal to it.

    Args:
        tier: how they are kept. host: where, if not on their device.
        leading: the stream that leads if it is among the first; else the first that comes does.
    """

    def __init__(self, tier: MemoryTier, leading: Hashable = None, host: HostMemory | None = None):
        self._tier, self._first, self._host = tier, leading, host
        self._kept: dict[Hashable, Trajectory | Apart] = {}
        self._recorded: dict[Hashable, float] = {}
        self._renewed: dict[Hashable, float] = {}
        self._turned = False  # whether another stream leads than did, for the order of the calls

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(kept.bytes for kept in self._kept.values())

    def has(self, stream: Hashable) -> bool:
        """Whether a stream's rows are here."""
        return stream in self._recorded

    def record(
        self,
        rows: dict[Hashable, Tensor],
        position: float,
        chosen: Tensor | None = None,
        fetched: Fetched | None = None,
        whole: bool = False,
    ) -> None:
        """Take in all rows of some streams, computed anew at a position.

        A host that gives up batching midway changes the order of its calls. On an evaluation that computes all streams
        in full, a leading one that is not the first to come would leave others told apart from where it was expected;
        so that it leads no longer, once in a run.

        Args:
            chosen: indices of the rows that are kept ``[M]``, None where all given are.
            fetched: what :meth:`fetch` gave, to save fetching it now.
            whole: whether all streams of the run are computed in full in this evaluation.
        """
        if not self._kept and self._first not in rows:
            self._first = next(iter(rows))
        known = dict(fetched or {})
        turned = whole and bool(self._tier.apart_bits) and not self._turned and self._first not in rows
        turned = turned and self._recorded[self._first] < position
        for stream in sorted(rows, key=self._leads, reverse=True):
            if not self._leads(stream) and (self._recorded.get(stream, -1) > self._recorded[self._first] or turned):
                self._kept.clear()  # the leading one has left the run, or does no longer come first
                self._recorded.clear()
                self._first, self._turned = stream, self._turned or turned
            if self._leads(stream) or self._tier.apart_bits:
                taken = rows[stream] if chosen is None else rows[stream].index_select(1, chosen)
                self._record(stream, taken, position, known.get(stream if self._leads(stream) else self._first))
            known.pop(stream, None)  # it is what it was before
            self._recorded[stream] = position
        for kept in self._kept.values():
            kept.settle()

    def _record(self, stream: Hashable, rows: Tensor, position: float, fetched: list[list[Tensor]] | None) -> None:
        tier, kept = self._tier, self._kept.get(stream)
        if kept is not None:
            kept.record(position, rows, fetched)
        elif self._leads(stream):
            self._kept[stream] = Trajectory(position, rows, tier.order, tier.bits, tier.turn_bits, self._host)
        else:
            self._kept[stream] = Apart(self._kept[self._first], position, rows, tier.apart_bits, self._host)

    def fetch(self, streams: tuple[Hashable, ...], device: torch.device) -> Fetched:
        """What is kept of some streams, on a device; without waiting where it comes from pinned memory."""
        wanted = set(streams) if self._tier.apart_bits is None else {self._first, *streams}
        return {stream: self._kept[stream].fetch(device) for stream in wanted & self._kept.keys()}

    def expect(self, out: dict[Hashable, Tensor], position: float, damping: float | Tensor, fetched: Fetched) -> None:
        """Write the rows of some streams as they are expected at a position.

        Args:
            out: where to, by stream, ``[B, M, heads, head_dim]`` each. damping: factor on slopes and bends. fetched:
                from :meth:`fetch`.
        """
        leading = [stream for stream in fetched if self._leads(stream)]
        rows = {s: self._kept[s].at(position, damping, fetched[s], out=out.get(s)) for s in leading}
        for stream in out.keys() - rows.keys():
            first, kept = rows[self._first], self._kept.get(stream)
            if kept is None:
                out[stream].copy_(first)
            else:
                kept.beside(first, fetched[stream], out[stream])

    def renew(
        self, rows: dict[Hashable, Tensor], position: float, damping: float | Tensor, slots: Tensor, fetched: Fetched
    ) -> None:
        """Take in some slots ``[K]`` of some streams, ``[B, K, heads, head_dim]`` each, computed anew.

        Args:
            damping, fetched: as in :meth:`expect`; what was fetched is renewed as well.
        """
        for stream in sorted(rows.keys() & self._kept.keys(), key=self._leads, reverse=True):
            kept, here = self._kept[stream], fetched[stream]
            if self._leads(stream):
                before = [other for s, other in self._kept.items() if s not in rows and self._seen(s, position)]
                _renew_first(kept, before, (position, damping), slots, rows[stream], here)
            else:  # the first one's, renewed or expected
                first = self._kept[self._first].at(position, damping, fetched[self._first], slots)
                kept.renew(slots, rows[stream], first, here)
            self._renewed[stream] = position

    def _seen(self, stream: Hashable, position: float) -> bool:
        """Whether a stream that leans on the leading one has been computed at a position."""
        return not self._leads(stream) and position in (self._recorded.get(stream), self._renewed.get(stream))

    def _leads(self, stream: Hashable) -> bool:
        return self._tier.apart_bits is None or stream == self._first


def _renew_first(
    first: Trajectory,
    before: list[Apart],
    now: tuple[float, float | Tensor],
    slots: Tensor,
    rows: Tensor,
    fetched: list[list[Tensor]],
) -> None:
    """Renew a stream that leads, now: at this position, with this damping. Those that came before it in the evaluation
    stay what they were seen to be, though their differences are from where it was expected."""
    expected = first.at(*now, fetched, slots) if before else None
    first.renew(now[0], slots, rows, fetched)
    if before:
        moved = expected - first.at(*now, fetched, slots)
        for other in before:
            other.shift(slots, moved)
