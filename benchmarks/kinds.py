"""What each kind of evaluation saves and what it spoils, on nano: where guidance or block reuse would pay.

    python -m benchmarks.kinds --out benchmarks/results/kinds.json --profile hetcache_core/profiles/nano.json

Every kind fills the same gaps between full evaluations: reuse, guidance, partial, half and block evaluations, on tuning
clips whose mask covers a fifth. Two numbers of an error profile follow: what a reused guidance difference and a reused
block delta cost over a prediction forecast or held as long. They are taken from schedules in which reuse follows: a
forecast made of what was derived errs several times as much as what was derived, and plans mix all kinds. Then plans
that may use what a profile allows are held against plans of full, partial and reuse evaluations alone, on masks of all
sizes: once at those prices, and once at prices that look better than any that were measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.calibrate import FREE, STEPS
from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from benchmarks.rows import rounded, write
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.costs import Costs
from hetcache_core.error_model import NAMES, error_terms
from nano.clips import TUNING, make_clip

GAPS = {1: 13, 3: 6, 5: 4}  # evaluations between full ones, and how often that fits
KINDS = "RGPHB"
ALTERNATING = {"FGR": 9, "FHR": 9, "FBR": 9, "FHP": 9, "FPR": 9}
MASKS, SPEEDS = ((0.15, 0.25), (0.35, 0.45), (0.65, 0.75)), (2.0, 3.0)
COSTS = Costs(0.3, blocks=0.7, guidance=0.5)  # errors do not depend on them
OPTIMIST = 0.3


def schedules() -> dict[str, str]:
    """Name -> schedule of 30."""
    found = {f"{k}{gap}": "FF" + ("F" + k * gap) * times for k in KINDS for gap, times in GAPS.items()}
    found |= {name: "FF" + name * times for name, times in ALTERNATING.items()}
    return {name: schedule[: STEPS - 2].ljust(STEPS, "F") for name, schedule in found.items()}


def edit_of(index: int, mask: tuple[float, float], args) -> tuple[LatentEdit, torch.Tensor, torch.Tensor]:
    """A tuning clip, its full edit and its generative tokens."""
    clip = make_clip(TUNING[index], args.frames, args.size, args.size, mask_fraction=mask)
    edit = LatentEdit(clip, args.cfg)
    reference, stats = edit.sample(STEPS, CachePolicy(method="measure"))
    return edit, reference, stats.classes.generative


def probes(args) -> Iterator[dict]:
    """A row per clip and schedule."""
    for index in range(args.clips):
        edit, reference, tokens = edit_of(index, MASKS[0], args)
        for name, schedule in schedules().items():
            result, stats = edit.sample(STEPS, CachePolicy(schedule=schedule))
            if stats.decisions != schedule:
                raise RuntimeError(f"{name} was not followed: {stats.summary()}")
            yield {
                "clip": index, "name": name, "schedule": schedule, "error": edit.error(result, reference, tokens),
                "cost": 1 / stats.predicted_speed, "speed": stats.speed,
            }  # fmt: skip


def prices(rows: list[dict], edit: LatentEdit) -> tuple[float, float]:
    """The error profile's ``guidance`` and ``blocks`` at which the planner foretells the errors of FGR and FBR."""
    profile = replace(ErrorProfile.load("nano"), guidance=1.0, blocks=1.0)
    rules, sigmas = replace(FREE, guidance=True, blocks=True), edit.sigmas(STEPS)

    def terms(name: str) -> float:
        return error_terms(schedules()[name], sigmas, profile, COSTS, rules)[0]

    def error(name: str) -> float:
        return float(np.mean([row["error"] for row in rows if row["name"] == name]))

    ratios = np.array([terms(f"R{gap}") / error(f"R{gap}") for gap in GAPS])
    scale = ratios.sum() / np.square(ratios).sum()  # error per unit of forecast, by least squares of relative residuals

    def price(name: str) -> float:
        reused = schedules()[name].replace(name[1], "P")  # the same with what is priced at nothing
        free = error_terms(reused, sigmas, replace(profile, staleness=0.0, spill=0.0), COSTS, rules)[0]
        return float(f"{max(error(name) / scale - free, 0.0) / (terms(name) - free):.3g}")

    return price("FGR"), price("FBR")


def plans(args, guidance: float, blocks: float) -> Iterator[dict]:
    """Plans with and without what a profile may allow, a row per clip, mask, speed and profile."""
    nano = replace(ErrorProfile.load("nano"), guidance=None, blocks=None)
    profiles = {
        "without": nano,
        "measured": replace(nano, guidance=guidance, blocks=blocks),
        "optimist": replace(nano, guidance=OPTIMIST, blocks=OPTIMIST),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.json" for name in profiles}
        for name, profile in profiles.items():
            files[name].write_text(profile.to_json())
        for index in range(args.clips):
            for mask in MASKS:
                edit, reference, tokens = edit_of(index, mask, args)
                for speed in SPEEDS:
                    for name, file in files.items():
                        result, stats = edit.sample(STEPS, CachePolicy(speed=speed, profile=str(file)))
                        yield {
                            "clip": index, "mask": stats.mask_fraction, "wanted_mask": mask[0] + 0.05, "wanted": speed,
                            "profile": name, "speed": stats.speed, "decisions": stats.decisions,
                            "error": edit.error(result, reference, tokens),
                        }  # fmt: skip


def decibels(rows: list[dict]) -> float:
    """Mean over rows of the edit's error in decibels."""
    return float(np.mean([-20 * np.log10(max(row["error"], 1e-6)) for row in rows]))


def summarise(rows: list[dict], planned: list[dict]) -> dict:
    """Per schedule its cost and decibels; per mask and speed what plans with each profile reach."""
    names = dict.fromkeys(row["name"] for row in rows)
    by_name = {name: [row for row in rows if row["name"] == name] for name in names}
    probed = [
        {"name": name, "cost": mine[0]["cost"], "db": decibels(mine), "clips": len(mine)}
        for name, mine in by_name.items()
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in planned:
        groups.setdefault((row["wanted_mask"], row["wanted"], row["profile"]), []).append(row)
    compared = [
        {
            "mask": mask, "wanted": speed, "profile": profile, "db": decibels(mine),
            "speed": float(np.median([row["speed"] for row in mine])),
            "uses": "".join(k for k in NAMES if any(k in row["decisions"] for row in mine)),
        }
        for (mask, speed, profile), mine in groups.items()
    ]  # fmt: skip
    return {"kinds": probed, "plans": compared}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-plans", action="store_true", help="only the kinds and the two prices")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", type=Path, help="an error profile whose guidance and blocks are set")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for row in probes(args):
        rows.append(row)
        print(f"clip {row['clip']} {row['name']:4} {decibels([row]):5.1f} dB, cost {row['cost']:.2f}", flush=True)
    guidance, blocks = prices(rows, edit_of(0, MASKS[0], args)[0])
    print(f"guidance {guidance}, blocks {blocks}", flush=True)
    planned = []
    for row in () if args.no_plans else plans(args, guidance, blocks):
        planned.append(row)
        print(f"clip {row['clip']} mask {row['mask']:.0%} {row['wanted']}x {row['profile']}: {decibels([row]):.1f} dB "
              f"{row['speed']:.2f}x {row['decisions']}", flush=True)  # fmt: skip
    result = {"machine": describe(), "guidance": guidance, "blocks": blocks, **summarise(rows, planned)}
    write(args.out, rounded({**result, "rows": [rounded(r) for r in rows], "planned": [rounded(r) for r in planned]}))
    if args.profile:
        values = json.loads(args.profile.read_text()) | {"guidance": guidance, "blocks": blocks}
        args.profile.write_text(ErrorProfile(**values).to_json() + "\n")


if __name__ == "__main__":
    main()
