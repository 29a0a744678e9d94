"""Compare ways to forecast predictions, on the same plans: what `hetcache_core.forecast` does is chosen by it.

    python -m benchmarks.forecasts --clips 4 --workers 2 --out benchmarks/results/forecasts.json

Tuning clips of nano. Errors are those of the final latent in the edit, against the edit in full, in dB (20 log10 of the
RMS of the reference over that of the error). The last two columns have fresh noise at every step: there extrapolation
must give way.
"""

from __future__ import annotations

import math
import statistics
from contextlib import nullcontext
from operator import itemgetter
from unittest import mock

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.latent import LatentEdit
from benchmarks.rows import compare_all
from benchmarks.settings import MAIN, Setting
from hetcache_core import CachePolicy, forecast

CASES = (  # setting, speeds, whether the sampler adds noise
    (MAIN, MAIN.speeds, False),
    (Setting(mask=0.4, moving=False), MAIN.speeds, False),
    (Setting(steps=50), (3.0, 4.5), False),
    (MAIN, (2.0, 3.0), True),
)
WAYS: dict[str, tuple[dict, dict]] = {  # policy fields, constants of the module
    "held": ({"forecast_order": 0}, {}),
    "slope, damped by least squares": ({"forecast_order": 1}, {"BENEFIT": 1.0}),
    "slope, damped": ({"forecast_order": 1}, {}),
    "slope, undamped": ({"forecast_order": 1, "forecast_damping": 1.0}, {}),
    "slope and bend (default)": ({}, {}),
    "bend fading twice as fast": ({}, {"FADE": 1.0}),
    "bend fading half as fast": ({}, {"FADE": 4.0}),
    "bend not fading": ({}, {"FADE": math.inf}),
}


def compare(setting: Setting, speeds: tuple[float, ...], noisy: bool, index: int) -> list[dict]:
    """Every way on one clip: a row for each speed, with the error of each way in dB."""
    edit = LatentEdit(setting.source(index, "tuning"), setting.cfg)
    scheduler, rows = edit.pipe.scheduler, []
    edit.pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, stochastic_sampling=noisy)

    def sample(policy: CachePolicy):
        torch.manual_seed(0)  # of the noise that is added on the way
        return edit.sample(setting.steps, policy)

    try:
        reference, _ = sample(CachePolicy.preset("exact"))
        for speed in speeds:
            planned = sample(CachePolicy(speed=speed))[1]
            row = {"setting": setting.name, "noisy": noisy, "clip": index, "speed": speed}
            row |= {"decisions": planned.decisions, "db": {}}
            for way, (fields, constants) in WAYS.items():
                with mock.patch.multiple(forecast, **constants) if constants else nullcontext():
                    result, _ = sample(CachePolicy(schedule=planned.decisions, **fields))
                error = edit.error(result, reference, planned.classes.generative)
                row["db"][way] = -20 * math.log10(error)
            rows.append(row)
    finally:
        edit.pipe.scheduler = scheduler
    return rows


def table(result: dict) -> list[str]:
    """A line a way, a column a setting and speed: means over the clips."""
    columns: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        columns.setdefault((row["noisy"], row["setting"], row["speed"]), []).append(row)
    clips = len({row["clip"] for row in result["rows"]})
    heads = [_column(*column) for column in columns]
    lines = [
        "**Ways to forecast, on the same plans**: error of the final latent in the edit, "
        f"{clips} tuning clip{'s' * (clips > 1)} ({result['machine']['device']}):",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for way in WAYS:
        means = (statistics.mean(row["db"][way] for row in rows) for rows in columns.values())
        lines.append(f"| {way} | {' | '.join(f'{mean:.1f} dB' for mean in means)} |")
    return lines


def _column(noisy: bool, name: str, speed: float) -> str:
    setting = Setting.parse(name)
    noise = ", noise at every step" if noisy else ""
    return f"{setting.mask:.0%} {'moving' if setting.moving else 'still'}, {setting.steps} steps{noise}, {speed:g}x"


def _tasks(clips: int) -> list[tuple]:
    return [(*case, clip) for clip in range(clips) for case in CASES]


if __name__ == "__main__":
    order = itemgetter("noisy", "setting", "speed", "clip")
    compare_all(__doc__.split("\n")[0], compare, _tasks, order, table)
