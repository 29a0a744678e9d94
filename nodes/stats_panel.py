"""What Cache Stats shows in the browser: the numbers, the token map of every latent frame, and the clip under it."""

from __future__ import annotations

import base64
import logging
import zlib
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image

from ..hetcache_core.progress import snapshot, token_map
from ..hetcache_core.stats import RunStats
from ..hetcache_core.tokens import FRAMES_PER_CELL

SIDE = 320  # pixels of a frame's longer side
log = logging.getLogger("hetcache")


def panel(run: RunStats, video: torch.Tensor | None) -> dict:
    """A finished run, ready for JSON: ``summary`` as sent while sampling, the whole ``report``, ``map``, ``frames``."""
    costs = {"partial": run.costs.partial, "reuse": run.costs.reuse}
    summary = snapshot(run, run.count or len(run.planned), wait=True)
    shown = {"summary": summary, "report": run.to_dict(), "costs": costs}
    uses = token_map(run)
    if uses is not None:
        packed = base64.b64encode(zlib.compress(uses.tobytes(), 9)).decode()
        shown["map"] = {"shape": list(uses.shape), "data": packed, "references": run.classes.reference_frames}
        if video is not None:
            shown["frames"] = _frames(video, len(uses) - run.classes.reference_frames)
    return shown


def sheet(video: torch.Tensor, count: int) -> np.ndarray:
    """One frame for every latent frame, below each other.

    Args:
        video: ``[F, H, W, 3]``, 0 to 1.
        count: latent frames, reference frames left out.

    Returns:
        uint8 ``[count * h, w, 3]``; a clip too short repeats its last frame.
    """
    chosen = [min(max(FRAMES_PER_CELL * i - FRAMES_PER_CELL // 2, 0), len(video) - 1) for i in range(count)]
    height, width = video.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    frames = torch.nn.functional.interpolate(video[chosen, ..., :3].movedim(-1, 1).float().cpu(), size, mode="area")
    return frames.movedim(1, -1).flatten(0, 1).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def _frames(video: torch.Tensor, count: int) -> dict | None:
    """Where the host serves the sheet. Failing to make one must not stop a workflow whose sampling is done."""
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            "hetcache_frames", folder_paths.get_temp_directory()
        )
        file = f"{name}_{counter:05}_.jpg"
        Image.fromarray(sheet(video, count)).save(Path(folder) / file, quality=82)
    except Exception as error:
        log.warning("Cache Stats shows no frames: %s", error)
        return None
    return {"filename": file, "subfolder": subfolder, "type": "temp", "count": count}
