"""An attention processor for training on CPU: the numbers of diffusers' WanAttnProcessor, faster backwards.

Rotary embedding is one complex product instead of strided reads and writes, and attention is two plain products, whose
bf16 kernels beat the backward pass of the fused one there. For short sequences only: it holds all logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of [B, N, heads, D] by (cos, sin) [1, N, 1, D] whose entries come in equal pairs."""
    turn = torch.complex(rotary[0][..., 0::2].float(), rotary[1][..., 0::2].float())
    return torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turn).flatten(-2).type_as(x)


class TrainingAttention:
    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        weights = F.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1).to(value.dtype)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)
