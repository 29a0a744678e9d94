"""What differs from one device to another beyond arithmetic: how time is taken there, when its memory has run out.

Devices are told by what torch's module for them brings (``torch.cuda``, ``torch.xpu``, ``torch.mps``), not by name.
"""

from __future__ import annotations

import time
from types import ModuleType

import torch


def module_of(device: torch.device) -> ModuleType | None:
    """Torch's module for a device; None for the CPU and for devices that have none."""
    return None if device.type == "cpu" else getattr(torch, device.type, None)


class Stopwatch:
    """Wall time of a stretch of work on a device: by its events where it has them (read later, without a stall), else
    by a clock."""

    def __init__(self, device: torch.device):
        self._device = device
        timed = device.type == "cuda" or hasattr(torch, "accelerator")  # older torch cannot time others' events
        self._event = getattr(module_of(device), "Event", None) if timed else None
        self._begin = self._mark()
        self._end = None

    def stop(self) -> None:
        self._end = self._mark()

    @property
    def seconds(self) -> float:
        if self._event is None:
            return self._end - self._begin
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1000

    @property
    def finished(self) -> bool:
        """Whether the device is done, so that reading the seconds waits for nothing."""
        return self._event is None or self._end.query()

    def _mark(self):
        if self._event is None:
            return time.perf_counter()
        event, stream = self._event(enable_timing=True), getattr(module_of(self._device), "current_stream", None)
        event.record(*([] if stream is None else [stream(self._device)]))  # Apple's devices have one stream
        return event


def release_host_memory() -> None:
    """Give page-locked memory that is free back to the system; torch would keep it until the process ends."""
    release = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    release = release or getattr(torch._C, "_host_emptyCache", None)  # before torch had a word for it
    if release is not None and (torch.cuda.is_available() or torch.xpu.is_available()):
        release()


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the host beside it, ran out of memory, in any of the ways torch says so."""
    if isinstance(error, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)):  # the former since torch 2.5
        return True
    text = str(error)
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # newer torch's general error
        return "out of memory" in text.lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OTHER_WORDS)


_OTHER_WORDS = (
    "MPS backend out of memory", "CUDA error: out of memory", "HIP error: out of memory", "_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)  # fmt: skip
