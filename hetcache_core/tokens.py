"""Which tokens of a latent belong to the edit: mask -> generative, margin and context tokens.

A Wan-like DiT cuts a latent [C, T, H, W] into patches of 1x2x2; token ``k = (t * h + i) * w + j`` covers latent cells
``[t, 2i:2i+2, 2j:2j+2]``. Behind each latent cell stand 8x8 pixels of 4 frames, except latent frame 0, which stands
for pixel frame 0 alone (causal VAE).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_PER_CELL = 8
FRAMES_PER_CELL = 4
NOTHING = 1e-2  # of a latent, whose numbers are about 1: what 16 bits leave of an exact 0


@dataclass(frozen=True)
class TokenGrid:
    """Token counts of a latent along time, height and width (1x2x2 patches; odd sizes are padded up)."""

    frames: int
    height: int
    width: int

    def __post_init__(self):
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"a token grid needs at least one token along every axis, got {self.shape}")

    @classmethod
    def of_latent(cls, latent: Tensor) -> TokenGrid:
        """Grid of a latent ``[..., T, H, W]``."""
        frames, height, width = latent.shape[-3:]
        return cls(frames, -(-height // 2), -(-width // 2))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class TokenClasses:
    """The three classes of a run's tokens, flat in token order. What follows from them is worked out once: each answer
    waits for the device they lie on.

    Args:
        grid: the token grid.
        generative: bool ``[L]``, tokens the mask touches.
        margin: bool ``[L]``, the ring around them (disjoint from ``generative``).
        distance: int64 ``[L]``, rings (Chebyshev, in space and time) from the nearest generative or margin token,
            0 on those themselves.
        reference_frames: leading latent frames that hold reference images; always context.
    """

    grid: TokenGrid
    generative: Tensor
    margin: Tensor
    distance: Tensor
    reference_frames: int = 0

    @cached_property
    def edited(self) -> Tensor:
        """Sorted indices of generative and margin tokens: what every partial evaluation computes."""
        return (self.generative | self.margin).nonzero().flatten()

    @cached_property
    def context(self) -> Tensor:
        """Sorted indices of context tokens."""
        return (~(self.generative | self.margin)).nonzero().flatten()

    @cached_property
    def references(self) -> Tensor:
        """Sorted indices of the context tokens that reference images stand on."""
        per_frame = self.grid.height * self.grid.width
        return torch.arange(self.reference_frames * per_frame, device=self.generative.device)

    @cached_property
    def mask_fraction(self) -> float:
        """Share of tokens that are generative."""
        return self.generative.float().mean().item()


def pool_pixel_mask(mask: Tensor, grid: TokenGrid, threshold: float = 0.1) -> Tensor:
    """Tokens a pixel mask touches.

    A token is touched when any pixel of its 16x16 cell in any of its 4 frames exceeds the threshold, so a thin or a
    moving mask never vanishes.

    Args:
        mask: ``[F, H, W]`` (or ``[1, H, W]``, repeated over time), 0 = keep, 1 = generate; soft values allowed. It may
            be a whole number of times as large as 16 pixels a token: Wan 2.2 5B's tokens are 32 wide.
        grid: the token grid of the clip, without reference frames.
        threshold: a pixel above it counts.

    Returns:
        bool ``[T, h, w]``.

    Raises:
        ValueError: wrong rank, NaN, or a frame count or size that does not belong to the grid.
    """
    mask = _checked(mask)
    frames = (grid.frames - 1) * FRAMES_PER_CELL + 1
    if mask.shape[0] == 1:
        mask = mask.expand(frames, -1, -1)
    if mask.shape[0] != frames:
        raise ValueError(f"the mask has {mask.shape[0]} frames but the clip has {frames}; give one frame or {frames}")
    larger = max(mask.shape[-1] // (2 * PIXELS_PER_CELL * grid.width), 1)
    if tuple(mask.shape[-2:]) != tuple(2 * PIXELS_PER_CELL * larger * n for n in grid.shape[1:]):
        larger = 1  # refused below
    cells = F.max_pool2d(mask[:, None], PIXELS_PER_CELL * larger, ceil_mode=True)[:, 0]
    first, rest = cells[:1], cells[1:]
    if len(rest):
        rest = rest.reshape(-1, FRAMES_PER_CELL, *cells.shape[1:]).amax(1)
    return pool_latent_mask(torch.cat([first, rest]), grid, threshold)


def pool_latent_mask(mask: Tensor, grid: TokenGrid, threshold: float = 0.1) -> Tensor:
    """Tokens a latent-resolution mask touches.

    Args:
        mask: ``[T, H, W]`` in latent cells; soft values allowed.
        grid: the token grid.

    Returns:
        bool ``[T, h, w]``.

    Raises:
        ValueError: wrong rank, NaN, or a size that does not belong to the grid.
    """
    mask = _checked(mask)
    pooled = F.max_pool2d(mask[:, None], 2, ceil_mode=True)[:, 0] > threshold
    if tuple(pooled.shape) != grid.shape:
        raise ValueError(
            f"the mask covers {tuple(pooled.shape)} tokens (frames, height, width) but the clip has {grid.shape}; "
            "scale the mask to the clip's size and length"
        )
    return pooled


def vace_mask(control: Tensor) -> tuple[Tensor, int]:
    """The edit mask a VACE control carries, and how many reference frames stand in front of it.

    Channels are 16 inactive, 16 reactive, 64 mask (the 8x8 pixels of a cell). The mask was *sampled* in time, one
    pixel frame of four, so a moving mask is under-covered: each latent frame also takes its neighbours' mask.
    A reference frame has mask 0 and a reactive half of 0 (but for rounding), which no encoded frame has.

    Args:
        control: ``[B, 96, T, H, W]`` or ``[B, n, 96, T, H, W]``.

    Returns:
        float mask ``[T, H, W]`` and the number of leading reference frames.

    Raises:
        ValueError: not 96 channels.
    """
    if control.shape[-4] != 96:
        raise ValueError(f"a VACE control has 96 channels, this one has {control.shape[-4]}")
    control = control.flatten(0, -5)
    mask = control[:, 32:].float().amax(dim=(0, 1))
    unused = (control[:, 16:32].abs() < NOTHING).all(dim=(0, 1)).flatten(1).all(1) & (mask.flatten(1).amax(1) == 0)
    references = int(unused.long().cumprod(0).sum())
    if references == len(unused):  # a control that is zero throughout says nothing about references
        references = 0
    clip = mask[references:].cpu()  # where pooling in three dimensions exists, as on Apple's devices it long did not
    clip = F.max_pool3d(clip[None, None], (3, 1, 1), stride=1, padding=(1, 0, 0))[0, 0]
    return torch.cat([mask[:references], clip.to(mask.device)]), references


def classify(touched: Tensor, margin_space: int = 0, margin_time: int = 0, reference_frames: int = 0) -> TokenClasses:
    """Split tokens into generative, margin and context.

    Args:
        touched: bool ``[T, h, w]`` from :func:`pool_pixel_mask` or :func:`pool_latent_mask`, reference frames
            (if any) included in front.
        margin_space: rings of margin tokens in height and width.
        margin_time: margin frames before and after.
        reference_frames: leading frames that are never generative nor margin.
    """
    grid, device = TokenGrid(*touched.shape), touched.device
    generative = touched.cpu().clone()  # a few thousand tokens in many small steps, each a wait for a device
    generative[:reference_frames] = False
    edited = _dilate(generative, margin_time, margin_space)
    edited[:reference_frames] = False
    distance = torch.zeros(grid.shape, dtype=torch.int64)
    if edited.any():
        reached, ring = edited, 0
        while not reached.all():
            ring += 1
            grown = _dilate(reached, 1, 1)
            distance[grown & ~reached] = ring
            reached = grown
    parts = (part.flatten().to(device) for part in (generative, edited & ~generative, distance))
    return TokenClasses(grid, *parts, reference_frames)


def _dilate(mask: Tensor, time: int, space: int) -> Tensor:
    kernel = (2 * time + 1, 2 * space + 1, 2 * space + 1)
    return F.max_pool3d(mask[None, None].float(), kernel, stride=1, padding=(time, space, space))[0, 0] > 0


def _checked(mask: Tensor) -> Tensor:
    if mask.ndim != 3:
        raise ValueError(f"a mask is [frames, height, width], got {mask.ndim} dimensions: {tuple(mask.shape)}")
    mask = mask.float()
    if not torch.isfinite(mask).all():
        raise ValueError("the mask holds NaN or infinite values; clean it before use")
    return mask
