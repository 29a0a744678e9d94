"""The score behind a block profile: how much of the edit the blocks of a model look at, measured in a run."""

from __future__ import annotations

import torch
from torch import Tensor

from .block_profile import BlockProfile
from .semantic import importance
from .setup import RunSetup

QUERIES = 256  # sampled evenly; never is a heads x tokens x tokens matrix in memory


class BlockScores:
    """Watches every main block's self-attention during a run that is computed in full.

    ProfilingDiT (arXiv 2504.03140, section 3.2): with a_i the mean attention to key i over queries, keys are *high*
    where a_i is above a threshold, and a block's score is ``R = |high & foreground| / |foreground|``, mean over frames.
    Ours: the foreground is the user's mask, the threshold is the mean of a_i (1 / tokens, since a row of attention sums
    to 1), queries are sampled, and heads, streams and evaluations are averaged over.

    Args:
        setup: of the run, with token classes and ``main_layers``.

    Raises:
        ValueError: the run has no mask, or its attention cannot be watched.
    """

    def __init__(self, setup: RunSetup):
        if setup.classes is None or not bool(setup.classes.generative.any()):
            raise ValueError(setup.reason or "there is no mask to measure against; connect one that covers the edit")
        if setup.no_partials or not setup.main_layers:
            raise ValueError(setup.no_partials or "this model's attention cannot be watched")
        self.setup = setup
        self._block = {layer: i for i, layer in enumerate(setup.main_layers)}
        self._sums = [0.0] * len(setup.main_layers)
        self._seen = [0] * len(setup.main_layers)

    def look(self, layer: int, query: Tensor, key: Tensor) -> None:
        """See one layer.

        Args:
            layer: index in call order; VACE blocks' are passed over.
            query, key: all tokens, ``[B, L, heads, head_dim]``, normed and rotated.
        """
        block = self._block.get(layer)
        if block is None:
            return
        for q, k in zip(query, key, strict=True):
            self._sums[block] += self.score(attention_columns(q, k))
            self._seen[block] += 1

    def score(self, columns: Tensor) -> float:
        """R of one block, from its mean attention to every key, ``[L]``."""
        grid, foreground = self.setup.grid, self.setup.classes.generative
        high = (columns > columns.mean()).view(grid.frames, -1)
        foreground = foreground.view(grid.frames, -1).to(high.device)
        sizes = foreground.sum(1)
        shares = (high & foreground).sum(1)[sizes > 0] / sizes[sizes > 0]
        return float(shares.mean())

    def profile(self, name: str, threshold: float | None = None, share: float = 0.7, source: str = "") -> BlockProfile:
        """What was measured.

        Args:
            name: of the model.
            threshold, share: how blocks are split (:meth:`BlockProfile.of_scores`).

        Raises:
            ValueError: some block was never seen.
        """
        if not all(self._seen):
            raise ValueError("not every block's attention was seen; run at least one whole step")
        scores = [total / seen for total, seen in zip(self._sums, self._seen, strict=True)]
        source = source or f"{self._seen[0]} evaluations of a run with a mask of {self.setup.classes.mask_fraction:.0%}"
        return BlockProfile.of_scores(
            self.setup.shape, scores, threshold, share, name=name, weights=self.setup.weights, source=source
        )


def attention_columns(query: Tensor, key: Tensor) -> Tensor:
    """Mean attention of evenly sampled queries to every key, float32 ``[L]``; sums to 1.

    Args:
        query, key: ``[L, heads, head_dim]``.
    """
    count = min(QUERIES, len(query))
    sampled = torch.linspace(0, len(query) - 1, count, device=query.device).round().long()
    return importance(query[sampled], key)
