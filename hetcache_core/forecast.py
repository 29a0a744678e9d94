"""Predictions for tokens and evaluations that are not computed.

Per stream the last computed prediction of every token is kept, with its slope and its bend along the schedule, at
output level: three small latents. A forecast is the parabola through the last three (:mod:`.extrapolation`), slope and
bend times a damping.

What is held misses by the slope at every gap, always to the same side, and that adds up along the trajectory; what is
extrapolated misses to either side. So the factor that is best for the edit lies above the one that is best for a single
forecast: the damping, fitted online by comparing forecasts with what was computed, is twice the least squares' factor,
at most 1. A smooth trajectory gets all of the extrapolation, one with fresh noise at every step is held.
Positions count evaluations; those at the same sigma (both stages of Heun) share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .extrapolation import bend_factor, derivatives
from .signals import relative_change

DECAY = 0.5
# Chosen on tuning clips; `python -m benchmarks.forecasts` compares.
FADE = 2.0
BENEFIT = 2.0  # of doubt: extrapolation is reduced where less than half of it comes true


@dataclass(frozen=True)
class Seen:
    """What one computed evaluation showed of a history.

    Args:
        gap: evaluations since the last computed one.
        change: of the fitted tokens since then, relative L1 distance.
        miss: of the forecast they would have got, RMS over their RMS.
        drift: RMS change of the other tokens per evaluation over their RMS; None where only some were computed.
    """

    gap: float
    change: float
    miss: float
    drift: float | None = None


class Forecast:
    """History of one stream's predictions, as patches ``[rows, C, L, 2, 2]``.

    Args:
        order: 0 holds the last prediction, 1 extrapolates its slope, 2 its bend too.
        damping: fixed factor on slope and bend, or None to fit it.
        fit_on: sorted indices ``[G]`` of the tokens the fit looks at (generative ones).
        watch: whether to note at every record what it showed (:attr:`seen`).
    """

    def __init__(self, order: int, damping: float | None, fit_on: Tensor, watch: bool = False):
        self.order = order
        self._fixed = damping
        self._fit_on, self._watch = fit_on, watch
        self._last: Tensor | None = None
        self._slope: Tensor | None = None
        self._bend: Tensor | None = None
        self._span: Tensor | None = None  # evaluations between the last two computed, 0 before there are two
        self._records = 0
        self._fit = (0.0, 0.0)
        self.position: float | None = None  # of the last record
        self.computed_at: Tensor | None = None
        self.seen: Seen | None = None  # by the last record, from the second on

    @property
    def bytes(self) -> int:
        """Bytes held."""
        kept = (self._last, self._slope, self._bend)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    @property
    def damping(self) -> float | Tensor:
        """Factor on slope and bend for the next forecast, from what was seen, recent evaluations first."""
        if self._fixed is not None:
            return self._fixed
        dot, norm = self._fit
        if isinstance(dot, float):
            return 1.0
        return torch.where(norm > 0, (BENEFIT * dot / norm.clamp_min(1e-30)).clamp(0.0, 1.0), torch.ones_like(dot))

    def record(self, position: float, patches: Tensor, selection: Tensor | None = None) -> None:
        """Take in what was computed.

        Args:
            position: of the evaluation along the schedule.
            patches: ``[rows, C, N, 2, 2]`` in float32.
            selection: the N tokens computed (sorted indices), None for all.
        """
        self._records, self.position = self._records + 1, float(position)
        if self._last is None:
            if selection is not None:
                raise ValueError("the first prediction of a stream must cover all tokens")
            self._last = patches.clone()
            self._slope = torch.zeros_like(patches) if self.order else None
            self._bend = torch.zeros_like(patches) if self.order > 1 else None
            self.computed_at = torch.full((patches.shape[2],), float(position), device=patches.device)
            self._span = torch.zeros_like(self.computed_at)
            return
        every = slice(None)
        rows = every if selection is None else selection
        if self._watch:
            self.seen = self._look(position, patches, selection)
        if self.order:
            self._turn(position, patches, selection, rows)
        self._last[:, :, rows] = patches
        if selection is None:
            self.computed_at.fill_(position)
        else:
            self.computed_at.index_fill_(0, selection, position)

    def _turn(self, position: float, patches: Tensor, selection: Tensor | None, rows: Tensor | slice) -> None:
        """Renew slope and bend of the tokens computed."""
        age, slope, span = position - self.computed_at[rows], self._slope[:, :, rows], self._span[rows]
        change = patches - self._last[:, :, rows]
        if self._records > 2:
            self._observe(change, slope, age, selection)
        times = (age[:, None, None], span[:, None, None])
        if self.order > 1:
            turned = derivatives(change, *times, slope, self._bend[:, :, rows])
            self._slope[:, :, rows], self._bend[:, :, rows] = turned
        else:
            (self._slope[:, :, rows],) = derivatives(change, *times, slope, None)
        self._span[rows] = torch.where(age > 0, age, span)

    def predict(self, position: float) -> Tensor:
        """Forecast of every token at a position of the schedule, ``[rows, C, L, 2, 2]`` (a new tensor)."""
        if not self.order:
            return self._last.clone()
        return self._ahead(position, slice(None)).add_(self._last)

    def _ahead(self, position: float, tokens: Tensor | slice) -> Tensor:
        """What a forecast adds to the last prediction of some tokens."""
        age = (position - self.computed_at[tokens])[:, None, None]
        ahead = self._slope[:, :, tokens] * (age * self.damping)
        if self.order > 1:
            factor = bend_factor(age, self._span[tokens][:, None, None], FADE)
            ahead.addcmul_(self._bend[:, :, tokens], self.damping * factor)
        return ahead

    def _fitted(self, selection: Tensor | None) -> Tensor:
        """Places of the fitted tokens among those computed."""
        if selection is None:
            return self._fit_on
        return torch.searchsorted(selection, self._fit_on).clamp_max(len(selection) - 1)

    def _look(self, position: float, patches: Tensor, selection: Tensor | None) -> Seen | None:
        """Compare what comes with what was forecast; one wait for the device."""
        tokens, new = self._fit_on, patches[:, :, self._fitted(selection)]
        old, age = self._last[:, :, tokens], (position - self.computed_at)[:, None, None]
        ahead = self._ahead(position, tokens) if self.order else 0.0
        size = new.square().mean().sqrt().clamp_min(1e-12)
        seen = [
            age[tokens].mean(),
            relative_change(new, old),
            (new - old - ahead).square().mean().sqrt() / size,
        ]
        if selection is None and patches.shape[2] > len(tokens):
            rate = ((patches - self._last) / age.clamp_min(1)).square()
            others = (x.sum() - x[:, :, tokens].sum() for x in (rate, patches.square()))
            moved, whole = others
            seen.append((moved.clamp_min(0) / whole.clamp_min(1e-12)).sqrt())
        seen = torch.stack(seen).tolist()
        return Seen(*seen) if seen[0] > 0 else None

    def _observe(self, change: Tensor, slope: Tensor, age: Tensor, selection: Tensor | None) -> None:
        """Least squares of ``change ~ factor * age * slope`` on the fitted tokens, older evidence fading."""
        if self._fixed is not None:
            return
        rows = self._fitted(selection)
        foreseen = slope[:, :, rows] * age[rows][:, None, None]
        dot = (change[:, :, rows] * foreseen).sum()
        norm = foreseen.square().sum()
        # one step ahead says little about longer ones; a forecast far ahead counts by its own size already
        self._fit = (self._fit[0] * DECAY + dot, self._fit[1] * DECAY + norm)


def to_x0(prediction: Tensor, sample: Tensor, sigma: float) -> Tensor:
    """Velocity -> clean sample of a flow model, ``x0 = x - sigma v`` (and back: the map is its own inverse times
    1 / sigma, see :func:`to_v`)."""
    return sample - sigma * prediction


def to_v(x0: Tensor, sample: Tensor, sigma: float) -> Tensor:
    """Clean sample -> velocity, ``v = (x - x0) / sigma``; sigma 0 cannot occur at an evaluation that samples."""
    return (sample - x0) / max(sigma, 1e-6)
