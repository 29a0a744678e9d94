"""What the live panel costs sampling: the same edit inside ComfyUI with and without news of it for the browser.

    python -m benchmarks.panel --out benchmarks/results/panel.json

COMFYUI_DIR and COMFYUI_PYTHON as for `benchmarks.comfyui`. Clips are small, so that an evaluation takes little and an
event weighs much. Runs alternate (without, with, with, without), once with a browser that reads the events over the
host's own server, once with none connected; the ratios are of neighbours. What the events themselves take is timed as
well, because a ratio of two runs tells less than a percent only on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks.comfyui import ROOT, host
from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from hetcache_core import CachePolicy
from nano.clips import TUNING, make_clip

KINDS = ("watched", "unwatched")
MASK = (0.15, 0.20)


def pairs(rows: list[dict], kind: str) -> list[float]:
    """Seconds of a run with events over those of its neighbour without, for every pair of this kind."""
    found = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        by_kind = {row["kind"]: row["seconds"] for row in (first, second)}
        if kind in by_kind:
            found.append(by_kind[kind] / by_kind["off"])
    return found


def summarise(rows: list[dict], read: int) -> dict:
    """Of every kind the median ratio with its quartiles and number of pairs, and the share of a run its events take.

    Args:
        rows: of the runs, in order.
        read: how many events arrived at the browser.

    Returns:
        Beside the kinds ``event_ms``, what one that is sent takes; ``least`` and ``least_ms``, the kind of evaluation
        that takes least; and ``run_seconds``.
    """
    table = {}
    for kind in KINDS:
        ratios, mine = pairs(rows, kind), [row for row in rows if row["kind"] == kind]
        low, middle, high = statistics.quantiles(ratios, n=4)
        share = statistics.median(sum(row["live"]) / row["seconds"] for row in mine)
        table[kind] = {"ratio": middle, "ratio_low": low, "ratio_high": high, "pairs": len(ratios), "share": share}
    spent = sum(sum(row["live"]) for row in rows if row["kind"] == "watched")
    kind, seconds = least(rows)
    run_seconds = statistics.median(row["seconds"] for row in rows)
    return table | {"event_ms": 1000 * spent / read, "least": kind, "least_ms": 1000 * seconds,
                    "run_seconds": run_seconds}  # fmt: skip


def least(rows: list[dict]) -> tuple[str, float]:
    """The kind of evaluation that takes least, and the median of its seconds."""
    times: dict[str, list[float]] = {}
    for row in rows:
        for decision, seconds in zip(row["decisions"], row["evaluations"]):
            times.setdefault(decision, []).append(seconds)
    return min(((kind, statistics.median(each)) for kind, each in times.items()), key=lambda pair: pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="each is two pairs with a browser and two without")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--speed", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, python = host()
    edit = LatentEdit(make_clip(TUNING[0], args.frames, args.size, args.size, MASK), args.cfg)
    settings = {"steps": args.steps, "cfg": args.cfg, "frames": args.frames, "size": args.size, "mask": MASK,
                "speed": args.speed, "rounds": args.rounds}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        task = {**settings, "sigmas": edit.sigmas(args.steps), "threads": args.threads,
                "policy": CachePolicy(speed=args.speed).to_json(), "file": f"{scratch}/rows.json"}  # fmt: skip
        (Path(scratch) / "task.json").write_text(json.dumps(task))
        script = ROOT / "benchmarks" / "panel_runs.py"
        subprocess.run([python, script, folder, ROOT, f"{scratch}/task.json"], check=True)
        found = json.loads((Path(scratch) / "rows.json").read_text())
    result = {"machine": describe(), "settings": settings, "summary": summarise(found["rows"], found["arrived"]),
              "rows": [{"kind": row["kind"], "seconds": row["seconds"], "live": sum(row["live"]),
                        "decisions": row["decisions"]} for row in found["rows"]]}  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
