"""Context chosen by what it shows and by how much the edit looks at it (HetCache, arXiv 2603.24260, section 3).

At a full evaluation the context tokens of one attention layer are clustered by K-Means, and every token gets as its
importance the attention that generative tokens pay to it; each cluster then keeps its most important tokens. The paper
leaves open which features, which layer, how to cluster, and what a kept token stands for. Our choices: the layer's
values (keys carry rotary position) projected to 64 dimensions, five of Lloyd's rounds from k-means++ rows, the middle
main block, the conditional stream where the first call tells it, and a log-weight per cluster, since a cluster's few
stand for all of it: where importance is known, by as much attention as the cluster got over what they got themselves,
else by its size over their number. The paper chooses at every partial evaluation; here a choice holds until the next
full one, which sees all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .context import even_positions

CLUSTERS = 16  # the paper's K
ITERATIONS = 5
QUERIES = 256  # generative tokens whose attention is looked at
FEATURES = 64  # dimensions the values are projected to before clustering
GOLDEN = 2654435769  # of 2**32: multiples of it are spread evenly
MODES = ("kmeans", "attention", "both")


class SemanticSampler:
    """Picks context tokens by cluster, by importance, or by both; always the same number, in token order.

    Before the first look it picks an even spread.

    Args:
        pool: sorted token indices to pick from ``[P]``.
        generative: sorted indices of the tokens whose attention counts ``[G]``.
        mode: ``kmeans`` (an even spread within each cluster), ``attention`` (most important overall), ``both`` (most
            important within each cluster, the paper's).
        share: share of the pool to pick.
    """

    def __init__(self, pool: Tensor, generative: Tensor, mode: str, share: float):
        if mode not in MODES:
            raise ValueError(f"unknown semantic sampling {mode!r}; choose one of {', '.join(MODES)}")
        self.pool, self.mode = pool, mode
        self.count = min(len(pool), round(share * len(pool)))
        seen = min(QUERIES, len(generative))
        self._queries = generative[even_positions(len(generative), seen, device=generative.device)]
        self._choose(torch.zeros(len(pool), dtype=torch.long, device=pool.device), None)

    def look(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Choose anew.

        Args:
            query, key, value: all tokens of one stream in one layer, ``[rows, L, heads, head_dim]``; the first row is
                looked at.
        """
        if not self.count:
            return
        if self.mode == "attention":
            labels = torch.zeros(len(self.pool), dtype=torch.long, device=self.pool.device)
        else:
            labels = kmeans(project(value[0, self.pool].flatten(1)), min(CLUSTERS, self.count))
        scores = None if self.mode == "kmeans" else importance(query[0, self._queries], key[0])[self.pool]
        self._choose(labels, scores)

    def pick(self, computed_at: Tensor) -> Tensor:
        """The pick, sorted ``[count]``; the same until the next :meth:`look`."""
        return self._picked

    @property
    def log_weights(self) -> Tensor:
        """Log of how many tokens each picked one stands for, float32 ``[count]``."""
        return self._weights.log()

    def _choose(self, labels: Tensor, scores: Tensor | None) -> None:
        chosen, weights = best_of_clusters(labels, scores, self.count)
        self._picked, self._weights = self.pool[chosen], weights


def project(features: Tensor) -> Tensor:
    """Features ``[N, D]`` -> float32 ``[N, min(D, 64)]`` by fixed random directions, which keep distances."""
    if features.shape[1] <= FEATURES:
        return features.float()
    directions = torch.randn(features.shape[1], FEATURES, generator=torch.Generator().manual_seed(0))
    return (features @ directions.to(features)).float()


def kmeans(features: Tensor, clusters: int, iterations: int = ITERATIONS) -> Tensor:
    """Cluster of each row, int64 ``[N]``: Lloyd's algorithm from k-means++ seeds; a cluster may end up empty.

    A seed is drawn by its squared distance from those before (Arthur and Vassilvitskii, 2007), here at fractions spread
    evenly rather than at random: outliers become seeds, but not all of them.

    Args:
        features: float32 ``[N, D]``.
    """
    centres, apart = features[:1], torch.cdist(features, features[:1])[:, 0].square()
    for i in range(1, clusters):
        mass = (apart / apart.max().clamp_min(1e-30) * 2**20).long().cumsum(0)  # of floats a GPU adds in any order
        share = i * GOLDEN % 2**32 >> 16
        drawn = torch.searchsorted(mass, (mass[-1:] * share >> 16) + 1).clamp_max(len(features) - 1)
        centres = torch.cat([centres, features.index_select(0, drawn)])  # indexing by a number waits for the device
        apart = torch.minimum(apart, torch.cdist(features, centres[-1:])[:, 0].square())
    for _ in range(iterations):
        labels = torch.cdist(features, centres).argmin(1)
        counts = torch.bincount(labels, minlength=clusters)
        sums = one_hot(labels, clusters).to(features).T @ features  # index_add_ adds in any order on a GPU
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return labels


def importance(query: Tensor, key: Tensor) -> Tensor:
    """Mean attention of some queries to every key, float32 ``[L]``: softmax over *all* keys, mean over heads.

    One head at a time, so no more than queries x keys numbers are held.

    Args:
        query: ``[Q, heads, head_dim]``. key: ``[L, heads, head_dim]``.
    """
    total = torch.zeros(key.shape[0], device=key.device)
    for head in range(key.shape[1]):
        logits = (query[:, head] @ key[:, head].T).float() * query.shape[-1] ** -0.5
        total += logits.softmax(-1).mean(0)
    return total / key.shape[1]


def best_of_clusters(labels: Tensor, scores: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Keep ``count`` rows, from each cluster in proportion to its size and at least one where ``count`` allows.

    Args:
        labels: int64 ``[N]``.
        scores: ``[N]``, the highest of a cluster are kept; None keeps an even spread of it.

    Returns:
        Sorted positions ``[count]`` and how many rows of its cluster each stands for, float32 ``[count]``: as many as
        got the cluster's score, where there are scores, else as many as there are.
    """
    sizes = torch.bincount(labels)
    kept = _proportional(sizes, count)
    if scores is None:
        rank = _even_rank(labels, sizes)
    else:
        by_score = scores.argsort(descending=True, stable=True)
        rank = torch.empty_like(labels)
        grouped = by_score[labels[by_score].argsort(stable=True)]
        starts = sizes.cumsum(0) - sizes
        rank[grouped] = torch.arange(len(labels), device=labels.device) - starts[labels[grouped]]
    keeps = rank < kept[labels]
    chosen = keeps.nonzero().flatten()
    if scores is None:
        return chosen, (sizes.float() / kept.clamp_min(1).float())[labels[chosen]]
    mine = one_hot(labels, len(sizes)).to(scores)
    whole, part = scores @ mine, (scores * keeps) @ mine
    return chosen, (whole / part.clamp_min(1e-30)).clamp_min(1.0)[labels[chosen]]


def _proportional(sizes: Tensor, count: int) -> Tensor:
    """How many each cluster keeps, ``count`` in all: one where that is possible, then by largest remainder."""
    first = (sizes > 0).long()
    if count < int(first.sum()):
        first = torch.zeros_like(sizes)
    room, rest = sizes - first, count - int(first.sum())
    shares = room * rest  # in whole numbers: not every device has float64
    more = shares // max(int(room.sum()), 1)
    remainder = shares % max(int(room.sum()), 1)
    more[remainder.argsort(descending=True, stable=True)[: rest - int(more.sum())]] += 1
    return first + more


def _even_rank(labels: Tensor, sizes: Tensor) -> Tensor:
    """Rank of each row within its cluster in an order whose first few are spread evenly over it."""
    grouped = labels.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes)[labels[grouped]]
    place = torch.arange(len(labels), device=labels.device) - starts
    spread = place * GOLDEN % 2**32  # a fraction of 2**32, for not every device has float64
    order = (labels[grouped] * 2**32 + spread).argsort(stable=True)
    rank = torch.empty_like(labels)
    rank[grouped[order]] = torch.arange(len(labels), device=labels.device) - starts[order]
    return rank

