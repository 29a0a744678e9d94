"""Crop-and-stitch: cut out the mask's box, edit only that, paste it back. For masks that stand still."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.costs import nano_shape
from benchmarks.settings import Source
from hetcache_core import ErrorProfile

TILE = 16  # pixels a token covers, each way


def box(mask: np.ndarray, padding: int) -> tuple[slice, slice]:
    """Rows and columns of the mask's box over all frames, padded, on the grid of tokens, inside the frame.

    Args:
        mask: bool ``[F, H, W]``, not empty, sides in multiples of 16. padding: pixels around it, at least.

    Returns:
        Two slices whose ends are multiples of 16, at least 32 pixels apart (the least the model takes).
    """
    used = mask.any(0)
    return tuple(_span(used.any(1 - axis), padding) for axis in (0, 1))


def _span(used: np.ndarray, padding: int) -> slice:
    at = np.flatnonzero(used)
    low = max(0, int(at[0]) - padding) // TILE * TILE
    high = min(len(used), -(-(int(at[-1]) + 1 + padding) // TILE) * TILE)
    if high - low < 2 * TILE:
        low = max(0, high - 2 * TILE)
        high = min(len(used), low + 2 * TILE)
    return slice(low, high)


def share(shape: tuple[int, int, int], rows: slice, columns: slice) -> float:
    """What an evaluation of the box costs of one of the whole clip, by arithmetic.

    Args:
        shape: (F, H, W) of the whole clip.
    """
    frames, height, width = shape
    latent = (frames - 1) // 4 + 1
    part = latent * ((rows.stop - rows.start) // TILE) * ((columns.stop - columns.start) // TILE)
    whole = latent * (height // TILE) * (width // TILE)
    model = nano_shape(ErrorProfile.load("nano"))
    return model.flops(part, part) / model.flops(whole, whole)


def cropped(source: Source, rows: slice, columns: slice) -> Source:
    """The part of an edit inside a box."""
    cut = (slice(None), rows, columns)
    return replace(source, video=np.ascontiguousarray(source.video[cut]), mask=np.ascontiguousarray(source.mask[cut]))


def noise(shape: tuple[int, int, int], rows: slice, columns: slice, seed: int) -> Tensor:
    """The box's part of the noise the whole clip's edit starts from, ``[1, 16, T, h / 8, w / 8]``.

    Args:
        shape: (F, H, W) of the whole clip.
    """
    frames, height, width = shape
    size = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    whole = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return whole[..., rows.start // 8 : rows.stop // 8, columns.start // 8 : columns.stop // 8].contiguous()


def stitched(source: Source, part: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """The clip with the masked pixels from the box's edit, float32 ``[F, H, W, 3]`` from 0 to 1.

    Outside the mask it is the source, which has not been through the VAE: there the full edit differs from it as the
    VAE does, so PSNR outside the mask says nothing against crop-and-stitch.
    """
    video = (source.video / 255).astype(np.float32)
    inside = source.mask[:, rows, columns, None]
    video[:, rows, columns] = np.where(inside, part, video[:, rows, columns])
    return video
