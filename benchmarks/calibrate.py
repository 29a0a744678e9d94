"""Measure nano's error profile and fit how much each kind of approximation costs.

    python -m benchmarks.calibrate --out hetcache_core/profiles/nano.json

First the change of predictions from evaluation to evaluation is measured on tuning clips computed in full. Then a short
stretch of reuse at several places shows how much an error matters by where it is made, and probing schedules, each
approximating in one way, are run on the same clips; their final errors are fitted by the planner's three terms
(forecast, stale context, spill of context forecasts) with non-negative least squares.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.costs import Costs
from hetcache_core.error_model import Rules, error_terms
from hetcache_core.profile import CURVES
from hetcache_core.stats import RunStats
from nano.clips import TUNING, make_clip

STEPS = 30
FREE = Rules(warmup=1, cooldown=0, max_reuse=20, refresh=100)
# Each probe exercises one term: reuse at several gaps, partial at several ages, and both.
PROBES = {
    "reuse 1": "FF" + "FR" * 13 + "FF",
    "reuse 2": "FF" + "FRR" * 8 + "FFFF",
    "reuse 3": "FF" + "FRRR" * 6 + "FFFF",
    "reuse 5": "FF" + "FRRRRR" * 4 + "FFFF",
    "partial 1": "FF" + "FP" * 13 + "FF",
    "partial 3": "FF" + "FPPP" * 6 + "FFFF",
    "partial 5": "FF" + "FPPPPP" * 4 + "FFFF",
    "both 3": "FF" + "FRPR" * 6 + "FFFF",
    "both 5": "FF" + "FRRPRR" * 4 + "FFFF",
    "both 7": "FF" + "FRRRPRRR" * 3 + "FFFF",
}
# The same short stretch of reuse, early to late: how much an error matters by where it is made.
PLACES = [("F" * start + "FRRRFR").ljust(STEPS, "F") for start in (2, 8, 14, 20)]


def average(profiles: list[ErrorProfile]) -> ErrorProfile:
    """Mean of the curves of profiles with the same number of steps."""
    return replace(
        profiles[0], **{c: tuple(np.mean([getattr(p, c) for p in profiles], axis=0).tolist()) for c in CURVES}
    )


def rounded(profile: ErrorProfile) -> ErrorProfile:
    """Four significant digits are more than the data carries."""
    return replace(profile, **{c: tuple(float(f"{v:.4g}") for v in getattr(profile, c)) for c in (*CURVES, "sigmas")})


def ideal(stats: RunStats) -> float:
    """Cost of a partial evaluation by arithmetic alone, in full evaluations."""
    return stats.costs.partial - ErrorProfile.load("nano").overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wan = ErrorProfile.load("wan")
    edits = [
        LatentEdit(make_clip(TUNING[i], args.frames, args.size, args.size, mask_fraction=(0.1, 0.25)), args.cfg)
        for i in range(args.clips)
    ]
    measured, references = [], []
    for edit in edits:
        reference, stats = edit.sample(STEPS, CachePolicy(method="measure"))
        references.append(reference)
        measured.append(stats.profile("nano", wan))
    profile = replace(average(measured), weight=(1.0, 1.0), staleness=1.0, spill=1.0)
    sigmas, overheads = edits[0].sigmas(STEPS), []

    def probe(name: str, schedule: str) -> tuple[tuple[float, float, float], float]:
        """The planner's three terms of a schedule, and its mean error."""
        found = []
        for edit, reference in zip(edits, references, strict=True):
            result, stats = edit.sample(STEPS, CachePolicy(schedule=schedule))
            found.append(edit.error(result, reference, stats.classes.generative))
            if "P" in schedule:
                overheads.append(stats.seconds_of("P") / stats.seconds_of("F") - ideal(stats))
        terms = error_terms(schedule, sigmas, profile, Costs(0.3), FREE)
        print(f"{name:10} error {np.mean(found):.2e}  terms {' '.join(f'{t:.2e}' for t in terms)}", flush=True)
        return terms, float(np.mean(found))

    ratios = [error / terms[0] for terms, error in (probe(f"place {i}", s) for i, s in enumerate(PLACES))]
    profile = replace(profile, weight=tuple(np.asarray(ratios) / np.mean(ratios)))
    terms, errors = zip(*(probe(name, schedule) for name, schedule in PROBES.items()), strict=True)
    scale = 1 / np.asarray(errors)  # relative residuals: small errors matter as much as large ones
    (forecast, stale, spill), residual = nnls(np.asarray(terms) * scale[:, None], np.ones(len(errors)))
    print(f"forecast {forecast:.3f}, stale context {stale:.3f}, spill {spill:.3f}; residual {residual:.2f}")
    result = rounded(replace(
        profile,
        staleness=min(10.0, float(f"{stale / forecast:.3g}")),
        spill=min(10.0, float(f"{spill / forecast:.3g}")),
        overhead=max(0.0, round(statistics.median(overheads), 3)),
        warmup=0.0,
        model=(256, 6, 768, 3),
        source=f"measured by benchmarks.calibrate on {args.clips} tuning clips; {describe()['device']}",
    ))  # fmt: skip
    args.out.write_text(result.to_json() + "\n")


if __name__ == "__main__":
    main()
