"""Host memory for a device's tensors, copied on streams of its own."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .device import module_of, release_host_memory

BEHIND = 2  # layers the device may lag behind the host: what their copies need lies on the device until they are done
T = TypeVar("T")


def on_device(size: int, layers: int) -> int:
    """Bytes that are on the device at a time, of so many kept in host memory for so many layers: those of the layers it
    lags behind, of the one at hand, and of the next, which is fetched ahead."""
    return size * min(BEHIND + 2, layers) // layers


@dataclass(frozen=True)
class Copied:
    """Tensors in host memory, and the event of their arrival (None where they are there)."""

    tensors: list[Tensor]
    arrived: Any = None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)


class HostMemory:
    """Page-locked memory, with a stream for copies to the host and one for copies from it.

    A copy back waits, on the device, for the event of the copy here, so that the host never has to; it must not read
    what is kept. Devices without streams copy at once, and the host waits; what is on the host already stays as it is.
    """

    def __init__(self):
        self._device: torch.device | None = None  # once it has copied on streams
        self._layers: deque[Any] = deque()

    def take(self, parts: list[Tensor], into: list[Tensor] | tuple = ()) -> Copied:
        """Copy tensors of a device to the host.

        Args:
            into: host tensors to write to, where they fit; whatever still reads them comes before this on the device's
                current stream, or is not needed.
        """
        device = parts[0].device
        if device.type == "cpu":
            return Copied(parts)
        module = _with_streams(device)
        here = [_like(part, old, pinned=module is not None) for part, old in zip_longest(parts, into)]
        if module is None:
            return Copied([new.copy_(part) for new, part in zip(here, parts, strict=True)])
        self._device, stream = device, _stream(device, "out")
        stream.wait_stream(module.current_stream(device))
        with module.stream(stream):
            for new, part in zip(here, parts, strict=True):
                new.copy_(part, non_blocking=True)
                part.record_stream(stream)
        return Copied(here, stream.record_event())

    def bring(self, copied: Copied, device: torch.device) -> list[Tensor]:
        """Copies on a device, in the order of its current stream."""
        module = _with_streams(device)
        if copied.arrived is not None:
            module.current_stream(device).wait_event(copied.arrived)
        return [part.to(device, non_blocking=module is not None) for part in copied.tensors]

    def fetch_ahead(self, device: torch.device, fetch: Callable[[], T]) -> tuple[T, Any] | None:
        """Call what fetches while the device computes on; None where it cannot do both.

        Returns:
            What was fetched, and the event for :meth:`wait_for`.
        """
        module = _with_streams(device)
        if module is None:
            return None
        stream = _stream(device, "in")
        with module.stream(stream):
            return fetch(), stream.record_event()

    def wait_for(self, event: Any, tensors: list[Tensor], device: torch.device) -> None:
        """Make the device's computing wait for what was fetched ahead, and say that it uses it."""
        computing = _with_streams(device).current_stream(device)
        computing.wait_event(event)
        for t in tensors:
            t.record_stream(computing)

    def pace(self, device: torch.device) -> None:
        """A layer begins: hold the host back where it is too far ahead. It would queue up copies that hold memory."""
        module = _with_streams(device)
        if module is None:
            return
        stream = _stream(device, "out")
        stream.wait_stream(module.current_stream(device))
        self._layers.append(stream.record_event())
        if len(self._layers) > BEHIND:
            self._layers.popleft().synchronize()

    def release(self) -> None:
        """Give page-locked memory whose tensors are gone back to the system, once the device is done with it."""
        if self._device is not None:
            with contextlib.suppress(RuntimeError):  # a device that has failed says so to whoever computes on it
                module_of(self._device).synchronize(self._device)
            release_host_memory()
            self._device = None


@functools.cache
def _stream(device: torch.device, way: str):
    """One a device and way, for all runs: memory fetched on a stream is kept for that stream."""
    return module_of(device).Stream(device)


def _with_streams(device: torch.device) -> ModuleType | None:
    module = module_of(device)
    return module if all(hasattr(module, name) for name in ("Stream", "stream", "current_stream")) else None


def _like(part: Tensor, old: Tensor | None, pinned: bool) -> Tensor:
    if old is not None and (old.shape, old.dtype) == (part.shape, part.dtype):
        return old
    return torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=pinned)
