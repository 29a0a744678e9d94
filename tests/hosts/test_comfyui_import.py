"""The pack's first import, with a host that is too old, new enough, or not there."""

import subprocess
import sys

import pytest

from tests.hosts.comfyui_host import ROOT

IMPORT = f"""
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
spec = importlib.util.spec_from_file_location("custom_nodes.HetCache", {str(ROOT / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(hasattr(module, "NODE_CLASS_MAPPINGS"), hasattr(module, "comfy_entrypoint"))
"""


def imported(folder, version: str = "") -> tuple[str, str]:
    """What a fresh Python prints and logs when it imports the pack beside a host of this version."""
    if version:
        (folder / "comfyui_version.py").write_text(f"__version__ = {version!r}\n")
    command = [sys.executable, "-I", "-c", IMPORT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("version", ["0.3.64", "0.7.0"])
def test_a_host_too_old_is_told_in_one_line(tmp_path, version):
    offers, log = imported(tmp_path, version)
    assert offers == "True False"
    assert log.count("\n") == 0
    assert "needs ComfyUI 0.8.0 or newer" in log and version in log and "Update ComfyUI" in log


@pytest.mark.parametrize("version", ["0.8.0", "0.33.0", "1.0"])
def test_a_host_new_enough_finds_the_entry_point(tmp_path, version):
    assert imported(tmp_path, version) == ("False True", "")


def test_without_a_host_it_says_nothing(tmp_path):
    offers, log = imported(tmp_path)
    assert log == "" and offers.endswith("False")
