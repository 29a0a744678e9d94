"""Measure nano's error profile and fit how much each kind of approximation costs.

    python -m benchmarks.calibrate --out hetcache_core/profiles/nano.json

First the change of predictions from evaluation to evaluation is measured on tuning clips computed in full. Then probing
schedules, each approximating in one way at a time, are run on the same clips, and their final errors are fitted by the
planner's three terms (forecast, stale context, spill of context forecasts) with non-negative least squares.
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
from hetcache_core.plan import Rules, error_terms
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
    "partial 2": "FF" + "FPP" * 8 + "FFFF",
    "partial 3": "FF" + "FPPP" * 6 + "FFFF",
    "partial 5": "FF" + "FPPPPP" * 4 + "FFFF",
    "both 3": "FF" + "FRPR" * 6 + "FFFF",
    "both 5": "FF" + "FRRPRR" * 4 + "FFFF",
    "both 7": "FF" + "FRRRPRRR" * 3 + "FFFF",
}


def average(profiles: list[ErrorProfile]) -> ErrorProfile:
    """Mean of the curves of profiles with the same number of steps."""
    curves = ("first", "second", "context_first", "context_second")
    return replace(
        profiles[0], **{c: tuple(np.mean([getattr(p, c) for p in profiles], axis=0).tolist()) for c in curves}
    )


def rounded(profile: ErrorProfile) -> ErrorProfile:
    """Four significant digits are more than the data carries."""
    curves = ("first", "second", "context_first", "context_second")
    return replace(profile, **{c: tuple(float(f"{v:.4g}") for v in getattr(profile, c)) for c in curves})


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
    profile = average(measured)
    sigmas, terms, errors, overheads = edits[0].sigmas(STEPS), [], [], []
    for name, schedule in PROBES.items():
        found = []
        for edit, reference in zip(edits, references, strict=True):
            result, stats = edit.sample(STEPS, CachePolicy(schedule=schedule))
            found.append(edit.error(result, reference, stats.classes.generative))
            if "P" in schedule:
                share = stats.seconds_of("P") / stats.seconds_of("F")
                overheads.append(share - stats.costs.partial + wan.overhead)
        terms.append(error_terms(schedule, sigmas, replace(profile, staleness=1.0, spill=1.0), Costs(0.3), FREE))
        errors.append(statistics.mean(found))
        print(f"{name:10} error {errors[-1]:.2e}  terms {' '.join(f'{t:.2e}' for t in terms[-1])}", flush=True)
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
