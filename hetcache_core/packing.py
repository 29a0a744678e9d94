"""Packed patches: a subset of tokens dressed up as a small latent the model's own forward runs on.

Everything in the DiT but rotary position is permutation-equivariant, so the 2x2 patches of the chosen tokens, laid in
a row, are a legal latent of one frame and two rows; their rotary rows are gathered to match. With all tokens in order
this is the stock computation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_patches(latent: Tensor) -> Tensor:
    """Pad height and width of ``[..., T, H, W]`` to even sizes, by wrapping round as ComfyUI's Wan does."""
    height, width = latent.shape[-2:]
    if height % 2 == 0 and width % 2 == 0:
        return latent
    leading = latent.shape[:-4]
    padded = F.pad(latent.flatten(0, -5) if leading else latent[None], (0, width % 2, 0, height % 2, 0, 0), "circular")
    return padded.unflatten(0, leading) if leading else padded[0]


def to_patches(latent: Tensor) -> Tensor:
    """Latent ``[..., T, H, W]`` (H, W even) -> patches ``[..., T*h*w, 2, 2]`` in token order."""
    *leading, frames, height, width = latent.shape
    cells = latent.reshape(*leading, frames, height // 2, 2, width // 2, 2)
    return cells.movedim(-2, -3).flatten(-5, -3)


def from_patches(patches: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`to_patches` for a latent of ``frames`` x ``height`` x ``width`` cells (even sizes)."""
    cells = patches.unflatten(-3, (frames, height // 2, width // 2)).movedim(-3, -2)
    return cells.reshape(*patches.shape[:-3], frames, height, width)


def pack(latent: Tensor, selection: Tensor) -> Tensor:
    """Latent ``[..., T, H, W]`` (H, W even) -> fake latent ``[..., 1, 2, 2N]`` of the N selected tokens."""
    return row_of(to_patches(latent).index_select(-3, selection))


def row_of(patches: Tensor) -> Tensor:
    """Patches ``[..., N, 2, 2]`` -> fake latent ``[..., 1, 2, 2N]``."""
    return patches.movedim(-3, -2).flatten(-2).unsqueeze(-3)


def unpack(row: Tensor) -> Tensor:
    """Fake latent ``[..., 1, 2, 2N]`` -> patches ``[..., N, 2, 2]``."""
    return row.squeeze(-3).unflatten(-1, (-1, 2)).movedim(-2, -3)


def gather_rows(table: Tensor, selection: Tensor, dim: int = 1) -> Tensor:
    """Rows of a rotary table (``[1, L, ...]``) or of any per-token tensor for the selected tokens."""
    return table.index_select(dim, selection)


def pack_timesteps(timestep: Tensor, selection: Tensor, tokens_per_frame: int, tokens: int) -> Tensor:
    """Timesteps for a packed call: ``[B]`` stays, ``[B, T]`` (per frame) and ``[B, L]`` (per token) -> ``[B, N]``."""
    if timestep.ndim < 2:
        return timestep
    if timestep.shape[1] != tokens:
        timestep = timestep.repeat_interleave(tokens_per_frame, dim=1)
    return timestep.index_select(1, selection)
