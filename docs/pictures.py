"""Draws the pictures of the README and of the nodes' help pages, with the nano model: minutes on a CPU.

    python -m docs.pictures

Everything shown is computed here: the edits are nano's, the timelines are what was decided for them or planned.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from demo import models, runs
from demo.__main__ import CLIP
from demo.masks import moving_mask
from demo.media import load_clip
from demo.report import tinted, to_uint8
from hetcache_core import CachePolicy, comparison
from hetcache_core.block_profile import BlockProfile
from hetcache_core.picture import CLASSES, COLOURS, HEIGHTS, draw_scores
from hetcache_core.quality import by_frame, compare
from nodes.mask_ops import soften, spread
from workflows.thumbnails import planned

HERE = pathlib.Path(__file__).parent
HELP = HERE.parent / "web" / "docs" / "img"
PAPER, INK = (24, 24, 27), (228, 228, 231)
SIDE, FRAMES, STEPS, PROMPT, SPEED = 192, 33, 30, "red star", 3
LARGER = 20  # pixels of a word on a help page, which the host shows about half as wide
SHOWN = 20  # the frame that still pictures show


def main() -> None:
    clip = load_clip(CLIP, SIDE, SIDE, FRAMES).frames
    mask = moving_mask(FRAMES, SIDE, SIDE)
    edit = models.Edit(clip, mask, cfg=4.0, seed=0)
    made = {run.name: run for run in runs.make_runs(models.load_nano(PROMPT), edit, STEPS, [SPEED],
                                                    CachePolicy.preset("balanced"))}  # fmt: skip
    draw(clip, mask, made["full"], made[f"speed-{SPEED}"])


def draw(clip: np.ndarray, mask: np.ndarray, full: runs.Run, fast: runs.Run) -> None:
    """Every picture, from a clip `[F, H, W, 3]` uint8, its mask `[F, H, W]`, its edit in full and at speed."""
    HELP.mkdir(parents=True, exist_ok=True)
    moving(clip, mask, full, fast)
    source, edited = tinted(clip, mask)[SHOWN], to_uint8(fast.video[SHOWN])
    row([("clip and mask", source), ("edit, all computed", to_uint8(full.video[SHOWN])),
         (f"edit at speed {SPEED}", edited)], fast.decisions, "HetCachePatchModel")  # fmt: skip
    row([("clip", clip[SHOWN]), ("mask", _grey(torch.from_numpy(mask[SHOWN]).float())), ("red star", edited)], "",
        "HetCacheDemoModel")  # fmt: skip
    plain = torch.from_numpy(mask[SHOWN : SHOWN + 1]).float()
    row([("as it is", _grey(plain[0])), ("grow 16", _grey(spread(plain, 16)[0])),
         ("grow 16, feather 24", _grey(soften(spread(plain, 16), 24)[0]))], "", "HetCacheLoadMaskVideo")  # fmt: skip
    speeds(mask.mean())
    half(fast.stats.picture(clip[len(clip) // 2])).save(HELP / "HetCacheStats.webp", quality=85, method=6)
    scores = draw_scores(BlockProfile.load("nano"))
    half(scores).save(HELP / "HetCacheProfileModel.webp", quality=85, method=6)
    before, after, inside = torch.from_numpy(full.video), torch.from_numpy(fast.video), torch.from_numpy(mask)
    decibels = by_frame(after, before, inside)
    card = comparison.card(before, after, inside, 8.0, int(np.argmin(decibels)), compare(after, before, inside))
    Image.fromarray(comparison.to_uint8(card)).save(HELP / "HetCacheCompare.webp", quality=85, method=6)


def moving(clip: np.ndarray, mask: np.ndarray, full: runs.Run, fast: runs.Run) -> None:
    """The README's: clip and mask, edit in full, edit at speed, as one animated webp."""
    frames = []
    for source, slow, quick in zip(tinted(clip, mask), to_uint8(full.video), to_uint8(fast.video)):
        image = _sheet(3, 30)
        computed = sum(letter != "R" for letter in fast.decisions)
        for index, (text, frame) in enumerate([
            ("clip, mask", source), (f"{len(full.decisions)} full steps", slow),
            (f"HetCache: {fast.decisions.count('F')} full, {computed - fast.decisions.count('F')} partial", quick),
        ]):  # fmt: skip
            _panel(image, index, text, frame)
        frames.append(image)
    frames[0].save(HERE / "moving.webp", save_all=True, append_images=frames[1:], duration=60, loop=0, quality=72,
                   method=6)  # fmt: skip


def half(picture: np.ndarray) -> Image.Image:
    """Small enough for a page, large enough for a sharp screen."""
    image = Image.fromarray(picture)
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def row(panels: list[tuple[str, np.ndarray]], decisions: str, name: str) -> None:
    """Pictures beside each other, above the steps where there are any."""
    image = _sheet(len(panels), 30 + (86 if decisions else 0))
    for index, (text, frame) in enumerate(panels):
        _panel(image, index, text, frame, LARGER)
    if decisions:
        _steps(image, decisions, 0, image.width, 44 + SIDE, 40)
        _legend(image, image.height - 18)
    image.save(HELP / f"{name}.webp", quality=88, method=6)


def speeds(share: float) -> None:
    """What is planned for Wan2.1-VACE 14B at some speeds."""
    rows = ("1", "2", "3", "4", "6")
    image = Image.new("RGB", (3 * SIDE + 8, 62 * len(rows) + 30), PAPER)
    for index, speed in enumerate(rows):
        top = 8 + 62 * index
        ImageDraw.Draw(image).text((6, top + 30), f"speed {speed}", fill=INK, font=ImageFont.load_default(LARGER),
                                   anchor="lm")  # fmt: skip
        decisions = planned(STEPS, float(speed), share) if speed != "1" else "F" * STEPS
        _steps(image, decisions, 90, image.width - 90, top, 46)
    _legend(image, image.height - 16)
    image.save(HELP / "HetCachePolicySettings.webp", quality=88, method=6)


def _sheet(panels: int, more: int) -> Image.Image:
    return Image.new("RGB", (panels * SIDE + (panels - 1) * 4, SIDE + more), PAPER)


def _panel(image: Image.Image, index: int, text: str, frame: np.ndarray, size: int = 15) -> None:
    x = index * (SIDE + 4)
    image.paste(Image.fromarray(frame), (x, 28))
    ImageDraw.Draw(image).text((x + 4, 14), text, fill=INK, font=ImageFont.load_default(size), anchor="lm")


def _steps(image: Image.Image, decisions: str, left: int, width: int, top: int, height: int) -> None:
    pen, step = ImageDraw.Draw(image), width / len(decisions)
    for index, letter in enumerate(decisions):
        x = left + index * step
        box = (x, top + height * (1 - HEIGHTS[letter]), x + step - 3, top + height)
        pen.rectangle(box, fill=COLOURS[letter])


def _legend(image: Image.Image, y: int) -> None:
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(LARGER)
    for x, letter, text in ((6, "F", "all computed"), (200, "P", "masked region"), (410, "R", "forecast")):
        pen.rectangle((x, y - 6, x + 12, y + 6), fill=COLOURS[letter])
        pen.text((x + 18, y), text, fill=INK, font=font, anchor="lm")


def _grey(plane: torch.Tensor) -> np.ndarray:
    """A plane `[H, W]` from 0 to 1 in the colour that masks have everywhere."""
    colour = torch.tensor(CLASSES[0][1])
    return (plane[..., None] * colour).byte().numpy()


if __name__ == "__main__":
    main()
