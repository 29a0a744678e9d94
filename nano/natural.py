"""Clips with natural statistics for the VAE: photographs that ship inside scikit-image, panned and zoomed.

Without them the VAE would know procedural textures only and blur a real clip.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from .clips import layer
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
        outline = np.clip(noise(rng, size, 2.2)[..., :1] * 12 - rng.uniform(0, 8), 0, 1)
        top = layer(rng, np.concatenate([_crop(rng, size), outline], -1), frames, height, width)
        video += (top[..., :3] - video) * top[..., 3:]
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)
