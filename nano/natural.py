"""Clips with natural statistics for the VAE, made of photographs that ship inside scikit-image.

Without photographs the VAE would know procedural textures only and blur a real clip. Trained on smooth camera moves
alone (`natural_clip`), its decoder was worse than a linear one on real motion: hence `film_clip`.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from .clips import layer, overlay
from .textures import noise

NAMES = ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
         "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png",
         "page.png", "retina.jpg", "rocket.jpg")
REPEATED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")  # everyday scenes


@functools.cache
def _photograph(name: str) -> np.ndarray:
    """uint8 [H, W, 3]; grey photographs become three equal channels."""
    import skimage
    from PIL import Image

    return np.asarray(Image.open(pathlib.Path(skimage.__file__).parent / "data" / name).convert("RGB"))


def _crop(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random square of a random photograph at a random scale and colour balance, float32 [size, size, 3] in 0..1."""
    from PIL import Image

    image = _photograph(str(rng.choice(NAMES + REPEATED)))
    side = int(min(min(image.shape[:2]), rng.uniform(0.8, 2.8) * size))
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    square = Image.fromarray(image[y : y + side, x : x + side]).resize((size, size), Image.Resampling.LANCZOS)
    out = np.asarray(square, np.float32) / 255
    if rng.random() < 0.5:
        out = out[:, ::-1]
    if rng.random() < 0.3:
        out = out[..., rng.permutation(3)]
    return np.clip(out ** rng.uniform(0.7, 1.4) * rng.uniform(0.85, 1.15, 3), 0, 1).astype(np.float32)


def natural_clip(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A photograph under a moving camera, half of the time with a piece of another one moving over it.

    uint8 [F, H, W, 3]
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = 2 * max(height, width)
    video = layer(rng, _crop(rng, size), frames, height, width)
    if rng.random() < 0.5:
        overlay(rng, video, lambda: _crop(rng, size), (0, 8))
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)


def _walk(rng: np.random.Generator, frames: int, speed: float, n: int) -> np.ndarray:
    """Motion from the origin that starts, stops and turns at random moments, [F, n]."""
    keep, velocity, out = rng.uniform(0, 0.95), rng.normal(0, speed, n), np.zeros((frames, n))
    moving = rng.random() < 0.6
    for t in range(1, frames):
        if rng.random() < 0.12:
            moving, velocity = not moving, rng.normal(0, speed, n)
        velocity = keep * velocity + (1 - keep**2) ** 0.5 * rng.normal(0, speed, n)
        out[t] = out[t - 1] + moving * velocity
    return out


def _actor(rng: np.random.Generator, image: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
    """A still image [S, S, C] that moves, turns, swells and bends by `_walk`, or stands still; float32 [F, H, W, C]."""
    size = image.shape[0]
    speed = np.exp(rng.uniform(np.log(0.1), np.log(4.0))) if rng.random() < 0.7 else 0.0  # pixels per frame
    pan = rng.uniform(-0.4, 0.4, 2) + _walk(rng, frames, speed, 2) * 2 / size
    zoom = np.exp(rng.uniform(-0.1, 0.2) + _walk(rng, frames, 0.006 * speed, 1)[:, 0])
    angle = rng.uniform(-0.5, 0.5) + _walk(rng, frames, 0.01 * speed, 1)[:, 0]
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    sy, sx = height / size, width / size
    theta = np.stack([np.stack([c * sx, -s * sy, pan[:, 0]], 1), np.stack([s * sx, c * sy, pan[:, 1]], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [frames, 1, height, width], align_corners=False)
    if rng.random() < 0.5:  # bend
        bends = torch.from_numpy(rng.normal(0, 1, (3, 2, *rng.integers(2, 7, 2)))).float()
        bends = F.interpolate(bends, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        amount = torch.from_numpy(_walk(rng, frames, speed / size, 3)).float()
        grid = grid + torch.einsum("fk,khwc->fhwc", amount, bends)
    source = torch.from_numpy(image).permute(2, 0, 1)[None].expand(frames, -1, -1, -1)
    out = F.grid_sample(source, grid, "bicubic", "reflection", align_corners=False)
    return out.clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()


def film_clip(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """Photographs, or pieces of them, that move as unforeseeably as what is seen in films; now and then a cut.

    uint8 [F, H, W, 3]
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = 2 * max(height, width)
    video = _actor(rng, _crop(rng, size), frames, height, width)
    for _ in range(int(rng.integers(0, 3))):
        outline = np.clip(noise(rng, size, 2.2)[..., :1] * 12 - rng.uniform(0, 10), 0, 1)
        top = _actor(rng, np.concatenate([_crop(rng, size), outline], -1), frames, height, width)
        video += (top[..., :3] - video) * top[..., 3:]
    grey = video.mean(-1, keepdims=True)
    video = np.clip(grey + rng.uniform(0.6, 1.8) * (video - grey), 0, 1)
    if rng.random() < 0.15:  # every second frame shown twice
        video = video[np.arange(frames) // 2 * 2]
    out = (video * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.1:
        cut = int(rng.integers(1, frames))
        out[cut:] = film_clip(int(rng.integers(1 << 40)), frames, height, width)[cut:]
    return out
