"""What the layers of a model ask of the run under way, while the model computes."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .attention import Attend
from .blocks import Block, BlockCache
from .device import Stopwatch
from .error_model import BLOCKS, FULL, PARTIAL, PARTS
from .forecasts import Forecasts
from .partial import Partials
from .setup import RunSetup
from .stats import RunStats

log = logging.getLogger("hetcache")


class Routing:
    """The part of an engine that self-attention and main blocks pass through; hosts ask it first whether they must.

    Trouble here never reaches the model: what could not be kept or measured is given up, with the reason.
    """

    setup: RunSetup
    stats: RunStats
    streams: tuple[Hashable, ...]
    partials: Partials | None
    blocks: BlockCache | None
    closed: bool
    _forecasts: Forecasts
    _off: dict[str, str]  # kinds of evaluation that are no more done, and why
    _decision: str
    _reason: str
    _storing: list[Stopwatch]  # of this call
    _layers: dict[Hashable, int]  # how many came by where a stream's context was remembered

    def self_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Self-attention of one layer, through the context memory where this evaluation calls for it.

        Args:
            layer: index in call order, main and VACE blocks alike.
            query, key, value: ``[B, tokens, heads, head_dim]``, normed and rotated.
            attend: the host's attention; called with the keys to attend to and their weights or None.
        """
        mode = self.partials.mode if self.partials else "idle"
        if self.watches_blocks:
            try:
                self.stats.block_scores.look(layer, query, key)
            except Exception as error:  # measuring must not end what is measured
                self.give_up_profiling(f"the attention of layer {layer} could not be measured ({named(error)})")
        if mode == "join":
            return self.partials.join(layer, self.streams, query, key, value, attend)
        if mode == "capture":
            try:
                with self._stored(query.device):
                    self.partials.capture(layer, self.streams, self._speaker, query, key, value)
            except Exception as error:  # the generation itself does not need what could not be kept
                self.give_up_partials(f"context could not be remembered ({named(error)})")
        return attend(query, key, value, None)

    def saw_layers(self, count: int) -> None:
        """Told after a call how many of its self-attention layers came by; fewer than where context was remembered, or
        none, and what they computed is not what was asked for."""
        mode = self.partials.mode if self.partials else "idle"
        if mode == "idle":
            return
        known = {self._layers.get(stream, count) for stream in self.streams} if mode == "join" else {count}
        if not count or known != {count}:
            self.give_up_partials(
                "not all attention layers came by: blocks compiled without HetCache, or another node leaves some out"
            )
        elif mode == "capture":
            self._layers.update(dict.fromkeys(self.streams, count))

    def block(self, index: int, hidden: Tensor, compute: Block) -> Tensor:
        """One main block, through the kept deltas where this evaluation calls for it.

        Args:
            index: of the main block.
            hidden: what goes in, ``[B, tokens, dim]``.
            compute: the host's block: what goes in -> what comes out.
        """
        mode = self.blocks.mode if self.blocks else "idle"
        if mode == "apply":
            return self.blocks.apply(index, self.streams, hidden, compute)
        output = compute(hidden)
        if mode == "capture":
            try:
                with self._stored(hidden.device):
                    self.blocks.capture(index, self.streams, hidden, output)
            except Exception as error:  # the generation itself does not need what could not be kept
                self.give_up_blocks(f"block deltas could not be kept ({named(error)})")
        return output

    @contextmanager
    def _stored(self, device: torch.device) -> Iterator[None]:
        """Time what is done here as storing."""
        watch = Stopwatch(device)
        yield
        watch.stop()
        self._storing.append(watch)

    @property
    def _speaker(self) -> Hashable:
        """The stream whose attention is looked at, the one whose change speaks for all."""
        first = self.streams[0] if self.setup.conditional is None else self.setup.conditional
        return self._forecasts.watched if self._forecasts else first

    @property
    def routes_blocks(self) -> bool:
        """Whether this call's main blocks must pass through :meth:`block`."""
        return self.blocks is not None and self.blocks.mode != "idle"

    @property
    def routes_attention(self) -> bool:
        """Whether this call's self-attention must pass through :meth:`self_attention`."""
        return self.watches_blocks or (self.partials is not None and self.partials.mode != "idle")

    @property
    def watches_blocks(self) -> bool:
        """Whether this run measures what the main blocks look at."""
        return self.stats.block_scores is not None and not self.closed

    # ---- give up

    def _trouble(self, text: str) -> str:
        """Say once what went wrong, in the log and in the statistics."""
        if self.stats.warn(text):
            log.warning("HetCache goes on in full: %s", text)
        return text

    def give_up_partials(self, text: str) -> None:
        """No more partial evaluations in this run, this one's other streams included: guidance must not mix them."""
        self._give_up(PARTIAL, self.partials, text)
        self.stats.block_scores = None

    def give_up_blocks(self, text: str) -> None:
        """The same for evaluations that reuse blocks."""
        self._give_up(BLOCKS, self.blocks, text)

    def give_up_profiling(self, text: str) -> None:
        """What the blocks look at is not measured in this run; `text` says why."""
        self.stats.block_scores = None
        self._trouble(text)

    def _give_up(self, kind: str, store: Partials | BlockCache | None, text: str) -> None:
        self._off[kind] = self._trouble(text)
        self.method.lose(kind)
        if kind in PARTS.get(self._decision, self._decision):
            self._decision, self._reason = FULL, text
        if store:
            store.mode = "idle"
            store.clear()


def named(error: Exception) -> str:
    """An error with its kind, for a reason."""
    return f"{type(error).__name__}: {error}"
