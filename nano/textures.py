"""Procedural still textures: 1/f noise, gratings, dead leaves. All muted, so the vocabulary's colours stand out."""

from __future__ import annotations

import numpy as np


def noise(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """Noise whose amplitude spectrum falls as 1 / f^exponent, unit standard deviation, float32 [size, size, 3].

    Luminance carries most of the variance, as in photographs: chroma is the same kind of noise at a third of it.
    """
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]).astype(np.float32)
    f[0, 0] = 1.0
    white = rng.standard_normal((3, size, size), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) * f**-exponent, s=(size, size), axes=(1, 2)).astype(np.float32)
    field -= field.mean((1, 2), keepdims=True)
    field /= field.std((1, 2), keepdims=True)
    luminance, a, b = field
    return np.stack([luminance + 0.3 * a, luminance - 0.2 * a - 0.1 * b, luminance + 0.3 * b], axis=-1)


def grating(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sine or square grating of random direction, period 6 to 24 pixels, in -1..1, float32 [size, size, 1]."""
    period, theta = np.exp(rng.uniform(np.log(6), np.log(24))), rng.uniform(0, np.pi)
    t = np.arange(size, dtype=np.float32)
    phase = 2 * np.pi / period * (np.cos(theta) * t[:, None] + np.sin(theta) * t[None, :])
    wave = np.sin(phase + rng.uniform(0, 6.28))
    sharpness = rng.choice([1.0, 3.0])
    return np.clip(wave * sharpness, -1, 1)[..., None].astype(np.float32)


def muted(rng: np.random.Generator, n: int) -> np.ndarray:
    """n colours of low saturation, float32 [n, 3] in 0..1."""
    grey = rng.uniform(0.2, 0.8, (n, 1))
    return np.clip(grey + rng.uniform(-0.10, 0.10, (n, 3)), 0, 1).astype(np.float32)


def leaves(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """Dead leaves: n overlapping discs and boxes whose sizes follow a power law, float32 [size, size, 3] in 0..1."""
    image = np.broadcast_to(muted(rng, 1), (size, size, 3)).copy()
    radii = np.clip(9 * rng.power(1.2, n) ** -1.0, 9, size / 3)
    centres, colours = rng.uniform(0, size, (n, 2)), muted(rng, n)
    ratios, boxy = rng.uniform(0.4, 1.0, n), rng.random(n) < 0.4
    for (cy, cx), r, ratio, box, colour in zip(centres, radii, ratios, boxy, colours, strict=True):
        top, left = max(int(cy - r), 0), max(int(cx - r), 0)
        y = (np.arange(top, min(int(cy + r) + 1, size)) - cy)[:, None] / r
        x = (np.arange(left, min(int(cx + r) + 1, size)) - cx)[None, :] / (r * ratio)
        inside = (np.maximum(np.abs(y), np.abs(x)) < 0.8) if box else (y * y + x * x < 1)
        image[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = colour
    return image


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random background texture, float32 [size, size, 3] in 0..1."""
    if rng.random() < 0.35:
        image = leaves(rng, size, int(rng.integers(20, 70)))
    else:
        image = np.broadcast_to(muted(rng, 1), (size, size, 3)).copy()
    image += rng.uniform(0.04, 0.13) * noise(rng, size, rng.uniform(1.3, 2.0))
    if rng.random() < 0.4:
        envelope = np.clip(noise(rng, size, 2.0)[..., :1] + 0.5, 0, 1)
        image += rng.uniform(0.02, 0.06) * grating(rng, size) * envelope
    return np.clip(image, 0, 1)
