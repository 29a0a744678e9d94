"""How much a model's prediction changes from one evaluation to the next: the measured data behind the planner.

A profile is data, not code: ``profiles/*.json`` holds one measured on nano and one whose shape follows the literature
on real Wan models; a user's own, measured by :class:`hetcache_core.signals.ChangeRecorder`, loads the same way.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from .costs import ModelShape


@dataclass(frozen=True)
class ErrorProfile:
    """Change of the prediction along a schedule of ``steps`` evaluations, relative to its size.

    Args:
        name: of the model it was measured on.
        steps: evaluations of the measured schedule; differences scale with 1/n (first) and 1/n**2 (second).
        first, second: first and second differences in the evaluation index, at even positions from the first
            evaluation to the last, of generative tokens.
        context_first, context_second: the same for context tokens.
        staleness: error that remembered context of age 1 causes in generative tokens, per unit of
            ``context_first`` (measured by partial evaluations with nothing else approximated).
        spill: share of the context's forecast error that reaches generative tokens.
        overhead: cost of a partial evaluation beyond its share of a full one's arithmetic, in full evaluations.
        warmup: share of the evaluations that are full at the start.
        model: ``(dim, layers, ffn, vace_layers)`` of the model it belongs to, or None for any.
        source: how it was obtained.
    """

    name: str
    steps: int
    first: tuple[float, ...]
    second: tuple[float, ...]
    context_first: tuple[float, ...]
    context_second: tuple[float, ...]
    staleness: float = 0.1
    spill: float = 0.1
    overhead: float = 0.02
    warmup: float = 0.15
    model: tuple[int, int, int, int] | None = None
    source: str = ""

    def __post_init__(self):
        for name in ("first", "second", "context_first", "context_second"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) < 2 or not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"profile field {name} needs at least two finite values of 0 or more")
            object.__setattr__(self, name, values)
        if type(self.steps) is not int or self.steps < 2:
            raise ValueError(f"profile field steps must be a whole number of 2 or more, got {self.steps!r}")
        if self.model is not None:
            object.__setattr__(self, "model", tuple(self.model))
        for name in ("staleness", "spill", "overhead", "warmup"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"profile field {name} must lie between 0 and 10, got {getattr(self, name)!r}")

    def at(self, field: str, evaluations: int) -> np.ndarray:
        """One of the four curves resampled and rescaled for a schedule of ``evaluations``, float64 ``[n]``."""
        curve = np.asarray(getattr(self, field))
        order = 2 if field.endswith("second") else 1
        positions = np.linspace(0.0, 1.0, max(evaluations, 2))[:evaluations]
        return np.interp(positions, np.linspace(0.0, 1.0, len(curve)), curve) * (self.steps / evaluations) ** order

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
        source = shipped if shipped.is_file() else Path(name_or_path)
        try:
            return cls.from_json(source.read_text(encoding="utf-8"))
        except OSError:
            raise ValueError(f"no error profile {name_or_path!r}: neither shipped nor a file") from None
