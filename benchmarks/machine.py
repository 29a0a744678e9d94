"""What a result was measured on and with."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> dict[str, str | int]:
    """Processor or card, threads, versions, and the commit, for the head of a results file."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "commit": _commit(),
    }


class PeakMemory:
    """Most memory from now on: the card's, or, without one, what the whole process holds, where Linux tells."""

    def __init__(self):
        self._card = torch.cuda.is_available()
        if self._card:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far

    @property
    def bytes(self) -> int | None:
        """None where it cannot be told."""
        if self._card:
            return torch.cuda.max_memory_allocated()
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _commit() -> str:
    """Short hash, ``-dirty`` where tracked files differ from it; files that benchmarks write do not count."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
        return found.stdout.strip()

    written = (":(exclude,top)benchmarks/results", ":(exclude,top)benchmarks/rivals/*.json")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
