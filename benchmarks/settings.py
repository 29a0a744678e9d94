"""What is benchmarked: settings by name, and the clips of each."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

import numpy as np

from nano.clips import HELD_OUT, TUNING, make_clip

SEEDS = {"held-out": HELD_OUT, "tuning": TUNING}
SPEEDS = {4: (1.5, 2.0), 6: (1.5, 2.0, 2.25), 8: (1.5, 2.0, 2.5), 10: (2.0, 2.5, 3.0), 30: (2.0, 3.0, 4.0),
          50: (2.0, 3.0, 4.5, 5.5)}  # fmt: skip
REAL = 2  # how many edits of real footage there are


@dataclass(frozen=True)
class Source:
    """A clip to edit: video uint8 ``[F, H, W, 3]``, mask bool ``[F, H, W]``, and what the mask is to hold."""

    video: np.ndarray
    mask: np.ndarray
    prompt: str
    seed: int


@dataclass(frozen=True)
class Setting:
    """One row of circumstances. ``mask`` is the masked share of pixels (drawn within a tenth of it)."""

    host: str = "diffusers"  # or comfyui
    steps: int = 30
    cfg: float = 4.0
    mask: float = 0.20
    moving: bool = True
    sampler: str = "euler"  # or unipc
    frames: int = 17
    size: int = 192
    real: bool = False  # real footage instead of procedural clips; with masks of its own

    @property
    def name(self) -> str:
        """``host-steps-cfg-mask-kind-sampler-FRAMESxSIZE``; :meth:`parse` reads it."""
        kind = "real" if self.real else f"mask{self.mask * 100:g}-{'moving' if self.moving else 'still'}"
        return f"{self.host}-{self.steps}-cfg{self.cfg:g}-{kind}-{self.sampler}-{self.frames}x{self.size}"

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of a name.

        Raises:
            ValueError: it does not read as one.
        """
        found = re.fullmatch(
            r"(diffusers|comfyui)-(\d+)-cfg([\d.]+)-(?:mask([\d.]+)-(moving|still)|real)-(euler|unipc)-(\d+)x(\d+)",
            name,
        )
        if not found:
            raise ValueError(f"no setting reads {name!r}; one that does: {Setting().name}")
        host, steps, cfg, mask, kind, sampler, frames, size = found.groups()
        mask = float(mask) / 100 if mask else cls.mask
        return cls(host, int(steps), float(cfg), mask, kind != "still", sampler, int(frames), int(size), kind is None)

    @property
    def speeds(self) -> tuple[float, ...]:
        """Time budgets, as speed-ups over full compute."""
        return SPEEDS.get(self.steps, SPEEDS[6] if self.steps < 10 else SPEEDS[30])

    def source(self, index: int, split: str = "held-out") -> Source:
        """The clip of an index."""
        if self.real:
            return _real(self, index)
        seed, share = SEEDS[split][index], (self.mask * 0.9, self.mask * 1.1)
        clip = make_clip(seed, self.frames, self.size, self.size, share, self.moving)
        return Source(clip.video, clip.mask, clip.prompt, seed)

    def clips(self, count: int) -> range:
        """Indices of the clips there are, up to a count."""
        return range(min(count, REAL) if self.real else count)


def _real(setting: Setting, index: int) -> Source:
    """The demo's clip with its moving mask; the same footage backwards and mirrored, with a mask that stands still."""
    from demo.__main__ import CLIP
    from demo.masks import moving_mask
    from demo.media import load_clip

    video = load_clip(CLIP, setting.size, setting.size, setting.frames).frames
    mask = moving_mask(*video.shape[:3])
    if index == 0:
        return Source(video, mask, "red circle", 0)
    still = np.broadcast_to(mask[len(mask) // 2], mask.shape)
    return Source(np.ascontiguousarray(video[::-1, :, ::-1]), np.ascontiguousarray(still), "blue star", 1)


MAIN = Setting()
SETTINGS = (
    MAIN,
    *(Setting(mask=share) for share in (0.05, 0.10, 0.40)),
    *(Setting(mask=share, moving=False) for share in (0.05, 0.10, 0.20, 0.40)),
    Setting(sampler="unipc"),
    Setting(steps=50),
    *(Setting(steps=50, mask=share, frames=33) for share in (0.10, 0.20)),
    *(Setting(steps=6, cfg=1.0, mask=share) for share in (0.10, 0.20, 0.40)),
    Setting(steps=6, cfg=1.0, sampler="unipc"),
    *(Setting(steps=steps, cfg=1.0) for steps in (4, 8)),
    Setting(steps=10, cfg=1.0),
    Setting(steps=20),
    Setting(host="comfyui"),
    *(Setting(host="comfyui", mask=share) for share in (0.10, 0.40)),
    Setting(host="comfyui", moving=False),
    Setting(host="comfyui", sampler="unipc"),
    Setting(host="comfyui", steps=50),
    *(Setting(host="comfyui", steps=6, cfg=1.0, sampler=sampler) for sampler in ("euler", "unipc")),
    Setting(frames=33, real=True),
)


def chosen(patterns: list[str]) -> list[Setting]:
    """Settings of the default list that match a pattern (`main`, `*-6-*`), and others by their full name.

    Raises:
        ValueError: a pattern matches none and is no setting's name.
    """
    found: dict[str, Setting] = {}
    for pattern in patterns:
        matches = [MAIN] if pattern == "main" else [s for s in SETTINGS if fnmatch.fnmatch(s.name, pattern)]
        for setting in matches or [Setting.parse(pattern)]:
            found[setting.name] = setting
    return list(found.values())
