"""What forecasts miss by beside stale context where steps are few: schedules of 6 and 8 steps that mix both.

    python -m benchmarks.few_forecasts --clips 2 --workers 2 --out benchmarks/results/few-forecasts.json

Tuning clips of nano. A fit of the errors that schedules have says what `error_model.FEW_FORECAST` should be.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import numpy as np
from scipy.optimize import minimize_scalar

from benchmarks.foretold import COSTS, Clip, decibels, mean_db
from benchmarks.rows import compare_all
from benchmarks.settings import Setting
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.error_model import FEW_FORECAST, ErrorModel, Rules
from hetcache_core.profile import USUAL_SHARE

SCHEDULES = {
    ("euler", 6): ("FPPPPR", "FPPPPP", "FRFRFR", "FPRFPR", "FPPFPR", "FPFPFR", "FPRPRP", "FRPRPR", "FPPFPP", "FRPFPR",
                   "FRFPPR", "FRPPPR"),
    ("unipc", 6): ("FPPPPP", "FRPPPP", "FPPRPP", "FRPFRP", "FRFPFP", "FPPFPP", "FRPPRP"),
    ("euler", 8): ("FPPPPPPR", "FPPPPPPP", "FRFRFRFR", "FPRFPRPR", "FPRPFRPR", "FPPFPPPR", "FPPPFPPR", "FPRPRPRP",
                   "FRPRPRPR", "FPFPFPFR", "FRPPFPPR"),
    ("unipc", 8): ("FPPPPPPP", "FRPRFPPP", "FPRPFRPP", "FRPRFRPP", "FRFPFPFP", "FPPFPFPP"),
}  # fmt: skip
SHARES = (USUAL_SHARE, 0.0)


def mixed(index: int) -> list[dict]:
    """A row per schedule of a clip and share of the context it renews: error, and the terms foretold: forecasts at the
    price they have in longer runs, those of a brief ending, stale context and spill."""
    nano, rows = ErrorProfile.load("nano"), []
    for (sampler, steps), schedules in SCHEDULES.items():
        clip = Clip(Setting(steps=steps, cfg=1.0, sampler=sampler), index)
        rules, levels = Rules.of(CachePolicy(max_reuse=1), nano, steps), clip.edit.sigmas(steps)
        for plan in schedules:
            for share in SHARES[: 1 + ("P" in plan)]:
                error, stats = clip.run(schedule=plan, context_share=share)
                model = ErrorModel(levels, nano.renewing(share, few=True), COSTS, rules)
                found, few = np.array(model.by_evaluation(plan)), model.missing != 1.0
                terms = (found[few, 0].sum() / FEW_FORECAST, found[~few, 0].sum(), *found[:, 1:].sum(0))
                rows.append({"clip": index, "sampler": sampler, "steps": steps, "plan": plan, "share": share,
                             "error": error, "terms": terms, "speed": stats.predicted_speed})  # fmt: skip
    return rows


def fitted(rows: list[dict]) -> tuple[float, float, float, float]:
    """FEW_FORECAST that foretells best, and by how many dB errors miss with it, with the shipped one, and with 1.

    Least squares of the logarithm; a factor of each clip, sampler and number of steps is taken out.
    """
    terms = np.array([row["terms"] for row in rows])
    forecast, others = terms[:, 0], terms[:, 1:].sum(1)
    groups = np.array([f"{row['clip']} {row['sampler']} {row['steps']}" for row in rows])
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
    by_plan: dict[tuple, list[dict]] = defaultdict(list)
    for row in result["rows"]:
        by_plan[row["sampler"], row["steps"], row["plan"], row["share"]].append(row)
    clips = len({row["clip"] for row in result["rows"]})
    best, least, shipped, whole = fitted(result["rows"])
    lines = [
        f"**Forecasts beside stale context with few steps**, cfg 1, masks of 20% ({clips} tuning clips, "
        f"{result['machine']['device']}):",
        "",
        "| sampler | schedule | context renewed | speed planned | error in the edit | foretold, but for a factor |",
        "|---|---|---|---|---|---|",
    ]
    for (sampler, _, plan, share), found in sorted(by_plan.items(), key=lambda i: (i[0][:2], -mean_db(i[1]))):
        foretold = statistics.mean(decibels(FEW_FORECAST * row["terms"][0] + sum(row["terms"][1:])) for row in found)
        speed = statistics.median(row["speed"] for row in found)
        reached = f"{speed:.2f}x | {mean_db(found):.1f} dB"
        lines.append(f"| {sampler} | {plan} | {share:.0%} | {reached} | {foretold:.1f} dB |")
    return [
        *lines,
        "",
        f"Errors are foretold to {shipped:.1f} dB with FEW_FORECAST {FEW_FORECAST:g} ({whole:.1f} dB with 1); fitted "
        f"to these rows, with {best:.2g}, to {least:.1f} dB.",
    ]


def order(row: dict) -> tuple:
    """Where a row stands in the file."""
    return row["clip"], row["sampler"], row["steps"]


if __name__ == "__main__":
    compare_all(__doc__.split("\n")[0], mixed, lambda clips: [(i,) for i in range(clips)], order, table)
