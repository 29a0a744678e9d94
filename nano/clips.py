"""Seeded procedural clips: moving textures, coloured shapes, a mask, and the prompt that names what the mask hides.

A clip is a textured background seen by a moving camera (pan, zoom, rotation), often with a second textured layer that
moves on its own, and several coloured shapes which move, turn and partly hide each other. One shape, the target, lies
inside the mask in every frame; the prompt names it ('red circle'). No other shape has its colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .shapes import COLOURS, SHAPES, coverage
from .textures import noise, texture

# Seed ranges; a seed makes the same clip at the same size everywhere.
TRAIN = range(0, 1_000_000)
TUNING = range(2_000_000, 2_001_000)
HELD_OUT = range(3_000_000, 3_001_000)

MASK_FRACTION = (0.03, 0.60)
MIN_VISIBLE = 0.7  # share of the target that other shapes must leave visible, else it is drawn on top


@dataclass(frozen=True)
class Clip:
    """One clip. F frames of H x W pixels."""

    video: np.ndarray  # uint8 [F, H, W, 3]
    mask: np.ndarray  # bool [F, H, W], True where the video is to be generated
    prompt: str  # colour and shape of the target
    target: np.ndarray  # float32 [F, H, W], coverage of the target as if nothing hid it
    visible: np.ndarray  # float32 [F, H, W], coverage of the target that no other shape hides
    others: np.ndarray  # float32 [F, H, W], coverage of all other shapes together
    centre: np.ndarray  # float32 [F, 2], centre of the target, (y, x) in pixels
    radius: np.ndarray  # float32 [F], radius of the target in pixels
    moving: bool  # whether the mask moves


@dataclass
class _Object:
    colour: str
    shape: str
    centre: np.ndarray  # [F, 2] pixels
    radius: np.ndarray  # [F] pixels
    angle: np.ndarray  # [F] radians


def _path(rng: np.random.Generator, frames: int, speed: float) -> np.ndarray:
    """Smooth 2-D path from the origin: a constant velocity of up to `speed` per frame plus a slow swing, [F, 2]."""
    t = np.arange(frames)[:, None]
    swing = rng.uniform(0, 4 * speed, 2) * np.sin(t * rng.uniform(0.1, 0.4) + rng.uniform(0, 6.28, 2))
    return t * rng.uniform(-speed, speed, 2) + swing - swing[:1]


def layer(rng: np.random.Generator, image: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
    """Frames of a still image [S, S, C] as a panning, zooming and rotating camera sees it, float32 [F, H, W, C]."""
    size, t = image.shape[0], np.arange(frames)
    pan = rng.uniform(-0.3, 0.3, 2) + _path(rng, frames, 0.7) * 2 / size
    zoom = np.exp(rng.uniform(-0.1, 0.2) + t * rng.normal(0, 0.004))
    angle = rng.uniform(-0.5, 0.5) + t * rng.normal(0, 0.006)
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    sy, sx = height / size, width / size  # one texture pixel per video pixel at zoom 1
    theta = np.stack([np.stack([c * sx, -s * sy, pan[:, 0]], 1), np.stack([s * sx, c * sy, pan[:, 1]], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [frames, 1, height, width], align_corners=False)
    source = torch.from_numpy(image).permute(2, 0, 1)[None].expand(frames, -1, -1, -1)
    out = F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    return out.permute(0, 2, 3, 1).contiguous().numpy()


def overlay(rng: np.random.Generator, video: np.ndarray, image: Callable[[], np.ndarray], cut: tuple) -> None:
    """Move a piece of `image()`, [S, S, 3], over a video, [F, H, W, 3]; a higher `cut` leaves less of it."""
    frames, height, width = video.shape[:3]
    outline = np.clip(noise(rng, 2 * max(height, width), 2.2)[..., :1] * 12 - rng.uniform(*cut), 0, 1)
    top = layer(rng, np.concatenate([image(), outline], -1), frames, height, width)
    video += (top[..., :3] - video) * top[..., 3:]


def background(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """The moving textured background, float32 [F, H, W, 3] in 0..1."""
    size = 2 * max(height, width)
    video = layer(rng, texture(rng, size), frames, height, width)
    if rng.random() < 0.4:
        overlay(rng, video, lambda: texture(rng, size), (2, 10))
    # Light that drifts a little over the clip.
    gain = 1 + rng.normal(0, 0.04) * np.sin(np.arange(frames) * rng.uniform(0.05, 0.3))
    return video * gain[:, None, None, None].astype(np.float32)


def _mask(rng: np.random.Generator, frames: int, height: int, width: int, fraction: tuple[float, float],
          moving: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rectangular or elliptic mask: (bool [F, H, W], its centre [F, 2], its half height and half width [2])."""
    low, high = fraction
    area = rng.uniform(low**0.5, high**0.5) ** 2
    ellipse = rng.random() < 0.5 and area < 0.5
    box = area * 4 / np.pi if ellipse else area  # area of the bounding box, in units of the frame
    h = np.clip(box**0.5 * np.exp(rng.uniform(-0.3, 0.3)), box / 0.96, 0.96)
    half = np.array([h * height, box / h * width]) / 2
    slack = np.maximum(np.array([height, width]) / 2 - half - 1, 0)
    middle = np.array([height, width]) / 2
    if moving:
        path = _path(rng, frames, 0.012 * min(height, width))
        start = rng.uniform(-1, 1, 2) * slack
        centre = middle + np.clip(start + path, -slack, slack)
    else:
        centre = np.broadcast_to(middle + rng.uniform(-1, 1, 2) * slack, (frames, 2))
    y = (np.arange(height)[None, :, None] + 0.5 - centre[:, 0, None, None]) / half[0]
    x = (np.arange(width)[None, None, :] + 0.5 - centre[:, 1, None, None]) / half[1]
    mask = (y * y + x * x <= 1) if ellipse else (np.abs(y) <= 1) & (np.abs(x) <= 1)
    return mask, centre, half


def _target(rng: np.random.Generator, frames: int, centre: np.ndarray, half: np.ndarray, moving: bool) -> _Object:
    """The prompted object; it stays inside the mask given by `centre` and `half`.

    Nothing but the prompt tells of it, so how it stands is nearly the same in all clips: near the middle, nearly
    upright, turning slowly. Were it free, a short training would learn the mean of all its turns, which is a disc.
    """
    radius = rng.uniform(0.70, 0.86) * half.min() * (1 + 0.05 * np.sin(np.arange(frames) * rng.uniform(0.1, 0.4)))
    slack = np.maximum(half - radius.max() - 0.5, 0) * 0.2
    drift = np.zeros((frames, 2)) if moving else _path(rng, frames, slack.max() * 0.15 + 1e-6)
    offset = np.clip(rng.uniform(-1, 1, 2) * slack + drift, -slack, slack)
    return _Object(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), centre + offset, radius,
                   rng.uniform(-0.1, 0.1) + np.arange(frames) * rng.normal(0, 0.006))


def _others(rng: np.random.Generator, frames: int, height: int, width: int, taken: str) -> list[_Object]:
    """Two to four more objects anywhere in the frame, none of the colour `taken`."""
    size, colours = min(height, width), [c for c in COLOURS if c != taken]
    return [
        _Object(str(rng.choice(colours)), str(rng.choice(SHAPES)),
                rng.uniform(0, 1, 2) * (height, width) + _path(rng, frames, 0.012 * size),
                np.full(frames, rng.uniform(0.07, 0.18) * size),
                rng.uniform(0, 6.28) + np.arange(frames) * rng.normal(0, 0.05))
        for _ in range(int(rng.integers(2, 5)))
    ]


def _alpha(item: _Object, height: int, width: int) -> np.ndarray:
    """Coverage of an object, float32 [F, H, W]."""
    out = np.zeros((len(item.radius), height, width), np.float32)
    for frame, (centre, radius, angle) in enumerate(zip(item.centre, item.radius, item.angle, strict=True)):
        part, box = coverage(item.shape, height, width, tuple(centre), radius, angle)
        out[frame][box] = part
    return out


def _paint(rng: np.random.Generator, video: np.ndarray, item: _Object, alpha: np.ndarray) -> None:
    """Draw an object in place, with a slight shading so that it is not flat. video in 0..1."""
    colour = np.array(COLOURS[item.colour], np.float32) / 255
    frames, height, width = alpha.shape
    theta, depth = rng.uniform(0, 6.28), rng.uniform(0.0, 0.12)
    y = (np.arange(height)[None, :, None] - item.centre[:, 0, None, None]) * np.sin(theta)
    x = (np.arange(width)[None, None, :] - item.centre[:, 1, None, None]) * np.cos(theta)
    shade = 1 - depth * (1 + np.clip((x + y) / item.radius[:, None, None], -1, 1))
    video += alpha[..., None] * (shade.astype(np.float32)[..., None] * colour - video)


def make_clip(seed: int, frames: int, height: int, width: int, mask_fraction: tuple[float, float] | None = None,
              moving: bool | None = None) -> Clip:
    """The clip of a seed.

    `mask_fraction` bounds the mask's share of the frame (default 0.03 to 0.60), `moving` says whether the mask moves
    (default: half of the seeds). Frames should be 4 n + 1 and sizes multiples of 16, as Wan VACE needs them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    coin = bool(rng.random() < 0.5)
    moving = coin if moving is None else moving
    mask, centre, half = _mask(rng, frames, height, width, mask_fraction or MASK_FRACTION, moving)
    target = _target(rng, frames, centre, half, moving)
    items = _others(rng, frames, height, width, target.colour)
    place = int(rng.integers(0, len(items) + 1))
    alphas = [_alpha(item, height, width) for item in items]
    own = _alpha(target, height, width)
    hidden = np.ones_like(own)
    for alpha in alphas[place:]:
        hidden *= 1 - alpha
    if (own * hidden).sum() < MIN_VISIBLE * own.sum():
        place, hidden = len(items), np.ones_like(own)
    video = background(rng, frames, height, width)
    for item, alpha in [*zip(items[:place], alphas[:place], strict=True), (target, own),
                        *zip(items[place:], alphas[place:], strict=True)]:
        _paint(rng, video, item, alpha)
    video = (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)
    others = 1 - np.prod([1 - alpha for alpha in alphas], axis=0)
    return Clip(video, mask, f"{target.colour} {target.shape}", own, own * hidden, others,
                target.centre.astype(np.float32), target.radius.astype(np.float32), moving)
