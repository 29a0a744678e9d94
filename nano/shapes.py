"""The vocabulary (colour x shape) and how one shape is drawn: signed distances, anti-aliased coverage."""

from __future__ import annotations

import numpy as np

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 225),
    "yellow": (235, 210, 50),
    "purple": (165, 50, 195),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star")
PROMPTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

STAR_INNER = 0.42  # inner radius over outer radius


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to a shape that fits the unit circle; x, y in units of its radius."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.78
    if shape == "triangle":
        slope = np.abs(x) * np.float32(np.sqrt(0.75)) - y * np.float32(0.5)
        return np.maximum(slope, y) - 0.5
    if shape == "star":
        radius, angle = np.hypot(x, y), np.arctan2(x, -y)
        # Fold the five arms onto the half-arm whose tip is at angle 0, whose inner corner is at angle pi/5.
        angle = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        corner = STAR_INNER * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = corner - (1.0, 0.0)
        normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
        return normal[0] * (radius * np.cos(angle) - 1.0) + normal[1] * radius * np.sin(angle)
    raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")


def coverage(shape: str, height: int, width: int, centre: tuple[float, float], radius: float,
             angle: float) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Anti-aliased coverage in 0..1 of a shape, only within its bounding box.

    `centre` is (y, x) and `radius` in pixels, `angle` in radians.
    Returns (float32 [h, w], (rows, columns) of the box in the frame); the box may be empty.
    """
    top, left = max(int(centre[0] - radius - 1), 0), max(int(centre[1] - radius - 1), 0)
    bottom, right = min(int(centre[0] + radius + 3), height), min(int(centre[1] + radius + 3), width)
    box = (slice(top, max(bottom, top)), slice(left, max(right, left)))
    y = np.arange(top, max(bottom, top), dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(left, max(right, left), dtype=np.float32)[None, :] - np.float32(centre[1])
    c, s = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    d = distance(shape, c * x + s * y, c * y - s * x)
    return np.clip(0.5 - d * radius, 0, 1).astype(np.float32), box
