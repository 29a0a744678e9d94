"""Block profiles: which blocks of a model attend to the edit and which to what surrounds it.

Source of the idea and of the score: ProfilingDiT (arXiv 2504.03140, section 3.2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from torch import Tensor

from .blocks import BlockSplit
from .costs import ModelShape
from .profile import read_small

ALIKE = 0.1  # weights that differ by less, of their size, are the same but for their number format


@dataclass(frozen=True)
class BlockProfile:
    """Background blocks of one model, and the scores that say so.

    Args:
        name: of the model, for reports.
        dim, layers, ffn, vace_layers: of the model: width, main blocks, feed-forward width, VACE blocks.
        background: indices of the background blocks, rising.
        scores: how much each main block attends to the edit, ``[layers]`` in 0 to 1 (:class:`BlockScores`); empty where
            a list was published without them.
        threshold: blocks that score below it are background; None where there are no scores.
        weights: a few numbers from the model's weights, which tell differently trained models apart; may be empty.
        source: how it was obtained.

    Raises:
        ValueError: values that cannot be, named.
    """

    name: str
    dim: int
    layers: int
    ffn: int
    vace_layers: int
    background: tuple[int, ...]
    scores: tuple[float, ...] = ()
    threshold: float | None = None
    weights: tuple[float, ...] = ()
    source: str = ""

    def __post_init__(self):
        for name in ("dim", "layers", "ffn", "vace_layers"):
            value = getattr(self, name)
            if type(value) is not int or value < (name != "vace_layers"):
                raise ValueError(f"block profile field {name} must be a whole number, got {value!r}")
        for name in ("scores", "weights"):
            values = tuple(float(v) for v in getattr(self, name))
            if not all(map(math.isfinite, values)):
                raise ValueError(f"block profile field {name} has values that are not finite")
            object.__setattr__(self, name, values)
        if self.scores and len(self.scores) != self.layers:
            raise ValueError(f"block profile has {len(self.scores)} scores for {self.layers} blocks")
        object.__setattr__(self, "background", self.split.background)

    @property
    def split(self) -> BlockSplit:
        return BlockSplit(self.layers, tuple(self.background))

    @classmethod
    def of_scores(
        cls, shape: ModelShape, scores: Sequence[float], threshold: float | None = None, share: float = 0.7, **rest
    ) -> BlockProfile:
        """Split blocks by their scores.

        Args:
            shape: of the model. scores: of its main blocks.
            threshold: background scores below it. None: taken so that the ``share`` of lowest scores is background
                (the published list of the 14B model has 28 of 40).
            rest: name, weights, source.

        Raises:
            ValueError: a share that is none, or scores that do not fit the model.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is what part of the blocks is background, from 0 to 1, got {share!r}")
        if threshold is None:
            count = min(round(share * len(scores)), len(scores))
            ranked = sorted(scores)
            threshold = math.inf if count == len(scores) else ranked[count]
            threshold = threshold if math.isfinite(threshold) else ranked[-1] + 1.0
        background = tuple(i for i, score in enumerate(scores) if score < threshold)
        return cls(dim=shape.dim, layers=shape.layers, ffn=shape.ffn, vace_layers=shape.vace_layers,
                   background=background, scores=tuple(scores), threshold=float(threshold), **rest)  # fmt: skip

    def check(self, shape: ModelShape) -> None:
        """Refuse a model of other sizes (several VACE controls count its VACE blocks several times).

        Raises:
            ValueError: naming both sizes.
        """
        mine, other = (self.layers, self.dim, self.ffn), (shape.layers, shape.dim, shape.ffn)
        vace = shape.vace_layers % self.vace_layers == 0 if self.vace_layers and shape.vace_layers else True
        if mine != other or not vace:
            raise ValueError(
                f"block profile {self.name!r} belongs to another model: {self.layers} blocks of width {self.dim}, "
                f"this one has {shape.layers} of width {shape.dim}; profile this model, or choose 'auto'"
            )

    def matches(self, weights: Sequence[float]) -> bool:
        """Whether these numbers could be from the profiled model; True where either side has none."""
        if not self.weights or len(weights) != len(self.weights):
            return True
        size = max(map(abs, self.weights))
        return all(abs(a - b) <= ALIKE * size for a, b in zip(self.weights, weights, strict=True))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> BlockProfile:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: not a block profile, or values that cannot be.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not a block profile: {error}") from None

    @classmethod
    def load(cls, name_or_path: str) -> BlockProfile:
        """A shipped profile by name (``nano``, ``wan14b``) or one from a JSON file.

        Raises:
            ValueError: no such profile, or none in that file.
        """
        shipped = resources.files(__package__) / "profiles" / f"blocks_{name_or_path}.json"
        try:
            return cls.from_json(read_small(shipped if shipped.is_file() else Path(name_or_path)))
        except (OSError, UnicodeDecodeError):
            known = ", ".join(SHIPPED)
            text = f"no block profile {name_or_path!r}: neither shipped ({known}) nor a file; auto chooses one"
            raise ValueError(text) from None


SHIPPED = ("nano", "wan14b")


def split_for(name: str, shape: ModelShape, weights: Sequence[float] = ()) -> tuple[BlockSplit, str]:
    """The split of a model's blocks, and what should be known about where it is from (may be empty).

    Args:
        name: of a profile, a JSON file, or ``auto``: the shipped profile of a model of this shape, else the published
            list of the 14B model stretched to this model's depth (ours: no list is published for others).

    Raises:
        ValueError: no such profile, or one of another model.
    """
    if name == "auto":
        shipped = next((p for p in map(BlockProfile.load, SHIPPED) if _fits(p, shape)), None)
        if shipped is None:
            return stretched(BlockProfile.load("wan14b").split, shape.layers), (
                "this model's blocks are not profiled: the list published for Wan 14B is stretched to its "
                f"{shape.layers} blocks; HetCache Profile Model measures yours"
            )
        profile = shipped
    else:
        profile = BlockProfile.load(name)
        profile.check(shape)
    note = "" if profile.matches(weights) else f"block profile {profile.name!r} was measured on other weights"
    return profile.split, note


def sampled_weights(tables: Sequence[Tensor]) -> tuple[float, ...]:
    """A few numbers from a model's weights: the first of each block's modulation table, which adapters leave alone.

    Args:
        tables: of the main blocks, of any shape.
    """
    try:
        return tuple(float(table.detach().reshape(-1)[0]) for table in tables)
    except (RuntimeError, NotImplementedError):  # weights that are elsewhere now
        return ()


def stretched(split: BlockSplit, layers: int) -> BlockSplit:
    """A split laid over a model of another depth, each block taking the place it has in proportion."""
    known, last = set(split.background), max(layers - 1, 1)
    places = (round(i * (split.blocks - 1) / last) for i in range(layers))
    return BlockSplit(layers, tuple(i for i, place in enumerate(places) if place in known))


def _fits(profile: BlockProfile, shape: ModelShape) -> bool:
    try:
        profile.check(shape)
    except ValueError:
        return False
    return True
