"""The runs of the demo: once in full, once at every speed, and with fewer steps in the same time as every speed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from demo.errors import InputError
from demo.models import Edit, Model, encoded_once
from demo.progress import Progress
from hetcache_core import CachePolicy
from hetcache_core.quality import compare
from hetcache_core.stats import RunStats


@dataclass(frozen=True)
class Run:
    """One edit and what it took. Seconds are those spent in the DiT; speed and quality are against the full run."""

    name: str
    target: float  # the speed-up asked for
    predicted_speed: float
    speed: float
    seconds: float
    decisions: str  # one letter an evaluation: F full, P partial, R reuse
    psnr: dict[str, float]  # dB by region; infinite where equal
    ssim: dict[str, float]
    peak_context_bytes: int
    video: np.ndarray  # [F, H, W, 3] float32 from 0 to 1
    stats: RunStats


def load_policy(path: str | Path | None) -> CachePolicy:
    """The policy in a JSON file, the `balanced` preset without one. Its speed is set anew for every run."""
    if path is None:
        return CachePolicy.preset("balanced")
    try:
        return CachePolicy.from_json(Path(path).read_text())
    except OSError as error:
        raise InputError(f"--policy {path}: cannot be read ({error.strerror}); give a JSON file.") from error
    except ValueError as error:
        raise InputError(f"--policy {path}: {error}.") from error


def make_runs(model: Model, edit: Edit, steps: int, speeds: Sequence[float], policy: CachePolicy) -> list[Run]:
    """Make the edit in full, at every speed, and with as many plain steps as fit the time each speed took."""
    exact = CachePolicy.preset("exact")
    runs: list[Run] = []

    def make(name: str, target: float, count: int, policy: CachePolicy) -> Run:
        with Progress(name, count) as progress:
            video, stats = edit.sample(model, count, policy, progress.step)
            full = runs[0] if runs else None
            run = Run(
                name=name,
                target=target,
                # Fewer steps predict what they are: their share of the steps.
                predicted_speed=steps / count if policy is exact else stats.predicted_speed,
                speed=full.seconds / stats.seconds if full else 1.0,
                seconds=stats.seconds,
                decisions=stats.decisions,
                **compare(video, full.video if full else video, edit.mask),
                peak_context_bytes=stats.peak_context_bytes,
                video=video,
                stats=stats,
            )
            progress.done(f"{run.seconds:6.1f} s  {run.speed:5.2f}x  {run.decisions}")
        runs.append(run)
        return run

    with torch.inference_mode(), encoded_once(model.pipe):
        with Progress("prepare", 1) as progress:  # encodes the clip; also, the first evaluation of a process is slow
            edit.sample(model, 1, exact, progress.step, decode=False)
        full = make("full", 1.0, steps, exact)
        cached = [make(f"speed-{speed:g}", speed, steps, replace(policy, speed=speed)) for speed in speeds]
        for speed, run in zip(speeds, cached, strict=True):
            fitting = int(run.seconds / (full.seconds / steps))
            make(f"fewer-steps-{speed:g}", speed, min(steps, max(1, fitting)), exact)
    return runs
