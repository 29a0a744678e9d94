"""What forecasts miss by beside stale context where steps are few: schedules of 6 and 8 steps that mix both.

    python -m benchmarks.few_forecasts --clips 2 --workers 2 --out benchmarks/results/few-forecasts.json

Tuning clips of nano. A fit of the errors that schedules have says what `error_model.FEW_FORECAST` and
`error_model.FEW_AGEING` should be.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from unittest import mock

import numpy as np
from scipy.optimize import minimize_scalar

from benchmarks.foretold import Clip, decibels, mean_db, model
from benchmarks.rows import compare_all
from benchmarks.settings import Setting
from hetcache_core import error_model
from hetcache_core.error_model import FEW_AGEING, FEW_FORECAST
from hetcache_core.profile import USUAL_SHARE

SCHEDULES = {  # by sampler, steps and mask
    ("euler", 6, 0.2): ("FPPPPR", "FPPPPP", "FRFRFR", "FPRFPR", "FPPFPR", "FPFPFR", "FPRPRP", "FRPRPR", "FPPFPP",
                        "FRPFPR", "FRFPPR", "FRPPPR"),
    ("euler", 6, 0.1): ("FPPPPP", "FRPFPR", "FPPPPR", "FRPPPP", "FRPPPR", "FPPFPP", "FPPFPR"),
    ("euler", 6, 0.4): ("FRFFFR", "FPPFPR", "FRPFPR", "FRPPPR", "FPFFPR", "FRFPFR"),
    ("unipc", 6, 0.2): ("FPPPPP", "FRPPPP", "FPPRPP", "FRPFRP", "FRFPFP", "FPPFPP", "FRPPRP"),
    ("euler", 8, 0.2): ("FPPPPPPR", "FPPPPPPP", "FRFRFRFR", "FPRFPRPR", "FPRPFRPR", "FPPFPPPR", "FPPPFPPR", "FPRPRPRP",
                        "FRPRPRPR", "FPFPFPFR", "FRPPFPPR", "FRPFRPPP", "FRFRFRPP"),
    ("unipc", 8, 0.2): ("FPPPPPPP", "FRPRFPPP", "FPRPFRPP", "FRPRFRPP", "FRFPFPFP", "FPPFPFPP"),
}  # fmt: skip
SHARES = (USUAL_SHARE, 0.0)
AGEINGS = (0.6, 0.8, 1.0)


def mixed(index: int) -> list[dict]:
    """A row per schedule of a clip and share of the context it renews: its error."""
    rows = []
    for (sampler, steps, mask), schedules in SCHEDULES.items():
        clip = Clip(Setting(steps=steps, cfg=1.0, mask=mask, sampler=sampler), index)
        for plan in schedules:
            for share in SHARES[: 1 + ("P" in plan)]:
                error, stats = clip.run(schedule=plan, context_share=share)
                rows.append({"clip": index, "sampler": sampler, "steps": steps, "mask": mask, "plan": plan,
                             "share": share, "error": error, "speed": stats.predicted_speed,
                             "sigmas": clip.edit.sigmas(steps)})  # fmt: skip
    return rows


def foretold(rows: list[dict], ageing: float = FEW_AGEING) -> np.ndarray:
    """What the model foretells of rows, ``[len(rows), 2]``: forecasts at the price they have in longer runs, and the
    rest (a brief ending, stale context that ages with this exponent, spill)."""
    found = []
    with mock.patch.object(error_model, "FEW_AGEING", ageing):
        for row in rows:
            here = model(row, max_reuse=1)
            terms, few = np.array(here.by_evaluation(row["plan"])), here.missing != 1.0
            forecast = terms[few, 0].sum()
            found.append((forecast / FEW_FORECAST, terms.sum() - forecast))
    return np.array(found)


def fitted(rows: list[dict], terms: np.ndarray) -> tuple[float, float, float, float]:
    """FEW_FORECAST that foretells best, and by how many dB errors miss with it, with the shipped one, and with 1.

    Least squares of the logarithm; a factor of each clip, sampler, mask and number of steps is taken out.

    Args:
        rows: of :func:`mixed`. terms: of :func:`foretold`.
    """
    forecast, others = terms.T
    groups = np.array([f"{row['clip']} {row['sampler']} {row['steps']} {row['mask']}" for row in rows])
    errors = np.log([row["error"] for row in rows])

    def misfit(factor: float) -> float:
        rest = errors - np.log(factor * forecast + others)
        for group in set(groups):
            rest[groups == group] -= rest[groups == group].mean()
        return 8.686 * rest.std()

    best = minimize_scalar(misfit, bounds=(0.01, 2.0), method="bounded").x
    return (best, *map(misfit, (best, FEW_FORECAST, 1.0)))


def table(result: dict) -> list[str]:
    """Schedules by their error, and the fit."""
    by_plan: dict[tuple, list[int]] = defaultdict(list)
    rows = result["rows"]
    for number, row in enumerate(rows):
        by_plan[row["sampler"], row["steps"], row["mask"], row["plan"], row["share"]].append(number)
    clips, terms = len({row["clip"] for row in rows}), foretold(rows)
    best, least, shipped, whole = fitted(rows, terms)
    lines = [
        f"**Forecasts beside stale context with few steps**, cfg 1 ({clips} tuning clips, "
        f"{result['machine']['device']}):",
        "",
        "| sampler | mask | schedule | context renewed | speed planned | error in the edit | "
        "foretold, but for a factor |",
        "|---" * 7 + "|",
    ]
    errors = {key: mean_db([rows[n] for n in found]) for key, found in by_plan.items()}
    for key, found in sorted(by_plan.items(), key=lambda item: (item[0][:3], -errors[item[0]])):
        (sampler, _, mask, plan, share), expected = key, terms[found] @ (FEW_FORECAST, 1.0)
        speed = statistics.median(rows[n]["speed"] for n in found)
        reached = f"{speed:.2f}x | {errors[key]:.1f} dB | {statistics.mean(map(decibels, expected)):.1f} dB"
        lines.append(f"| {sampler} | {mask:.0%} | {plan} | {share:.0%} | {reached} |")
    ageings = ", ".join(f"{fitted(rows, foretold(rows, a))[2]:.1f} dB with {a:g}" for a in AGEINGS)
    return [
        *lines,
        "",
        f"Errors are foretold to {shipped:.1f} dB with FEW_FORECAST {FEW_FORECAST:g} ({whole:.1f} dB with 1); fitted "
        f"to these rows, with {best:.2g}, to {least:.1f} dB. By how context ages (FEW_AGEING {FEW_AGEING:g}): "
        f"{ageings}.",
    ]


def order(row: dict) -> tuple:
    """Where a row stands in the file."""
    return row["clip"], row["sampler"], row["steps"], row["mask"]


if __name__ == "__main__":
    compare_all(__doc__.split("\n")[0], mixed, lambda clips: [(i,) for i in range(clips)], order, table)
