"""Context memory: keys and values of context tokens, kept from the last evaluation that computed them.

Every self-attention layer of a run has one entry per stream. On a full evaluation the rows of the remembered context
are captured; on a partial one the fresh rows of the selection are joined with them, and remembered tokens that were
computed again are renewed. Nothing else of a hidden state is ever kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .context import RememberedContext

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class MemoryTier:
    """How context is remembered.

    Args:
        share: share of the context whose keys and values are kept, 0 to 1.
        fp8: kept as float8_e4m3fn with one scale per head channel instead of the model's dtype.
        shared: one copy, of the stream that comes first, also serves the others.
        offload: kept in (pinned) host memory and fetched layer by layer.
    """

    share: float = 1.0
    fp8: bool = False
    shared: bool = False
    offload: bool = False

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
        scales = 2 * 4 * dim if self.fp8 and kept else 0
        return copies * layers * (2 * rows * kept * dim * (1 if self.fp8 else itemsize) + scales)

    def __str__(self) -> str:
        if not self.share:
            return "none"
        words = [f"{self.share:.0%} of the context"]
        words += [name for name, on in (("fp8", self.fp8), ("shared", self.shared), ("offload", self.offload)) if on]
        return ", ".join(words)


NO_MEMORY = MemoryTier(share=0.0)

# Best first: float8 costs nothing that was measurable, sharing half a decibel, thinning several.
LADDER = (
    MemoryTier(),
    MemoryTier(fp8=True),
    MemoryTier(fp8=True, shared=True),
    MemoryTier(0.5, fp8=True, shared=True),
    MemoryTier(0.25, fp8=True, shared=True),
    MemoryTier(0.1, fp8=True, shared=True),
    NO_MEMORY,
)


@dataclass
class _Entry:
    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    @property
    def bytes(self) -> int:
        parts = (self.key, self.value, self.key_scale, self.value_scale)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


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
        self._ahead: dict[tuple[int, Hashable], tuple[Tensor, Tensor, torch.cuda.Event]] = {}
        self._slots: Tensor | None = None
        self._owner: Hashable | None = None
        self._kept: set[Hashable] = set()
        self._copy_stream: torch.cuda.Stream | None = None
        self.peak_bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes held now, what is being fetched ahead included."""
        ahead = sum(t.numel() * t.element_size() for key, value, _ in self._ahead.values() for t in (key, value))
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

    def select(self, selection: Tensor) -> None:
        """Announce the tokens the coming partial evaluation computes (sorted indices ``[N]``)."""
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
            entry = (layer, self._key(stream))
            old_k, old_v = self._fetch(entry, k)
            if len(self._renewed) and (not self.tier.shared or stream == self._owner):
                self._renew(entry, k.index_select(1, self._renewed), v.index_select(1, self._renewed))
            parts.append((self._joined(old_k, k), self._joined(old_v, v)))
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
        key_scale = value_scale = None
        if self.tier.fp8:
            key_scale, value_scale = _scale(key), _scale(value)
            key, value = _to_fp8(key, key_scale), _to_fp8(value, value_scale)
        if self.tier.offload:
            key, value = (_to_host(t) for t in (key, value))
        self._entries[where] = _Entry(key, value, key_scale, value_scale)

    def _fetch(self, where, like: Tensor) -> tuple[Tensor, Tensor]:
        entry = self._entries[where]
        ahead = self._ahead.pop(where, None)
        if ahead is None:
            key, value = (t.to(like.device, non_blocking=True) for t in (entry.key, entry.value))
        else:
            key, value, ready = ahead
            torch.cuda.current_stream(like.device).wait_event(ready)
            for t in (key, value):  # allocated on the copy stream, used on this one
                t.record_stream(torch.cuda.current_stream(like.device))
        if entry.key_scale is not None:
            scales = (s.to(like.dtype) for s in (entry.key_scale, entry.value_scale))
            return tuple(t.to(like.dtype) * s for t, s in zip((key, value), scales, strict=True))
        return key, value

    def _fetch_ahead(self, layer: int, streams, like: Tensor) -> None:
        if not self.tier.offload or like.device.type != "cuda":
            return
        self._copy_stream = self._copy_stream or torch.cuda.Stream(like.device)
        for where in {(layer, self._key(s)) for s in streams} & self._entries.keys():
            entry = self._entries[where]
            with torch.cuda.stream(self._copy_stream):
                key, value = (t.to(like.device, non_blocking=True) for t in (entry.key, entry.value))
                self._ahead[where] = key, value, self._copy_stream.record_event()

    def _renew(self, where, key: Tensor, value: Tensor) -> None:
        entry, rows = self._entries[where], self._slots[self._renewed]
        if entry.key_scale is not None:
            key, value = _to_fp8(key, entry.key_scale), _to_fp8(value, entry.value_scale)
        for kept, fresh in ((entry.key, key), (entry.value, value)):
            # index_copy_ has no float8 kernel; bytes are bytes
            target, source = (t.view(torch.uint8) if t.dtype == FP8 else t for t in (kept, fresh))
            target.index_copy_(1, rows.to(target.device), source.to(target.device))


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
