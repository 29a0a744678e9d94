"""Load Mask Video before any run: the numbers of the mask that a file gives, for its panel."""

from __future__ import annotations

import os
from collections.abc import Mapping

import folder_paths

from .load_mask_video import NO_FILE, source_of
from .mask_files import MaskError, TooLarge
from .mask_ops import edited, finish, numbers
from .mask_video import CHANNELS, decode
from .paths import is_remote

LOOKED_AT = 256 << 20  # bytes of decoded mask, one a pixel: what takes longer is left to the run
FRAMES = 16  # finished at once, each four bytes a pixel
REMOTE = "A file of another computer is read once the workflow runs."
LONG = "This mask is long: its numbers show once the workflow runs."


def look(settings: Mapping[str, str]) -> dict:
    """The numbers of a mask as Load Mask Video would make it with no clip connected, ready for JSON.

    Args:
        settings: the node's inputs by name, as a query string has them.

    Returns:
        ``frames``, ``fps``, ``width``, ``height``, ``share`` and ``longest_unmasked``; or ``error``, for the artist; or
        nothing where no file is chosen.

    Raises:
        ValueError: a setting is missing or cannot be.
    """
    file, path, channel = settings.get("file", NO_FILE), settings.get("path", ""), settings.get("channel", "luma")
    threshold, rate = _within(settings, "threshold", 1), _within(settings, "frame_rate", 240)
    grow, feather = (round(_within(settings, name, 512)) for name in ("grow", "feather"))
    skip, cap = (round(_within(settings, name, 1_000_000)) for name in ("skip_frames", "frame_cap"))
    if channel not in CHANNELS or min(threshold, rate, feather, skip, cap) < 0:
        raise ValueError("a setting is out of its range")
    if file == NO_FILE and not path.strip():
        return {}
    if is_remote(path):
        return {"error": REMOTE}
    if not path.strip() and not _in_its_folder(file):
        raise ValueError("the file is not one of the input folder")
    try:
        planes, fps = decode(source_of(file, path), channel, rate, skip, cap, limit=LOOKED_AT)
    except TooLarge:
        return {"error": LONG}
    except MaskError as error:
        return {"error": str(error)}
    invert, shares = settings.get("invert", "false") == "true", []
    for start in range(0, len(planes), FRAMES):
        part = finish(planes[start : start + FRAMES], None, threshold, invert, grow, feather)
        shares += edited(part)
    height, width = planes[0].shape
    return {"frames": len(planes), "fps": fps, "width": width, "height": height, **numbers(shares)}


def _within(settings: Mapping[str, str], name: str, most: float) -> float:
    value = float(settings.get(name, 0))
    if not -most <= value <= most:  # NaN too
        raise ValueError(f"{name} is out of its range")
    return value


def _in_its_folder(file: str) -> bool:
    """Whether a file stays in the folder that it is said to be in. The host's prompts ask for names from a list; anyone
    can ask a route for any."""
    name, folder = folder_paths.annotated_filepath(file)
    folder = os.path.abspath(folder or folder_paths.get_input_directory())
    return os.path.abspath(os.path.join(folder, name)).startswith(os.path.join(folder, ""))
