"""How far a video is from its full-compute one: PSNR and SSIM inside the mask, around it, outside it, and overall.

Videos are ``[F, H, W, 3]``, arrays or tensors, uint8 or floats from 0 to 1. Floats are better: rounding to uint8 caps
what PSNR can tell at about 55 dB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

RING = 16  # pixels: how far around the mask the ring reaches
REGIONS = ("mask", "ring", "outside", "all")
WINDOW = 7  # pixels, each way, that SSIM looks at
C1, C2 = 0.01**2, 0.03**2  # the constants K1 and K2 of the SSIM paper, squared, for values from 0 to 1


def regions(mask, ring: int = RING) -> dict[str, Tensor]:
    """Split a clip along its mask.

    Args:
        mask: ``[F, H, W]``, true where the clip is edited.
        ring: how many pixels around the mask belong to the ring.

    Returns:
        ``{"mask", "ring", "outside", "all"}``, each ``[F, H, W]`` bool. Mask, ring and outside never overlap and
        together are all.
    """
    mask = torch.as_tensor(mask).bool()
    window = 2 * ring + 1
    grown = F.max_pool2d(mask[:, None].float(), (window, 1), stride=1, padding=(ring, 0))
    grown = F.max_pool2d(grown, (1, window), stride=1, padding=(0, ring))[:, 0] > 0
    return {"mask": mask, "ring": grown & ~mask, "outside": ~grown, "all": torch.ones_like(mask)}


def compare(
    video, reference, mask, ring: int = RING, progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Compare a video with a reference of the same shape, region by region.

    Args:
        video: ``[F, H, W, 3]``, at least 7 pixels each way.
        reference: the same; usually the full-compute edit with the same seed.
        mask: ``[F, H, W]``, true where the clip is edited.
        ring: as in :func:`regions`.
        progress: called with frames done and frames in all.

    Returns:
        ``{"psnr": {region: dB}, "ssim": {region: -1 to 1}}`` for the regions of :func:`regions`. PSNR is infinite where
        the two are equal; both are NaN for a region without pixels.

    Raises:
        ValueError: the shapes differ.
    """
    video, reference, mask = torch.as_tensor(video), torch.as_tensor(reference), torch.as_tensor(mask)
    if video.shape != reference.shape or video.shape[:3] != mask.shape:
        shapes = f"video {tuple(video.shape)}, reference {tuple(reference.shape)}, mask {tuple(mask.shape)}"
        raise ValueError(f"shapes differ: {shapes}")
    parts = regions(mask, ring)
    sums = torch.zeros(len(REGIONS), 2, dtype=torch.float64)  # of squared errors and of similarities
    for index, (frame, target) in enumerate(zip(map(_unit, video), map(_unit, reference), strict=True)):
        maps = torch.stack([((frame - target) ** 2).mean(-1), _ssim_map(frame, target)])
        for total, name in zip(sums, REGIONS):
            total += maps[:, parts[name][index]].sum(-1).cpu()
        if progress:
            progress(index + 1, len(video))
    psnr, ssim = {}, {}
    for (error, similarity), name in zip(sums.tolist(), REGIONS):
        pixels = int(parts[name].sum())
        psnr[name] = _decibel(error / pixels) if pixels else float("nan")
        ssim[name] = similarity / pixels if pixels else float("nan")
    return {"psnr": psnr, "ssim": ssim}


def by_frame(video, reference, mask) -> list[float]:
    """PSNR inside the mask of every frame, dB; NaN for a frame without mask. Arguments as of :func:`compare`."""
    mask = torch.as_tensor(mask).bool()
    errors = []
    for frame, target, inside in zip(torch.as_tensor(video), torch.as_tensor(reference), mask, strict=True):
        squared = (_unit(frame[inside]) - _unit(target[inside])) ** 2
        errors.append(_decibel(squared.mean().item()) if len(squared) else float("nan"))
    return errors


def _unit(frame: Tensor) -> Tensor:
    """To float64 from 0 to 1."""
    return frame.double() / (255 if frame.dtype == torch.uint8 else 1)


def _decibel(squared: float) -> float:
    return -10 * torch.tensor(squared, dtype=torch.float64).log10().item() if squared > 0 else float("inf")


def _ssim_map(frame: Tensor, reference: Tensor) -> Tensor:
    """SSIM at every pixel of a frame ``[H, W, 3]``, averaged over the colours: ``[H, W]``.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), equation 13, with
    a uniform window and sample covariance, mirrored at the edges: what scikit-image computes by default.
    """
    x, y = frame.movedim(-1, 0), reference.movedim(-1, 0)
    mean_x, mean_y = _windowed(x), _windowed(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (_windowed(x * x) + _windowed(y * y) - mean_x**2 - mean_y**2)
    covariance = unbiased * (_windowed(x * y) - mean_x * mean_y)
    top = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (top / ((mean_x**2 + mean_y**2 + C1) * (variances + C2))).mean(0)


def _windowed(planes: Tensor) -> Tensor:
    """The mean around every pixel of ``[C, H, W]``."""
    for _ in range(2):  # down the columns, twice
        edge = WINDOW // 2
        padded = torch.cat([planes[:, :edge].flip(1), planes, planes[:, -edge:].flip(1)], dim=1)
        planes = F.avg_pool2d(padded, (WINDOW, 1), stride=1).mT
    return planes
