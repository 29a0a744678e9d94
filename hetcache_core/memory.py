"""Context memory: keys and values of context tokens, kept from the last evaluation that computed them.

Every self-attention layer of a run has one entry per stream. On a full evaluation the rows of the remembered context
are captured; on a partial one the fresh rows of the selection are joined with them, and remembered tokens that were
computed again are renewed. What is remembered goes on moving as it did: each row is extrapolated from the last three
times it was computed. Nothing else of a hidden state is ever kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .context import RememberedContext
from .trajectory import Trajectory


@dataclass(frozen=True)
class MemoryTier:
    """How context is remembered.

    Args:
        share: share of the context whose keys and values are kept, 0 to 1.
        fp8: values are kept as float8_e4m3fn with one scale per head channel instead of the model's dtype.
        fp8_turns: slopes and bends are.
        shared: one copy, of the stream that comes first, also serves the others.
        offload: kept in (pinned) host memory and fetched layer by layer.
        order: 0 holds what is remembered, 1 extrapolates its slope, 2 its bend too; each is another copy.
    """

    share: float = 1.0
    fp8: bool = False
    fp8_turns: bool = False
    shared: bool = False
    offload: bool = False
    order: int = 2

    @property
    def follows(self) -> bool:
        """Whether partial evaluations see the context nearly as it is: all of it, each stream's own, moving."""
        return self.order > 0 and self.share >= 1 and not self.shared

    def kept(self, context_tokens: int) -> int:
        """Number of context tokens remembered."""
        return min(context_tokens, round(self.share * context_tokens))

    def bytes(self, context_tokens: int, dim: int, layers: int, streams: int, itemsize: int, rows: int = 1) -> int:
        """Bytes of device or host memory this tier holds.

        Args:
            context_tokens: context tokens of the clip.
            dim: model width (keys and values are this wide).
            layers: self-attention layers, main and VACE.
            streams: streams with a copy of their own unless shared.
            itemsize: bytes of the model's dtype.
            rows: batch rows of a stream.
        """
        kept = self.kept(context_tokens)
        copies = 1 if self.shared else streams
        scaled = self.fp8 or (self.fp8_turns and self.order)
        scales = 2 * 4 * dim if scaled and kept else 0
        values, turns = (1 if small else itemsize for small in (self.fp8, self.fp8_turns))
        return copies * layers * (2 * rows * kept * dim * (values + self.order * turns) + scales)

    def __str__(self) -> str:
        if not self.share:
            return "none"
        words = [f"{self.share:.0%} of the context"]
        small = "fp8" if self.fp8 else "fp8 slopes" if self.fp8_turns and self.order else ""
        words += [small, "shared" * self.shared, "offload" * self.offload, ("held", "slope only", "")[self.order]]
        return ", ".join(word for word in words if word)


NO_MEMORY = MemoryTier(share=0.0, order=0)

# Best first. On nano, where all that is lost is lost to the context: float8 slopes cost nothing, float8 values 5 dB,
# holding them still 7 more, sharing 5 more, thinning as much again (`python -m benchmarks.tiers`).
LADDER = (
    MemoryTier(),
    MemoryTier(fp8_turns=True),
    MemoryTier(fp8=True, fp8_turns=True),
    MemoryTier(fp8=True, fp8_turns=True, order=1),
    MemoryTier(fp8=True, order=0),
    MemoryTier(fp8=True, shared=True, order=0),
    MemoryTier(0.5, fp8=True, shared=True, order=0),
    MemoryTier(0.25, fp8=True, shared=True, order=0),
    MemoryTier(0.1, fp8=True, shared=True, order=0),
    NO_MEMORY,
)


@dataclass(frozen=True)
class _Entry:
    key: Trajectory
    value: Trajectory

    @property
    def bytes(self) -> int:
        return self.key.bytes + self.value.bytes


@dataclass
class ContextMemory:
    """Keys and values of ``remembered`` context tokens for every layer and stream.

    Args:
        remembered: the tokens kept and their weights.
        tokens: token count of the full grid.
        layers: self-attention layers of the model.
        tier: dtype, sharing and place.
        streams: most streams kept; the budget was reckoned for so many, and a later one goes without.
    """

    remembered: RememberedContext
    tokens: int
    layers: int
    tier: MemoryTier = field(default_factory=MemoryTier)
    streams: int = 2

    def __post_init__(self):
        self._entries: dict[tuple[int, Hashable], _Entry] = {}
        self._ahead: dict[tuple[int, Hashable], tuple[list[Tensor], list[Tensor], torch.cuda.Event]] = {}
        self._position, self._damping = 0.0, 1.0
        self._slots: Tensor | None = None
        self._owner: Hashable | None = None
        self._kept: set[Hashable] = set()
        self._copy_stream: torch.cuda.Stream | None = None
        self.peak_bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes held now, what is being fetched ahead included."""
        ahead = sum(t.numel() * t.element_size() for key, value, _ in self._ahead.values() for t in key + value)
        return ahead + sum(entry.bytes for entry in self._entries.values())

    def has(self, streams: tuple[Hashable, ...]) -> bool:
        """Whether every one of these streams has the context of every layer here."""
        return all((layer, self._key(s)) in self._entries for s in streams for layer in range(self.layers))

    def clear(self) -> None:
        """Let everything go."""
        self._entries.clear()
        self._ahead.clear()
        self._kept.clear()
        self._owner = None

    def begin(self, position: float) -> None:
        """A new evaluation, at this place along the schedule."""
        self._position = position

    # ---- full evaluations

    def capture(self, layer: int, streams: tuple[Hashable, ...], key: Tensor, value: Tensor) -> None:
        """Keep the context rows of one layer.

        Args:
            layer: index of the self-attention layer in call order.
            streams: the streams of this call; the batch is their rows in equal chunks.
            key, value: all tokens, ``[B, L, heads, head_dim]``; keys normed and rotated.
        """
        if not len(self.remembered.indices):
            return
        if self._owner is None:
            self._owner = streams[0]
        for stream, k, v in zip(streams, key.chunk(len(streams)), value.chunk(len(streams)), strict=True):
            if self.tier.shared and stream != self._owner:
                continue
            if stream not in self._kept and len(self._kept) >= self.streams:
                continue
            self._kept.add(stream)
            self._store((layer, self._key(stream)), *(t.index_select(1, self.remembered.indices) for t in (k, v)))
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    # ---- partial evaluations

    def select(self, selection: Tensor, damping: float | Tensor = 1.0) -> None:
        """Announce the tokens the coming partial evaluation computes (sorted indices ``[N]``), and how far what is
        remembered may be extrapolated, from 0 to 1."""
        self._damping = damping
        device = selection.device
        remembered = self.remembered.indices
        place = torch.full((self.tokens,), -1, dtype=torch.long, device=device)
        place[remembered] = torch.arange(len(remembered), device=device)
        slots = place[selection]
        fresh = slots < 0
        self._extra = int(fresh.sum())
        slots[fresh] = len(remembered) + torch.arange(self._extra, device=device)
        self._slots = slots
        self._renewed = (~fresh).nonzero().flatten()

    def join(self, layer: int, streams: tuple[Hashable, ...], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values a partial evaluation attends to: what is remembered, with every fresh row in its place.

        Args:
            layer, streams: as in :meth:`capture`.
            key, value: the selected tokens, ``[B, N, heads, head_dim]``.

        Returns:
            Keys and values ``[B, M + new, heads, head_dim]``; :meth:`log_weights` is in the same order.
        """
        if not len(self.remembered.indices):
            return key, value
        parts = []
        for stream, k, v in zip(streams, key.chunk(len(streams)), value.chunk(len(streams)), strict=True):
            owns = not self.tier.shared or stream == self._owner
            parts.append(self._expected((layer, self._key(stream)), k, v, owns))
        self._fetch_ahead(layer + 1, streams, key)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

    def log_weights(self) -> Tensor | None:
        """Log-weight of every joined key, ``[M + new]``, or None when all are 0."""
        if self.remembered.uniform:
            return None
        weights = self.remembered.weights.log()
        return torch.cat([weights, weights.new_zeros(self._extra)])

    # ---- storage

    def _key(self, stream: Hashable) -> Hashable:
        return None if self.tier.shared else stream

    def _joined(self, old: Tensor, fresh: Tensor) -> Tensor:
        rows = old.new_empty(fresh.shape[0], old.shape[1] + self._extra, *old.shape[2:])
        rows[:, : old.shape[1]] = old
        return rows.index_copy_(1, self._slots, fresh)

    def _store(self, where, key: Tensor, value: Tensor) -> None:
        entry = self._entries.get(where)
        if entry is None:
            how = (self.tier.order, self.tier.fp8, self.tier.fp8_turns, self.tier.offload)
            self._entries[where] = _Entry(*(Trajectory(self._position, rows, *how) for rows in (key, value)))
            return
        entry.key.record(self._position, key)
        entry.value.record(self._position, value)

    def _expected(self, where, key: Tensor, value: Tensor, owns: bool) -> tuple[Tensor, ...]:
        """An entry's keys and values as they are expected now, fresh ones in their places; these renew it if theirs."""
        entry, slots, joined = self._entries[where], self._slots[self._renewed], []
        fetched = self._fetched(where, key.device)
        for rows, fresh, parts in zip((entry.key, entry.value), (key, value), fetched, strict=True):
            joined.append(self._joined(rows.at(self._position, self._damping, parts).to(fresh.dtype), fresh))
            if owns and len(slots):
                rows.renew(self._position, slots, fresh.index_select(1, self._renewed), parts)
        return tuple(joined)

    def _fetched(self, where, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """What an entry keeps of keys and of values, on the device."""
        ahead = self._ahead.pop(where, None)
        if ahead is None:
            entry = self._entries[where]
            return entry.key.parts(device), entry.value.parts(device)
        key, value, ready = ahead
        stream = torch.cuda.current_stream(device)
        stream.wait_event(ready)
        for t in key + value:  # allocated on the copy stream, used on this one
            t.record_stream(stream)
        return key, value

    def _fetch_ahead(self, layer: int, streams, like: Tensor) -> None:
        if not self.tier.offload or like.device.type != "cuda":
            return
        self._copy_stream = self._copy_stream or torch.cuda.Stream(like.device)
        for where in {(layer, self._key(s)) for s in streams} & self._entries.keys():
            entry = self._entries[where]
            with torch.cuda.stream(self._copy_stream):
                key, value = (rows.parts(like.device) for rows in (entry.key, entry.value))
                self._ahead[where] = key, value, self._copy_stream.record_event()
