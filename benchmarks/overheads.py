"""What the engine does beside the model, timed by the device's own events."""

from __future__ import annotations

import statistics

import torch

from hetcache_core.device import Stopwatch
from hetcache_core.methods import Planned
from hetcache_core.partial import Partials
from hetcache_core.semantic import SemanticSampler

OVERHEADS = {"decide": (Planned, "decide"), "select": (Partials, "select"), "look": (SemanticSampler, "look")}


class Overheads:
    """While open, times deciding, selecting tokens, and choosing context anew."""

    def __init__(self, device: torch.device):
        self._device, self.watches = device, {name: [] for name in OVERHEADS}

    def __enter__(self) -> Overheads:
        self._stock = {name: getattr(*place) for name, place in OVERHEADS.items()}
        for name, (kind, method) in OVERHEADS.items():
            setattr(kind, method, self._timed(name))
        return self

    def __exit__(self, *_) -> None:
        for name, (kind, method) in OVERHEADS.items():
            setattr(kind, method, self._stock[name])

    def _timed(self, name: str):
        def timed(*args, **kwargs):
            watch = Stopwatch(self._device)
            answer = self._stock[name](*args, **kwargs)
            watch.stop()
            self.watches[name].append(watch)
            return answer

        return timed

    def milliseconds(self) -> dict[str, float | None]:
        """Median of each; None for what was not asked for."""
        medians = {
            name: statistics.median([w.seconds for w in found]) if found else None
            for name, found in self.watches.items()
        }
        return {f"ms_{name}": None if s is None else 1e3 * s for name, s in medians.items()}
