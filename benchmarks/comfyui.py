"""nano inside ComfyUI: HetCache beside the host's EasyCache and full compute, timed around the sampler.

    python -m benchmarks.comfyui --out benchmarks/results/comfyui.json

COMFYUI_DIR says where ComfyUI is (default ~/comfy/ComfyUI), COMFYUI_PYTHON which Python it runs on (default the `.venv`
inside). Every clip is sampled in full, at the wanted speed, and by EasyCache at a row of thresholds; all are compared
with the full run. EasyCache is reported at the threshold that does best among those at least as fast. The same clips
are sampled through diffusers too, whose result the host must match.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from hetcache_core import CachePolicy
from hetcache_core.quality import compare
from nano.clips import HELD_OUT, make_clip

ROOT = Path(__file__).resolve().parent.parent
THRESHOLDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5)
MASK = (0.15, 0.20)
KEPT = ("decisions", "predicted_speed", "peak_context_bytes", "peak_forecast_bytes")


def host() -> tuple[Path, Path]:
    """(ComfyUI's folder, its Python)"""
    folder = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", folder / ".venv/bin/python")).expanduser()
    if not (folder / "main.py").exists() or not python.exists():
        raise SystemExit(f"no ComfyUI in {folder} with a Python at {python}; set COMFYUI_DIR and COMFYUI_PYTHON")
    return folder, python


def inside(tasks: dict, folder: Path, python: Path, scratch: Path) -> list[dict]:
    """Sample every clip in the host; rows of (clip, run, seconds, psnr, ssim)."""
    (scratch / "tasks.json").write_text(json.dumps(tasks))
    script = ROOT / "benchmarks" / "comfyui_runs.py"
    subprocess.run([python, script, folder, ROOT, scratch / "tasks.json"], check=True)
    rows = []
    for task in tasks["clips"]:
        with np.load(task["file"]) as held:
            full = held["full"].astype(np.float32)
            for name in tasks["runs"]:
                row = {"clip": task["index"], "run": name, "seconds": float(held[f"seconds.{name}"])}
                row["speed"] = float(held["seconds.full"]) / row["seconds"]
                if f"stats.{name}" in held:
                    stats = json.loads(str(held[f"stats.{name}"]))
                    row |= {key: stats[key] for key in KEPT}
                    row["speed_by_stats"] = stats["speed"]
                rows.append({**row, **compare(held[name].astype(np.float32), full, held["mask"])})
    return rows


def on_diffusers(index: int, args: argparse.Namespace, policy: CachePolicy) -> dict:
    """The same edit through the diffusers host."""
    edit = LatentEdit(make_clip(HELD_OUT[index], args.frames, args.size, args.size, MASK), args.cfg)
    (full, _), (ours, stats) = (edit.sample(args.steps, p) for p in (CachePolicy(speed=1.0), policy))
    quality = compare(edit.decode(ours), edit.decode(full), edit.clip.mask)
    return {"clip": index, "run": "diffusers", "decisions": stats.decisions, "speed_by_stats": stats.speed, **quality}


def summarise(rows: list[dict]) -> dict:
    """Means per run; EasyCache's best at HetCache's time, paired."""
    table = {}
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        table[name] = {"psnr_mask": statistics.mean(min(row["psnr"]["mask"], 100) for row in mine)}
        if "speed" in mine[0]:
            table[name]["speed"] = statistics.median(row["speed"] for row in mine)
    ours = table["hetcache"]
    rivals = {n: row for n, row in table.items() if n.startswith("easycache") and row["speed"] >= 0.97 * ours["speed"]}
    if rivals:
        best = max(rivals, key=lambda name: rivals[name]["psnr_mask"])
        gains = [a["psnr"]["mask"] - b["psnr"]["mask"] for a in rows if a["run"] == "hetcache"
                 for b in rows if b["run"] == best and b["clip"] == a["clip"]]  # fmt: skip
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        table["best_easycache"] = {"run": best, "gain_mask": statistics.mean(gains), "gain_spread": spread}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--speed", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, python = host()
    policy = CachePolicy(speed=args.speed)
    runs = {"full": {}, "hetcache": {"policy": policy.to_json()}}
    runs |= {f"easycache-{threshold:g}": {"easycache": threshold} for threshold in THRESHOLDS}
    edit = LatentEdit(make_clip(HELD_OUT[0], args.frames, args.size, args.size, MASK), args.cfg)
    with tempfile.TemporaryDirectory() as scratch:
        clip = {"split": "held-out", "mask": MASK, "frames": args.frames, "size": args.size}
        clips = [{**clip, "index": i, "file": f"{scratch}/{i}.npz"} for i in range(args.clips)]
        tasks = {"sigmas": edit.sigmas(args.steps), "cfg": args.cfg, "threads": args.threads}
        rows = inside({**tasks, "clips": clips, "runs": runs}, folder, python, Path(scratch))
    rows += [on_diffusers(index, args, policy) for index in range(args.clips)]
    settings = {"steps": args.steps, "cfg": args.cfg, "frames": args.frames, "size": args.size, "mask": MASK,
                "speed": args.speed, "split": "held-out"}  # fmt: skip
    result = {"machine": describe(), "settings": settings, "summary": summarise(rows), "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
