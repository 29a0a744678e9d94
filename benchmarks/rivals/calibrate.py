"""Measure on nano's tuning clips what TeaCache and MagCache need to know of a model.

    python -m benchmarks.rivals.calibrate --clips 4 --out benchmarks/rivals/nano.json

MagCache's ratios: the block stack's residual against that of the evaluation before, per stream and evaluation, mean
over tokens and clips. TeaCache's polynomial: least squares of degree 4, as its authors fit it, from the relative L1
change of the projected time embedding to that of the stack's output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.latent import LatentEdit
from benchmarks.machine import describe
from benchmarks.rivals.hooks import StackCache
from benchmarks.rivals.rules import magnitude_ratio, relative_l1
from benchmarks.rows import write
from benchmarks.settings import Setting


class Recorder(StackCache):
    """Computes everything and notes the changes: of the embedding, of the output, of the residual's magnitude."""

    def __init__(self):
        super().__init__(self)
        self.probes = False
        self.embedding: list[float] = []
        self.output: list[float] = []
        self.ratios: dict[int, list[float]] = {}
        self._last: dict[tuple[int, str], Tensor] = {}

    def skip(self, evaluation: int, stream: int, signal: Tensor) -> bool:
        """Never; as a rule it only looks."""
        change = self._since(stream, "embedding", signal, relative_l1)
        if change is not None:
            self.embedding.append(change)
        return False

    @property
    def bytes(self) -> int:
        return 0

    def _end(self, forward, hidden):
        stream, residual = self.place.stream, hidden - self._base
        change = self._since(stream, "output", hidden, relative_l1)
        if change is not None:
            self.output.append(change)
        ratio = self._since(stream, "residual", residual, magnitude_ratio)
        self.ratios.setdefault(stream, []).append(1.0 if ratio is None else ratio)
        return forward(hidden)

    def _since(self, stream: int, what: str, new: Tensor, change) -> float | None:
        old, self._last[stream, what] = self._last.get((stream, what)), new.clone()
        return None if old is None else change(new, old)


def record(setting: Setting, index: int) -> Recorder:
    """What a run in full shows on one tuning clip."""
    source = setting.source(index, "tuning")
    edit = LatentEdit(source, setting.cfg, source.seed, setting.sampler)
    recorder = Recorder()
    with recorder.attached(edit.pipe.transformer):
        edit.sample(setting.steps, None)
    return recorder


def calibrated(records: list[Recorder]) -> dict:
    """The numbers for the file: six digits are more than the data carries."""
    ratios = [np.mean([r.ratios[stream] for r in records], axis=0) for stream in sorted(records[0].ratios)]
    change, output = (np.concatenate([getattr(r, name) for r in records]) for name in ("embedding", "output"))
    fit = np.polyfit(change, output, 4)
    left = output - np.polyval(fit, change)
    return {
        "magcache": [[float(f"{v:.6g}") for v in stream] for stream in ratios],
        "teacache": [float(v) for v in fit],
        "teacache_fit_r2": float(1 - left.var() / output.var()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--setting", default=Setting().name)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    setting = Setting.parse(args.setting)
    records = [record(setting, index) for index in range(args.clips)]
    made = {"setting": setting.name, "clips": args.clips, "machine": describe()}
    write(args.out, {**made, **calibrated(records)})


if __name__ == "__main__":
    main()
