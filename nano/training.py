"""What both training scripts share: a wall-clock schedule, checkpoints that are never half-written, progress."""

from __future__ import annotations

import datetime
import math
import os
import pathlib
import time

import torch
import torch.distributed


def pick_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


class Clock:
    """Progress 0..1 through a wall-clock budget, time of earlier runs included."""

    def __init__(self, minutes: float, spent: float = 0.0):
        self.budget, self.spent, self.start = minutes * 60, spent, time.monotonic()

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.start

    def progress(self) -> float:
        return min(self.seconds() / self.budget, 1.0)

    def left(self) -> str:
        return f"{max(self.budget - self.seconds(), 0) / 60:.1f} min left"


def learning_rate(peak: float, step: int, progress: float, hold: float = 0.0, warmup: int = 100,
                  final: float = 0.02) -> float:
    """Linear warm-up over steps; the peak until progress `hold`; then cosine decay to `final` times the peak."""
    late = max(progress - hold, 0.0) / (1 - hold)
    decay = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * late))
    return peak * min((step + 1) / warmup, 1.0) * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("ratio", 1.0)


def save(path: pathlib.Path, **state) -> None:
    """Write a checkpoint beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load(path: pathlib.Path) -> dict | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Log:
    """Prints a line every `seconds` with the mean of the values added since the last one, and the rate."""

    def __init__(self, seconds: float):
        self.every, self.last = seconds, time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = self.clips = 0

    def add(self, clips: int, **values: float) -> None:
        self.count += 1
        self.clips += clips
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def line(self, head: str, tail: str) -> bool:
        elapsed = time.monotonic() - self.last
        if elapsed < self.every:
            return False
        means = "  ".join(f"{key} {value / self.count:.4f}" for key, value in self.sums.items())
        print(f"{head}  {means}  {self.clips / elapsed:.1f} clips/s  {tail}", flush=True)
        self.sums, self.count, self.clips, self.last = {}, 0, 0, time.monotonic()
        return True


class Workers:
    """Several processes that train one model, each on its own batches; a lone process where none were started.

    On a CPU shared with other work, two processes of one thread each finish sooner than one process of two threads,
    whose threads wait for the slower one at every operation. Start them with torchrun.
    """

    def __init__(self):
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.count > 1:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            torch.distributed.init_process_group(backend, timeout=datetime.timedelta(minutes=10))

    def average_gradients(self, parameters: list[torch.Tensor]) -> None:
        if self.count > 1:
            flat = torch.cat([p.grad.reshape(-1) for p in parameters])
            torch.distributed.all_reduce(flat)
            flat /= self.count
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))

    def agree(self, values: list[float], device: torch.device) -> list[float]:
        """The first process's values, in all."""
        if self.count == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, 0)
        return shared.tolist()
