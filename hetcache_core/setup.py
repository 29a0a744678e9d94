"""What is known when a sampling run starts, and what follows from it: whether to cache at all, how to remember."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

from .costs import ModelShape
from .policy import CachePolicy
from .tiers import LADDER, NO_MEMORY, MemoryTier
from .tokens import PIXELS_PER_CELL, TokenClasses, TokenGrid

RISE = 1e-4  # of noise levels; less is a rounding


@dataclass(frozen=True)
class RunSetup:
    """What a host knows when a sampling run starts.

    Args:
        grid: the token grid (reference frames included).
        sigmas: noise level of every evaluation and the final one, ``[n + 1]``, 1 = pure noise.
        shape: the model's sizes.
        classes: token classes, or None when there is no usable mask.
        reason: why everything must be computed in full, in plain words, or empty.
        itemsize: bytes of the model's dtype.
        streams: model calls of each evaluation (2 with guidance).
        rows: batch rows of each call.
        conditional: key of the positive prompt's stream, where the host can tell.
        stochastic: whether the sampler adds noise (then x0 is forecast, not v).
        no_partials: why partial evaluations are impossible on this model, or empty.
        no_blocks: why single blocks cannot be left out on this model, or empty.
        main_layers: which self-attention layers, in call order, are the main blocks'; empty where that is unknown.
        weights: a few numbers from the model's weights, by which a block profile knows it; may be empty.
        interrupts: exceptions by which the host stops a run; they are never taken for failures.
        cell: pixels along a side of a latent cell.
        mask_threshold: by which the classes were found.
    """

    grid: TokenGrid
    sigmas: tuple[float, ...]
    shape: ModelShape
    classes: TokenClasses | None = None
    reason: str = ""
    itemsize: int = 4
    streams: int = 2
    rows: int = 1
    conditional: Hashable = None
    stochastic: bool = False
    no_partials: str = ""
    no_blocks: str = ""
    main_layers: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    interrupts: tuple[type[BaseException], ...] = ()
    cell: int = PIXELS_PER_CELL
    mask_threshold: float | None = None

    @property
    def evaluations(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    def position(self, evaluation: int) -> float:
        """Place of an evaluation along the schedule: its number among the distinct noise levels."""
        last = self.evaluations - 1
        levels = self.sigmas[: min(max(evaluation, 0), last) + 1]
        return float(len(dict.fromkeys(levels)) - 1 + max(evaluation - last, 0))


def why_full(policy: CachePolicy, setup: RunSetup) -> str:
    """Why a run must be computed in full, in plain words; empty when it need not be."""
    if policy.method == "off":
        return "the method is off"
    if policy.method == "measure":
        return "this run only measures how predictions change"
    if policy.method == "profile":
        return "this run only measures which blocks look at the edit"
    if policy.exact:
        return "speed 1.0 asks for the exact output"
    if setup.reason:
        return setup.reason
    if any(after - before > RISE for before, after in pairwise(setup.sigmas)):
        return "the sampler goes back to noisier steps (as heunpp2 does), where nothing can be forecast; take another"
    if setup.classes is None or not bool(setup.classes.generative.any()):
        return "the mask is empty: there is nothing to edit; connect a mask that covers the region to change"
    fraction = setup.classes.mask_fraction
    if fraction > policy.max_mask_fraction:
        return (
            f"the mask covers {fraction:.0%} of the clip, more than {policy.max_mask_fraction:.0%}; "
            "caching pays for smaller edits"
        )
    if setup.evaluations < 2:
        return "the schedule has fewer than two evaluations"
    return ""


def choose_tier(policy: CachePolicy, setup: RunSetup, taken: int = 0) -> MemoryTier:
    """The best way to remember context that fits the policy's settings and what is left of its budget.

    Args:
        taken: bytes of the budget that are spoken for.
    """
    if setup.no_partials:
        return NO_MEMORY
    budget = policy.memory_budget_mb * 2**20 - taken
    # what is fetched anew every time had better be small
    for rung in LADDER[1:] if policy.memory_offload else LADDER:
        tier = _as_asked(rung, policy, setup)
        if tier_bytes(tier, setup) <= budget:
            return tier if tier.kept(len(setup.classes.context)) else NO_MEMORY
    return NO_MEMORY


def budget_note(policy: CachePolicy, setup: RunSetup, tier: MemoryTier, taken: int = 0) -> str:
    """What budget would let partial evaluations see the context as it moves, where this one does not; else empty."""
    following = [asked for rung in LADDER if (asked := _as_asked(rung, policy, setup)).follows]
    if tier.follows or not following:  # not for the budget, but by the policy or for the sampler
        return ""
    needed = 64 * math.ceil((tier_bytes(following[-1], setup) + taken) / 2**26)
    return f"the memory budget is too small to follow the surroundings of the edit: {needed} MB would do"


def _as_asked(rung: MemoryTier, policy: CachePolicy, setup: RunSetup) -> MemoryTier:
    """A rung of the ladder where the policy does not say otherwise."""
    order = rung.order if policy.memory_order is None else policy.memory_order
    return MemoryTier(
        share=rung.share if policy.memory_share is None else policy.memory_share,
        bits=_bits(policy.memory_bits, rung.bits),
        turn_bits=_bits(policy.memory_turn_bits, rung.turn_bits),
        apart_bits=_bits(policy.memory_apart_bits, rung.apart_bits),
        offload=policy.memory_offload,
        order=0 if setup.stochastic else order,
    )


def _bits(asked: int | None, usual: int | None) -> int | None:
    return usual if asked is None else None if asked == 16 else asked


def tier_bytes(tier: MemoryTier, setup: RunSetup) -> int:
    """Bytes a tier holds in this run."""
    shape = setup.shape
    return tier.bytes(
        len(setup.classes.context), shape.dim, shape.attention_layers, setup.streams, setup.itemsize, setup.rows
    )
