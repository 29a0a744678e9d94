"""Attention in which some keys stand for more than themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOGITS = 2**28  # numbers of a call whose kernel writes them out
Attend = Callable[[Tensor, Tensor, Tensor, "KeyWeights | None"], Tensor]


@dataclass(frozen=True)
class KeyWeights:
    """How many tokens each key of a call stands for, as log-weights.

    Args:
        bias: ``[keys]``, added to the logits.
        groups: the same by level: ``(positions, log_weight)``.
    """

    bias: Tensor
    groups: tuple[tuple[Tensor, float], ...]

    @classmethod
    def of(cls, bias: Tensor) -> KeyWeights:
        """Group a bias by level, once for all layers of an evaluation."""
        levels = bias.unique().tolist()
        return cls(bias, tuple(((bias == level).nonzero().flatten(), level) for level in levels))


def attend(query: Tensor, key: Tensor, value: Tensor, weights: KeyWeights | None = None) -> Tensor:
    """Scaled dot-product attention on ``[B, tokens, heads, head_dim]`` tensors, with weighted keys or without."""
    if weights is not None and has_flash(query.device, query.dtype, query.shape[-1]):
        return attend_in_groups(query, key, value, weights)  # a mask would forbid the fast kernels
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if weights is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    at_once = max(1, MOST_LOGITS // (query.shape[0] * query.shape[1] * key.shape[2]))  # where no kernel takes a mask
    parts = query.split(query.shape[2] if query.device.type in ("cpu", "cuda") else at_once, dim=2)
    mask = weights.bias.to(query.dtype)[None, None, None]

    def rows(q: Tensor) -> Tensor:  # on CUDA torch pads a mask, and what is expanded already it would copy in full
        return mask if q.device.type == "cuda" else mask.expand(-1, -1, q.shape[2], -1)

    outputs = [F.scaled_dot_product_attention(q, key, value, attn_mask=rows(q)) for q in parts]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).transpose(1, 2)


@functools.cache
def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether torch's flash attention runs there, on heads so wide: from Ampere on, on some of AMD's cards, in builds
    that bring it. Torch itself says so, asked about a head of one token."""
    cuda = torch.backends.cuda
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or not cuda.is_flash_attention_available():
        return False
    one = torch.zeros(1, 1, 1, width, device=device, dtype=dtype)
    try:
        asked = cuda.SDPAParams(one, one, one, None, 0.0, False, False)
    except TypeError:  # before torch 2.5
        asked = cuda.SDPAParams(one, one, one, None, 0.0, False)
    return cuda.can_use_flash_attention(asked)


def attend_in_groups(query: Tensor, key: Tensor, value: Tensor, weights: KeyWeights) -> Tensor:
    """Attention over groups of keys, each group with one log-weight, merged by log-sum-exp: no mask, any kernel size.

    With ``o_g`` and ``l_g`` output and log-sum-exp of group g alone and ``b_g`` its log-weight, the joint output is
    ``sum_g softmax_g(l_g + b_g) o_g``: exact, because a constant added to a group's logits only shifts its ``l_g``.

    Args:
        query: ``[B, N, heads, head_dim]``. key, value: ``[B, K, heads, head_dim]``.
        weights: of the K keys.
    """
    merged = total = None
    for positions, log_weight in weights.groups:  # one at a time: HetCache's paper has up to 17
        output, level = _attend_with_lse(query, key.index_select(1, positions), value.index_select(1, positions))
        level = level + log_weight
        if merged is None:
            merged, total = output.float(), level
            continue
        joint = torch.logaddexp(total, level)
        merged = merged.mul_(_share(total, joint)).add_(output * _share(level, joint))
        total = joint
    return merged.to(query.dtype)


def _share(part: Tensor, joint: Tensor) -> Tensor:
    """What a group of logarithm `part` has in the `joint` one, ``[B, N, heads, 1]``."""
    return (part - joint).exp().transpose(1, 2)[..., None]


def _attend_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output ``[B, N, heads, head_dim]`` and float32 log-sum-exp of the logits ``[B, heads, N]``."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    elif has_flash(query.device, query.dtype, query.shape[-1]):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    else:
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        lse = logits.logsumexp(-1)
        output = (logits - lse[..., None]).exp().to(value.dtype) @ value
    return output.transpose(1, 2), lse.float()
