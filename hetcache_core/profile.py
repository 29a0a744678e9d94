"""How much a model's prediction changes from one evaluation to the next: the measured data behind the planner.

A profile is data, not code: ``profiles/*.json`` holds one measured on nano and one whose shape follows the literature
on real Wan models; a user's own, measured by :class:`hetcache_core.signals.ChangeRecorder`, loads the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from .costs import ModelShape

CURVES = ("first", "second", "context_first", "context_second", "weight")
IMPACTS = ("R", "G", "B")
USUAL_SHARE = 0.15  # of the context that is computed anew on partial evaluations: staleness is measured with it
LEAST_SHARE = 0.03  # none at all is like so little
RENEWAL = 0.6
FEW_RENEWAL = 1.8  # `python -m benchmarks.foretold` holds it against runs of 6 steps


@dataclass(frozen=True)
class ErrorProfile:
    """Change of the prediction along a schedule, relative to its size, and how much an error there matters.

    Each curve lies at even positions from the first evaluation of the measured schedule to its last.

    Args:
        name: of the model it was measured on.
        sigmas: noise levels of the measured schedule, one an evaluation. Other schedules are placed on it by sigma;
            where they take larger steps, first differences grow with the step and second ones with its square.
        first, second: first and second differences in the evaluation index, of generative tokens.
        context_first, context_second: the same for context tokens.
        weight: final error in the edit per unit of error in one evaluation's prediction, times the evaluations, for a
            step as long as the measured schedule's there; only its shape matters.
        staleness: error that remembered context of age 1 causes in generative tokens, per unit of ``context_first``
            times sigma, which is how far the clean clip has moved, where it is extrapolated. staleness_held: where it
            is held.
        spill: share of the context's forecast error that reaches generative tokens.
        overhead: cost of a partial evaluation beyond its share of a full one's arithmetic, as a share of what a full
            one computes token by token, all but self-attention.
        storing, joining: the same of storing context on a full one, and of joining what is remembered on a partial one,
            were all tokens remembered: as the model has them, and in fewer bits.
        warmup: share of the evaluations that are full at the start. cooldown: number of full ones at the end.
        guidance: error of reused guidance over that of a prediction forecast as far; None keeps the planner from it.
        blocks: error of reused block deltas over that of a prediction held as long; None keeps the planner from it.
        impact: MixCache's I: final error per relative error of what is reused, of a step's prediction, of guidance and
            of blocks' deltas; by default, for real models too, what :mod:`benchmarks.impact` measured on nano, since
            the paper gives none.
        model: ``(dim, layers, ffn, vace_layers)`` of the model it belongs to, or None for any.
        source: how it was obtained.
    """

    name: str
    sigmas: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    context_first: tuple[float, ...]
    context_second: tuple[float, ...]
    weight: tuple[float, ...] = (1.0, 1.0)
    staleness: float = 0.1
    staleness_held: float = 0.8
    spill: float = 0.1
    overhead: float = 0.02
    storing: tuple[float, float] = (0.0, 0.0)
    joining: tuple[float, float] = (0.0, 0.0)
    warmup: float = 0.15
    cooldown: int = 2
    guidance: float | None = None
    blocks: float | None = None
    impact: tuple[float, float, float] = (0.0255, 0.00328, 0.14)
    model: tuple[int, int, int, int] | None = None
    source: str = ""

    def __post_init__(self):
        for name in (*CURVES, "sigmas"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) < 2 or not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"profile field {name} needs at least two finite values of 0 or more")
            object.__setattr__(self, name, values)
        if list(self.sigmas) != sorted(set(self.sigmas), reverse=True):
            raise ValueError("profile field sigmas must fall from evaluation to evaluation")
        object.__setattr__(self, "impact", tuple(float(v) for v in self.impact))
        if len(self.impact) != len(IMPACTS) or not all(math.isfinite(v) and v > 0 for v in self.impact):
            raise ValueError("profile field impact needs three finite values above 0")
        for name in ("storing", "joining"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 2 or not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"profile field {name} needs two finite values of 0 or more")
            object.__setattr__(self, name, values)
        for name in ("guidance", "blocks"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1000:
                raise ValueError(f"profile field {name} must lie between 0 and 1000, got {value!r}")
        if self.model is not None:
            object.__setattr__(self, "model", tuple(self.model))
        if self.sigmas[0] > 1:
            raise ValueError(f"profile field sigmas begins at {self.sigmas[0]}; noise levels lie between 1 and 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"profile field warmup is a share of the evaluations, from 0 to 1, got {self.warmup!r}")
        if int(self.cooldown) != self.cooldown:
            raise ValueError(f"profile field cooldown is a whole number of evaluations, got {self.cooldown!r}")
        object.__setattr__(self, "cooldown", int(self.cooldown))
        for name in ("staleness", "staleness_held", "spill", "overhead", "cooldown"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"profile field {name} must lie between 0 and 10, got {getattr(self, name)!r}")

    def scaled(self, predictions: float, context: float) -> ErrorProfile:
        """The profile of a model whose generative predictions and whose context change so many times as much."""
        factors = {"first": predictions, "second": predictions, "context_first": context, "context_second": context}
        return replace(self, **{c: tuple(v * f for v in getattr(self, c)) for c, f in factors.items()})

    def renewing(self, share: float, few: bool = False) -> ErrorProfile:
        """The profile where partial evaluations compute this share of the context anew, not the usual one.

        On tuning clips of nano, between a twentieth and a third, twice the share left two thirds of the error. With few
        steps what is renewed serves one or two evaluations: there every percent took 1.8% off the error of none.
        """
        factor = (USUAL_SHARE / max(share, LEAST_SHARE)) ** RENEWAL
        if few:
            factor = max(1 - FEW_RENEWAL * share, 0.1) / (1 - FEW_RENEWAL * USUAL_SHARE)
        return replace(self, staleness=self.staleness * factor, staleness_held=self.staleness_held * factor)

    def at(self, curve: str, sigmas: Sequence[float]) -> np.ndarray:
        """One of the curves placed on another schedule and scaled to its steps, float64 ``[n]``.

        Args:
            sigmas: noise level of every evaluation and the final one, ``[n + 1]``.
        """
        places, values = self._places(sigmas)[:-1], getattr(self, curve)
        found = np.interp(places, np.linspace(0, len(self.sigmas) - 1, len(values)), values)
        if curve == "weight":
            return found * self.steps(sigmas)
        levels = np.unique(places)
        around = np.gradient(levels) if len(levels) > 1 else np.ones(1)
        return found * around[np.searchsorted(levels, places)] ** (2 if curve.endswith("second") else 1)

    def steps(self, sigmas: Sequence[float]) -> np.ndarray:
        """How long a step is taken by each evaluation, in steps of the measured schedule there, float64 ``[n]``.

        The last may be very short: diffusers' Euler ends so, and ComfyUI's ``normal`` schedule. Of two evaluations at
        one level, as of one at the final level, the first corrects the step that led there (Heun).
        """
        places = self._places(sigmas)
        levels, at, counts = np.unique(places[:-1], return_inverse=True, return_counts=True)
        after = np.diff([*levels, max(places[-1], levels[-1])])
        before = np.concatenate([after[:1], after[:-1]])
        corrects = np.diff(at, prepend=-1) > 0  # the first one at its level
        corrects &= (counts[at] > 1) | (after[at] == 0)
        return np.where(corrects, before[at], after[at])

    def _places(self, sigmas: Sequence[float]) -> np.ndarray:
        """Noise levels -> places along the measured schedule, which goes on to 1 and to 0 as it began and ended."""
        (first, second), (before, last) = self.sigmas[:2], self.sigmas[-2:]
        end = len(self.sigmas) - 1
        known = [1.0, *self.sigmas, 0.0]
        places = [-(1.0 - first) / (first - second), *range(end + 1), end + last / (before - last)]
        return np.interp(np.asarray(sigmas, dtype=float), known[::-1], places[::-1])

    def measured(self, name: str, sigmas: Sequence[float], **curves: tuple[float, ...]) -> ErrorProfile:
        """This profile with curves measured on another model or schedule, down to sigma 0.

        Args:
            name: of the model. sigmas: of the measured evaluations, ``[n]``. curves: all but ``weight``, which is this
                profile's, placed on the schedule.
        """
        found = replace(self, name=name, sigmas=tuple(sigmas), model=None, source="measured", **curves)
        ends = (*sigmas, 0.0)
        weight = self.at("weight", ends) / found.steps(ends).clip(min=1e-6) * len(sigmas) / len(self.sigmas)
        return replace(found, weight=tuple(weight.tolist()))

    @property
    def impacts(self) -> dict[str, float]:
        """The impact by decision letter."""
        return dict(zip(IMPACTS, self.impact, strict=True))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ErrorProfile:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: not a profile, or values that cannot be.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not an error profile: {error}") from None

    @classmethod
    def for_model(cls, shape: ModelShape) -> ErrorProfile:
        """The shipped profile measured on a model of this shape, else the one assumed for real Wan models."""
        shapes = (shape.dim, shape.layers, shape.ffn, shape.vace_layers)
        nano = cls.load("nano")
        return nano if nano.model == shapes else cls.load("wan")

    @classmethod
    def load(cls, name_or_path: str) -> ErrorProfile:
        """A shipped profile by name (``nano``, ``wan``) or one from a JSON file."""
        shipped = resources.files(__package__) / "profiles" / f"{name_or_path}.json"
        try:
            return cls.from_json(read_small(shipped if shipped.is_file() else Path(name_or_path)))
        except (OSError, UnicodeDecodeError):
            text = f"no error profile {name_or_path!r}: neither shipped (nano, wan) nor a file; auto chooses one"
            raise ValueError(text) from None


MOST_BYTES = 1 << 20  # of a profile's file; they have a few thousand


def read_small(source: Path) -> str:
    """The text of a file of at most a megabyte.

    Raises:
        OSError: it is no plain file (a device would never end), or longer.
    """
    if not source.is_file():
        raise OSError(f"{source} is not a file")
    with source.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(f"{source} is too long for a profile")
    return content.decode("utf-8")
