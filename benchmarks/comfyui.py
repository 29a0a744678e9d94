"""nano inside ComfyUI, sampled by a process of its Python and timed around the sampler.

COMFYUI_DIR says where ComfyUI is (default ~/comfy/ComfyUI), COMFYUI_PYTHON which Python it runs on (default the `.venv`
inside).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch

from benchmarks.latent import raw_decode
from hetcache_core.quality import compare

ROOT = Path(__file__).resolve().parent.parent
HELD = ("peak_context_bytes", "peak_forecast_bytes", "peak_block_bytes")
KEPT = ("decisions", *HELD)


def host() -> tuple[Path, Path]:
    """(ComfyUI's folder, its Python)"""
    folder = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", folder / ".venv/bin/python")).expanduser()
    if not (folder / "main.py").exists() or not python.exists():
        raise SystemExit(f"no ComfyUI in {folder} with a Python at {python}; set COMFYUI_DIR and COMFYUI_PYTHON")
    return folder, python


def versions() -> dict[str, str]:
    """ComfyUI's version and that of its torch."""
    folder, python = host()
    ask = "import comfyui_version, torch; print(comfyui_version.__version__, torch.__version__)"
    found = subprocess.run([python, "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    return dict(zip(("comfyui", "comfyui_torch"), found.stdout.split()[-2:], strict=True))


def inside(tasks: dict, folder: Path, python: Path, scratch: Path) -> list[dict]:
    """Sample every clip in the host; rows of (clip, run, seconds, psnr, ssim)."""
    (scratch / "tasks.json").write_text(json.dumps(tasks))
    script = ROOT / "benchmarks" / "comfyui_runs.py"
    subprocess.run([python, script, folder, ROOT, scratch / "tasks.json"], check=True)
    rows = []
    for task in tasks["clips"]:
        with np.load(task["file"]) as held:
            videos = {name: raw_decode(torch.from_numpy(held[name])) for name in tasks["runs"]}
            for name in tasks["runs"]:
                row = {"clip": task["index"], "run": name, "seconds": float(held[f"seconds.{name}"])}
                row["speed"] = float(held["seconds.full"]) / row["seconds"]
                if f"stats.{name}" in held:
                    stats = json.loads(str(held[f"stats.{name}"]))
                    row |= {key: stats[key] for key in KEPT}
                rows.append({**row, **compare(videos[name], videos["full"], held["mask"])})
    return rows
