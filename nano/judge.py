"""Does a fill show the prompted colour and shape? Plain image measurements, no model.

Colour: pixels of clear saturation are given to the nearest hue of the palette; backgrounds are muted and fall out. The
verdict is the most frequent hue inside the mask where no other shape of the source is. It must cover at least a tenth
of what the source's target covers.
Shape: in every fourth frame the largest connected piece of the prompted hue in the mask is compared with every shape
at every angle, moved to its centroid and scaled to its area. The verdict is the shape of the highest mean overlap
(intersection over union). A VAE of 8-pixel cells rounds corners, so there are two judges: one compares with the shapes
as they are drawn, the other with shapes blurred by BLUR, which was chosen for verdicts on the VAE's reconstructions of
tuning clips. Every result reports both, and how often each is right on the source and on its reconstruction.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .clips import Clip
from .shapes import COLOURS, SHAPES, coverage

SATURATION = 0.33  # of 1; muted backgrounds stay below, shaded shapes above
HUE_WIDTH = 28.0  # degrees to either side
AREA = {"circle": np.pi * 0.92**2, "square": 1.56**2, "triangle": 0.75 * 3**0.5, "star": 5 * 0.42 * np.sin(np.pi / 5)}
PERIOD = {"circle": 1.0, "square": 90.0, "triangle": 120.0, "star": 72.0}  # degrees after which a shape repeats
MIN_PIXELS = 12
ANGLE_STEP = 5.0  # degrees
BLUR = 2.5  # pixels, standard deviation
EDGE = 14  # pixels around a piece, room for a shape that reaches beyond it


def hue(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and saturation (largest minus smallest channel, 0..1) of [..., 3] uint8."""
    r, g, b = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    degrees = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360
    return degrees, np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)


def colour_masks(video: np.ndarray) -> dict[str, np.ndarray]:
    """For each colour of the palette, bool [F, H, W] where the video shows it."""
    degrees, saturation = hue(video)
    centres = {name: float(hue(np.array(value, np.uint8))[0]) for name, value in COLOURS.items()}
    gaps = {name: np.abs((degrees - centre + 180) % 360 - 180) for name, centre in centres.items()}
    nearest = np.min(np.stack(list(gaps.values())), axis=0)
    return {name: (gap == nearest) & (gap < HUE_WIDTH) & (saturation > SATURATION) for name, gap in gaps.items()}


def overlap(piece: np.ndarray, blur: float) -> dict[str, float]:
    """Best intersection over union of each shape, blurred by so many pixels, with a piece, bool [H, W]."""
    rows, columns = np.nonzero(piece)
    piece = np.pad(piece[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], EDGE)
    area, centre, best = int(piece.sum()), ndimage.center_of_mass(piece), {}
    for shape in SHAPES:
        radius, scores = float(np.sqrt(area / AREA[shape])), []
        radius *= float(np.sqrt(area / max(_template(shape, piece.shape, centre, radius, 0.0, blur).sum(), 1)))
        for angle in np.arange(0, PERIOD[shape], ANGLE_STEP):
            template = _template(shape, piece.shape, centre, radius, np.radians(angle), blur)
            both = (template & piece).sum()
            scores.append(both / (template.sum() + area - both))
        best[shape] = float(max(scores))
    return best


def _template(shape: str, size: tuple, centre: tuple, radius: float, angle: float, blur: float) -> np.ndarray:
    """A shape as it looks behind a blur, bool [H, W]."""
    image = np.zeros(size, np.float32)
    part, box = coverage(shape, *size, centre, radius, angle)
    image[box] = part
    return ndimage.gaussian_filter(image, blur) > 0.5


def judge(video: np.ndarray, clip: Clip, blur: float = 0.0) -> tuple[str, str]:
    """(colour, shape) seen in the mask of a clip, '' where nothing is; video uint8 [F, H, W, 3]; `blur` in pixels."""
    region = clip.mask & (ndimage.maximum_filter(clip.others, size=(1, 3, 3)) < 0.5)
    masks = colour_masks(video)
    counts = {name: int((mask & region).sum()) for name, mask in masks.items()}
    seen = max(counts, key=counts.get)
    if counts[seen] < max(0.1 * (clip.target * region).sum(), MIN_PIXELS):
        return "", ""
    wanted, scores = clip.prompt.split()[0], []
    for frame in range(0, len(video), 4):
        labels, n = ndimage.label(masks[wanted][frame] & clip.mask[frame])
        sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, n + 1)) if n else []
        if n and max(sizes) >= MIN_PIXELS:
            scores.append(overlap(labels == 1 + int(np.argmax(sizes)), blur))
    if not scores:
        return seen, ""
    return seen, max(SHAPES, key=lambda shape: float(np.mean([score[shape] for score in scores])))
