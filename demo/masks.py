"""The region to edit: read from a mask video, or the built-in blob that moves through the frame."""

from pathlib import Path

import numpy as np

from .errors import InputError
from .media import Clip, fit, read_video


def moving_mask(frames: int, height: int, width: int) -> np.ndarray:
    """The built-in mask: an ellipse of about 18% of the frame that drifts, breathes and turns.

    Returns:
        `[F, H, W]` bool, the same for the same arguments on every machine.
    """
    t = np.linspace(0.0, 1.0, frames)[:, None, None]
    y = (np.arange(height)[None, :, None] + 0.5) / height
    x = (np.arange(width)[None, None, :] + 0.5) / width
    # An eased path (it starts and stops gently) from the lower left to the right, with a bow in it.
    ease = t * t * (3 - 2 * t)
    dx, dy = x - (0.40 + 0.24 * ease), y - (0.60 - 0.10 * ease - 0.06 * np.sin(np.pi * t))
    angle = 0.6 * np.sin(np.pi * ease)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    breath = 1 + 0.04 * np.sin(2 * np.pi * t)
    return (u / (0.26 * breath)) ** 2 + (v / (0.22 / breath)) ** 2 < 1


def load_mask(path: str | Path, clip: Clip) -> np.ndarray:
    """Read the mask video of a clip: white is edited, black is kept, the cut is at half brightness.

    Returns:
        `[F, H, W]` bool, fitted just as the clip was.

    Raises:
        InputError: it cannot be decoded, or is not as long or as large as the clip's file.
    """
    frames, height, width = clip.frames.shape[:3]
    video, _ = read_video(path, limit=frames + 1)
    if len(video) < frames or (len(video) > frames and not clip.longer):
        count = "more" if len(video) > frames else len(video)
        raise InputError(f"{path}: the mask has {count} frames and the clip {frames}; make both equally long.")
    if video.shape[1:3] not in (clip.source_size, (height, width)):
        mask_size, clip_size = _size(video.shape[2:0:-1]), _size(clip.source_size[::-1])
        raise InputError(f"{path}: the mask is {mask_size} pixels and the clip {clip_size}; make both the same size.")
    luma = fit(video[:frames], height, width) @ np.array([0.299, 0.587, 0.114])
    return check_mask(luma / 255, (frames, height, width), str(path))


def check_mask(mask: np.ndarray, shape: tuple[int, int, int], name: str = "mask") -> np.ndarray:
    """Refuse a mask no edit can be made with, and return it as bool.

    Args:
        mask: `[F, H, W]`, bool or a number of 0 (keep) to 1 (edit), cut at 0.5.
        shape: (F, H, W) of the clip it belongs to.
        name: what to call it in messages.
    """
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise InputError(f"{name}: is {_size(mask.shape)} but the clip is {_size(shape)}; make both the same.")
    if not np.isfinite(mask).all():
        raise InputError(f"{name}: holds NaN or infinite values; use numbers from 0 (keep) to 1 (edit).")
    mask = mask > 0.5
    share = mask.mean()
    if share == 0:
        raise InputError(f"{name}: is empty (0% of the clip), so there is nothing to edit; paint the region white.")
    if share == 1:
        raise InputError(f"{name}: covers all of the clip (100%), so nothing is kept; leave the rest black.")
    return mask


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "a single number"
