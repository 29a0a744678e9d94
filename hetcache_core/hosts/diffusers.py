"""HetCache on diffusers: ``WanVACETransformer3DModel`` and ``WanTransformer3DModel`` inside their stock pipelines.

    from hetcache_core import CachePolicy
    from hetcache_core.hosts import diffusers as host

    handle = host.apply(pipe.transformer, CachePolicy(speed=3.0), scheduler=pipe.scheduler)
    video = pipe(...).frames
    print(handle.stats.summary())
    handle.remove()

The forward and the blocks go through diffusers' own hook registry, self-attention through its attention processors,
rotary rows through torch's forward hooks; no class or module is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from torch import Tensor
from torch._dynamo import OptimizedModule

from ..block_profile import BlockProfile
from ..costs import ModelShape
from ..engine import Engine
from ..packing import pack, pack_timesteps
from ..policy import FEW_STEPS, CachePolicy
from ..profile import ErrorProfile
from ..setup import RunSetup
from ..stats import RunStats
from ..tokens import TokenGrid
from .diffusers_attention import ContextProcessor, rotary_rows
from .diffusers_blocks import hook_blocks, tidy, unhook_blocks
from .diffusers_calls import SEVERAL, CallName, Calls, Place, Schedule, boundary
from .diffusers_setup import COMPILED, read_setup, self_attentions

HOOK = "hetcache"
SUPPORTED = (WanVACETransformer3DModel, WanTransformer3DModel)


def apply(
    transformer: torch.nn.Module,
    policy: CachePolicy,
    mask: Tensor | None = None,
    scheduler: Any = None,
    streams: int = 2,
) -> Handle:
    """Patch a transformer. Applying again replaces what was applied before.

    Args:
        transformer: a Wan or Wan-VACE transformer, or a pipeline that has one.
        policy: what is wanted.
        mask: 1 = generate; ``[F, H, W]`` pixels or ``[T, H, W]`` latent cells. None: found in the VACE control.
        scheduler: the pipeline's scheduler, or the pipeline itself (its scheduler may then be changed at any time, and
            where it has two transformers it says which steps are whose); it knows the schedule the plan is made for.
        streams: calls of the model per step, which share the memory budget: 2 with guidance, 1 without.

    Returns:
        A handle with the statistics and :meth:`Handle.remove`; also a context manager.

    Raises:
        TypeError: not a Wan transformer of diffusers, or a mask that is not a tensor.
        ValueError: the policy names an error profile or a block profile that cannot be read, the whole transformer is
            compiled, or a pipeline with two transformers was given.
    """
    if type(transformer) not in SUPPORTED and type(getattr(transformer, "transformer", None)) in SUPPORTED:
        if getattr(transformer, "transformer_2", None) is not None:
            raise ValueError(
                "this pipeline has two transformers; apply to each: apply(pipe.transformer, policy, scheduler=pipe) "
                "and apply(pipe.transformer_2, policy, scheduler=pipe)"
            )
        scheduler = transformer if scheduler is None else scheduler
        transformer = transformer.transformer
    if type(transformer) not in SUPPORTED:
        names = " and ".join(c.__name__ for c in SUPPORTED)
        advice = f"; {COMPILED}" if isinstance(transformer, OptimizedModule) else ""
        raise TypeError(f"HetCache works on {names}; this is {type(transformer).__name__}{advice}")
    if getattr(transformer, "_compiled_call_impl", None) is not None:
        raise ValueError(COMPILED)
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"the mask must be a torch tensor, this is {type(mask).__name__}")
    if policy.profile != "auto":
        ErrorProfile.load(policy.profile)
    if policy.block_profile != "auto":
        BlockProfile.load(policy.block_profile)
    remove(transformer)
    return Handle(transformer, _Hook(policy.settled(), mask, scheduler, streams))


def profile_blocks(
    transformer: torch.nn.Module,
    run: Callable[[], Any],
    name: str,
    mask: Tensor | None = None,
    scheduler: Any = None,
    threshold: float | None = None,
    share: float = 0.7,
) -> BlockProfile:
    """Measure which blocks of a model look at an edit, for ``CachePolicy(method="profilingdit", block_profile=...)``.

    Args:
        transformer, mask, scheduler: as :func:`apply` takes them.
        run: runs the pipeline, computed in full; a few steps are enough.
        name: of the model. threshold, share: how blocks are split (:meth:`BlockProfile.of_scores`).

    Raises:
        ValueError: nothing could be measured; the message says why.
    """
    with apply(transformer, CachePolicy(method="profile"), mask, scheduler) as handle:
        run()
        stats = handle.stats
    return stats.block_profile(name, threshold, share)


def remove(transformer: torch.nn.Module) -> None:
    """Undo :func:`apply`; nothing happens where it was not applied."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(HOOK) if registry is not None else None
    if hook is None:
        return
    outer = transformer.__dict__.get("forward")
    registry.remove_hook(HOOK, recurse=False)
    if getattr(transformer, "_old_forward", None) is hook.installed:  # accelerate wrapped us: stay out of its way
        transformer._old_forward, transformer.forward = hook.fn_ref.original_forward, outer
    tidy(transformer, registry)


class Handle:
    """A patched transformer. ``stats`` speak of the last run, or of the one under way."""

    def __init__(self, transformer: torch.nn.Module, hook: _Hook):
        self._transformer, self._hook = transformer, hook
        outer = transformer.forward if hasattr(transformer, "_old_forward") else None
        if outer is not None:  # accelerate's hook: it is taken off and put on at every run, so that ours goes beneath
            transformer.forward = transformer._old_forward
        HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, HOOK)
        hook.installed = transformer.forward
        if outer is not None:
            transformer._old_forward, transformer.forward = hook.installed, outer

    @property
    def stats(self) -> RunStats:
        """Statistics of the last run.

        Raises:
            RuntimeError: nothing has run yet.
        """
        if self._hook.stats is None:
            raise RuntimeError("nothing has run through this transformer since HetCache was applied")
        return self._hook.stats

    def reset(self) -> None:
        """End a run that was broken off between two calls of the model, by a callback or Ctrl-C: what it remembers is
        freed, as at the end of any run. The next run does so by itself."""
        self._hook.reset_state(self._transformer)

    def remove(self) -> None:
        """Restore the transformer as it was; nothing happens when another policy was applied since."""
        registry = getattr(self._transformer, "_diffusers_hook", None)
        if registry is not None and registry.get_hook(HOOK) is self._hook:
            remove(self._transformer)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Hook(ModelHook):
    _is_stateful = True

    def __init__(self, policy: CachePolicy, mask: Tensor | None, scheduler: Any, streams: int):
        super().__init__()
        self.policy, self.mask, self.streams = policy, mask, streams
        self.call_name, self.calls = CallName(), Calls(streams)
        self.stats: RunStats | None = None
        self.installed = None
        self._engine: Engine | None = None
        self._source = scheduler
        self._removed = False
        self._processors: list[tuple[WanAttention, WanAttnProcessor]] = []
        self._hooked: torch.nn.Module | None = None  # the transformer whose blocks are hooked

    # ---- life cycle

    def initialize_hook(self, module):
        self._signature = inspect.signature(type(module).forward)
        return module

    def deinitalize_hook(self, module):
        self.reset_state(module)
        self._removed = True
        return module

    def reset_state(self, module):
        """The run is over: diffusers' pipelines call this when they end, and so does everything that ends one here."""
        self._close()
        self.calls.reset()
        return module

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._let_go()

    def _let_go(self) -> None:
        """Leave the transformer's insides alone again."""
        self._route_attention([])
        if self._hooked is not None:
            unhook_blocks(self._hooked)
        self._hooked = None

    def _route_attention(self, attentions: list[WanAttention]) -> None:
        """Send these layers' self-attention through the engine, and no others."""
        for attention, stock in self._processors:
            if isinstance(attention.processor, ContextProcessor):  # not where it was set anew since
                attention.set_processor(stock)
        self._processors = [(attention, attention.processor) for attention in attentions]
        for layer, (attention, stock) in enumerate(self._processors):
            attention.set_processor(ContextProcessor(lambda: self._engine, layer, stock))

    def _begin(self, module, call: dict, timestep: float, place: Place) -> None:
        self._close()
        sample, scheduler = call["hidden_states"], getattr(self._source, "scheduler", self._source)
        schedule = Schedule.starting_at(timestep, scheduler, boundary(self._source, module))
        self.calls.schedule, policy = schedule, self.policy
        short = (None, 1) if len(schedule.timesteps) <= FEW_STEPS else (1,)  # warm-ups of one evaluation
        if place.doubtful and not policy.schedule and policy.warmup in short:
            policy = replace(policy, warmup=2)  # nothing is reused before the second step has told
        try:
            setup = read_setup(module, call, policy, schedule, scheduler, self.mask, self.streams)
            if place.several:
                setup = replace(setup, reason=SEVERAL)
            self._engine = Engine(policy, setup)
        except Exception as error:  # a run that works without us works with us
            reason = f"setting up failed ({type(error).__name__}: {error})"
            grid = TokenGrid.of_latent(sample)
            self._engine = Engine(
                self.policy, RunSetup(grid, schedule.sigmas, ModelShape(1, 1, 1), reason=reason)
            )
        self.stats = self._engine.stats
        if self._engine.wants_attention:
            self._route_attention(self_attentions(module))
        if self._engine.wants_blocks:
            hook_blocks(module, lambda: self._engine)
            self._hooked = module

    # ---- one model call

    @torch.compiler.disable
    def new_forward(self, module, *args, **kwargs):
        if self._removed:
            return self.fn_ref.original_forward(*args, **kwargs)
        call = self._signature.bind(module, *args, **kwargs)
        call.apply_defaults()
        call = dict(call.arguments)
        call.pop("self")
        return_dict, call["return_dict"] = call["return_dict"], False
        sample, timestep = call["hidden_states"], float(call["timestep"].max())
        place = self.calls.place(sample, timestep, self.call_name.name)
        if place.begins:
            self._begin(module, call, timestep, place)
        engine, compute = self._engine, partial(self._compute, module, call)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and engine.exact):
                output = engine.evaluate(place.evaluation, (place.stream,), sample, compute)
        except BaseException:
            self.reset_state(module)
            raise
        if engine.closed:
            self._let_go()
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _compute(self, module, call: dict, selection: Tensor | None, stream: int | None = None) -> Tensor:
        # a call of diffusers is one stream, so that `stream` chooses all of it
        forward = self.fn_ref.original_forward
        if selection is None:
            return forward(**call)[0]
        sample = call["hidden_states"]
        grid = TokenGrid.of_latent(sample)
        packed = {**call, "hidden_states": pack(sample, selection)}
        if call.get("control_hidden_states") is not None:
            packed["control_hidden_states"] = pack(call["control_hidden_states"], selection)
        packed["timestep"] = pack_timesteps(call["timestep"], selection, grid.height * grid.width, grid.size)
        with rotary_rows(module.rope, sample, selection):
            return forward(**packed)[0]
