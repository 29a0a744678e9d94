"""What the partial evaluations of a run rest on: which tokens they compute, and what is remembered of the others."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from .attention import Attend, KeyWeights
from .context import ContextSampler
from .memory import ContextMemory
from .semantic import SemanticSampler


class Partials:
    """Selection, context memory and their part in self-attention.

    Args:
        edited: tokens every partial evaluation computes (generative and margin; without memory, reference images too),
            sorted ``[N]``.
        sampler: chooses the context computed with them.
        watched: self-attention layer the sampler looks at on full evaluations, -1 for none.
        memory: of context, or None.
        tokens: of the full grid.
    """

    def __init__(
        self,
        edited: Tensor,
        sampler: ContextSampler | SemanticSampler,
        watched: int,
        memory: ContextMemory | None,
        tokens: int,
    ):
        self.edited, self.sampler, self.memory = edited, sampler, memory
        self.mode = "idle"  # or capture (of context, on full evaluations), or join (what is remembered)
        self.selection: Tensor | None = None
        self._watched, self._tokens = watched, tokens
        self._key_weights: KeyWeights | None = None

    @property
    def bytes(self) -> int:
        """Bytes of context held."""
        return self.memory.bytes if self.memory else 0

    @property
    def looks(self) -> bool:
        """Whether a full evaluation that partial ones follow has anything to show."""
        return self.memory is not None or self._watched >= 0

    def has(self, streams: tuple[Hashable, ...]) -> bool:
        """Whether a partial evaluation of these streams finds the context it needs."""
        return self.memory is None or self.memory.has(streams)

    def why_not(self, streams: tuple[Hashable, ...]) -> str:
        """Why :meth:`has` says no, in plain words."""
        if self.memory and not self.memory.takes(streams):
            return f"more prompts than the {self.memory.streams} that context memory was shared out for"
        return "this prompt's context is not remembered yet"

    def clear(self) -> None:
        """Forget all context."""
        if self.memory:
            self.memory.clear()

    def close(self) -> None:
        """Let everything go."""
        self.clear()
        self.mode, self.selection, self._key_weights = "idle", None, None

    def begin(self, position: float, whole: bool) -> None:
        """A new evaluation, at this place along the schedule; ``whole``: all its streams are computed in full."""
        self.selection = None
        if self.memory:
            self.memory.begin(position, whole)

    def select(self, computed_at: Tensor, damping: float | Tensor = 1.0) -> Tensor:
        """An evaluation's tokens, sorted ``[N]``; sets up keys and weights to match.

        Args:
            computed_at: position at which each token was last computed, ``[tokens]``.
            damping: how far what is remembered may be extrapolated, 0 to 1.
        """
        context = self.sampler.pick(computed_at)
        self.selection = torch.cat([self.edited, context]).sort().values
        bias = None
        if self.memory:
            self.memory.select(self.selection, damping)
            bias = self.memory.log_weights()
        elif len(context):
            bias = torch.zeros(self._tokens, device=self.selection.device)
            bias[context] = self.sampler.log_weights
            bias = bias[self.selection]
        self._key_weights = None if bias is None else KeyWeights.of(bias)
        return self.selection

    def capture(
        self, layer: int, streams: tuple[Hashable, ...], speaker: Hashable, query: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """See one layer of a full evaluation.

        Args:
            layer: index in call order. streams: of the call. speaker: the stream the sampler looks at.
            query, key, value: ``[B, tokens, heads, head_dim]``.

        Raises:
            ValueError: another number of tokens; a device would only find out by an index it cannot recover from.
        """
        if key.shape[1] != self._tokens:
            raise ValueError(f"a layer sees {key.shape[1]} of {self._tokens} tokens")
        if self.memory:
            self.memory.capture(layer, streams, key, value)
        if layer == self._watched and speaker in streams:
            self.sampler.look(*(rows.chunk(len(streams))[streams.index(speaker)] for rows in (query, key, value)))

    def join(
        self, layer: int, streams: tuple[Hashable, ...], query: Tensor, key: Tensor, value: Tensor, attend: Attend
    ) -> Tensor:
        """One layer's self-attention on a partial evaluation, what is remembered among its keys."""
        if self.memory:
            key, value = self.memory.join(layer, streams, key, value)
        return attend(query, key, value, self._key_weights)
