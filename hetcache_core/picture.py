"""The picture of a run: its timeline of decisions over the token map of one frame.

Drawn as for a node 320 pixels wide, four pixels for each of those: there its words are as large as a node's own, and on
a large screen they stay sharp.
"""

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
ON_PAPER = {  # 3 : 1 against it
    "F": (168, 68, 0), "B": (168, 80, 138), "G": (138, 97, 0), "P": (0, 114, 178), "H": (42, 111, 143),
    "R": (0, 127, 92),
}  # fmt: skip
HEIGHTS = {"F": 1.0, "B": 0.75, "G": 0.65, "P": 0.55, "H": 0.35, "R": 0.18}
CLASSES = (("generative", (230, 159, 0)), ("margin", (86, 180, 233)), ("context", (90, 90, 90)))
PAPER, INK, FAINT = (250, 250, 250), (30, 30, 30), (120, 120, 120)
PIXEL = 4  # of this picture to one of a node
WIDTH, EDGE = 320 * PIXEL, 10 * PIXEL
ROOM = WIDTH - 2 * EDGE
TEXT, SMALL, LARGE = 12 * PIXEL, 10 * PIXEL, 26 * PIXEL
LINE = 16 * PIXEL
BARS = 48 * PIXEL  # height of a full evaluation's


def draw(stats: RunStats, frame: np.ndarray | None = None) -> np.ndarray:
    """Draw a run.

    Args:
        stats: of the run.
        frame: the clip's middle frame, uint8 ``[h, w, 3]``; without it the token map stands on grey.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    from PIL import Image, ImageDraw

    token_map = _token_map(stats, frame)
    kinds = [(f"{k} {name}", ON_PAPER[k]) for k, name in NAMES.items() if k in stats.decisions + stats.planned]
    lines = _wrapped(stats.summary().split("\n"))
    height = 3 * EDGE + LARGE + BARS + (len(lines) + 4) * LINE + 2 * LINE * len(kinds) // 2 + len(token_map)
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen, y = ImageDraw.Draw(image), EDGE
    pen.text((EDGE, y), f"{stats.speed:.2f}x", fill=INK, font=font(LARGE))
    y += LARGE + EDGE
    y = _timeline(pen, stats, y) + LINE // 2
    y = _legend(pen, kinds, y) + LINE // 2
    for line in lines:
        pen.text((EDGE, y), line, fill=INK, font=font(TEXT))
        y += LINE
    y += LINE // 2
    image.paste(Image.fromarray(token_map), (EDGE, y))
    y = _legend(pen, CLASSES, y + len(token_map) + LINE // 2) + EDGE
    return np.asarray(image.crop((0, 0, WIDTH, y)))


def draw_scores(profile: BlockProfile) -> np.ndarray:
    """A block profile's scores, a bar a block, background and foreground told apart; uint8 ``[H, W, 3]``."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, 300 * PIXEL), PAPER)
    pen, y = ImageDraw.Draw(image), EDGE
    for line in _wrapped([f"{profile.name}: attention to the edit, a bar a block"]):
        pen.text((EDGE, y), line, fill=INK, font=font(TEXT))
        y += LINE
    tall, bottom = 2 * BARS, y + EDGE + 2 * BARS
    step, highest = ROOM / profile.layers, max(*profile.scores, profile.threshold or 0, 1e-6)
    numbered = _every(profile.layers, step, SMALL * 1.6)
    for i, score in enumerate(profile.scores):
        left, height = EDGE + i * step, max(tall * score / highest, PIXEL)
        kind = "B" if i in profile.background else "F"
        pen.rectangle((left, bottom - height, left + _bar(step), bottom), fill=ON_PAPER[kind])
        if i % numbered == 0:
            pen.text((left + _bar(step) / 2, bottom + PIXEL), str(i), fill=INK, font=font(SMALL), anchor="ma")
    line = bottom - tall * min(profile.threshold or 0, highest) / highest
    pen.line((EDGE, line, WIDTH - EDGE, line), fill=FAINT, width=PIXEL // 2)
    count = len(profile.background)
    entries = [(f"background, reused: {count}", ON_PAPER["B"]),
               (f"foreground, computed: {profile.layers - count}", ON_PAPER["F"])]  # fmt: skip
    y = _legend(pen, entries, bottom + SMALL + LINE // 2) + EDGE
    return np.asarray(image.crop((0, 0, WIDTH, y)))


def _timeline(pen, stats: RunStats, top: int) -> int:
    """Bars of what was done, letters under them where there is room; returns where it ends."""
    records, bottom = stats.records, top + BARS
    step = ROOM / max(len(records), len(stats.planned), 1)
    lettered = _every(len(records), step, SMALL * 0.8) == 1
    for record in records:
        left = EDGE + record.index * step
        pen.rectangle((left, bottom - BARS * HEIGHTS[record.decision], left + _bar(step), bottom),
                      fill=ON_PAPER[record.decision])  # fmt: skip
        if lettered:
            pen.text((left + _bar(step) / 2, bottom + PIXEL), record.decision, fill=INK, font=font(SMALL), anchor="ma")
    pen.line((EDGE, bottom + 1, WIDTH - EDGE, bottom + 1), fill=FAINT, width=PIXEL // 2)
    return bottom + (SMALL + 2 * PIXEL if lettered else 0)


def _bar(step: float) -> float:
    return max(step - PIXEL, 1)


def _every(count: int, step: float, wide: float) -> int:
    """Label every how many of `count` things, so that none touches the next."""
    return next((n for n in (1, 2, 5, 10, 20, 50, 100) if n * step >= wide or n >= count), 200)


def _legend(pen, entries, y: int) -> int:
    """What colours mean, in rows; returns where it ends."""
    x = EDGE
    for name, colour in entries:
        wide = 16 * PIXEL + pen.textlength(name, font=font(TEXT))
        if x > EDGE and x + wide > WIDTH - EDGE:
            x, y = EDGE, y + LINE
        pen.rectangle((x, y + 2 * PIXEL, x + 11 * PIXEL, y + 13 * PIXEL), fill=colour)
        pen.text((x + 16 * PIXEL, y), name, fill=INK, font=font(TEXT))
        x += wide + 14 * PIXEL
    return y + LINE


def _token_map(stats: RunStats, frame: np.ndarray | None) -> np.ndarray:
    from PIL import Image

    frames, height, width = stats.grid
    scale = max(1, min(ROOM // max(width, 1), ROOM // max(height, 1)))
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
    for row in range(min(PIXEL // 2, scale)):  # the token grid
        out[row::scale] *= 0.85
        out[:, row::scale] *= 0.85
    return out.clip(0, 255).astype(np.uint8)


def _wrapped(lines: list[str]) -> list[str]:
    """The same words in lines that fit the picture."""
    letters, out = font(TEXT), []
    for line in lines:
        out.append("")
        for word in line.split(" "):
            longer = f"{out[-1]} {word}" if out[-1] else word
            if out[-1] and letters.getlength(longer) > ROOM:
                out.append(word)
            else:
                out[-1] = longer
    return out


def font(size: float):
    """The font of our pictures, of so many pixels."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has it in one size
        return ImageFont.load_default()
