"""The benchmark's clips inside ComfyUI: our engine through the pack, EasyCache as the host ships it, fewer steps."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.comfyui import HELD, host, inside
from benchmarks.latent import LatentEdit
from benchmarks.rivals.methods import METHODS, Knobs, easycache_bounds, fewer, last_held
from benchmarks.settings import Setting
from benchmarks.summary import UNTIMED

SAMPLERS = {"euler": "euler", "unipc": "uni_pc"}


def task(name: str, speed: float, knobs: Knobs, setting: Setting, edit: LatentEdit) -> dict:
    """What `comfyui_runs` is to do for one run."""
    if name == "fewer-steps":
        return {"sigmas": edit.sigmas(fewer(setting.steps, speed))}
    if name == "fewer-steps-held":
        count = fewer(setting.steps, speed)
        return {"sigmas": edit.sigmas(count + 1), "policy": last_held(count).to_json()}
    if name == "easycache":
        return {"easycache": [knobs["threshold"], *easycache_bounds(knobs)]}
    return {"policy": METHODS[name].policy(setting.steps, speed, knobs).to_json()}


def edited(setting: Setting, index: int, wanted: list[tuple[str, float, Knobs]]) -> list[dict]:
    """The rows of one clip, its full run first. Speeds are of the whole sampler's time against the clip's full run."""
    began = time.perf_counter()
    source = setting.source(index)
    edit = LatentEdit(source, setting.cfg, source.seed, setting.sampler)
    tasks = {f"{name}@{speed:g}": task(name, speed, knobs, setting, edit) for name, speed, knobs in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        file = f"{scratch}/source.npz"
        np.savez(file, video=source.video, mask=source.mask, prompt=source.prompt)
        found = inside(
            {
                "sigmas": edit.sigmas(setting.steps), "cfg": setting.cfg, "threads": 1, "seed": source.seed,
                "sampler": SAMPLERS[setting.sampler], "runs": {"full": {}, **tasks},
                "clips": [{"index": index, "source": file, "file": f"{scratch}/out.npz"}],
            },
            *host(), Path(scratch),
        )  # fmt: skip
    by_name = {row["run"]: row for row in found}
    rows = []
    for name, speed, knobs in [("full", 1.0, {}), *wanted]:
        row = by_name["full" if name == "full" else f"{name}@{speed:g}"]
        kept = [row[key] for key in HELD if key in row]
        rows.append({
            "clip": index, "name": name, "wanted": speed, "knobs": knobs, "speed": row["speed"],
            "seconds": row["seconds"], "decisions": row.get("decisions", ""), "mask_fraction": None,
            "held_bytes": sum(kept) if kept else None, "peak_bytes": None, "psnr": row["psnr"], "ssim": row["ssim"],
        })  # fmt: skip
        if name in UNTIMED:
            rows[-1]["speed"] = 1.0 if name == "full" else setting.steps / fewer(setting.steps, speed)
        if name == "fewer-steps":
            rows[-1]["held_bytes"] = 0
    rows[0]["clip_seconds"] = time.perf_counter() - began
    return rows
