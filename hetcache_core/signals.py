"""Signals of change: what the online methods decide by, and the recorder that measures an error profile."""

from __future__ import annotations

from torch import Tensor


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """``|new - old|_1 / |old|_1``, a 0-d tensor: the relative L1 distance of TeaCache (arXiv 2411.19108, eq. 4) and
    HetCache."""
    return (new - old).abs().sum() / old.abs().sum().clamp_min(1e-12)


class ChangeRecorder:
    """First and second differences of a stream's predictions over consecutive full evaluations.

    Feed it every prediction of a run computed in full; read :attr:`first` and :attr:`second`.
    Values are RMS of the difference over RMS of the prediction, on the tokens given.

    Args:
        tokens: sorted token indices ``[N]`` to look at.
    """

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.first: list[float] = []
        self.second: list[float] = []
        self._past: list[Tensor] = []

    def add(self, patches: Tensor) -> None:
        """Take in a prediction, patches ``[rows, C, L, 2, 2]``."""
        new = patches.detach()[:, :, self.tokens].float()  # exact runs leave gradients on
        size = new.square().mean().sqrt().clamp_min(1e-12)
        if self._past:
            self.first.append(float((new - self._past[-1]).square().mean().sqrt() / size))
        if len(self._past) == 2:
            self.second.append(float((new - 2 * self._past[1] + self._past[0]).square().mean().sqrt() / size))
        self._past = [*self._past, new][-2:]
