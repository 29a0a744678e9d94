"""How far an edit is from the full-compute one: PSNR and SSIM inside the mask, around it, outside it, and overall.

Videos are `[F, H, W, 3]`, uint8 or floats from 0 to 1. Floats are better: rounding to uint8 caps what PSNR can tell at
about 55 dB.
"""

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

RING = 16  # pixels: how far around the mask the ring reaches
REGIONS = ("mask", "ring", "outside", "all")


def regions(mask: np.ndarray, ring: int = RING) -> dict[str, np.ndarray]:
    """Split a clip along its mask.

    Args:
        mask: `[F, H, W]` bool, True where the clip is edited.
        ring: how many pixels around the mask belong to the ring.

    Returns:
        `{"mask", "ring", "outside", "all"}`, each `[F, H, W]` bool. Mask, ring and outside never overlap and together
        are all.
    """
    mask = np.asarray(mask, dtype=bool)
    grown = F.max_pool2d(torch.from_numpy(mask).float()[:, None], 2 * ring + 1, stride=1, padding=ring)
    grown = grown[:, 0].numpy() > 0
    return {"mask": mask, "ring": grown & ~mask, "outside": ~grown, "all": np.ones_like(mask)}


def compare(
    video: np.ndarray, reference: np.ndarray, mask: np.ndarray, ring: int = RING
) -> dict[str, dict[str, float]]:
    """Compare a video with a reference of the same shape, region by region.

    Returns:
        `{"psnr": {region: dB}, "ssim": {region: -1 to 1}}` for the regions of `regions`. PSNR is infinite where the two
        are equal; both are NaN for a region without pixels.
    """
    video, reference = _unit(video), _unit(reference)
    if video.shape != reference.shape or video.shape[:3] != np.shape(mask):
        raise ValueError(f"shapes differ: video {video.shape}, reference {reference.shape}, mask {np.shape(mask)}")
    error = ((video - reference) ** 2).mean(-1)
    similarity = np.stack([_ssim_map(a, b) for a, b in zip(video, reference, strict=True)])
    psnr, ssim = {}, {}
    for name, region in regions(mask, ring).items():
        psnr[name] = _psnr(error[region])
        ssim[name] = float(similarity[region].mean()) if region.any() else float("nan")
    return {"psnr": psnr, "ssim": ssim}


def _unit(video: np.ndarray) -> np.ndarray:
    """To float64 from 0 to 1."""
    video = np.asarray(video)
    return video.astype(np.float64) / (255 if video.dtype == np.uint8 else 1)


def _psnr(squared: np.ndarray) -> float:
    if not squared.size:
        return float("nan")
    mean = squared.mean()
    return float(-10 * np.log10(mean)) if mean > 0 else float("inf")


def _ssim_map(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM at every pixel of a frame `[H, W, 3]`, averaged over the colours: `[H, W]`."""
    _, full = structural_similarity(frame, reference, channel_axis=-1, data_range=1.0, full=True)
    return full.mean(-1)
