"""One sampling run: decide, act, record. Knows streams and latents, not hosts.

A host builds an :class:`Engine` at the first model call of a run, hands it every call with a function that runs the
model (on everything, or on a selection of tokens), and routes self-attention through :meth:`Engine.self_attention`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .block_scores import BlockScores
from .blocks import BlockCache
from .device import Stopwatch, out_of_memory
from .error_model import BLOCKS, FULL, GUIDANCE, HALF, PARTIAL, PARTS, REUSE
from .forecasts import Forecasts
from .guidance import Streams
from .methods import Method, Planned
from .packing import to_patches, unpack
from .partial import Partials
from .plan import Plan
from .policy import CachePolicy
from .prepare import prepare
from .routing import Routing, log, named
from .setup import RunSetup, why_full
from .stats import RunStats
from .tiers import NO_MEMORY

Compute = Callable[..., Tensor]  # see Engine.evaluate


class Engine(Routing):
    """State of one sampling run.

    Args:
        policy: what the user asked for.
        setup: what the host knows.
    """

    def __init__(self, policy: CachePolicy, setup: RunSetup):
        policy = policy.settled()
        self.policy, self.setup = policy, setup
        started = time.perf_counter()
        self.stats = RunStats(policy, setup.grid, setup.classes)
        self.streams: Streams = ()
        self.partials: Partials | None = None
        self.blocks: BlockCache | None = None
        self.closed = False
        self._forecasts: Forecasts | None = None
        self._evaluation, self._storing, self._layers = -1, [], {}
        self._decision, self._reason, self._after_end = FULL, "", "after the end"
        self._off = {PARTIAL: setup.no_partials, BLOCKS: setup.no_blocks, GUIDANCE: ""}  # no more done, and why
        reason = why_full(policy, setup)
        self.exact = bool(reason)
        if reason:
            self.method: Method = Planned(Plan.full(setup.evaluations, reason), reason)
            self.stats.begin(self.method.plan, NO_MEMORY, 0, reason)
            if policy.method == "profile":
                self._profile()
        else:
            self._prepare(policy, setup)
        self.stats.preparation_seconds = time.perf_counter() - started
        if not reason:
            log.info("HetCache: %s", self.stats.outlook())
        elif not policy.exact:
            log.warning("HetCache computes everything in full: %s", reason)

    def _profile(self) -> None:
        try:
            self.stats.block_scores = BlockScores(self.setup)
        except ValueError as error:
            self._trouble(str(error))

    def _prepare(self, policy: CachePolicy, setup: RunSetup) -> None:
        parts = prepare(policy, setup)
        self.method, self.partials, self.blocks = parts.method, parts.partials, parts.blocks
        self._forecasts = Forecasts(
            policy.forecast_order,
            policy.forecast_damping,
            setup.classes.generative.nonzero().flatten(),
            policy.forecast_quantity or ("x0" if setup.stochastic else "v"),
            watch=self.method.watches,
            differences=self.method.expects(GUIDANCE, -1),
            conditional=setup.conditional,
        )
        if self.blocks is None:
            self._off[BLOCKS] = parts.note or "no blocks are reused"
        selected = len(parts.partials.edited) + parts.partials.sampler.count
        self.stats.begin(parts.plan, parts.tier, selected, parts.note)
        self.stats.costs, self.method.notice = parts.costs, self.stats.replan
        self.stats.planned_context_bytes, self.stats.planned_block_bytes = parts.context_bytes, parts.block_bytes
        self.stats.remembered = parts.partials.memory.remembered.indices if parts.partials.memory else None

    # ---- one model call

    def evaluate(self, evaluation: int, streams: Streams, sample: Tensor, compute: Compute) -> Tensor:
        """Answer one model call.

        Args:
            evaluation: index in the schedule; the decision is made once for all calls of an evaluation.
            streams: keys of this call's streams; the batch is their rows in equal chunks.
            sample: the noisy latent the prediction belongs to, ``[B, C, T, H, W]``, H and W even.
            compute: runs the model: ``compute(None)`` -> prediction ``[B, C, T, H, W]``; with a selection ``[N]`` ->
                packed prediction ``[B, C, 1, 2, 2N]``; ``compute(..., i)`` -> the same of ``streams[i]`` alone.

        Returns:
            The prediction ``[B, C, T, H, W]``: the model's own, or, of a reuse, in the sample's dtype.
        """
        watch, self._storing = Stopwatch(sample.device), []
        if evaluation != self._evaluation:
            self._begin(evaluation)
        self.streams = streams
        decision, reason, output = self._decision, self._reason, None
        if decision != FULL and (lacking := self._forecasts.lacking(streams)):
            decision, reason = FULL, lacking
        if decision == REUSE:
            output, reason = self._reused(sample)
        elif decision == PARTIAL:
            output, reason = self._partial(sample, compute)
        elif decision == BLOCKS:
            output, reason = self._with_blocks_reused(sample, compute)
        elif decision in (GUIDANCE, HALF):
            output, reason = self._with_guidance_reused(sample, compute)
        if output is None:
            decision, output = FULL, self._full(sample, compute)
        parts = {PARTIAL, HALF}
        computed = (
            len(self.partials.selection) if decision in parts else 0 if decision == REUSE else self.setup.grid.size
        )
        held, kept, deltas = (s.bytes if s else 0 for s in (self.partials, self._forecasts, self.blocks))
        self.stats.add(
            evaluation, self._sigma, decision, reason, computed, watch, held, kept, deltas, self._storing, len(streams)
        )
        self._served.update(streams)
        if evaluation >= self.setup.evaluations - 1 and self._served.issuperset(self._forecasts or ()):
            self.close()
        return output

    def close(self) -> None:
        """Free everything but the statistics. Safe to call twice; calls that still come are computed in full."""
        self.closed = True
        if self._forecasts:
            self._forecasts.clear()
        for store in (self.partials, self.blocks):
            if store:
                store.close()

    @property
    def wants_attention(self) -> bool:
        """Whether any evaluation of this run will route its self-attention."""
        return self.watches_blocks or (not self.exact and self._expects(PARTIAL, -1))

    @property
    def wants_blocks(self) -> bool:
        """Whether any evaluation of this run will route its main blocks."""
        return not self.exact and self._expects(BLOCKS, -1)

    # ---- decide

    def _begin(self, evaluation: int) -> None:
        self._evaluation = evaluation
        self._served: set[Hashable] = set()
        sigmas = self.setup.sigmas
        self._sigma = sigmas[evaluation] if evaluation < len(sigmas) else 0.0
        self._decision, self._reason = (FULL, self._after_end) if self.closed else self.method.decide(evaluation)
        if reason := self._why_off(self._decision):
            self._decision, self._reason = FULL, reason
        if self.partials:
            position = self.setup.position(evaluation)
            self.partials.begin(position, self._decision == FULL)
            self._forecasts.begin(position if self._decision == FULL else None)
        for kind, store in ((PARTIAL, self.partials), (BLOCKS, self.blocks)):
            if store and kind not in PARTS.get(self._decision, self._decision) and not self._expects(kind, evaluation):
                store.clear()

    def _why_off(self, decision: str) -> str:
        """Why this kind of evaluation is no more done in this run, or empty."""
        return next((self._off[kind] for kind in PARTS.get(decision, decision) if self._off.get(kind)), "")

    def _expects(self, kind: str, evaluation: int) -> bool:
        return not self._off[kind] and self.method.expects(kind, evaluation)

    def give_up(self, text: str) -> None:
        """Compute the rest of this run in full; `text` says why."""
        self._after_end = self._trouble(text)
        self._decision, self._reason = FULL, text
        self.close()

    # ---- act

    def _full(self, sample: Tensor, compute: Compute) -> Tensor:
        if self.exact or self.closed:
            output = compute(None)
            if self.policy.method == "measure":
                self._measure(to_patches(output))
            return output
        output = None
        if self._expects(PARTIAL, self._evaluation) and self.partials.looks:
            self.partials.mode = "capture"
        if self._expects(BLOCKS, self._evaluation):
            self.blocks.begin(self.streams)
        keeping, trouble = self.wants_attention or self.routes_blocks, ""
        try:
            output = compute(None)
        except self.setup.interrupts:
            raise
        except Exception as error:  # ours may be what the model objects to; stock is asked before it counts as failed
            if not keeping:
                raise
            trouble = named(error)
            if out_of_memory(error):
                trouble = "out of memory"
        finally:
            self._idle()
        if trouble:  # outside the handler, whose traceback keeps the failed call's tensors alive
            for give_up in (self.give_up_partials, self.give_up_blocks):
                give_up(f"{trouble} while remembering context")
            output = compute(None)
        if self._evaluation < self.setup.evaluations - 1:
            self._remember(sample, output)
        return output

    def _remember(self, sample: Tensor, output: Tensor) -> None:
        """Record a full evaluation; what cannot be recorded costs the plan, not the answer that is there."""
        try:
            self._record(sample, to_patches(output).float(), None)
            return
        except self.setup.interrupts:
            raise
        except Exception as error:
            trouble = "out of memory" if out_of_memory(error) else named(error)
        self.give_up(f"{trouble} while recording a prediction")

    def _measure(self, patches: Tensor) -> None:
        try:
            for stream, rows in zip(self.streams, patches.chunk(len(self.streams)), strict=True):
                self.stats.measure(stream, rows)
        except Exception as error:  # measuring must not end what is measured
            self._trouble(f"changes could not be measured ({named(error)})")

    def _reused(self, sample: Tensor) -> tuple[Tensor | None, str]:
        """The forecast and why it was made, or None and why it could not be."""

        def act() -> Tensor | None:
            output = self._forecast(sample)
            return output if torch.isfinite(output).all() else None

        output, trouble = self._attempt(act, "a forecast")
        return output, self._trouble(trouble) if trouble else self._reason

    def _partial(self, sample: Tensor, compute: Compute) -> tuple[Tensor | None, str]:
        """The prediction and why it was made, or None and why it could not be."""
        if not self.partials.has(self.streams):
            return None, self.partials.why_not(self.streams)

        def act() -> Tensor | None:
            selection = self._select()
            self.partials.mode = "join"
            packed = compute(selection)
            self.partials.mode = "idle"
            patches = unpack(packed).float()
            if self._off[PARTIAL] or not torch.isfinite(patches).all():
                return None
            self._record(sample, patches, selection)
            return self._forecast(sample).to(packed.dtype)

        output, trouble = self._attempt(act, "a partial evaluation")
        trouble = trouble and (self._off[PARTIAL] or trouble)  # what its layers met says more than what came of it
        if trouble:
            self.give_up_partials(trouble)
        return output, trouble or self._reason

    def _with_blocks_reused(self, sample: Tensor, compute: Compute) -> tuple[Tensor | None, str]:
        """The prediction and why it was made, or None and why it could not be."""
        if not self.blocks.has(self.streams):
            return None, "this stream's block deltas are not kept yet"

        def act() -> Tensor | None:
            self.blocks.mode = "apply"
            output = compute(None)
            if not torch.isfinite(output).all():
                return None
            self._record(sample, to_patches(output).float(), None)
            return output

        output, trouble = self._attempt(act, "an evaluation with reused blocks")
        if trouble:
            self.give_up_blocks(trouble)
        return output, trouble or self._reason

    def _with_guidance_reused(self, sample: Tensor, compute: Compute) -> tuple[Tensor | None, str]:
        """The prediction and why it was made, or None and why it could not be; on a selection, of a half evaluation."""
        half, guidance = self._decision == HALF, self._forecasts.guidance
        why_not, streams = guidance.why_not(self.streams), self.streams
        if not why_not and half and not guidance.computed and not self.partials.has((self._anchor,)):
            why_not = self.partials.why_not((self._anchor,))
        if why_not:
            return None, why_not

        def run(index: int) -> Tensor:
            self.streams = streams[index : index + 1]  # whose layers are routed
            if selection is not None:
                self.partials.mode = "join"
            output = compute(selection, index)
            self._idle()
            if half and self._off[PARTIAL]:
                raise RuntimeError("its layers did not see their context")
            return output

        def act() -> Tensor | None:
            position = self.setup.position(self._evaluation)
            output = self._forecasts.guided(streams, sample, run, position, self._sigma, selection)
            if not torch.isfinite(output).all():
                return None
            self.streams = streams
            self._observe()
            return output

        selection = self._select() if half else None
        output, trouble = self._attempt(act, "an evaluation with reused guidance")
        self.streams = streams
        if half and self._off[PARTIAL]:  # by a layer on the way; guidance is not to blame
            output, trouble = None, self._off[PARTIAL]
        elif trouble:
            self._give_up(GUIDANCE, None, trouble)
        return output, trouble or self._reason

    @property
    def _anchor(self) -> Hashable:
        return self.streams[self._forecasts.guidance.anchor(self.streams)]

    def _select(self) -> Tensor:
        """The tokens of this evaluation, the same for all its calls."""
        if self.partials.selection is None:
            forecast = self._forecasts[self._forecasts.watched]  # whichever the host's call begins with
            self.stats.last_selection = self.partials.select(forecast.computed_at, forecast.damping)
        return self.partials.selection

    def _attempt(self, act: Callable[[], Tensor | None], name: str) -> tuple[Tensor | None, str]:
        """Do what a model may object to; None and what went wrong where it does, or where the outcome is not finite."""
        try:
            output = act()
            return output, "" if output is not None else f"{name} was not finite"
        except self.setup.interrupts:
            raise
        except Exception as error:  # whatever a patched model objects to, it has a full forward that works
            return None, f"out of memory on {name}" if out_of_memory(error) else f"{name} failed ({named(error)})"
        finally:
            self._idle()

    def _idle(self) -> None:
        for store in (self.partials, self.blocks):
            if store:
                store.mode = "idle"

    # ---- record and forecast

    def _record(self, sample: Tensor, patches: Tensor, selection: Tensor | None) -> None:
        position = self.setup.position(self._evaluation)
        renewed = self._forecasts.record(self.streams, sample, patches, selection, position, self._sigma)
        self._observe()
        watched = self._forecasts.watched
        change = self.blocks.change(watched) if self.blocks and watched in self.streams and selection is None else None
        if change:
            self.method.observe_blocks(self._evaluation, change)
        if renewed:
            self.method.observe_guidance(self._evaluation, self._forecasts.guidance.seen)

    def _observe(self) -> None:
        """Tell the method what this call says of the stream that is watched."""
        watched = self._forecasts.watched
        if watched in self.streams and (seen := self._forecasts[watched].seen):
            self.method.observe_forecast(self._evaluation, seen)

    def _forecast(self, sample: Tensor) -> Tensor:
        position = self.setup.position(self._evaluation)
        return self._forecasts.predict(self.streams, sample, position, self._sigma)
