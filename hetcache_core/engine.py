"""One sampling run: decide, act, record. Knows streams and latents, not hosts.

A host builds an :class:`Engine` at the first model call of a run, hands it every call with a function that runs the
model (on everything, or on a selection of tokens), and routes self-attention through :meth:`Engine.self_attention`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .attention import Attend, KeyWeights
from .context import ContextSampler, remember
from .costs import Costs
from .forecast import Forecast, to_v, to_x0
from .memory import NO_MEMORY, ContextMemory
from .methods import Method, Planned
from .methods.hetcache import HetCache
from .packing import from_patches, to_patches, unpack
from .plan import FULL, PARTIAL, REUSE, Plan, Rules, plan
from .policy import CachePolicy
from .profile import ErrorProfile
from .semantic import MODES, SemanticSampler
from .setup import RunSetup, choose_tier, tier_bytes, why_full
from .stats import RunStats, Stopwatch

log = logging.getLogger("hetcache")

Streams = tuple[Hashable, ...]
Compute = Callable[["Tensor | None"], Tensor]


class Engine:
    """State of one sampling run.

    Args:
        policy: what the user asked for.
        setup: what the host knows.
    """

    def __init__(self, policy: CachePolicy, setup: RunSetup):
        self.policy, self.setup = policy, setup
        started = time.perf_counter()
        self.stats = RunStats(policy, setup.grid, setup.classes)
        self.streams: Streams = ()
        self.memory: ContextMemory | None = None
        self.closed = False
        self._mode = "idle"
        self._key_weights: KeyWeights | None = None
        self._forecasts: dict[Hashable, Forecast] = {}
        self._watched = -1  # layer a semantic sampler looks at
        self._evaluation = -1
        self._decision, self._reason, self._after_end = FULL, "", "after the end"
        self._partials_off = setup.no_partials
        self._selection: Tensor | None = None
        reason = why_full(policy, setup)
        self.exact = bool(reason)
        if reason:
            self.method: Method = Planned(Plan.full(setup.evaluations, reason), reason)
            self.stats.begin(self.method.plan, NO_MEMORY, 0, reason)
        else:
            self._prepare(policy, setup)
        self.stats.preparation_seconds = time.perf_counter() - started
        if not reason:
            log.info("HetCache: %s", self.stats.outlook())
        elif not policy.exact:
            log.warning("HetCache computes everything in full: %s", reason)

    def _prepare(self, policy: CachePolicy, setup: RunSetup) -> None:
        classes, shape = setup.classes, setup.shape
        profile = ErrorProfile.for_model(shape) if policy.profile == "auto" else ErrorProfile.load(policy.profile)
        tier = choose_tier(policy, setup)
        remembered = remember(classes, tier.share)
        if tier.share:
            self.memory = ContextMemory(remembered, setup.grid.size, shape.attention_layers, tier, setup.streams)
        pool = remembered.indices if self.memory else classes.context
        mode = policy.context_sampling
        if not self.memory and mode == "stalest":
            mode = "rotating"  # a weighted prune needs an unbiased sample
        share = policy.context_share
        if share is None:  # on tuning clips of nano: equal at 3x, and less paid for more partial evaluations at 4x
            share = 0.15 if policy.speed <= 3 else 0.05
        self._edited = classes.edited
        if mode in MODES:
            self._sampler = SemanticSampler(pool, classes.generative.nonzero().flatten(), mode, share)
            self._watched = shape.attention_layers // 2
        else:
            self._sampler = ContextSampler(pool, mode, share)
        selected = len(self._edited) + self._sampler.count
        keys = len(self._edited) + len(remembered.indices) if self.memory else selected
        costs = Costs.of(shape, setup.grid.size, selected, keys, profile.overhead)
        partials = policy.partials and not setup.no_partials and costs.partial < 0.95
        rules = Rules.of(policy, profile, setup.evaluations, partials)
        if policy.method == "hetcache":
            self.method = HetCache(policy.threshold, policy.partial_factor, setup.evaluations, rules)
            self.stats.begin(None, tier, selected, setup.no_partials)
            held = partials
        else:
            if policy.schedule:
                planned = Plan.given(policy.schedule, setup.evaluations, costs)
            else:
                planned = plan(setup.sigmas, costs, policy.speed, rules, profile)
            self.method = Planned(planned)
            self.stats.begin(planned, tier, selected, "; ".join(t for t in (setup.no_partials, planned.note) if t))
            held = PARTIAL in planned.decisions
        self.stats.costs = costs
        if held:
            self.stats.planned_context_bytes = tier_bytes(tier, setup)
        else:
            self.memory = None

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
        decision, reason, output = self._decision, self._reason, None
        if decision != FULL and not all(s in self._forecasts for s in streams):
            decision, reason = FULL, "a stream not seen before"
        if decision == REUSE:
            output = self._forecast(sample)
            if not torch.isfinite(output).all():
                output, reason = None, self._trouble("a forecast was not finite")
        elif decision == PARTIAL:
            output, reason = self._partial(sample, compute)
        if output is None:
            decision, output = FULL, self._full(sample, compute)
        computed = {FULL: self.setup.grid.size, REUSE: 0}.get(decision)
        computed = len(self._selection) if computed is None else computed
        held = self.memory.bytes if self.memory else 0
        kept = sum(forecast.bytes for forecast in self._forecasts.values())
        self.stats.add(evaluation, self._sigma, decision, reason, computed, watch, held, kept)
        self._served.update(streams)
        if evaluation >= self.setup.evaluations - 1 and self._served >= self._forecasts.keys():
            self.close()
        return output

    def close(self) -> None:
        """Free everything but the statistics. Safe to call twice; calls that still come are computed in full."""
        self.closed = True
        self._forecasts.clear()
        if self.memory:
            self.memory.clear()
        self.method.close()
        self._mode, self._key_weights, self._selection = "idle", None, None

    def self_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Self-attention of one layer, through the context memory where this evaluation calls for it.

        Args:
            layer: index in call order, main and VACE blocks alike.
            query, key, value: ``[B, tokens, heads, head_dim]``, normed and rotated.
            attend: the host's attention; called with the keys to attend to and their weights or None.
        """
        if self._mode == "capture":
            try:
                self._capture(layer, query, key, value)
            except Exception as error:  # the generation itself does not need what could not be kept
                self._mode = "idle"
                self.give_up_partials(f"context could not be remembered ({_named(error)})")
        elif self._mode == "join":
            if self.memory:
                key, value = self.memory.join(layer, self.streams, key, value)
            return attend(query, key, value, self._key_weights)
        return attend(query, key, value, None)

    def _capture(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if self.memory:
            self.memory.capture(layer, self.streams, key, value)
        if layer == self._watched and self.streams[0] == next(iter(self._forecasts), self.streams[0]):
            self._sampler.look(query, key, value)

    @property
    def routes_attention(self) -> bool:
        """Whether this call's self-attention must pass through :meth:`self_attention`."""
        return self._mode != "idle"

    @property
    def wants_attention(self) -> bool:
        """Whether any evaluation of this run will route its self-attention."""
        return not self.exact and not self._partials_off and self.method.expects_partial(-1)

    # ---- decide

    def _begin(self, evaluation: int) -> None:
        self._evaluation = evaluation
        self._served: set[Hashable] = set()
        self._selection = None
        sigmas = self.setup.sigmas
        self._sigma = sigmas[evaluation] if evaluation < len(sigmas) else 0.0
        self._decision, self._reason = (FULL, self._after_end) if self.closed else self.method.decide(evaluation)
        if self._decision == PARTIAL and self._partials_off:
            self._decision, self._reason = FULL, self._partials_off
        if self.memory and self._decision != PARTIAL and not self._remembering:
            self.memory.clear()

    @property
    def _remembering(self) -> bool:
        """Whether context remembered now will be read before it is replaced."""
        return self.memory is not None and self._partials_ahead

    @property
    def _partials_ahead(self) -> bool:
        return not self._partials_off and self.method.expects_partial(self._evaluation)

    def _trouble(self, text: str) -> str:
        """Say once what went wrong, in the log and in the statistics."""
        if self.stats.warn(text):
            log.warning("HetCache goes on in full: %s", text)
        return text

    def give_up(self, text: str) -> None:
        """Compute the rest of this run in full; `text` says why."""
        self._after_end = self._trouble(text)
        self._decision, self._reason = FULL, text
        self.close()

    def give_up_partials(self, text: str) -> None:
        """No more partial evaluations in this run, this one's other streams included: guidance must not mix them."""
        self._partials_off, self._mode = self._trouble(text), "idle"
        if self._decision == PARTIAL:
            self._decision, self._reason = FULL, text
        if self.memory:
            self.memory.clear()

    # ---- act

    def _full(self, sample: Tensor, compute: Compute) -> Tensor:
        if self.exact or self.closed:
            output = compute(None)
            if self.policy.method == "measure":
                self.stats.measure(self.streams[0], to_patches(output))
            return output
        remembering = self._remembering or (self._watched >= 0 and self._partials_ahead)
        self._mode, output = "capture" if remembering else "idle", None
        try:
            output = compute(None)
        except torch.OutOfMemoryError:
            if self._mode == "idle":
                raise
        finally:
            self._mode = "idle"
        if output is None:  # outside the handler, whose traceback keeps the failed call's tensors alive
            self.give_up_partials("out of memory while remembering context")
            output = compute(None)
        if self._evaluation < self.setup.evaluations - 1:
            self._record(sample, to_patches(output).float(), None)
        return output

    def _partial(self, sample: Tensor, compute: Compute) -> tuple[Tensor | None, str]:
        """The prediction and why it was made, or None and why it could not be."""
        if self.memory and not self.memory.has(self.streams):
            return None, "this stream's context is not remembered yet"
        try:
            if self._selection is None:
                self._selection = self._select()
            self._mode = "join"
            packed = compute(self._selection)
            self._mode = "idle"
            patches = unpack(packed).float()
            if torch.isfinite(patches).all():
                self._record(sample, patches, self._selection)
                return self._forecast(sample).to(packed.dtype), self._reason
            trouble = "a partial evaluation was not finite"
        except self.setup.interrupts:
            raise
        except torch.OutOfMemoryError:
            trouble = "out of memory on a partial evaluation"
        except Exception as error:  # whatever a patched model objects to, it has a full forward that works
            trouble = f"a partial evaluation failed ({_named(error)})"
        finally:
            self._mode = "idle"
        self.give_up_partials(trouble)
        return None, trouble

    def _select(self) -> Tensor:
        """This evaluation's tokens, sorted; sets up keys and weights to match."""
        context = self._sampler.pick(self._forecasts[self.streams[0]].computed_at)
        selection = torch.cat([self._edited, context]).sort().values
        bias = None
        if self.memory:
            self.memory.select(selection)
            bias = self.memory.log_weights()
        elif len(context):
            bias = torch.zeros(self.setup.grid.size, device=selection.device)
            bias[context] = self._sampler.log_weights
            bias = bias[selection]
        self._key_weights = None if bias is None else KeyWeights.of(bias)
        return selection

    # ---- record and forecast

    def _record(self, sample: Tensor, patches: Tensor, selection: Tensor | None) -> None:
        stored, position = patches, self.setup.position(self._evaluation)
        if self._quantity == "x0":
            noisy = to_patches(sample[:, : patches.shape[1]]).float()
            noisy = noisy if selection is None else noisy.index_select(2, selection)
            stored = to_x0(patches, noisy, self._sigma)
        for stream, rows in zip(self.streams, stored.chunk(len(self.streams)), strict=True):
            if stream not in self._forecasts:
                generative = self.setup.classes.generative.nonzero().flatten()
                self._forecasts[stream] = Forecast(self.policy.forecast_order, self.policy.forecast_damping, generative)
            self._forecasts[stream].record(position, rows, selection)
        if self.streams[0] == next(iter(self._forecasts)):
            generative = self.setup.classes.generative
            generative = generative if selection is None else generative[selection]
            self.method.observe(self._evaluation, patches.chunk(len(self.streams))[0], generative)

    def _forecast(self, sample: Tensor) -> Tensor:
        position = self.setup.position(self._evaluation)
        predictions = torch.cat([self._forecasts[s].predict(position) for s in self.streams])
        prediction = from_patches(predictions, *sample.shape[-3:])
        if self._quantity == "x0":
            prediction = to_v(prediction, sample[:, : prediction.shape[1]].float(), self._sigma)
        return prediction.to(sample.dtype)

    @property
    def _quantity(self) -> str:
        return self.policy.forecast_quantity or ("x0" if self.setup.stochastic else "v")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
