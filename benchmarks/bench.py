"""The benchmark: HetCache, its ablations and every rival, at equal time, on the same clips.

    python -m benchmarks.bench --workers 2                          # everything: a long time
    python -m benchmarks.bench --settings main --clips 8            # a part of it
    python -m benchmarks.bench --quick                              # under ten minutes

A *setting* (host, steps, cfg, mask, sampler, frames, size; `benchmarks.settings`) fills one file of
`benchmarks/results/bench`. Every clip is edited in full once; every other run starts from the same noise and is
compared with that edit in the mask, in the ring around it, outside, and overall. Speeds are of the time spent in the
model, against full evaluations timed in the same run, without what those spend on storing context; where a run has none
but its first, against those of the clip's runs in full before and after it; for crop-and-stitch, against the clip's run
in full; for fewer steps the ratio of the steps. Inside ComfyUI they are of the sampler's time, against runs in full
before and after the others. Rivals use the knobs that `benchmarks.rivals.tune` chose on other clips for each time
budget. A run that was stopped goes on where it was; rows made with other knobs are made anew, with `--anew` also those
of another machine, version or commit. A row's ``machine`` says which of the file's ``machines`` (versions, commit) it
was made on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks import bench_comfyui
from benchmarks.comfyui import versions
from benchmarks.machine import PeakMemory, describe
from benchmarks.pareto import draw_all
from benchmarks.rivals.methods import ASIDE, METHODS, Case, Knobs, why_not
from benchmarks.rivals.tune import tuned
from benchmarks.rows import measured, run_all, write
from benchmarks.settings import MAIN, SETTINGS, Setting, chosen
from benchmarks.summary import summarise

RESULTS = Path(__file__).resolve().parent / "results" / "bench"
QUICK = {"settings": [MAIN.name, "diffusers-6-cfg1-mask20-moving-euler-17x192"], "clips": 2,
         "methods": ["ours", "forecast", "partial", "fewer-steps", "easycache", "magcache", "first-block"]}  # fmt: skip
Run = tuple[str, float, Knobs]  # method, speed-up wanted, knobs


def runs(setting: Setting, names: list[str] | None) -> tuple[list[Run], dict[str, str]]:
    """What is to be run in a setting, and what is not and why.

    Args:
        names: methods to run at every speed; None: the default ones, side issues at the middle speed only.
    """
    wanted, missing = [], {}
    middle = setting.speeds[len(setting.speeds) // 2]
    for name, method in METHODS.items():
        if name not in names if names is not None else name in ASIDE:
            continue
        reason = why_not(name, setting)
        for speed in setting.speeds if method.every_speed or names is not None else (middle,):
            knobs = None if reason else tuned(setting, name, speed)
            if knobs and not method.still_only and wanted and (wanted[-1][0], wanted[-1][2]) == (name, knobs):
                continue  # it is as fast as it gets already
            if knobs is None:
                missing[name] = reason or f"not tuned: python -m benchmarks.rivals.tune --settings {setting.name}"
            else:
                wanted.append((name, speed, knobs))
    return wanted, missing


def edited(setting: Setting, index: int, wanted: list[Run]) -> list[dict]:
    """The rows of one clip, its full run first."""
    began = time.perf_counter()
    case = Case(setting, setting.source(index))
    rows = [_row(case, index, "full", 1.0, {}, case.full, case.reference, None)]
    for name, speed, knobs in wanted:
        peak = PeakMemory()
        outcome = METHODS[name](case, speed, knobs)
        taken = peak.bytes  # decoding takes more
        video = case.edit.decode(outcome.latents) if outcome.video is None else outcome.video
        row = _row(case, index, name, speed, knobs, outcome.stats, video, taken)
        rows.append({**row, "speed": outcome.speed, "held_bytes": outcome.held})
    rows[0]["clip_seconds"] = time.perf_counter() - began
    return rows


def _row(case: Case, index: int, name: str, wanted: float, knobs: Knobs, stats, video, peak: int | None) -> dict:
    row = measured(name, stats, case.full.seconds, video, case.reference, case.source.mask)
    return {
        "clip": index, "wanted": wanted, "knobs": knobs, **row, "mask_fraction": case.full.mask_fraction,
        "held_bytes": 0, "peak_bytes": peak,
    }  # fmt: skip


def work(setting: Setting, index: int, wanted: list[Run]) -> list[dict]:
    """One clip, in a process of its own."""
    return (bench_comfyui.edited if setting.host == "comfyui" else edited)(setting, index, wanted)


def lacking(rows: list[dict], index: int, wanted: list[Run]) -> list[Run]:
    """What of a clip's runs is not among the rows yet."""
    have = [(row["name"], row["wanted"], row["knobs"]) for row in rows if row["clip"] == index]
    return [run for run in wanted if run not in have]


def merged(rows: list[dict], new: list[dict]) -> list[dict]:
    """Rows with new ones in the place of older ones of the same run."""
    replaced = {_key(row) for row in new}
    return [row for row in rows if _key(row) not in replaced] + new


def _key(row: dict) -> tuple:
    return row["clip"], row["name"], row["wanted"]


def bench(
    setting: Setting, clips: int, names: list[str] | None, workers: int, folder: Path, anew: bool = False
) -> dict:
    """Fill a setting's file; returns its contents. ``anew``: rows of other machines and commits are not enough."""
    path = folder / f"{setting.name}.json"
    wanted, missing = runs(setting, names)
    kept = json.loads(path.read_text()) if path.exists() else {"machines": [], "rows": []}
    machines, before, here = kept["machines"], kept["rows"], describe() | {"threads": 1, "workers": workers}
    if setting.host == "comfyui" and (anew or any(lacking(before, i, wanted) for i in setting.clips(clips))):
        here |= versions()
    machines = machines if here in machines else [*machines, here]
    result = {"setting": setting.name, "machines": machines}
    result["summary"], result["rows"] = summarise(before), before
    for name, reason in missing.items():
        print(f"{setting.name}: no {name}: {reason}", flush=True)
    mine = [row for row in before if machines[row["machine"]] == here] if anew else before
    tasks = [(setting, index, todo) for index in setting.clips(clips) if (todo := lacking(mine, index, wanted))]

    def done(new: list[dict]) -> None:
        result["rows"] = merged(result["rows"], [{**row, "machine": machines.index(here)} for row in new])
        result["summary"] = summarise(result["rows"])
        write(path, result, compact=True)
        print(f"{setting.name} clip {new[0]['clip']}: {len(new)} runs, {new[0]['clip_seconds']:.0f} s", flush=True)

    run_all(work, tasks, workers, 1, done)
    if result["rows"]:
        draw_all(result, folder)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", default=["*"], help="main, patterns, or full names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="these, at every speed (default: most)")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1, help="clips at a time, each in a process of one thread")
    parser.add_argument("--quick", action="store_true", help="two settings, two clips, the main methods")
    parser.add_argument("--anew", action="store_true", help="also what another machine, version or commit measured")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.quick:
        args.settings, args.clips, args.methods = QUICK["settings"], QUICK["clips"], args.methods or QUICK["methods"]
    if args.list:
        print("\n".join([*(s.name for s in SETTINGS), "", *METHODS]))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for setting in chosen(args.settings):
        result = bench(setting, args.clips, args.methods, args.workers, args.out, args.anew)
        for entry in result["summary"]:
            ahead = entry.get("ours_ahead")
            gain = f"  ours {ahead['mean']:+.1f} +- {ahead['spread']:.1f} dB" if ahead else ""
            reached = f"{entry['wanted']:4g}x: {entry['speed']:5.2f}x  {entry['psnr']['mask']:5.1f} dB"
            print(f"{entry['name']:22} {reached}{gain}")
    print(f"took {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
