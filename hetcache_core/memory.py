"""Context memory: keys and values of context tokens, kept from the last evaluation that computed them.

On a full evaluation the rows of the remembered context are captured, in every self-attention layer and stream; on a
partial one the fresh rows of the selection are joined with them, and remembered tokens that were computed again are
renewed. What is remembered goes on moving as it did: each row is extrapolated from the last three times it was
computed. Nothing else of a hidden state is ever kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .context import RememberedContext
from .layer_memory import Fetched, LayerMemory
from .offload import HostMemory
from .tiers import MemoryTier


@dataclass
class ContextMemory:
    """Keys and values of ``remembered`` context tokens for every layer and stream.

    Args:
        remembered: the tokens kept and their weights.
        tokens: token count of the full grid.
        layers: self-attention layers of the model.
        tier: dtype, sharing and place.
        streams: most streams kept; the budget was reckoned for so many, and a later one goes without.
        leading: the stream whose context others are kept beside, if it is among the first that come.
    """

    remembered: RememberedContext
    tokens: int
    layers: int
    tier: MemoryTier = field(default_factory=MemoryTier)
    streams: int = 2
    leading: Hashable = None

    def __post_init__(self):
        self._layers: dict[int, tuple[LayerMemory, LayerMemory]] = {}
        self._ahead: dict[tuple[int, tuple[Hashable, ...]], tuple[list[Fetched], Any]] = {}
        self._position, self._damping, self._whole = 0.0, 1.0, False
        self._slots: Tensor | None = None
        self._kept: set[Hashable] = set()
        self._host = HostMemory() if self.tier.offload else None

    @property
    def bytes(self) -> int:
        """Bytes held now, what is being fetched ahead included."""
        ahead = sum(t.numel() * t.element_size() for fetched, _ in self._ahead.values() for t in _tensors(fetched))
        return ahead + sum(kept.bytes for layer in self._layers.values() for kept in layer)

    def has(self, streams: tuple[Hashable, ...]) -> bool:
        """Whether every one of these streams has the context of every layer here."""
        return len(self._layers) == self.layers and all(
            kept.has(stream) for layer in self._layers.values() for kept in layer for stream in streams
        )

    def takes(self, streams: tuple[Hashable, ...]) -> bool:
        """Whether there is room for every one of these streams."""
        return len(self._kept.union(streams)) <= self.streams

    def clear(self) -> None:
        """Let everything go."""
        self._layers.clear()
        self._ahead.clear()
        self._kept.clear()
        if self._host is not None:
            self._host.release()

    def begin(self, position: float, whole: bool = False) -> None:
        """A new evaluation, at this place along the schedule; ``whole``: all its streams are computed in full."""
        self._position, self._whole = position, whole
        self._ahead.clear()

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
        room = self.streams - len(self._kept)
        self._kept.update([s for s in streams if s not in self._kept][:room])
        if not self._kept.intersection(streams):
            return
        key, value = key.detach(), value.detach()  # a loop of one's own may have gradients on
        before = (() if self.tier.apart_bits is not None else streams) if self.tier.order else None
        fetched = self._fetched(layer, before, key.device)
        kept = self._layers.setdefault(layer, tuple(LayerMemory(self.tier, self.leading, self._host) for _ in range(2)))
        for each, rows, here in zip(kept, (key, value), fetched, strict=True):
            chunks = dict(zip(streams, rows.chunk(len(streams)), strict=True))
            some = {stream: chunks[stream] for stream in streams if stream in self._kept}
            each.record(some, self._position, self.remembered.indices, here, self._whole)

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
        self._renewed = (~fresh).nonzero().flatten()
        self._extra = len(selection) - len(self._renewed)
        self._slots = torch.where(fresh, len(remembered) - 1 + fresh.cumsum(0), slots)

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
        key, value = key.detach(), value.detach()
        joined, now = [], (self._position, self._damping)
        layers, fetched = self._layers[layer], self._fetched(layer, streams, key.device)
        for kept, rows, here in zip(layers, (key, value), fetched, strict=True):
            fresh = dict(zip(streams, rows.chunk(len(streams)), strict=True))
            joined.append(self._joined(kept, fresh, now, here))
            if len(self._renewed):
                renewed = {stream: t.index_select(1, self._renewed) for stream, t in fresh.items()}
                kept.renew(renewed, *now, self._slots[self._renewed], here)
        return tuple(joined)

    def log_weights(self) -> Tensor | None:
        """Log-weight of every joined key, ``[M + new]``, or None when all are 0."""
        if self.remembered.uniform:
            return None
        weights = self.remembered.weights.log()
        return torch.cat([weights, weights.new_zeros(self._extra)])

    # ---- storage

    def _joined(
        self, kept: LayerMemory, fresh: dict[Hashable, Tensor], now: tuple[float, float | Tensor], fetched: Fetched
    ) -> Tensor:
        """Rows of every stream, what is expected first, with fresh ones in their places."""
        some, remembered = next(iter(fresh.values())), len(self.remembered.indices)
        rows = some.new_empty(len(fresh) * len(some), remembered + self._extra, *some.shape[2:])
        parts = dict(zip(fresh, rows.split(len(some)), strict=True))
        kept.expect({stream: part[:, :remembered] for stream, part in parts.items()}, *now, fetched)
        for stream, part in parts.items():
            part.index_copy_(1, self._slots, fresh[stream])
        return rows

    def _fetched(self, layer: int, streams: tuple[Hashable, ...] | None, device: torch.device) -> list[Fetched]:
        """What a layer keeps of keys and of values for some streams, on the device; nothing for None. What the next one
        keeps is on its way then."""
        if self._host is not None:
            self._host.pace(device)
        if layer == 0:
            self._ahead.clear()  # of a call that ended midway
        if streams is None or layer not in self._layers:
            return [{}, {}]
        fetched, event = self._ahead.pop((layer, streams), (None, None))
        if event is not None:
            self._host.wait_for(event, _tensors(fetched), device)
        else:
            fetched = self._fetch(layer, streams, device)
        if self._host is not None and layer + 1 in self._layers:
            ahead = self._host.fetch_ahead(device, lambda: self._fetch(layer + 1, streams, device))
            if ahead is not None:
                self._ahead[layer + 1, streams] = ahead
        return fetched

    def _fetch(self, layer: int, streams: tuple[Hashable, ...], device: torch.device) -> list[Fetched]:
        return [kept.fetch(streams, device) for kept in self._layers[layer]]


def _tensors(fetched: list[Fetched]) -> list[Tensor]:
    return [t for each in fetched for parts in each.values() for part in parts for t in part]
