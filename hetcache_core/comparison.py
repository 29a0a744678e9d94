"""Pictures of two videos compared: side by side with their difference, and one frame of it with the numbers.

Videos are float ``[F, H, W, 3]`` from 0 to 1, masks bool ``[F, H, W]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .picture import CLASSES, PAPER, font
from .quality import REGIONS

WIDEST = 3840  # pixels of the frames side by side: what 4K screens show and video encoders take
CARD = 960  # pixels, both ways at most, of the picture of one frame
TEXT = 36  # pixels, of its words
OUTLINE = CLASSES[0][1]  # what the token map has for the generated region
# Black, blue, orange, white: brighter is more, for colour-blind eyes and in print too.
RAMP = torch.tensor([(0, 0, 0), (0, 114, 178), (230, 159, 0), (255, 255, 255)]) / 255
INK, DARK = (235, 235, 235), (24, 24, 27)
NAMES = {"mask": "inside", "ring": "ring", "outside": "outside", "all": "overall"}


def difference(video: Tensor, reference: Tensor, gain: float) -> Tensor:
    """Where two videos differ, ``[F, H, W, 3]``: black where equal, white where 1 / `gain` of the range apart."""
    return torch.stack([_heat(a, b, gain) for a, b in zip(video, reference, strict=True)])


def _heat(frame: Tensor, reference: Tensor, gain: float) -> Tensor:
    apart = ((frame - reference).abs().mean(-1) * gain).clamp(0, 1) * (len(RAMP) - 1)
    low = apart.long().clamp(max=len(RAMP) - 2)
    part, ramp = (apart - low)[..., None], RAMP.to(frame.device)
    return ramp[low] * (1 - part) + ramp[low + 1] * part


def outlined(frame: Tensor, mask: Tensor) -> Tensor:
    """A frame ``[H, W, 3]`` with a line around its mask ``[H, W]``, outside it so that it hides nothing of the edit."""
    thick = max(1, round(max(mask.shape) / 400))
    grown = F.max_pool2d(mask[None, None].float(), 2 * thick + 1, stride=1, padding=thick)[0, 0] > 0
    colour = torch.tensor(OUTLINE, device=frame.device) / 255
    return torch.where((grown & ~mask.bool())[..., None], colour, frame.float())


def side_by_side(
    before: Tensor, after: Tensor, mask: Tensor, gain: float, decibels: list[float]
) -> Iterator[Tensor]:
    """Before, after and their difference beside each other, under captions.

    Args:
        before: the reference.
        after: the video compared with it.
        mask: of both.
        gain: of the difference.
        decibels: PSNR inside the mask of every frame, for the caption.

    Yields:
        A frame ``[H', W', 3]`` after the other, sides even, at most 3840 wide.
    """
    height, width = before.shape[1:3]
    scale = min(1.0, WIDEST / (3 * width))
    size = (even(height * scale), even(width * scale))
    bar = even(max(18, size[1] / 14))
    for a, b, m, decibel in zip(before, after, mask, decibels):
        panels = (a, b, _heat(b, a, gain))
        captions = ("before", "after", f"difference x{gain:g}" + ("" if math.isnan(decibel) else f", {say(decibel)}"))
        drawn = [torch.cat([_caption(text, size[1], bar), _resized(outlined(p.cpu(), m.cpu()), size)])
                 for p, text in zip(panels, captions)]  # fmt: skip
        yield torch.cat(drawn, dim=1)


def card(before: Tensor, after: Tensor, mask: Tensor, gain: float, index: int, result: dict) -> Tensor:
    """One frame before, after, as a difference, and the numbers, large enough to read on a node.

    Args:
        before, after, mask, gain: as of :func:`side_by_side`.
        index: of the frame.
        result: of :func:`hetcache_core.quality.compare`.

    Returns:
        float32 ``[H, W, 3]``, at most 960 wide.
    """
    from PIL import Image, ImageDraw

    height, width = before.shape[1:3]
    room = CARD // 2
    scale = room / max(height, width)
    size = (even(height * scale), even(width * scale))
    block = max(size[1], room)  # of the numbers, which need room beside a narrow clip
    bar, line = 48, 52  # on a node, which is a third as wide, words are then as large as its own
    rows = max(size[0] + bar, 7 * line)
    a, b, m = (video[index].cpu() for video in (before, after, mask))
    image = Image.new("RGB", (max(size[1], block) + block, bar + size[0] + rows + 12), DARK)
    for (x, y), text, frame in (((0, 0), "before", a), ((block, 0), "after", b),
                                ((0, bar + size[0]), f"difference x{gain:g}", _heat(b, a, gain))):  # fmt: skip
        panel = torch.cat([_caption(text, size[1], bar), _resized(outlined(frame, m), size)])
        image.paste(Image.fromarray(to_uint8(panel)), (x, y))
    pen, x, y = ImageDraw.Draw(image), block + 16, bar + size[0] + 4
    for place, text in zip((x + 306, x + 452), ("PSNR", "SSIM")):
        pen.text((place, y), text, fill=INK, font=font(TEXT), anchor="ra")
    for row, name in enumerate(REGIONS, 1):
        cells = (NAMES[name], say(result["psnr"][name]), similarity(result["ssim"][name]))
        for place, text in zip((x, x + 306, x + 452), cells):
            colour = OUTLINE if name == "mask" else INK
            pen.text((place, y + line * row), text, fill=colour, font=font(TEXT), anchor="la" if place == x else "ra")
    which = f"frame {index + 1} of {len(before)}" + (", the worst" if math.isfinite(result["psnr"]["mask"]) else "")
    pen.text((x, y + line * 5 + 8), which, fill=INK, font=font(TEXT))
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def say(decibel: float) -> str:
    """PSNR in words."""
    return "equal" if decibel == math.inf else "-" if math.isnan(decibel) else f"{decibel:.1f} dB"


def similarity(ssim: float) -> str:
    """SSIM in words; 1 only where it is."""
    return "-" if math.isnan(ssim) else f"{ssim:.4f}" if ssim >= 1 else f"{min(ssim, 0.9999):.4f}"


def to_uint8(frame: Tensor) -> np.ndarray:
    """From floats of 0 to 1."""
    return (frame.float() * 255 + 0.5).clamp(0, 255).byte().cpu().numpy()


def even(side: float) -> int:
    """The even number of pixels nearest to a side, as H.264 wants it."""
    return max(2, round(side / 2) * 2)


def _resized(frame: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frame.shape[:2]) == size:
        return frame
    mode = "area" if size[0] < frame.shape[0] else "nearest"  # pixels as they are where there is room for them
    return F.interpolate(frame.movedim(-1, 0)[None], size=size, mode=mode)[0].movedim(0, -1)


def _caption(text: str, width: int, height: int) -> Tensor:
    from PIL import Image, ImageDraw

    bar = Image.new("RGB", (width, height), DARK)
    pen, size = ImageDraw.Draw(bar), height * 0.7
    while size > 6 and pen.textlength(text, font=font(size)) > width - height / 2:
        size *= 0.92
    pen.text((height / 4, height / 2), text, fill=PAPER, font=font(size), anchor="lm")
    return torch.from_numpy(np.asarray(bar).astype(np.float32) / 255)
