"""What the demo leaves behind: videos side by side, a picture of the decisions, `report.json`, and a table."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.errors import InputError
from demo.media import Clip, write_video
from demo.runs import Run
from hetcache_core.quality import REGIONS

TINT = np.array([255, 64, 64])  # over the region that is edited
DISTURBED = 1.4  # times that two ways to time a run may differ by before the machine was busy with something else
CAPTION, GAP = 20, 4  # pixels above and to the right of every picture


def report(runs: Sequence[Run], model: str, clip: str, steps: int, cfg: float) -> dict:
    """All numbers of a demo, ready for JSON. PSNR is null where a run equals the full one."""
    stats = runs[0].stats
    return {
        "host": "diffusers",
        "model": model,
        "clip": clip,
        "grid": list(stats.grid),
        "mask_fraction": stats.mask_fraction,
        "steps": steps,
        "cfg": cfg,
        "runs": [
            {
                "name": run.name,
                "target": run.target,
                "predicted_speed": run.predicted_speed,
                "speed": run.speed,
                "seconds": run.seconds,
                "decisions": run.decisions,
                "psnr": _finite(run.psnr),
                "ssim": _finite(run.ssim),
                "peak_context_bytes": run.peak_context_bytes,
            }
            for run in runs
        ],
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON knows neither infinity nor NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def table(runs: Sequence[Run]) -> str:
    """The numbers of a demo for people, one line a run."""
    head = f"{'run':<14} {'target':>7} {'predicted':>10} {'speed':>7} {'seconds':>8}"
    head += "".join(f" {region:>8}" for region in REGIONS) + f" {'SSIM mask':>10} {'context':>9}"
    lines = [" " * 50 + f"{'PSNR against full, dB':^36}", head, "-" * len(head)]
    for run in runs:
        line = f"{run.name:<14} {run.target:>6.2f}x {run.predicted_speed:>9.2f}x {run.speed:>6.2f}x {run.seconds:>8.1f}"
        line += "".join(f" {_decibel(run.psnr[region]):>8}" for region in REGIONS)
        lines.append(line + f" {run.ssim['mask']:>10.4f} {run.peak_context_bytes / 1e6:>6.1f} MB")
    cached = [run for run in runs if run.name.startswith("speed-")]
    lines += [f"{run.name}: {run.stats.note}" for run in cached if run.stats.note]
    lines += [
        f"{run.name}: by its own full evaluations {run.stats.speed:.2f}x; other work came between, run again"
        for run in cached
        if not 1 / DISTURBED < run.speed / run.stats.speed < DISTURBED
    ]
    return "\n".join(lines)


def _decibel(value: float) -> str:
    return "equal" if value == math.inf else "-" if math.isnan(value) else f"{value:.1f}"


def tinted(clip: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The clip `[F, H, W, 3]` uint8 with the region to edit `[F, H, W]` in colour."""
    return np.where(mask[..., None], (clip * 0.45 + TINT * 0.55).astype(np.uint8), clip)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """From floats of 0 to 1."""
    return (video.clip(0, 1) * 255).round().astype(np.uint8)


def side_by_side(videos: dict[str, np.ndarray], columns: int = 3) -> np.ndarray:
    """Videos `[F, H, W, 3]` uint8 in a grid, each under its caption: `[F, rows * (H + 20), columns * (W + 4), 3]`."""
    panels = [np.concatenate([_caption(name, video.shape), video], axis=1) for name, video in videos.items()]
    panels = [np.pad(panel, ((0, 0), (0, 0), (0, GAP), (0, 0))) for panel in panels]
    panels += [np.zeros_like(panels[0])] * (-len(panels) % columns)
    rows = [np.concatenate(panels[i : i + columns], axis=2) for i in range(0, len(panels), columns)]
    return np.concatenate(rows, axis=1)


def _caption(text: str, shape: tuple[int, ...]) -> np.ndarray:
    frames, _, width, _ = shape
    bar = Image.new("RGB", (width, CAPTION))
    ImageDraw.Draw(bar).text((4, 3), text, fill="white", font=ImageFont.load_default(size=12))
    return np.broadcast_to(np.asarray(bar), (frames, CAPTION, width, 3))


def write_all(out: Path, clip: Clip, mask: np.ndarray, runs: Sequence[Run], numbers: dict) -> list[str]:
    """Write every file of the demo into the folder `out`, all of them or none, and return their names."""
    full = runs[0]
    cached = [run for run in runs if run.name.startswith("speed-")]
    shown = next((run for run in cached if run.target == 3), cached[len(cached) // 2])
    rival = next(run for run in runs if run.name.startswith("fewer-steps-") and run.target == shown.target)
    panels = {"source and mask": tinted(clip.frames, mask), "full": to_uint8(full.video)}
    panels |= {f"{run.name}, {run.speed:.2f}x": to_uint8(run.video) for run in (*cached, rival)}
    with all_or_nothing(out) as folder:
        write_video(folder / "source.mp4", clip.frames, clip.rate)
        write_video(folder / "full.mp4", to_uint8(full.video), clip.rate)
        write_video(folder / f"{shown.name}.mp4", to_uint8(shown.video), clip.rate)
        write_video(folder / "side_by_side.mp4", side_by_side(panels), clip.rate)
        Image.fromarray(shown.stats.picture(clip.frames[len(clip.frames) // 2])).save(folder / "stats.png")
        (folder / "report.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n")
        return sorted(file.name for file in folder.iterdir())


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be written, before any time is spent."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--out {out}: {existing} is a file; name a folder.")
    if not os.access(existing, os.W_OK):
        raise InputError(f"--out {out}: {existing} cannot be written to; name another folder.")


@contextmanager
def all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write in; its files move to `out` when the block ends well, and are gone when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
