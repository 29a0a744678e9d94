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
        projections = 2 * queries * self.dim**2 * (self.vace_layers + bool(self.vace_layers))
        return self.attention_layers * self.block_flops(queries, keys) + projections

    def block_flops(self, queries: int, keys: int) -> float:
        """The same for one block."""
        d, n = self.dim, queries
        per_token = 8 * d * d + 4 * d * d + 4 * d * self.ffn + 4 * self.text_tokens * d
        return n * per_token + 4 * n * keys * d + 4 * self.text_tokens * d * d


@dataclass(frozen=True)
class Costs:
    """What evaluations cost, in full ones: a partial one, a reuse, one that reuses background blocks or guidance."""

    partial: float
    reuse: float = 0.003
    blocks: float = 1.0
    guidance: float = 1.0

    @property
    def half(self) -> float:
        """A partial one that reuses guidance."""
        return self.partial * self.guidance

    def __post_init__(self):
        if not 0 < self.partial or not 0 <= self.reuse or not 0 < self.blocks or not 0 < self.guidance:
            raise ValueError(f"costs must be positive, got {self}")

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        tokens: int,
        selected: int,
        keys: int,
        overhead: float = 0.02,
        background: int = 0,
        streams: int = 1,
    ) -> Costs:
        """Costs of a run.

        Args:
            tokens: of the full grid. selected: computed on a partial evaluation. keys: those it attends to.
            overhead: of a partial evaluation beyond its arithmetic, in full evaluations.
            background: main blocks that are reused where blocks are; the VACE branch is always computed.
            streams: of an evaluation; where guidance is reused, one of them is computed.
        """
        full = shape.flops(tokens, tokens)
        return cls(
            partial=overhead + shape.flops(selected, keys) / full,
            blocks=1 - background * shape.block_flops(tokens, tokens) / full,
            guidance=1.0 if streams == 1 else 1 / streams + cls.reuse,
        )
