"""The picture of a run: its timeline of decisions over the token map of one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .error_model import NAMES

if TYPE_CHECKING:
    from .block_profile import BlockProfile
    from .stats import RunStats

# Okabe-Ito: told apart by colour-blind eyes too; heights and letters tell them apart without colour.
COLOURS = {
    "F": (213, 94, 0), "B": (204, 121, 167), "G": (230, 159, 0), "P": (0, 114, 178), "H": (86, 180, 233),
    "R": (0, 158, 115),
}  # fmt: skip
HEIGHTS = {"F": 1.0, "B": 0.75, "G": 0.65, "P": 0.55, "H": 0.35, "R": 0.18}
CLASSES = (("generative", (230, 159, 0)), ("margin", (86, 180, 233)), ("context", (90, 90, 90)))
PAPER, INK, FAINT = (250, 250, 250), (30, 30, 30), (120, 120, 120)
WIDTH, EDGE = 960, 24


def draw(stats: RunStats, frame: np.ndarray | None = None) -> np.ndarray:
    """Draw a run.

    Args:
        stats: of the run.
        frame: the clip's middle frame, uint8 ``[h, w, 3]``; without it the token map stands on grey.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    from PIL import Image, ImageDraw

    bottom = _token_map(stats, frame)
    lines = stats.summary().split("\n")
    top = 190 + 22 * len(lines)
    image = Image.new("RGB", (WIDTH, top + bottom.shape[0] + 2 * EDGE), PAPER)
    pen = ImageDraw.Draw(image)
    _timeline(pen, stats, EDGE, 150)
    _legend(pen, [(name, COLOURS[k]) for k, name in NAMES.items() if k in "FPR" + stats.decisions], EDGE, 156)
    for i, line in enumerate(_fitting(pen, lines)):
        pen.text((EDGE, 186 + 22 * i), line, fill=INK, font=_font(15))
    image.paste(Image.fromarray(bottom), (EDGE, top + EDGE))
    _legend(pen, CLASSES, EDGE + bottom.shape[1] + EDGE, top + EDGE, down=True)
    return np.asarray(image)


def draw_scores(profile: BlockProfile) -> np.ndarray:
    """A block profile's scores, a bar a block, background and foreground told apart; uint8 ``[H, W, 3]``."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, 320), PAPER)
    pen, bottom, tall = ImageDraw.Draw(image), 250, 190
    step, highest = (WIDTH - 2 * EDGE) / profile.layers, max(*profile.scores, profile.threshold or 0, 1e-6)
    for i, score in enumerate(profile.scores):
        left, height, kind = EDGE + i * step, max(tall * score / highest, 1), "B" if i in profile.background else "F"
        pen.rectangle((left, bottom - height, left + max(step - 2, 1), bottom), fill=COLOURS[kind])
        pen.text((left + step / 2 - 1, bottom + 4), str(i), fill=INK, font=_font(11), anchor="ma")
    line = bottom - tall * min(profile.threshold or 0, highest) / highest
    pen.line((EDGE, line, WIDTH - EDGE, line), fill=FAINT)
    pen.text((EDGE, 14), f"{profile.name}: attention to the edit, a bar a block", fill=INK, font=_font(15))
    count = len(profile.background)
    entries = [(f"background, reused: {count}", COLOURS["B"]),
               (f"foreground, computed: {profile.layers - count}", COLOURS["F"])]  # fmt: skip
    _legend(pen, entries, EDGE, bottom + 34)
    return np.asarray(image)


def _timeline(pen, stats: RunStats, top: int, bottom: int) -> None:
    records = stats.records
    count = max(len(records), len(stats.planned), 1)
    step = (WIDTH - 2 * EDGE) / count
    for record in records:
        left = EDGE + record.index * step
        height = (bottom - top) * HEIGHTS[record.decision]
        pen.rectangle((left, bottom - height, left + max(step - 2, 1), bottom), fill=COLOURS[record.decision])
        if step >= 12:
            pen.text((left + step / 2 - 1, bottom - 4), record.decision, fill=PAPER, font=_font(11), anchor="ms")
    pen.line((EDGE, bottom + 1, WIDTH - EDGE, bottom + 1), fill=FAINT)


def _legend(pen, entries, left: int, top: int, down: bool = False) -> None:
    for name, colour in entries:
        pen.rectangle((left, top + 3, left + 13, top + 16), fill=colour)
        pen.text((left + 20, top), name, fill=INK, font=_font(14))
        left, top = (left, top + 24) if down else (left + 50 + pen.textlength(name, font=_font(14)), top)


def _token_map(stats: RunStats, frame: np.ndarray | None) -> np.ndarray:
    from PIL import Image

    frames, height, width = stats.grid
    scale = max(4, min(480 // max(width, 1), 360 // max(height, 1)))
    size = (width * scale, height * scale)
    if frame is None:
        picture = np.full((size[1], size[0], 3), 200, np.uint8)
    else:
        picture = np.asarray(Image.fromarray(frame).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    if stats.classes is None:
        return picture
    middle = (frames + stats.classes.reference_frames) // 2
    tints = ((stats.classes.generative, CLASSES[0][1]), (stats.classes.margin, CLASSES[1][1]))
    out = picture.astype(np.float32)
    shade = np.ones((*out.shape[:2], 1), np.float32) * 0.25
    colour = np.zeros_like(out) + CLASSES[2][1]
    for tokens, tint in tints:
        here = tokens.view(frames, height, width)[min(middle, frames - 1)].cpu().numpy()
        here = np.kron(here, np.ones((scale, scale), bool))
        shade[here], colour[here] = 0.55, tint
    out = out * (1 - shade) + colour * shade
    out[::scale] *= 0.85  # the token grid
    out[:, ::scale] *= 0.85
    return out.clip(0, 255).astype(np.uint8)


def _fitting(pen, lines: list[str]) -> list[str]:
    room = WIDTH - 2 * EDGE
    return [line if pen.textlength(line, font=_font(15)) <= room else line[:118] + "..." for line in lines]


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)
