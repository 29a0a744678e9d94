"""HetCache on ComfyUI: Wan 2.1 and 2.2 models, VACE or not, in the host's own samplers.

    from hetcache_core import CachePolicy
    from hetcache_core.hosts import comfyui as host

    patched, report = host.apply(model, CachePolicy(speed=3.0))       # a ModelPatcher goes in, a clone comes out
    ...                                                               # sample with it as with any model
    print(report.runs[-1].summary())

Wrappers only: one lives on the model and surrounds a sampling run, the others are born with the run and end with it.
The model's own forward does the computing, on everything or on packed patches; attention goes through the host's
override slot, blocks through its replacement slots. No class or module is replaced and no forward is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ..block_profile import BlockProfile
from ..costs import ModelShape
from ..engine import Engine
from ..offload import on_device
from ..packing import gather_rows, pack, pack_timesteps, pad_to_patches
from ..plan import Plan
from ..policy import CachePolicy
from ..profile import ErrorProfile
from ..progress import Observer
from ..setup import RunSetup
from ..stats import RunStats
from ..tiers import NO_MEMORY
from ..tokens import TokenGrid
from .comfyui_attention import SelfAttention
from .comfyui_blocks import routed
from .comfyui_schedule import EvaluationSchedule
from .comfyui_setup import KEY, Call, Sampling, read_setup, running_prompt, why_replaced, why_untouched, why_whole_run

log = logging.getLogger("hetcache")


@dataclass(eq=False)
class Report:
    """What became of the sampling runs through a patched model.

    Args:
        untouched: why the model is left alone, or empty.
        runs: statistics of every run since the last prompt began, the one under way included.
    """

    untouched: str = ""
    runs: list[RunStats] = field(default_factory=list)
    _prompt: Any = None

    def __deepcopy__(self, memo: dict) -> Report:
        return self  # older hosts copy a model's options with everything in them

    @property
    def kept(self) -> bool:
        """Whether the prompt under way has not sampled, so that it works on a result the host kept from an earlier."""
        prompt = running_prompt()
        return bool(self.runs) and None not in (prompt, self._prompt) and prompt != self._prompt

    def add(self, stats: RunStats, prompt: Any) -> None:
        """Take in a run; runs of an earlier prompt are let go."""
        if prompt is None or prompt != self._prompt:
            self.runs, self._prompt = [], prompt
        self.runs.append(stats)


def apply(
    model: comfy.model_patcher.ModelPatcher,
    policy: CachePolicy,
    mask: Tensor | None = None,
    observer: Observer | None = None,
):
    """Patch a model for faster masked edits. Applying again replaces what was applied before.

    Args:
        model: any model of the host; all but the stock Wan models come back untouched, with the reason in the report.
        policy: what is wanted.
        mask: 1 = generate, pixels ``[F, H, W]`` of any size. None: found in the latent's noise mask, the VACE control
            or the image-to-video input, in this order.
        observer: told of every run as it goes on.

    Returns:
        A clone of the model, and the :class:`Report` its runs will fill.

    Raises:
        ValueError: the policy names an error profile or a block profile that cannot be read.
    """
    patched, report, policy = model.clone(), Report(), policy.settled()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    report.untouched = why_untouched(patched)
    if report.untouched:
        log.warning("HetCache leaves this model as it is: %s", report.untouched)
        return patched, report
    if policy.profile != "auto":
        ErrorProfile.load(policy.profile)
    if policy.block_profile != "auto":
        BlockProfile.load(policy.block_profile)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Patch(policy, mask, report, observer))
    return patched, report


class _Patch:
    """The wrapper around a whole sampling run; holds settings, never state."""

    def __init__(self, policy: CachePolicy, mask: Tensor | None, report: Report, observer: Observer | None = None):
        self.policy, self.mask, self.report, self.observer = policy, mask, report, observer

    def __deepcopy__(self, memo: dict) -> _Patch:
        return self

    def __call__(self, executor, *args, **kwargs):
        sampling = Sampling.of(executor.class_obj, args, kwargs)
        if len(sampling.sigmas) < 2:
            return executor(*args, **kwargs)
        reason = why_whole_run(sampling)
        if reason:
            stats = self._decline(sampling, reason)
            result = executor(*args, **kwargs)
            self.tell("ended", stats, True)
            return result
        guider = sampling.guider
        run, kept, finished = _Run(self, sampling), guider.model_options, False
        guider.model_options = comfy.model_patcher.create_model_options_clone(kept)
        for kind, wrapper in ((WrappersMP.PREDICT_NOISE, run.predict_noise), (WrappersMP.DIFFUSION_MODEL, run.forward)):
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        try:
            result = executor(*args, **kwargs)
            finished = True
            return result
        finally:
            run.close(finished)
            guider.model_options = kept

    def _decline(self, sampling: Sampling, reason: str) -> RunStats:
        """Leave a run to the host entirely, and say why."""
        stats = RunStats(self.policy, TokenGrid.of_latent(sampling.noise), None)
        stats.begin(Plan.full(len(sampling.sigmas) - 1, reason), NO_MEMORY, 0, reason)
        stats.left_to_host = True
        self.report.add(stats, sampling.prompt)
        self.tell("began", stats, None)
        log.warning("HetCache computes everything in full: %s", reason)
        return stats

    def tell(self, event: str, *news) -> None:
        """Tell the observer; a run never fails for want of a listener."""
        try:
            if self.observer is not None:
                getattr(self.observer, event)(*news)
        except Exception as error:
            self.observer = None
            log.warning("HetCache shows no progress any more: %s: %s", type(error).__name__, error)


class _Run:
    """State of one sampling run."""

    def __init__(self, patch: _Patch, sampling: Sampling):
        self.patch, self.sampling = patch, sampling
        self.schedule: EvaluationSchedule | None = None
        self.engine: Engine | None = None
        self._evaluation, self._sigma = -1, 0.0
        self._served: set[Hashable] = set()
        self._model: Any = None

    def close(self, finished: bool) -> None:
        if self.engine is not None:
            self.engine.close()
            self.patch.tell("ended", self.engine.stats, finished)

    def predict_noise(self, executor, x, timestep, *args, **kwargs):
        """Count evaluations: the sampler asks once for each, before guidance splits it into streams."""
        self._evaluation, self._sigma = self._evaluation + 1, float(timestep.max())
        self._served.clear()
        answer = executor(x, timestep, *args, **kwargs)
        if self.engine is not None:
            self.patch.tell("evaluated", self.engine.stats)
        return answer

    def forward(self, executor, *args, **kwargs):
        """Answer one call of the model."""
        call = Call.of(executor, args, kwargs)
        if self.engine is None and self._evaluation >= 0:
            self._begin(call)
        engine, streams = self.engine, call.streams
        if call.model is not self._model:  # a guider may ask a second model, which has our wrappers but not our plan
            if engine is not None:
                engine.stats.warn("the guider asks a second model too, which is computed in full")
            return executor(*args, **kwargs)
        if engine is None or self._served.intersection(streams) or not self._fits(call):
            return executor(*args, **kwargs)
        self._served.update(streams)
        compute = partial(self._compute, call)
        output = engine.evaluate(self._evaluation, streams, pad_to_patches(call.x), compute)
        return output[..., : call.x.shape[-2], : call.x.shape[-1]]

    def _begin(self, call: Call) -> None:
        self._shape, self._model, policy = call.x.shape[1:], call.model, self.patch.policy
        self.schedule = EvaluationSchedule.of(self.sampling)
        try:
            self.engine = Engine(policy, read_setup(call, self.sampling, self.schedule, policy, self.patch.mask))
            context, setup = self.engine.stats.planned_context_bytes, self.engine.setup
            if policy.memory_offload:
                context = on_device(context, setup.shape.attention_layers)
            planned = context + self.engine.stats.planned_block_bytes
            if planned and call.x.device.type != "cpu":
                self.sampling.make_room(planned, call.x)
        except Exception as error:  # a run that works without us works with us
            reason = f"setting up failed ({type(error).__name__}: {error}); please report this"
            grid = TokenGrid.of_latent(call.x)
            self.engine = Engine(policy, RunSetup(grid, self.schedule.sigmas, ModelShape(1, 1, 1), reason=reason))
        self.patch.report.add(self.engine.stats, self.sampling.prompt)
        self.patch.tell("began", self.engine.stats, self.engine.setup)

    def _fits(self, call: Call) -> bool:
        """Whether this call belongs to the plan; where one does not, the plan is given up or the call passed on."""
        if self.engine.closed or self.engine.exact:
            return True
        if not self.schedule.has(self._evaluation, self._sigma):
            self.engine.give_up(
                "the sampler left the steps it announced; take one with fixed steps, such as euler or uni_pc"
            )
        elif why_replaced(call.model):
            self.engine.give_up(why_replaced(call.model))
        elif call.x.shape[0] != self.engine.setup.rows * len(call.streams):
            self.engine.give_up("another node cuts the batch into other parts; take out that node, or this one")
        return call.x.shape[1:] == self._shape

    def _compute(self, call: Call, selection: Tensor | None, stream: int | None = None) -> Tensor:
        call = call if stream is None else call.only(stream)
        options = call.transformer_options
        if self.engine.routes_blocks:
            options = routed(self.engine, options, len(call.model.blocks))
        watched = None
        if self.engine.wants_attention:  # on every call: compiled blocks may not look again whether it is there
            tokens = TokenGrid.of_latent(call.x).size if selection is None else len(selection)
            watched = SelfAttention(self.engine, call.model, tokens, call.read, options)
            options = {**options, SelfAttention.SLOT: watched}
        output = pad_to_patches(call.proceed(options)) if selection is None else self._packed(call, selection, options)
        if watched:
            self.engine.saw_layers(watched.layers)
        return output

    @staticmethod
    def _packed(call: Call, selection: Tensor, options: dict) -> Tensor:
        """The host's answer for some tokens, ``[B, C, 1, 2, 2N]``."""
        frames, height, width = call.x.shape[-3:]
        x, extra = pad_to_patches(call.x), dict(call.extra)
        if extra.get("vace_context") is not None:
            extra["vace_context"] = pack(pad_to_patches(extra["vace_context"]), selection)
        rotary = call.model.rope_encode(
            frames, height, width, device=x.device, dtype=x.dtype, transformer_options=options
        )
        return call.model.forward_orig(
            pack(x, selection),
            pack_timesteps(call.timestep, selection, *_per_frame(x)),
            call.context,
            clip_fea=call.clip_fea,
            freqs=gather_rows(rotary, selection),
            transformer_options=options,
            **extra,
        )


def _per_frame(x: Tensor) -> tuple[int, int]:
    """Tokens of a frame and of the clip."""
    grid = TokenGrid.of_latent(x)
    return grid.height * grid.width, grid.size
