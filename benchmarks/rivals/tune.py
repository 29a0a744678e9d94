"""Find every rival's best setting for every time budget, on tuning clips.

    python -m benchmarks.rivals.tune --clips 4 --settings main

Each rival tries its knobs on the tuning clips of a setting's family: the same steps, cfg and sampler, and masks of 20%
that move; of the setting's own size for methods whose cost hangs on it, and still for crop-and-stitch. Of those at
least as fast as the budget (97% of it, median over the clips) the one closest to the full edit on the masked tokens is
kept in `benchmarks/rivals/settings.json`, or, where none reaches it, of those nearly as fast as the fastest. What noise
there is in times is to choose none: at few steps, where half of them is twice as fast or misses it by a hair, those of
methods that skip for nothing are counted; and crop-and-stitch takes as many steps as its share of the pixels allows, so
that all its knobs count as reaching a budget. Held-out clips are then reported with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.rivals.methods import FITS, METHODS, Case, Knobs, Outcome, magcache, why_not
from benchmarks.rows import rounded, run_all, write
from benchmarks.settings import MAIN, Setting, chosen
from hetcache_core.policy import FEW_STEPS
from hetcache_core.quality import compare

FILE = Path(__file__).resolve().parent / "settings.json"
NEARLY = 0.95  # of the fastest's speed
COUNTED = ("easycache", "magcache", "teacache", "teacache-refit")  # what they skip takes them next to nothing
BEYOND = 1.5  # knobs are tried up to this times the highest budget


def family(setting: Setting, name: str) -> Setting:
    """The setting whose tuning clips a method's knobs are chosen on."""
    method, mask = METHODS[name], MAIN.mask
    if (method.still_only or method.by_mask) and not setting.real:
        mask = setting.mask
    return Setting(
        steps=setting.steps, cfg=setting.cfg, sampler=setting.sampler, mask=mask, moving=not method.still_only
    )


@functools.cache
def _stored(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"families": {}}


def tuned(setting: Setting, name: str, speed: float, path: Path | None = None) -> Knobs | None:
    """A method's knobs at a budget; empty where it has none, None where they were not tuned."""
    if not METHODS[name].knobs:
        return {}
    methods = _stored(path or FILE)["families"].get(family(setting, name).name, {}).get("methods", {})
    return methods.get(name, {}).get(f"{speed:g}", {}).get("knobs")


def fidelity(case: Case, outcome: Outcome) -> float:
    """Decibels between a run and the full edit, on masked tokens; of pixels where there are no latents."""
    if outcome.latents is None:
        return compare(outcome.video, case.reference, case.source.mask)["psnr"]["mask"]
    error = case.edit.error(outcome.latents, case.latents, case.full.classes.generative)
    return -20 * math.log10(max(error, 1e-6))


def candidates(name: str, setting: Setting, speeds: Sequence[float]) -> list[Knobs]:
    """A method's knobs worth trying. MagCache's decisions are known beforehand: of equal ones, and of those far from
    every budget, none is run twice or at all."""
    if name != "magcache":
        return list(METHODS[name].knobs)
    found, seen = [], set()
    for knobs in METHODS[name].knobs:
        rule = magcache(knobs, setting.steps)
        pattern = tuple(rule.skip(i, 0) for i in range(setting.steps))
        speed = setting.steps / pattern.count(False)
        if pattern not in seen and 0.9 * min(speeds) <= speed <= BEYOND * max(speeds):
            found.append(knobs)
        seen.add(pattern)
    return found


def tried(case: Case, name: str, index: int, speeds: Sequence[float]) -> list[dict]:
    """A method's candidates for some budgets on one tuning clip: speed and fidelity."""
    method, rows = METHODS[name], []
    for knobs in candidates(name, case.setting, speeds):
        for speed in speeds if method.still_only else (max(speeds),):
            outcome = method(case, speed, knobs)
            took = pace(name, case.setting, outcome)
            rows.append({"knobs": knobs, "clip": index, "speed": took, "db": fidelity(case, outcome)})
            if method.still_only:  # its steps follow from the budget
                rows[-1]["budget"] = speed
        if list(knobs) == ["threshold"] and rows[-1]["speed"] > BEYOND * max(speeds):
            break
    return rows


def pace(name: str, setting: Setting, outcome: Outcome) -> float:
    """The speed a run is judged by: measured; of few steps, for :data:`COUNTED` methods, all over those computed."""
    computed = outcome.stats.decisions.count("F")
    counts = name in COUNTED and setting.steps <= FEW_STEPS
    return setting.steps / computed if counts and computed else outcome.speed


def best(rows: list[dict], speed: float) -> dict | None:
    """The knobs for a budget: the closest of those that reach it, else of those nearly as fast as the fastest."""
    by_knobs: dict[str, list[dict]] = {}
    for row in rows:
        if row.get("budget", speed) == speed:
            by_knobs.setdefault(json.dumps(row["knobs"]), []).append(row)
    means = [
        {
            "knobs": json.loads(knobs),
            "speed": statistics.median(row["speed"] for row in mine),
            "db": statistics.mean(row["db"] for row in mine),
        }
        for knobs, mine in by_knobs.items()
    ]
    most = max((len(mine) for mine in by_knobs.values()), default=0)
    means = [m for m, mine in zip(means, by_knobs.values(), strict=True) if len(mine) == most]
    fitted = any("budget" in row for row in rows)
    reach = [m for m in means if fitted or m["speed"] >= FITS * speed]
    if reach:
        return max(reach, key=lambda m: m["db"])
    least = NEARLY * max((m["speed"] for m in means), default=0.0)
    nearly = [m for m in means if m["speed"] >= least]
    return {**max(nearly, key=lambda m: m["db"]), "reached": False} if nearly else None


def tunings(settings: list[Setting], names: list[str]) -> dict[Setting, list[str]]:
    """Family -> the methods to tune in it."""
    found: dict[Setting, list[str]] = {}
    for setting in settings:
        for name in names:
            place = family(setting, name)
            if METHODS[name].knobs and not why_not(name, setting) and name not in found.setdefault(place, []):
                found[place].append(name)
    return {place: names for place, names in found.items() if names}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", default=["*"], help="main, patterns, or full names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--speeds", nargs="+", type=float, help="these budgets only, others stay as they were")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args(argv)
    result = json.loads(args.out.read_text()) if args.out.exists() else {"families": {}}
    todo = tunings(chosen(args.settings), args.methods)
    rows: dict[tuple[Setting, str], list[dict]] = {}
    budgets = {place: [s for s in place.speeds if args.speeds is None or s in args.speeds] for place in todo}
    asked = [(place, names, budgets[place]) for place, names in todo.items() if budgets[place]]
    tasks = [(*each, index) for each in asked for index in range(args.clips)]

    commit = describe()["commit"]

    def done(answer: tuple[Setting, dict[str, list[dict]]]) -> None:
        place, new = answer
        for name, found in new.items():
            mine = rows.setdefault((place, name), [])
            mine += found
            if len({row["clip"] for row in mine}) == args.clips:
                kept = {f"{speed:g}": rounded(best(mine, speed)) for speed in budgets[place]}
                entry = result["families"].setdefault(place.name, {"methods": {}})
                before = entry["methods"].get(name, {})
                entry["methods"][name] = {**before, "clips": args.clips, "commit": commit, **kept}
                print(f"{place.name} {name}: {kept}", flush=True)
        write(args.out, {**result, "machine": describe() | {"threads": 1}})

    run_all(_work, tasks, args.workers, 1, done)


def _work(place: Setting, names: list[str], speeds: list[float], index: int) -> tuple[Setting, dict[str, list[dict]]]:
    case = Case(place, place.source(index, "tuning"))
    return place, {name: tried(case, name, index, speeds) for name in names}


if __name__ == "__main__":
    main()
