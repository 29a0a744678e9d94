"""The checks in tests/comfyui, run by the Python of a ComfyUI on this machine; skipped where there is none.

COMFYUI_DIR says where it is (default ~/comfy/ComfyUI, where comfy-cli puts it), COMFYUI_PYTHON which Python it runs on
(default the `.venv` inside). That Python needs pytest.
"""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CHECKS = sorted((ROOT / "tests/comfyui").glob("check_*.py"))
HOST = pathlib.Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
PYTHON = pathlib.Path(os.environ.get("COMFYUI_PYTHON", HOST / ".venv/bin/python")).expanduser()


def missing() -> str:
    """Why the checks cannot run here, or empty."""
    if not (HOST / "main.py").exists():
        return f"no ComfyUI in {HOST}; set COMFYUI_DIR"
    if not PYTHON.exists():
        return f"no Python of ComfyUI at {PYTHON}; set COMFYUI_PYTHON"
    if subprocess.run([PYTHON, "-c", "import pytest"], capture_output=True).returncode:
        return f"{PYTHON} has no pytest"
    return ""


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_on_comfyui(check):
    if missing():
        pytest.skip(missing())
    done = subprocess.run(
        [PYTHON, "-m", "pytest", check, "-x", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT, env={**os.environ, "COMFYUI_DIR": str(HOST)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
