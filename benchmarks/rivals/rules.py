"""When the step caches skip an evaluation: their published rules, one class a run, knowing no model.

A *stream* is one conditioning's calls (cond, uncond), told apart by any hashable name. ``sigma`` goes from 1 to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# TeaCache's polynomials for Wan2.1-T2V-1.3B, highest power first: official code, `teacache_generate.py`, with
# `use_ret_steps`: on the projected time embedding, the first five evaluations computed.
TEACACHE_1_3B = (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02)


def relative_l1(new: Tensor, old: Tensor) -> float:
    """|new - old|_1 / |old|_1."""
    return float((new - old).abs().mean() / old.abs().mean())


def shifted(percent: float, shift: float) -> float:
    """The sigma reached after a share of a flow schedule, as ComfyUI's percents mean it."""
    left = 1 - percent
    return shift * left / (1 + (shift - 1) * left)


class EasyCache:
    """The rule of ComfyUI's EasyCache node (`comfy_extras/nodes_easycache.py`), for one stream a call.

    The first stream decides for all: k = |change of output| / |change of input| at the last computed evaluation; at
    every evaluation k * |change of input| / |output| is added up, and while the sum is under the threshold the output
    is the input plus the last computed difference of the two. Changes are means over every 8th row and column.

    Args:
        threshold: of the accumulated relative change.
        start, end: sigmas between which evaluations may be skipped.
        stride: of the rows and columns looked at.
    """

    def __init__(self, threshold: float, start: float, end: float, stride: int = 8):
        self.threshold, self.start, self.end, self.stride = threshold, start, end, stride
        self._first: Hashable = None
        self._skipping = False
        self._sum = 0.0
        self._rate: Tensor | None = None
        self._norm: Tensor | None = None
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._differences: dict[Hashable, Tensor] = {}

    def begin_evaluation(self) -> None:
        """All streams of an evaluation follow the first one's decision."""
        self._skipping = False

    def __call__(self, stream: Hashable, x: Tensor, sigma: float, compute: Callable[[], Tensor]) -> Tensor:
        """The prediction ``[B, C, T, H, W]`` for an input of its shape, computed or not."""
        if sigma <= self.end:
            return compute()
        first, known, change = stream == self._first, stream in self._differences, None
        if sigma <= self.start:
            if self._skipping and known:
                return x + self._differences[stream]
            if self._first is None:
                self._first, first = stream, True
            if first:
                if self._input is not None:
                    change = (self._sampled(x) - self._input).abs().mean()
                if self._norm is not None and self._rate is not None:
                    self._sum = self._sum + self._rate * change / self._norm
                    if self._sum < self.threshold and known:
                        self._skipping = True
                        return x + self._differences[stream]
                    self._sum = 0.0
        output = compute()
        if first and self._norm is not None and change is not None:
            self._rate = (self._sampled(output) - self._output).abs().mean() / change
        self._differences[stream] = output - x
        if first:
            self._input, self._output = self._sampled(x).clone(), self._sampled(output).clone()
            self._norm = output.abs().mean()
        return output

    @property
    def bytes(self) -> int:
        """Of what is kept between evaluations."""
        return sum(x.nbytes for x in (*self._differences.values(), self._input, self._output) if x is not None)

    def _sampled(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride]


class StackRule(Protocol):
    """Decides whether the stack of transformer blocks is skipped and its last residual added instead."""

    probes: bool  # whether `skip` looks at the first block's residual, otherwise at the projected time embedding

    def skip(self, evaluation: int, stream: Hashable, signal: Tensor) -> bool:
        """Asked once per evaluation and stream, in order."""


class TeaCache:
    """TeaCache (arXiv 2411.19108, official Wan code): accumulated polynomial of the time embedding's relative change.

    Args:
        threshold: evaluations are skipped while the sum is under it.
        coefficients: of the polynomial, highest power first.
        evaluations: of the run.
        keep: first evaluations that are always computed; official: 5 of 50.
    """

    probes = False

    def __init__(self, threshold: float, coefficients: Sequence[float], evaluations: int, keep: int | None = None):
        self.threshold, self.coefficients = threshold, tuple(coefficients)
        self.keep = max(1, evaluations // 10) if keep is None else keep
        self._sums: dict[Hashable, float] = {}
        self._previous: dict[Hashable, Tensor] = {}

    def skip(self, evaluation: int, stream: Hashable, signal: Tensor) -> bool:
        previous, self._previous[stream] = self._previous.get(stream), signal.clone()
        if evaluation < self.keep or previous is None:
            self._sums[stream] = 0.0
            return False
        self._sums[stream] += float(np.polyval(self.coefficients, relative_l1(signal, previous)))
        if self._sums[stream] < self.threshold:
            return True
        self._sums[stream] = 0.0
        return False


class MagCache:
    """MagCache (arXiv 2506.09045, official code): how far the residual's magnitude is known to have drifted.

    Args:
        threshold: of the accumulated |1 - product of the ratios|.
        longest: most skips in a row (K).
        retention: first share of the run that is always computed.
        ratios: magnitude of the residual over that of the evaluation before, by stream, one an evaluation.
        evaluations: of the run; ratios of another number of steps are taken from the nearest.
    """

    probes = False

    def __init__(self, threshold: float, longest: int, retention: float, ratios: dict[Hashable, Sequence[float]],
                 evaluations: int):  # fmt: skip
        self.threshold, self.longest, self.first = threshold, longest, int(evaluations * retention)
        self.ratios = {stream: nearest(values, evaluations) for stream, values in ratios.items()}
        self._states = dict.fromkeys(ratios, (1.0, 0.0, 0))

    def skip(self, evaluation: int, stream: Hashable, signal: Tensor | None = None) -> bool:
        if evaluation < max(self.first, 1):
            return False
        ratio, error, run = self._states[stream]
        ratio, run = ratio * self.ratios[stream][evaluation], run + 1
        error += abs(1 - ratio)
        skip = error < self.threshold and run <= self.longest
        self._states[stream] = (ratio, error, run) if skip else (1.0, 0.0, 0)
        return skip


def nearest(values: Sequence[float], count: int) -> list[float]:
    """A curve of one length at another, by nearest neighbour, as MagCache does it."""
    at = np.round(np.linspace(0, len(values) - 1, count)).astype(int) if count > 1 else [-1]
    return [values[i] for i in at]


class FirstBlock:
    """First-block cache (ParaAttention; diffusers' `FirstBlockCacheConfig`): relative L1 change of its residual.

    Args:
        threshold: the rest is skipped up to it; the change is from the last evaluation that was computed.
    """

    probes = True

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._computed: dict[Hashable, Tensor] = {}

    def skip(self, evaluation: int, stream: Hashable, signal: Tensor) -> bool:
        before = self._computed.get(stream)
        if before is not None and relative_l1(signal, before) <= self.threshold:
            return True
        self._computed[stream] = signal
        return False

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in self._computed.values())


def magnitude_ratio(residual: Tensor, before: Tensor) -> float:
    """MagCache's gamma: mean over tokens of |r_t| / |r_(t-1)|, residuals ``[B, tokens, channels]``."""
    return float((torch.linalg.vector_norm(residual, dim=-1) / torch.linalg.vector_norm(before, dim=-1)).mean())
