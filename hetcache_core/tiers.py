"""Ways to remember context, from best to smallest."""

from __future__ import annotations

from dataclasses import dataclass

from .packed import WIDEST, packed_bytes

_TIMES, _CHANNELS = 2 * 4, 2 * 4  # bytes a row and a channel: when it was computed and before; centre and spread


@dataclass(frozen=True)
class MemoryTier:
    """How context is remembered.

    Args:
        share: share of the context whose keys and values are kept, 0 to 1.
        bits: of a number of the values, one of :data:`hetcache_core.packed.WIDEST`; None keeps the model's dtype.
        turn_bits: the same for slopes and bends.
        apart_bits: of the other streams' differences from the first, which are then all that is kept of them; 0 keeps
            none, the first's context serves all; None keeps each as the first.
        offload: kept in (pinned) host memory and fetched layer by layer.
        order: 0 holds what is remembered, 1 extrapolates its slope, 2 its bend too; each is another copy.
    """

    share: float = 1.0
    bits: int | None = None
    turn_bits: int | None = None
    apart_bits: int | None = None
    offload: bool = False
    order: int = 2

    def __post_init__(self):
        for name, none in (("bits", ()), ("turn_bits", ()), ("apart_bits", (0,))):
            if getattr(self, name) not in (None, *none, *WIDEST):
                raise ValueError(f"{name} must be one of {', '.join(map(str, (*none, *WIDEST)))}")

    @property
    def follows(self) -> bool:
        """Whether partial evaluations see the context nearly as it is: all of it, each stream's own, moving."""
        return self.order > 0 and self.share >= 1 and self.apart_bits != 0

    @property
    def packed(self) -> bool:
        """Whether a stream's own numbers are kept in fewer bits."""
        return self.bits is not None or self.turn_bits is not None

    def kept(self, context_tokens: int) -> int:
        """Number of context tokens remembered."""
        return min(context_tokens, round(self.share * context_tokens))

    def bytes(self, context_tokens: int, dim: int, layers: int, streams: int, itemsize: int, rows: int = 1) -> int:
        """Bytes of device or host memory this tier holds.

        Args:
            context_tokens: context tokens of the clip.
            dim: model width (keys and values are this wide).
            layers: self-attention layers, main and VACE.
            streams: streams that are told apart.
            itemsize: bytes of the model's dtype.
            rows: batch rows of a stream.
        """
        kept = self.kept(context_tokens)
        if not kept:
            return 0
        values, turns, others = (
            packed_bytes(bits, rows * kept, dim, itemsize) for bits in (self.bits, self.turn_bits, self.apart_bits)
        )
        own = values + self.order * turns + _TIMES * kept + self.packed * _CHANNELS * dim
        if self.apart_bits is None:
            return 2 * layers * streams * own
        return 2 * layers * (own + (streams - 1) * bool(self.apart_bits) * (others + _CHANNELS * dim))

    def __str__(self) -> str:
        if not self.share:
            return "none"
        words = [f"{self.share:.0%} of the context"]
        words += [f"{self.bits} bits"] if self.bits is not None else []
        turns = ("held", "slopes", "slopes and bends")[self.order]
        if self.order and self.turn_bits is not None:
            words.append(f"{turns} in {self.turn_bits}")
        elif self.order < 2:
            words.append(turns)
        words += [f"differences in {self.apart_bits}"] if self.apart_bits else []
        words += [word for word, said in (("shared", self.apart_bits == 0), ("offload", self.offload)) if said]
        return ", ".join(words)


NO_MEMORY = MemoryTier(share=0.0, order=0)

# Best first (`python -m benchmarks.tiers`): less than half of the context, known well, is worth less than more of it
# that is known roughly.
LADDER = (
    MemoryTier(),
    MemoryTier(turn_bits=4),
    MemoryTier(turn_bits=4, apart_bits=4),
    MemoryTier(bits=8, turn_bits=4, apart_bits=4),
    MemoryTier(bits=8, turn_bits=2, apart_bits=4),
    MemoryTier(bits=8, turn_bits=2, apart_bits=2),
    MemoryTier(bits=8, turn_bits=2, apart_bits=2, order=1),
    *(MemoryTier(percent / 100, bits=6, turn_bits=2, apart_bits=2, order=1) for percent in range(100, 45, -5)),
    *(MemoryTier(percent / 100, bits=4, apart_bits=0, order=0) for percent in range(100, 0, -1)),
)
