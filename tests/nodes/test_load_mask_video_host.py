"""Load Mask Video in the real host: the same resize, the same pixels, validation, execution, caching and preview."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOST = Path(os.environ.get("COMFYUI_DIR", Path.home() / "comfy" / "ComfyUI"))
BIN = "Scripts" if sys.platform == "win32" else "bin"
PYTHON = Path(os.environ.get("COMFYUI_PYTHON", HOST / ".venv" / BIN / "python"))
SCRIPT = Path(__file__).with_name("host_load_mask_video.py")


@pytest.mark.skipif(not (HOST / "comfyui_version.py").is_file(), reason=f"no ComfyUI in {HOST}; set COMFYUI_DIR")
@pytest.mark.skipif(not PYTHON.exists(), reason=f"no Python for ComfyUI at {PYTHON}; set COMFYUI_PYTHON")
def test_in_comfyui(tmp_path):
    env = {**os.environ, "COMFYUI_DIR": str(HOST), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    run = subprocess.run([PYTHON, SCRIPT, tmp_path], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ok check_run" in run.stdout
