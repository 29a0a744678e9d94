"""Measure nano's error profile and fit how much each kind of approximation costs.

    python -m benchmarks.calibrate --rows benchmarks/results/calibrate.json --out hetcache_core/profiles/nano.json

The change of predictions from evaluation to evaluation is measured on tuning clips computed in full. Then schedules
such as the planner could make are run on the same clips, and how much an error matters by where it is made, what
stale context costs and what spills over from the context's forecasts are fitted to their final errors. What evaluations
cost beyond their arithmetic is :mod:`benchmarks.costs`' to measure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.optimize import least_squares

from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from benchmarks.rows import run_all, write
from hetcache_core import CachePolicy, ErrorProfile, error_model
from hetcache_core.costs import Costs
from hetcache_core.error_model import ErrorModel, Rules
from hetcache_core.plan import plan
from hetcache_core.profile import CURVES
from nano.clips import TUNING, make_clip

STEPS = 30
FREE = Rules(warmup=1, cooldown=0, max_reuse=30, refresh=100)
COSTS, SPEEDS = Costs(0.4), (1.7, 4.5)
RULES = ((1, 4), (0, 3), (2, 7), (5, 31))  # least and one more than most: warm-up, cool-down, max_reuse, refresh
PARTIALS = 0.75  # of the schedules may have partial evaluations, so that forecasts alone are foretold as well
NOTHING = 0.01  # a spill below does not show
AGEINGS = (0.4, 0.6, 0.8, 1.0)  # compared with what the error model assumes
KNOTS = 4  # of the weight curve, at even positions
SMOOTH = 3.0  # how much a bend of the weight curve, in nepers, counts beside the misfit of a run; it has to generalise


def average(profiles: list[ErrorProfile]) -> ErrorProfile:
    """Mean of the curves of profiles with the same number of steps."""
    return replace(
        profiles[0], **{c: tuple(np.mean([getattr(p, c) for p in profiles], axis=0).tolist()) for c in CURVES}
    )


def rounded(profile: ErrorProfile) -> ErrorProfile:
    """Four significant digits are more than the data carries."""
    return replace(profile, **{c: tuple(float(f"{v:.4g}") for v in getattr(profile, c)) for c in (*CURVES, "sigmas")})


def probes(profile: ErrorProfile, sigmas: Sequence[float], count: int, seed: int) -> list[str]:
    """Schedules as the planner would make them, were the weights others: what a profile has to tell apart.

    Plans of random weights, staleness, rules and speeds, each with up to three evaluations exchanged or changed.
    """
    random, found = np.random.default_rng(seed), {}
    while len(found) < count:
        weight = np.exp(random.normal(0, 0.7, 4))
        assumed = replace(profile, weight=tuple(weight), staleness=0.3 * 6 ** random.uniform(-1, 1), spill=0.0)
        rules = Rules(*(int(random.integers(*span)) for span in RULES), partials=random.random() < PARTIALS)
        decisions = list(plan(sigmas, COSTS, random.uniform(*SPEEDS), rules, assumed).decisions)
        for i, j in random.integers(2, len(decisions), (random.integers(0, 4), 2)):
            if random.random() < 0.5:
                decisions[i], decisions[j] = decisions[j], decisions[i]
            else:
                decisions[i] = random.choice(list("FPR"))
        found["".join(decisions)] = True
    return list(found)


def probe(index: int, count: int, size: int, frames: int, cfg: float) -> dict:
    """One clip: its measured profile, and a row per probing schedule."""
    edit = LatentEdit(make_clip(TUNING[index], frames, size, size, mask_fraction=(0.1, 0.25)), cfg)
    reference, stats = edit.sample(STEPS, CachePolicy(method="measure"))
    profile, tokens, rows = stats.profile("nano", ErrorProfile.load("wan")), stats.classes.generative, []
    for held in (False, True):
        for schedule in probes(profile, edit.sigmas(STEPS), count, seed=index + 1000 * held):
            result, _ = edit.sample(STEPS, CachePolicy(schedule=schedule, memory_order=0 if held else 2))
            error = edit.error(result, reference, tokens)
            rows.append({"clip": index, "held": held, "schedule": schedule, "error": error})
    return {"clip": index, "profile": profile.to_json(), "rows": rows}


def fitted(profile: ErrorProfile, sigmas: Sequence[float], rows: list[dict]) -> tuple[ErrorProfile, float]:
    """The profile with ``weight`` (mean 1), staleness and ``spill`` fitted to measured errors; the misfit in dB.

    Least squares of the logarithm: each decibel counts alike, in fast runs and slow ones. Clips differ by a factor,
    which is taken out.
    """
    plain = replace(profile, weight=(1.0, 1.0), staleness=1.0, staleness_held=1.0, spill=1.0)
    models = {held: ErrorModel(sigmas, plain, COSTS, replace(FREE, held=held)) for held in (False, True)}
    terms = np.array([models[row["held"]].by_evaluation(row["schedule"]) for row in rows])
    held = np.array([row["held"] for row in rows])[:, None]
    forecast, stale, spilt = np.moveaxis(terms, 2, 0)
    terms = np.stack([forecast, stale * ~held, stale * held, spilt], axis=2)
    clips = np.array([row["clip"] for row in rows])
    errors = np.log([row["error"] for row in rows])
    places = np.linspace(0, KNOTS - 1, len(sigmas) - 1)

    def misfit(logs: np.ndarray) -> np.ndarray:
        weight = np.interp(places, np.arange(KNOTS), np.exp(logs[:KNOTS]))
        rest = errors - np.log(terms @ [1.0, *np.exp(logs[KNOTS:])] @ weight)
        for clip in set(clips):
            rest[clips == clip] -= rest[clips == clip].mean()
        return rest

    def cost(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([misfit(logs), SMOOTH * np.diff(logs[:KNOTS], 2), 0.01 * logs[:1]])

    start = np.concatenate([np.zeros(KNOTS), np.log([0.2, 0.8, 0.05])])
    logs = least_squares(cost, start, bounds=(-7.0, 3.0)).x
    weight, (staleness, staleness_held, spill) = np.exp(logs[:KNOTS]), np.exp(logs[KNOTS:])
    staleness, staleness_held, spill = (float(f"{v:.3g}") for v in (staleness, staleness_held, spill))
    spill = spill if spill > NOTHING else 0.0
    result = replace(profile, staleness=staleness, staleness_held=staleness_held, spill=spill,
                     weight=tuple(weight / weight.mean()))  # fmt: skip
    return result, float(8.686 * misfit(logs).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--probes", type=int, default=36, help="schedules a clip, as many again with held context")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=1, help="clips at a time, each in a process of one thread")
    parser.add_argument("--rows", type=Path, help="where measured errors are kept, and taken from if they are there")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = json.loads(args.rows.read_text())["rows"] if args.rows and args.rows.exists() else []

    def done(clip: dict) -> None:
        found.append(clip)
        print(f"clip {clip['clip']}: {len(clip['rows'])} schedules", flush=True)
        if args.rows:
            write(args.rows, {"machine": describe(), "rows": found}, compact=True)

    missing = sorted(set(range(args.clips)) - {clip["clip"] for clip in found})
    run_all(probe, [(i, args.probes, args.size, args.frames, args.cfg) for i in missing], args.workers, 1, done)
    profile = average([ErrorProfile.from_json(clip["profile"]) for clip in found])
    rows = [row for clip in found for row in clip["rows"]]
    nano = ErrorProfile.load("nano")
    sigmas = (*profile.sigmas, 0.0)
    for exponent in AGEINGS:
        with mock.patch.object(error_model, "AGEING", exponent):
            print(f"context that ages with exponent {exponent}: {fitted(profile, sigmas, rows)[1]:.2f} dB")
    profile, misfit = fitted(profile, sigmas, rows)
    fit = f"weights {np.round(profile.weight, 2)}, spill {profile.spill}, staleness {profile.staleness}"
    fit += f" ({profile.staleness_held} held)"
    print(f"{fit}: {len(rows)} errors are foretold to {misfit:.1f} dB")
    result = rounded(replace(
        profile,
        overhead=nano.overhead,
        storing=nano.storing,
        joining=nano.joining,
        warmup=0.0,
        impact=nano.impact,
        model=(256, 6, 768, 3),
        source=f"measured by benchmarks.calibrate on {len(found)} tuning clips; {describe()['device']}",
    ))  # fmt: skip
    args.out.write_text(result.to_json() + "\n")


if __name__ == "__main__":
    main()
