"""The checks in tests/comfyui, run by the Python of a ComfyUI on this machine; skipped where there is none.

comfyui_host.py says where one is looked for. Its Python needs pytest.
"""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.latent import LatentEdit
from hetcache_core import CachePolicy
from nano.clips import HELD_OUT, make_clip
from tests.hosts.comfyui_host import HOST, PYTHON, ROOT, missing

CHECKS = sorted((ROOT / "tests/comfyui").glob("check_*.py"))
WHY_NOT = missing("pytest")
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_on_comfyui(check):
    done = subprocess.run(
        [PYTHON, "-m", "pytest", check, "-x", "-v", "-rs", "-p", "no:cacheprovider"],  # -v: it says how many passed
        cwd=ROOT, env={**os.environ, "COMFYUI_DIR": str(HOST)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    if " passed" not in done.stdout:
        pytest.skip(next(line for line in done.stdout.splitlines() if line.startswith("SKIPPED")))


@pytest.mark.parametrize("speed", [2.0, 3.0])
def test_nano_gives_the_same_edit_as_on_diffusers(tmp_path, speed):
    clip = make_clip(HELD_OUT[3], 17, 96, 96, mask_fraction=(0.15, 0.2))
    policy, edit = CachePolicy(speed=speed), LatentEdit(clip, 4.0)
    latent, stats = edit.sample(16, policy)
    grey = np.where(clip.mask[..., None], 0.5, clip.video / 255).astype(np.float32)
    tensors = {"video": grey, "mask": clip.mask.astype(np.float32), "sigmas": np.array(edit.sigmas(16), np.float32)}
    told = {"prompt": clip.prompt, "policy": policy.to_json(), "cfg": "4.0"}
    save_file({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "in.safetensors", told)
    done = subprocess.run(
        [PYTHON, ROOT / "tests/comfyui/nano_edit.py", tmp_path / "in.safetensors", tmp_path / "out.safetensors"],
        env={**os.environ, "COMFYUI_DIR": str(HOST), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        theirs, told = file.get_tensor("latent"), json.loads(file.metadata()["stats"])
    assert told["decisions"] == stats.decisions
    assert told["planned_context_bytes"] == stats.planned_context_bytes
    assert ((theirs - latent).norm() / latent.norm()).item() < 1e-4
