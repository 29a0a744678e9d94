"""Attention in which some keys stand for more than themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention on ``[B, tokens, heads, head_dim]`` tensors.

    Args:
        bias: added to the logits, ``[keys]`` (log-weights), or None.
    """
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    mask = None if bias is None else bias.to(query.dtype).expand(1, 1, query.shape[2], -1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attend_in_groups(query: Tensor, groups: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Attention over groups of keys, each group with one log-weight, merged by log-sum-exp: no mask, any kernel size.

    With ``o_g`` and ``l_g`` output and log-sum-exp of group g alone and ``b_g`` its log-weight, the joint output is
    ``sum_g softmax_g(l_g + b_g) o_g``: exact, because a constant added to a group's logits only shifts its ``l_g``.

    Args:
        query: ``[B, N, heads, head_dim]``.
        groups: ``(key, value, log_weight)`` with keys and values ``[B, K_g, heads, head_dim]``.
    """
    outputs, totals = [], []
    for key, value, log_weight in groups:
        output, log_sum_exp = _attend_with_lse(query, key, value)
        outputs.append(output)
        totals.append(log_sum_exp + log_weight)
    shares = torch.stack(totals).softmax(0)  # [G, B, heads, N]
    merged = sum(o.float() * s.transpose(1, 2)[..., None] for o, s in zip(outputs, shares, strict=True))
    return merged.to(query.dtype)


def _attend_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output ``[B, N, heads, head_dim]`` and float32 log-sum-exp of the logits ``[B, heads, N]``."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    elif query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    else:
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        lse = logits.logsumexp(-1)
        output = (logits - lse[..., None]).exp().to(value.dtype) @ value
    return output.transpose(1, 2), lse.float()


def split_by_weight(key: Tensor, value: Tensor, bias: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """Group keys ``[B, K, heads, head_dim]`` by equal log-weight, for :func:`attend_in_groups`."""
    return [(key[:, bias == level], value[:, bias == level], float(level)) for level in bias.unique(sorted=True)]
