"""Self-attention of ComfyUI's Wan models through the engine, in the host's attention override slot."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from comfy.ldm.wan.model import WanI2VCrossAttention
from torch import Tensor

from ..attention import KeyWeights, attend
from ..engine import Engine


class SelfAttention:
    """Answers the attention calls of one model call; an override that sat in the slot before keeps its place inside.

    Lengths tell self-attention from cross-attention, of which other nodes (normalised attention guidance) may add some.
    Where a prompt or an image is by chance as long as the tokens, their order does: self-attention, then
    cross-attention (two of them where the model also reads an image), a VACE block's after its main block's.

    Args:
        engine: of the run.
        model: the diffusion model.
        tokens: that this call computes.
        read: lengths of what cross-attention reads.
        transformer_options: of this call.
    """

    SLOT = "optimized_attention_override"

    def __init__(
        self, engine: Engine, model: torch.nn.Module, tokens: int, read: Collection[int], transformer_options: dict
    ):
        self._engine, self._tokens, self._inner = engine, tokens, transformer_options.get(self.SLOT)
        self._read = None if tokens in read else read  # None: the order tells
        self._period = 3 if isinstance(model.blocks[0].cross_attn, WanI2VCrossAttention) else 2
        self._calls = self._layer = 0

    @property
    def layers(self) -> int:
        """How many self-attention layers came by."""
        return self._layer

    @torch.compiler.disable
    def __call__(self, function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        stock = partial(self._inner, function) if self._inner else function
        crossing = k.shape[1] in self._read if self._read else self._calls % self._period
        self._calls += 1
        if crossing:
            return stock(q, k, v, heads, *args, **kwargs)
        layer, self._layer = self._layer, self._layer + 1
        known = layer < self._engine.setup.shape.attention_layers
        if not known or q.shape[1] != self._tokens or k.shape[1] != self._tokens:
            self._engine.give_up_partials("another node changes the model's attention calls")
            return stock(q, k, v, heads, *args, **kwargs)

        def answer(query: Tensor, key: Tensor, value: Tensor, weights: KeyWeights | None) -> Tensor:
            if weights is not None:  # attention kernels take no weights
                return attend(query, key, value, weights)
            flat = (t.flatten(2) for t in (query, key, value))
            return stock(*flat, heads, *args, **kwargs).unflatten(2, (heads, -1))

        query, key, value = (t.unflatten(2, (heads, -1)) for t in (q, k, v))
        return self._engine.self_attention(layer, query, key, value, answer).flatten(2)
