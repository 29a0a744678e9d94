"""Quality at equal time on nano: every speed beside fewer steps in the same measured time and our own ablations.

    python -m benchmarks.quality --clips 32 --steps 30 --cfg 4 --speeds 2 3 4 --out benchmarks/results/quality-30.json

Every clip is edited in full once; all other runs start from the same seed and are compared with that edit, inside the
mask, in the ring around it, outside, and overall. Differences between methods are paired clip by clip. Speeds are
against full evaluations timed in the same run, which a machine whose speed drifts changes least; the time of the clip's
separate full run is kept beside. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from benchmarks.rows import mean, measured, run_all, write
from hetcache_core import CachePolicy
from nano.clips import HELD_OUT, TUNING, make_clip

EXACT = CachePolicy.preset("exact")
SPLITS = {"held-out": HELD_OUT, "tuning": TUNING}


def clips(split: str, count: int, frames: int, size: int, fraction: tuple[float, float], first: int = 0) -> Iterator:
    """Procedural clips of a split whose share of masked tokens lies within ``fraction``."""
    for seed in SPLITS[split][first : first + count]:
        yield seed, make_clip(seed, frames, size, size, mask_fraction=fraction)


def variants(policy: CachePolicy, speeds: list[float], ablations: bool) -> dict[str, CachePolicy]:
    """Named policies: ours at every speed and, beside it, forecast alone and partial alone."""
    runs = {}
    for speed in speeds:
        runs[f"speed-{speed:g}"] = replace(policy, speed=speed)
        if ablations:
            allowed = 5 if policy.max_reuse == 0 else policy.max_reuse  # with neither there is nothing to measure
            runs[f"forecast-{speed:g}"] = replace(policy, speed=speed, partials=False, max_reuse=allowed)
            runs[f"partial-{speed:g}"] = replace(policy, speed=speed, max_reuse=0, refresh=100)
    return runs


def edit_clip(clip, policies: dict[str, CachePolicy], steps: int, cfg: float, seed: int) -> list[dict]:
    """All runs of one clip, the full one first."""
    edit, rows = LatentEdit(clip, cfg, seed), []
    edit.sample(1, EXACT)  # encodes the clip and warms up
    latents, full = edit.sample(steps, EXACT)
    reference = edit.decode(latents)

    def row(name, latents, stats):
        rows.append(measured(name, stats, full.seconds, edit.decode(latents), reference, clip.mask))
        return rows[-1]

    row("full", latents, full)
    for name, policy in policies.items():
        ours = row(name, *edit.sample(steps, policy))
        kind, _, speed = name.partition("-")
        if kind == "speed":
            count = max(1, int(steps / ours["speed"]))
            fewer = row(f"fewer-steps-{speed}", *edit.sample(count, EXACT))
            fewer["speed"] = fewer["predicted_speed"] = steps / count
    return rows


def work(seed: int, clip, policies: dict[str, CachePolicy], steps: int, cfg: float) -> list[dict]:
    """All runs of one clip, in a process of its own."""
    return [{"clip": seed, **row} for row in edit_clip(clip, policies, steps, cfg, seed)]


def summarise(rows: list[dict]) -> dict[str, dict]:
    """Per method: means over the clips and, against fewer steps at the same speed, the paired difference in dB."""
    names = list(dict.fromkeys(r["name"] for r in rows))
    table = {}
    for name in names:
        mine = {r["clip"]: r for r in rows if r["name"] == name}
        speeds = [r["speed"] for r in mine.values()]
        entry = {
            "clips": len(mine),
            "speed": statistics.median(speeds),
            "predicted_speed": statistics.median(r["predicted_speed"] for r in mine.values()),
            **{f"psnr_{k}": mean(r["psnr"][k] for r in mine.values()) for k in ("mask", "ring", "outside", "all")},
            "ssim_mask": mean(r["ssim"]["mask"] for r in mine.values()),
            "peak_context_mb": max(r["peak_context_bytes"] for r in mine.values()) / 2**20,
        }
        rival = {r["clip"]: r for r in rows if r["name"] == "fewer-steps-" + name.rpartition("-")[2]}
        if rival and not name.startswith("fewer"):
            gains = [mine[c]["psnr"]["mask"] - rival[c]["psnr"]["mask"] for c in mine if c in rival]
            entry["gain_over_fewer_steps"] = mean(gains)
            entry["gain_spread"] = float(np.std(gains, ddof=1)) if np.isfinite(gains).all() and len(gains) > 1 else 0.0
        table[name] = entry
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--first", type=int, default=0, help="index of the first clip within the split")
    parser.add_argument("--split", choices=SPLITS, default="held-out")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--mask", type=float, nargs=2, default=(0.15, 0.20), help="range of the masked share")
    parser.add_argument("--speeds", type=float, nargs="+", default=(2.0, 3.0, 4.0))
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--policy", default="{}", help="policy fields to change, as JSON")
    parser.add_argument("--no-ablations", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="clips at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, default=2, help="of each worker")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = CachePolicy.preset(args.preset, **json.loads(args.policy))
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "clips", "first")}
    result = {"machine": describe(), "settings": settings, "rows": []}
    if args.out.exists():
        before = json.loads(args.out.read_text())
        if before["settings"] == json.loads(json.dumps(settings)):
            result["rows"] = before["rows"]
    done = {r["clip"] for r in result["rows"]}
    policies = variants(policy, list(args.speeds), not args.no_ablations)
    held = clips(args.split, args.clips, args.frames, args.size, tuple(args.mask), args.first)
    missing = [(seed, clip, policies, args.steps, args.cfg) for seed, clip in held if seed not in done]

    def done(rows: list[dict]) -> None:
        result["rows"] += rows
        result["summary"] = summarise(result["rows"])
        write(args.out, result)
        latest = {k: f"{v['speed']:.2f}x {v['psnr_mask']:.1f}dB" for k, v in result["summary"].items() if k != "full"}
        print(f"clip {rows[0]['clip']}: {latest}", flush=True)

    run_all(work, missing, args.workers, args.threads, done)
    result["summary"] = summarise(result["rows"])
    write(args.out, result)
    for name, e in result["summary"].items():
        gain = (
            f"  {e['gain_over_fewer_steps']:+.1f} +- {e['gain_spread']:.1f} dB" if "gain_over_fewer_steps" in e else ""
        )
        print(
            f"{name:16} {e['speed']:5.2f}x (predicted {e['predicted_speed']:.2f}x)  mask {e['psnr_mask']:.1f} dB{gain}"
        )


if __name__ == "__main__":
    main()
