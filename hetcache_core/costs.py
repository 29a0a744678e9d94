"""What an evaluation costs, from token counts and what a profile says of the work beside the arithmetic."""

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
    """What evaluations cost, in full ones that keep nothing.

    Args:
        partial: a partial one. reuse: a reuse. blocks, guidance: one that reuses background blocks, or guidance.
        storing: what a full one costs more where it stores context.
    """

    partial: float
    reuse: float = 0.003
    blocks: float = 1.0
    guidance: float = 1.0
    storing: float = 0.0

    @property
    def half(self) -> float:
        """A partial one that reuses guidance."""
        return self.partial * self.guidance

    def __post_init__(self):
        if min(self.partial, self.blocks, self.guidance) <= 0 or min(self.reuse, self.storing) < 0:
            raise ValueError(f"costs must be positive, got {self}")

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        tokens: int,
        selected: int,
        keys: int,
        overhead: float = 0.0,
        remembered: int = 0,
        storing: float = 0.0,
        joining: float = 0.0,
        background: int = 0,
        streams: int = 1,
    ) -> Costs:
        """Costs of a run.

        Args:
            tokens: of the full grid. selected: computed on a partial evaluation. keys: those it attends to.
            overhead: of a partial evaluation beyond its arithmetic, as a share of what a full one computes token by
                token, all but self-attention: measured, it grows with the tokens, not with their pairs.
            remembered: context tokens whose keys and values are stored on a full evaluation, joined on a partial one.
            storing, joining: what that takes of all tokens, as such a share.
            background: main blocks that are reused where blocks are; the VACE branch is always computed.
            streams: of an evaluation; where guidance is reused, one of them is computed.
        """
        full, token_wise, kept = shape.flops(tokens, tokens), shape.flops(tokens, 0), remembered / tokens
        return cls(
            partial=(shape.flops(selected, keys) + token_wise * (overhead + joining * kept)) / full,
            blocks=1 - background * shape.block_flops(tokens, tokens) / full,
            guidance=1.0 if streams == 1 else 1 / streams + cls.reuse,
            storing=token_wise * storing * kept / full,
        )
