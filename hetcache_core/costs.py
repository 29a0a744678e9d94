"""What an evaluation costs, from token counts alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes that decide the arithmetic of one forward pass.

    Args:
        dim: width. layers: main blocks. ffn: feed-forward width. vace_layers: VACE blocks.
        text_tokens: prompt tokens cross-attention reads.
    """

    dim: int
    layers: int
    ffn: int
    vace_layers: int = 0
    text_tokens: int = 512

    @property
    def attention_layers(self) -> int:
        """Self-attention layers, main and VACE."""
        return self.layers + self.vace_layers

    def flops(self, queries: int, keys: int) -> float:
        """Floating-point operations (2 per multiply-add) of one batch row that computes ``queries`` tokens, each of
        which attends to ``keys``. Patch embedding and head are left out (under 0.5%)."""
        d, n = self.dim, queries
        per_token = 8 * d * d + 4 * d * d + 4 * d * self.ffn + 4 * self.text_tokens * d
        layer = n * per_token + 4 * n * keys * d + 4 * self.text_tokens * d * d
        projections = 2 * n * d * d * (self.vace_layers + bool(self.vace_layers))
        return self.attention_layers * layer + projections


@dataclass(frozen=True)
class Costs:
    """Cost of a partial and of a reuse evaluation, in full evaluations."""

    partial: float
    reuse: float = 0.003

    def __post_init__(self):
        if not 0 < self.partial or not 0 <= self.reuse:
            raise ValueError(f"costs must be positive, got partial {self.partial}, reuse {self.reuse}")

    @classmethod
    def of(cls, shape: ModelShape, tokens: int, selected: int, keys: int, overhead: float = 0.02) -> Costs:
        """Costs of a run.

        Args:
            tokens: of the full grid. selected: computed on a partial evaluation. keys: those it attends to.
            overhead: of a partial evaluation beyond its arithmetic, in full evaluations.
        """
        return cls(partial=overhead + shape.flops(selected, keys) / shape.flops(tokens, tokens))
