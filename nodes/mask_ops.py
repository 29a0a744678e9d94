"""What happens to a mask between file and model: size, threshold, edges, length. Pure torch."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .mask_files import MaskError

LENGTHS = ("hold", "loop", "refuse")
EDITED = 0.1  # a pixel above it is edited, unless Cache Policy Settings has another mask threshold
CHUNK = 1 << 21  # pixels worked on at once: a long clip needs its bytes, its result, and little else


def finish(
    frames: Sequence[np.ndarray],
    size: tuple[int, int] | None = None,
    threshold: float = 0.5,
    invert: bool = False,
    grow: int = 0,
    feather: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Make a mask of decoded frames.

    Everything after the resize counts in the result's pixels, and the threshold after it keeps hard edges hard.

    Args:
        frames: F frames `[H, W]` uint8.
        size: height and width of the result; None keeps that of the frames.
        threshold: values from this on become 1 and others 0; 0 keeps the greys.
        invert: swap what is edited and what is kept.
        grow: pixels the mask gains on every side, loses where negative.
        feather: pixels over which it fades to 0 outside its edge.
        progress: called with frames done and frames in all.

    Returns:
        `[F, H, W]` float32, 0 to 1.
    """
    height, width = size or frames[0].shape
    mask = torch.empty(len(frames), height, width)
    step = max(1, CHUNK // max(height * width, frames[0].size))
    for start in range(0, len(frames), step):
        part = torch.from_numpy(np.stack(frames[start : start + step])).float() / 255
        part = resize(part, height, width)
        part = (part >= threshold).float() if threshold else part
        part = 1 - part if invert else part
        mask[start : start + step] = soften(spread(part, grow), feather)
        if progress:
            progress(min(start + step, len(frames)), len(frames))
    return mask


def resize(mask: Tensor, height: int, width: int) -> Tensor:
    """Cut `[F, H, W]` to the shape of height x width about its centre and scale it, to the bit as WanVaceToVideo does.

    That is the host's common_upscale(..., "bilinear", "center"). A mask fitted otherwise would shift against the clip.
    """
    old_height, old_width = mask.shape[1:]
    old_shape, shape = old_width / old_height, width / height
    x = round((old_width - old_width * (shape / old_shape)) / 2) if old_shape > shape else 0
    y = round((old_height - old_height * (old_shape / shape)) / 2) if old_shape < shape else 0
    cut = mask[:, y : old_height - y, x : old_width - x]
    return F.interpolate(cut[:, None], size=(height, width), mode="bilinear")[:, 0]


def spread(mask: Tensor, radius: int) -> Tensor:
    """Grow the mask `[F, H, W]` by `radius` pixels on every side, square; shrink it where negative."""
    if radius < 0:
        return -spread(-mask, -radius)
    return _both_ways(mask, _spread_columns, radius) if radius else mask


def soften(mask: Tensor, feather: int) -> Tensor:
    """Fade the mask `[F, H, W]` to 0 within about `feather` pixels outside its edge; what is inside stays as it is."""
    if feather <= 0:
        return mask
    radius = math.ceil(feather / 2)  # half the way grown, half blurred: so the blur takes nothing away inside
    soft = _both_ways(spread(mask, radius), _blur_columns, radius)
    return torch.maximum(soft.clamp(max=1), mask)


def fit_length(mask: Tensor, frames: int, policy: str, name: str) -> Tensor:
    """Give a mask `[F, H, W]` the length of its clip.

    A single frame stands for the whole clip, whatever the policy. Frames beyond the clip's are dropped.

    Args:
        mask: the mask.
        frames: frames of the clip.
        policy: what a shorter mask does: hold its last frame, loop from its first, or refuse.
        name: of the mask's file.

    Raises:
        MaskError: the mask is shorter, and the policy refuses that.
    """
    have = len(mask)
    if have >= frames:
        return mask[:frames]
    if policy == "refuse" and have > 1:
        raise MaskError(f"{name}: gives {have} frames, and the clip has {frames}. Set the length policy to hold or "
                        "loop, match the frame rate, or load a longer mask.")  # fmt: skip
    index = torch.arange(frames)
    return mask[index % have if policy == "loop" else index.clamp(max=have - 1)]


def _both_ways(mask: Tensor, work: Callable[[Tensor, int], Tensor], radius: int) -> Tensor:
    """`work` down the columns, of the mask and of the mask turned over: three times as fast as along its rows."""
    for _ in range(2):
        mask = work(mask, radius).mT.contiguous()
    return mask


def _spread_columns(mask: Tensor, radius: int) -> Tensor:
    mask = F.pad(mask, (0, 0, radius, radius), value=-math.inf)
    reached = 0
    while reached < radius:  # three windows side by side make one three times as wide
        step = min(radius - reached, 2 * reached + 1)
        mask = torch.maximum(torch.maximum(mask[:, : -2 * step], mask[:, step:-step]), mask[:, 2 * step :])
        reached += step
    return mask


def _blur_columns(mask: Tensor, radius: int) -> Tensor:
    weights = torch.exp(-2 * (torch.arange(-radius, radius + 1) / radius) ** 2)  # a Gaussian cut at two deviations
    padded = F.pad(mask, (0, 0, radius, radius), mode="replicate")
    blurred = torch.zeros_like(mask)
    for offset, weight in enumerate((weights / weights.sum()).tolist()):  # less memory and time than a convolution
        blurred.add_(padded[:, offset : offset + mask.shape[1]], alpha=weight)
    return blurred


def edited(mask: Tensor) -> list[float]:
    """Of every frame of a finished mask `[F, H, W]`, the share of pixels that are edited."""
    return [float((frame > EDITED).float().mean()) for frame in mask]


def numbers(edited: Sequence[float]) -> dict:
    """What an artist wants to know of the frames' edited shares: that of all pixels, and the most frames in a row
    without any."""
    longest = run = 0
    for share in edited:
        run = 0 if share else run + 1
        longest = max(longest, run)
    return {"share": sum(edited) / len(edited), "longest_unmasked": longest}
