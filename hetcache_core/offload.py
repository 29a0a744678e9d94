"""Host memory of a device, written and read by copies that neither the host nor the device's computing waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .device import module_of

IN_FLIGHT = 16  # copies to the host at most, those of about two layers: their sources hold device memory until done
_LAYERS_THERE = 4  # leaving, in use, and fetched ahead
T = TypeVar("T")


def on_device(size: int, layers: int) -> int:
    """Most bytes that are on the device at a time, of so many kept in host memory for so many layers."""
    return size * min(_LAYERS_THERE, layers) // layers


@dataclass
class Copied:
    """Tensors in host memory, and the event of their arrival (None where they are there)."""

    tensors: list[Tensor]
    arrived: Any = None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)


class HostMemory:
    """Page-locked memory, with a stream for copies to the host and one for copies from it.

    A copy back waits, on the device, for the event of the copy here, so that the host never has to; nor may it look at
    what it keeps. Devices without streams copy at once, and the host waits.
    """

    def __init__(self):
        self._streams: dict[str, Any] = {}
        self._leaving: deque[Any] = deque()

    def take(self, parts: list[Tensor], into: list[Tensor] | tuple = ()) -> Copied:
        """Copy tensors of a device to the host; those that are there already are taken as they are.

        Args:
            into: host tensors to write to, where they fit; what they hold is not needed any more.
        """
        device = parts[0].device
        if device.type == "cpu":
            return Copied(parts)
        module = _with_streams(device)
        here = [_like(part, old) for part, old in zip_longest(parts, into)]
        if module is None:
            return Copied([new.copy_(part) for new, part in zip(here, parts, strict=True)])
        stream, computing = self._stream("out", module, device), module.current_stream(device)
        stream.wait_stream(computing)
        with module.stream(stream):
            for new, part in zip(here, parts, strict=True):
                new.copy_(part, non_blocking=True)
                part.record_stream(stream)
        arrived = stream.record_event()
        self._leaving.append(arrived)
        if len(self._leaving) > IN_FLIGHT:
            computing.wait_event(self._leaving.popleft())
        return Copied(here, arrived)

    def bring(self, copied: Copied, device: torch.device) -> list[Tensor]:
        """Copies on a device, in the order of its current stream; host tensors themselves where that is the host."""
        if copied.arrived is not None:
            module_of(device).current_stream(device).wait_event(copied.arrived)
        return [part.to(device, non_blocking=True) for part in copied.tensors]

    def ahead(self, device: torch.device, fetch: Callable[[], T]) -> tuple[T, Any] | None:
        """Call what fetches while the device computes on; None where it cannot do both.

        Returns:
            What was fetched, and the event for :meth:`arrive`.
        """
        module = _with_streams(device)
        if module is None:
            return None
        stream = self._stream("in", module, device)
        with module.stream(stream):
            return fetch(), stream.record_event()

    def arrive(self, tensors: list[Tensor], event: Any, device: torch.device) -> None:
        """Make the device's computing wait for what was fetched ahead."""
        computing = module_of(device).current_stream(device)
        computing.wait_event(event)
        for t in tensors:  # allocated on the stream of copies, used on this one
            t.record_stream(computing)

    def _stream(self, way: str, module: ModuleType, device: torch.device):
        if way not in self._streams:
            self._streams[way] = module.Stream(device)
        return self._streams[way]


def _with_streams(device: torch.device) -> ModuleType | None:
    module = module_of(device)
    return module if all(hasattr(module, name) for name in ("Stream", "stream", "current_stream")) else None


def _like(part: Tensor, old: Tensor | None) -> Tensor:
    if old is not None and (old.shape, old.dtype) == (part.shape, part.dtype):
        return old
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
