"""What a run that caches starts with: token sampler, memories, costs and the method that decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .block_profile import split_for
from .blocks import BlockCache, delta_bytes, fitting
from .context import ContextSampler, RememberedContext, even_positions, remember
from .costs import Costs
from .error_model import BLOCKS, PARTIAL, REUSE, Rules
from .memory import ContextMemory
from .methods import Method, Planned
from .methods.hetcache import HetCache
from .methods.mixcache import MixCache
from .methods.profilingdit import timeline
from .methods.replanned import Replanned
from .partial import Partials
from .plan import Plan, plan, slack
from .policy import FEW_STEPS, CachePolicy
from .profile import USUAL_SHARE, ErrorProfile
from .semantic import MODES, SemanticSampler
from .setup import RunSetup, budget_note, choose_tier, tier_bytes
from .tiers import NO_MEMORY, MemoryTier

SHARES, MORE = (USUAL_SHARE, 0.05, 0.0), 0.3
SAMPLE = 64  # tokens whose block deltas are compared


@dataclass
class Prepared:
    """A run's parts, ready to use.

    Args:
        method: decides. plan: what it will do, None where it decides online. note: what should be known about it.
        partials: what partial evaluations rest on. tier: how context is remembered; context_bytes: it will hold.
        blocks: for background blocks' deltas, None where they are not reused; block_bytes: it will hold.
        costs: of each kind of evaluation.
    """

    method: Method
    plan: Plan | None
    note: str
    partials: Partials
    tier: MemoryTier
    context_bytes: int
    blocks: BlockCache | None
    block_bytes: int
    costs: Costs


def prepare(policy: CachePolicy, setup: RunSetup) -> Prepared:
    """Choose everything a run needs, within the policy's memory budget.

    Raises:
        ValueError: a profile that cannot be read or belongs to another model.
    """
    policy = policy.settled()
    profile = ErrorProfile.for_model(setup.shape) if policy.profile == "auto" else ErrorProfile.load(policy.profile)
    prepared = _prepare(policy, setup, profile)
    if policy.method == "plan" and not policy.schedule and profile.blocks is not None and not prepared.blocks:
        # the plan was free to reuse blocks and does not: the budget it set aside for them is the context's
        return _prepare(policy, setup, replace(profile, blocks=None))
    return prepared


def _prepare(policy: CachePolicy, setup: RunSetup, profile: ErrorProfile) -> Prepared:
    classes, shape = setup.classes, setup.shape
    blocks, block_bytes, block_note = _blocks(policy, setup, profile)
    tier = choose_tier(policy, setup, taken=block_bytes)
    remembered = remember(classes, tier.share)
    # without memory, reference images are still to be seen
    always = classes.edited if tier.share else torch.cat([classes.references, classes.edited])
    background = len(blocks.split.background) if blocks else 0
    tried = []
    for share in _context_shares(policy):
        sampler, watched = _sampler(policy, setup, remembered, bool(tier.share), share)
        selected = len(always) + sampler.count
        kept = len(remembered.indices) if tier.share else 0
        keys = len(classes.edited) + kept if kept else selected
        costs = Costs.of(
            shape, setup.grid.size, selected, keys, profile.overhead,
            kept, profile.storing[tier.packed], profile.joining[tier.packed], background, setup.streams,
        )  # fmt: skip
        partials = policy.partials and not setup.no_partials and costs.partial < 0.95
        rules = Rules.of(policy, profile, setup.evaluations, partials, setup.streams, background > 0, not tier.follows)
        assumed = profile.renewing(share, setup.evaluations <= FEW_STEPS) if tier.share else profile
        tried.append((sampler, watched, costs, *_method(policy, setup, costs, rules, assumed)))
        planned = tried[-1][-1]
        reached = _rank(planned, policy.speed, rules)[0] == 0
        enough = len(tried) > 1 and reached and setup.evaluations > FEW_STEPS
        if policy.method != "plan" or policy.schedule or enough:
            break
    sampler, watched, costs, method, planned = min(tried, key=lambda each: _rank(each[-1], policy.speed, rules))
    held = tier.share and method.expects(PARTIAL, -1)
    if not method.expects(BLOCKS, -1):
        blocks, block_bytes, block_note = None, 0, ""
    memory = None
    if held:
        size = (setup.grid.size, shape.attention_layers)
        memory = ContextMemory(remembered, *size, tier, setup.streams, setup.conditional)
    notes = [
        "" if policy.method == "profilingdit" else setup.no_partials,
        planned.note if planned else "",
        block_note,
    ]
    if not any(notes) and method.expects(PARTIAL, -1):  # one thing at a time: what comes first weighs more
        notes.append(budget_note(policy, setup, tier, block_bytes))
    return Prepared(
        method=method,
        plan=planned,
        note="; ".join(text for text in notes if text),
        partials=Partials(always, sampler, watched, memory, setup.grid.size),
        tier=tier if held else NO_MEMORY,
        context_bytes=tier_bytes(tier, setup) if held else 0,
        blocks=blocks,
        block_bytes=block_bytes,
        costs=costs,
    )


def _method(
    policy: CachePolicy, setup: RunSetup, costs: Costs, rules: Rules, profile: ErrorProfile
) -> tuple[Method, Plan | None]:
    """The policy's method, and its plan where it has one."""
    evaluations = setup.evaluations
    positions = [setup.position(evaluation) for evaluation in range(evaluations)]
    if policy.method == "hetcache":
        return HetCache(policy.threshold, policy.partial_factor, positions, rules), None
    if policy.method == "mixcache":
        return MixCache(policy.trigger, policy.deviation, positions, rules, profile.impacts), None
    if policy.method == "profilingdit":
        decisions = timeline(evaluations, policy.interval, policy.interval_min, policy.warmup, policy.cooldown or 0)
        planned = Plan.given(decisions, evaluations, costs)
    elif policy.schedule:
        planned = Plan.given(policy.schedule, evaluations, costs)
    else:
        planned = plan(setup.sigmas, costs, policy.speed, rules, profile)
        if policy.replan and len(set(setup.sigmas)) == len(setup.sigmas):  # several evaluations a level: too unlike
            return Replanned(planned, setup.sigmas, policy.speed, rules, profile), planned
    return Planned(planned), planned


def _context_shares(policy: CachePolicy) -> tuple[float, ...]:
    """Shares of the context to compute again on partial evaluations, in the order to try them: the usual one, one that
    may be better, and, where neither reaches the speed or steps are few, less."""
    if policy.context_share is not None:
        return (policy.context_share,)
    return SHARES if policy.speed > 2.5 else (USUAL_SHARE, MORE, *SHARES[1:])


def _rank(planned: Plan | None, speed: float, rules: Rules) -> tuple[int, bool, float]:
    """Order of plans: those that reach the speed by their error, with runs of reuse as short as usual first; then those
    that miss it by their speed."""
    if planned is None:
        return 0, False, 0.0
    if planned.predicted_speed * slack(len(planned.decisions)) < speed:
        return 1, False, -planned.predicted_speed
    long = bool(rules.usual_reuse) and REUSE * (rules.usual_reuse + 1) in planned.decisions
    return 0, long, planned.predicted_error


def _sampler(
    policy: CachePolicy, setup: RunSetup, remembered: RememberedContext, remembers: bool, share: float
) -> tuple[ContextSampler | SemanticSampler, int]:
    """Who chooses context, and the self-attention layer it must see (-1: none)."""
    classes, mode = setup.classes, policy.context_sampling
    pool = remembered.indices if remembers else classes.context[len(classes.references) :]
    if not remembers and mode == "stalest":
        mode = "rotating"  # a weighted prune needs an unbiased sample
    if mode in MODES:
        sampler = SemanticSampler(pool, classes.generative.nonzero().flatten(), mode, share)
        layers = setup.main_layers or range(setup.shape.attention_layers)
        return sampler, layers[len(layers) // 2]
    return ContextSampler(pool, mode, share), -1


def _blocks(policy: CachePolicy, setup: RunSetup, profile: ErrorProfile) -> tuple[BlockCache | None, int, str]:
    """Where deltas will be kept, the bytes they will take, and what should be known about them."""
    planned = policy.method == "plan" and not policy.schedule and profile.blocks is not None
    if policy.method not in ("profilingdit", "mixcache") and BLOCKS not in policy.schedule and not planned:
        return None, 0, ""
    if setup.no_blocks:
        return None, 0, setup.no_blocks
    split, source = split_for(policy.block_profile, setup.shape, setup.weights)
    size = (setup.grid.size, setup.shape.dim, setup.streams, setup.itemsize, setup.rows)
    split, short = fitting(split, policy.memory_budget_mb * 2**20, *size)
    empty = "" if split.background or short else "the block profile names no background blocks: all are computed"
    notes = "; ".join(text for text in (source, short, empty) if text)
    if short and not split.background:
        return None, 0, notes
    sample = None
    if policy.method == "mixcache":  # which weighs blocks by their change in the edit
        edit = setup.classes.generative.nonzero().flatten()
        sample = edit[even_positions(len(edit), min(SAMPLE, len(edit)), device=edit.device)]
    return BlockCache(split, setup.streams, sample), delta_bytes(split, *size), notes
