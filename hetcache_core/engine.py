"""One sampling run: decide, act, record. Knows streams and latents, not hosts.

A host builds an :class:`Engine` at the first model call of a run, hands it every call with a function that runs the
model (on everything, or on a selection of tokens), and routes self-attention through :meth:`Engine.self_attention`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Attend
from .context import ContextSampler, remember
from .costs import Costs, ModelShape
from .forecast import Forecast, to_v, to_x0
from .memory import LADDER, NO_MEMORY, ContextMemory, MemoryTier
from .methods import Method, Planned
from .methods.hetcache import HetCache
from .packing import from_patches, to_patches, unpack
from .plan import FULL, PARTIAL, REUSE, Plan, Rules, plan
from .policy import CachePolicy
from .profile import ErrorProfile
from .stats import RunStats, Stopwatch
from .tokens import TokenClasses, TokenGrid

log = logging.getLogger("hetcache")

Streams = tuple[Hashable, ...]
Compute = Callable[["Tensor | None"], Tensor]


@dataclass(frozen=True)
class RunSetup:
    """What a host knows when a sampling run starts.

    Args:
        grid: the token grid (reference frames included).
        sigmas: noise level of every evaluation and the final one, ``[n + 1]``, 1 = pure noise.
        shape: the model's sizes.
        classes: token classes, or None when there is no usable mask.
        reason: why there is none, in plain words.
        itemsize: bytes of the model's dtype.
        streams: conditionings each evaluation runs (2 with cfg), batch rows counted.
        stochastic: whether the sampler adds noise (then x0 is forecast, not v).
        memory_works: whether the host can route self-attention through the engine.
    """

    grid: TokenGrid
    sigmas: tuple[float, ...]
    shape: ModelShape
    classes: TokenClasses | None
    reason: str = ""
    itemsize: int = 4
    streams: int = 2
    stochastic: bool = False
    memory_works: bool = True

    @property
    def evaluations(self) -> int:
        return max(len(self.sigmas) - 1, 0)


class Engine:
    """State of one sampling run.

    Args:
        policy: what the user asked for.
        setup: what the host knows.
    """

    def __init__(self, policy: CachePolicy, setup: RunSetup):
        self.policy, self.setup = policy, setup
        started = time.perf_counter()
        reason = _why_full(policy, setup)
        self.stats = RunStats(policy, setup.grid, setup.classes)
        self.streams: Streams = ()
        self._mode = "idle"
        self._attention_bias: Tensor | None = None
        self._forecasts: dict[Hashable, Forecast] = {}
        self._evaluation = -1
        self._decision, self._reason = FULL, ""
        self._partials_off = ""
        self._selection: Tensor | None = None
        self._exact = bool(reason)
        if reason:
            self.method: Method = Planned(Plan.full(setup.evaluations, reason), reason)
            self.memory = None
            self.stats.begin(self.method.plan, NO_MEMORY, 0, reason)
        else:
            self._prepare(policy, setup)
        self.stats.preparation_seconds = time.perf_counter() - started
        if reason and not policy.exact:
            log.warning("HetCache computes everything in full: %s", reason)

    def _prepare(self, policy: CachePolicy, setup: RunSetup) -> None:
        classes, shape = setup.classes, setup.shape
        profile = ErrorProfile.for_model(shape) if policy.profile == "auto" else ErrorProfile.load(policy.profile)
        self.tier = choose_tier(policy, setup)
        remembered = remember(classes, self.tier.share)
        self.memory = ContextMemory(remembered, setup.grid.size, self.tier) if self.tier.share else None
        pool = remembered.indices if self.memory else classes.context
        mode = policy.context_sampling
        if not self.memory and mode == "stalest":
            mode = "rotating"  # a weighted prune needs an unbiased sample
        self._sampler = ContextSampler(pool, mode, policy.context_share)
        self._edited = classes.edited
        selected = len(self._edited) + self._sampler.count
        keys = len(self._edited) + len(remembered.indices) if self.memory else selected
        costs = Costs.of(shape, setup.grid.size, selected, keys, profile.overhead)
        partials = policy.partials and costs.partial < 0.95
        rules = Rules.of(policy, profile, setup.evaluations, partials)
        if policy.schedule:
            planned = Plan.given(policy.schedule, setup.evaluations, costs)
        else:
            planned = plan(setup.sigmas, costs, policy.speed, rules, profile)
        if policy.method == "plan":
            self.method = Planned(planned)
        else:
            self.method = HetCache(policy.threshold, policy.partial_factor, setup.evaluations, rules)
        self.stats.begin(planned, self.tier, selected, planned.note if policy.method == "plan" else "")
        self.stats.planned_context_bytes = self.tier.bytes(
            len(classes.context), shape.dim, shape.attention_layers, setup.streams, setup.itemsize
        )

    # ---- one model call

    def evaluate(self, evaluation: int, streams: Streams, sample: Tensor, compute: Compute) -> Tensor:
        """Answer one model call.

        Args:
            evaluation: index in the schedule; the decision is made once for all calls of an evaluation.
            streams: keys of this call's streams; the batch is their rows in equal chunks.
            sample: the noisy latent the prediction belongs to, ``[B, C, T, H, W]``, H and W even.
            compute: runs the model: ``None`` -> prediction ``[B, C, T, H, W]``; a selection ``[N]`` -> packed
                prediction ``[B, C, 1, 2, 2N]``.

        Returns:
            The prediction ``[B, C, T, H, W]`` in the model's dtype.
        """
        watch = Stopwatch(sample.device)
        if evaluation != self._evaluation:
            self._begin(evaluation)
        self.streams = streams
        decision, reason = self._decision, self._reason
        if decision != FULL:
            unknown = [s for s in streams if s not in self._forecasts or not self._forecasts[s].ready]
            if unknown:
                decision, reason = FULL, "a stream not seen before"
        output, done = None, decision
        if decision == REUSE:
            output = self._forecast(sample)
            if not torch.isfinite(output).all():
                done, reason, output = FULL, "the forecast was not finite", None
        elif decision == PARTIAL:
            output, trouble = self._partial(sample, compute)
            if output is None:
                done, reason = FULL, trouble
        if output is None:
            output = self._full(sample, compute)
        tokens = {FULL: self.setup.grid.size, PARTIAL: len(self._selection) if self._selection is not None else 0}
        self.stats.add(
            evaluation,
            self._sigma,
            done,
            reason,
            tokens.get(done, 0),
            watch,
            self.memory.bytes if self.memory else 0,
            sum(f.bytes for f in self._forecasts.values()),
        )
        if evaluation >= self.setup.evaluations - 1 and set(self._forecasts) <= self._served_with(streams):
            self.close()
        return output

    def close(self) -> None:
        """Free everything but the statistics. Safe to call twice."""
        self._forecasts.clear()
        if self.memory:
            self.memory.clear()
        self._mode, self._attention_bias, self._selection = "idle", None, None

    def self_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Self-attention of one layer, through the context memory where this evaluation calls for it.

        Args:
            layer: index in call order, main and VACE blocks alike.
            query, key, value: ``[B, tokens, heads, head_dim]``, normed and rotated.
            attend: the host's attention; called with the keys to attend to and their log-weights or None.
        """
        if self._mode == "capture":
            self.memory.capture(layer, self.streams, key, value)
        elif self._mode == "join":
            if self.memory:
                key, value = self.memory.join(layer, self.streams, key, value)
            return attend(query, key, value, self._attention_bias)
        return attend(query, key, value, None)

    @property
    def routes_attention(self) -> bool:
        """Whether this call's self-attention must pass through :meth:`self_attention`."""
        return self._mode != "idle"

    # ---- decide

    def _begin(self, evaluation: int) -> None:
        self._evaluation = evaluation
        self._served: set[Hashable] = set()
        self._selection = None
        sigmas = self.setup.sigmas
        self._sigma = sigmas[evaluation] if evaluation < len(sigmas) else 0.0
        self._decision, self._reason = self.method.decide(evaluation)
        if self._decision == PARTIAL and self._partials_off:
            self._decision, self._reason = FULL, self._partials_off
        if self.memory and self._decision != PARTIAL and not self._remembering(evaluation):
            self.memory.clear()

    def _remembering(self, evaluation: int) -> bool:
        """Whether context remembered now will be read."""
        return not self._partials_off and self.method.expects_partial(evaluation)

    def _served_with(self, streams: Streams) -> set[Hashable]:
        self._served.update(streams)
        return self._served

    # ---- act

    def _full(self, sample: Tensor, compute: Compute) -> Tensor:
        if self._exact:
            output = compute(None)
            if self.policy.method == "measure":
                self.stats.measure(self.streams[0], to_patches(output))
            return output
        capture = self.memory is not None and self.method.expects_partial(self._evaluation) and not self._partials_off
        self._mode = "capture" if capture else "idle"
        try:
            output = compute(None)
        except torch.OutOfMemoryError:
            if not capture:
                raise
            self._give_up_partials("out of memory while remembering context")
            output = compute(None)
        finally:
            self._mode = "idle"
        if self._evaluation < self.setup.evaluations - 1:
            self._record(sample, to_patches(output).float(), None)
        return output

    def _partial(self, sample: Tensor, compute: Compute) -> tuple[Tensor | None, str]:
        """The prediction, or None and why it could not be had this way."""
        if self.memory and not self.memory.has(self.streams):
            return None, "this stream's context is not remembered yet"
        if self._selection is None:
            self._selection = self._select()
        self._mode = "join"
        try:
            packed = compute(self._selection)
            patches = unpack(packed).float()
            if not torch.isfinite(patches).all():
                self._partials_off = "a partial evaluation was not finite"
                return None, self._partials_off
        except torch.OutOfMemoryError:
            self._give_up_partials("out of memory on a partial evaluation")
            return None, self._partials_off
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            self._give_up_partials(f"a partial evaluation failed ({type(error).__name__}: {error})")
            log.warning("HetCache goes on in full: %s", self._partials_off)
            return None, self._partials_off
        finally:
            self._mode = "idle"
        self._record(sample, patches, self._selection)
        return self._forecast(sample).to(packed.dtype), ""

    def _give_up_partials(self, reason: str) -> None:
        self._partials_off = reason
        if self.memory:
            self.memory.clear()

    def _select(self) -> Tensor:
        """This evaluation's tokens, sorted; sets up keys and weights to match."""
        context = self._sampler.pick(self._forecasts[self.streams[0]].computed_at)
        selection = torch.cat([self._edited, context]).sort().values
        if self.memory:
            self.memory.select(selection)
            self._attention_bias = self.memory.log_weights()
        elif self._sampler.count:
            weights = torch.zeros(self.setup.grid.size, device=selection.device)
            weights[context] = float(torch.tensor(len(self.setup.classes.context) / len(context)).log())
            self._attention_bias = weights[selection]
        return selection

    # ---- record and forecast

    def _record(self, sample: Tensor, patches: Tensor, selection: Tensor | None) -> None:
        if self._quantity == "x0":
            noisy = to_patches(sample).float()
            noisy = noisy if selection is None else noisy.index_select(2, selection)
            stored = to_x0(patches, noisy, self._sigma)
        else:
            stored = patches
        for stream, rows in zip(self.streams, stored.chunk(len(self.streams)), strict=True):
            if stream not in self._forecasts:
                generative = self.setup.classes.generative.nonzero().flatten()
                self._forecasts[stream] = Forecast(self.policy.forecast_order, self.policy.forecast_damping, generative)
            self._forecasts[stream].record(self._evaluation, rows, selection)
        if isinstance(self.method, Planned) or self.streams[0] != next(iter(self._forecasts)):
            return
        generative = self.setup.classes.generative
        generative = generative if selection is None else generative[selection]
        self.method.observe(self._evaluation, patches.chunk(len(self.streams))[0][:, :, generative])

    def _forecast(self, sample: Tensor) -> Tensor:
        predictions = torch.cat([self._forecasts[s].predict(self._evaluation) for s in self.streams])
        prediction = from_patches(predictions, *sample.shape[-3:])
        if self._quantity == "x0":
            prediction = to_v(prediction, sample.float(), self._sigma)
        return prediction.to(sample.dtype)

    @property
    def _quantity(self) -> str:
        return self.policy.forecast_quantity or ("x0" if self.setup.stochastic else "v")


def choose_tier(policy: CachePolicy, setup: RunSetup) -> MemoryTier:
    """The best way to remember context that fits the policy's budget and settings."""
    if not setup.memory_works:
        return NO_MEMORY
    budget = policy.memory_budget_mb * 2**20
    for tier in LADDER:
        share = tier.share if policy.memory_share is None else policy.memory_share
        if share == 0:
            return NO_MEMORY
        chosen = MemoryTier(
            share,
            tier.fp8 if policy.memory_fp8 is None else policy.memory_fp8,
            tier.shared if policy.memory_shared is None else policy.memory_shared,
            policy.memory_offload,
        )
        context, shape = len(setup.classes.context), setup.shape
        if chosen.bytes(context, shape.dim, shape.attention_layers, setup.streams, setup.itemsize) <= budget:
            return chosen
    return NO_MEMORY


def _why_full(policy: CachePolicy, setup: RunSetup) -> str:
    """Why a run must be computed in full, in plain words; empty when it need not be."""
    if policy.method == "off":
        return "the method is off"
    if policy.method == "measure":
        return "this run only measures how predictions change"
    if policy.exact:
        return "speed 1.0 asks for the exact output"
    if setup.reason:
        return setup.reason
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
