"""Self-attention of diffusers' Wan models through the engine, and rotary rows for packed calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from ..attention import KeyWeights, attend
from ..engine import Engine
from ..packing import gather_rows


class ContextProcessor(WanAttnProcessor):
    """Stock self-attention, except while the engine captures or joins context.

    Those calls repeat the stock arithmetic step by step up to the attention itself; a test holds them to equal bytes.

    Args:
        engine: gives the engine of the run under way, or None.
        layer: index in call order.
        stock: the processor this one stands in for.
    """

    def __init__(self, engine: Callable[[], Engine | None], layer: int, stock: WanAttnProcessor):
        super().__init__()
        self._engine, self._layer, self._stock = engine, layer, stock
        self._attention_backend = stock._attention_backend
        self._parallel_config = getattr(stock, "_parallel_config", None)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        engine = self._engine()
        if engine is None or not engine.routes_attention:
            return self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (t.unflatten(2, (attn.heads, -1)) for t in (query, key, value))
        query, key = (_rotated(t, *rotary_emb) for t in (query, key))
        output = engine.self_attention(self._layer, query, key, value, self._attend)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, weights: KeyWeights | None) -> Tensor:
        if weights is not None:  # most of diffusers' backends take no mask
            return attend(query, key, value, weights)
        parallel = {} if self._parallel_config is None else {"parallel_config": self._parallel_config}
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend, **parallel)


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rows ``[B, L, heads, head_dim]`` turned by their position, as the stock processor does it: in the wider of the
    two dtypes, pair by pair; diffusers' general function takes three copies of all rows more."""
    even, odd = rows[..., 0::2], rows[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    turned = torch.empty_like(rows)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = even * sin + odd * cos
    return turned


@contextmanager
def rotary_rows(rope: torch.nn.Module, sample: Tensor, selection: Tensor):
    """While open, the rotary module answers for the whole clip and hands out the selected rows."""
    whole = rope.register_forward_pre_hook(lambda module, args: (sample, *args[1:]))
    rows = rope.register_forward_hook(
        lambda module, args, output: tuple(gather_rows(table, selection) for table in output)
    )
    try:
        yield
    finally:
        whole.remove()
        rows.remove()
