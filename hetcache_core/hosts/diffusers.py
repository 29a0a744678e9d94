"""HetCache on diffusers: ``WanVACETransformer3DModel`` and ``WanTransformer3DModel`` inside their stock pipelines.

    from hetcache_core import CachePolicy
    from hetcache_core.hosts import diffusers as host

    handle = host.apply(pipe.transformer, CachePolicy(speed=3.0), scheduler=pipe.scheduler)
    video = pipe(...).frames
    print(handle.stats.summary())
    handle.remove()

The forward goes through diffusers' own hook registry, self-attention through its attention processors, rotary rows
through torch's forward hooks; no class or module is replaced.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from torch import Tensor

from ..engine import Engine
from ..packing import pack, pack_timesteps
from ..policy import CachePolicy
from ..stats import RunStats
from ..tokens import TokenGrid
from .diffusers_attention import ContextProcessor, rotary_rows
from .diffusers_setup import read_setup

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
        transformer: a Wan or Wan-VACE transformer, or a pipeline that has one (then its scheduler is taken too).
        policy: what is wanted.
        mask: 1 = generate; ``[F, H, W]`` pixels or ``[T, H, W]`` latent cells. None: found in the VACE control.
        scheduler: the pipeline's scheduler; it knows the schedule the plan is made for.
        streams: conditionings per step the memory budget is shared by: 2 with guidance, 1 without.

    Returns:
        A handle with the statistics and :meth:`Handle.remove`; also a context manager.

    Raises:
        TypeError: not a Wan transformer of diffusers.
    """
    if not isinstance(transformer, SUPPORTED) and isinstance(getattr(transformer, "transformer", None), SUPPORTED):
        scheduler = scheduler or transformer.scheduler
        transformer = transformer.transformer
    if type(transformer) not in SUPPORTED:
        names = " and ".join(c.__name__ for c in SUPPORTED)
        raise TypeError(f"HetCache works on {names}; this is {type(transformer).__name__}")
    remove(transformer)
    return Handle(transformer, _Hook(policy, mask, scheduler, streams))


def remove(transformer: torch.nn.Module) -> None:
    """Undo :func:`apply`; nothing happens where it was not applied."""
    registry = getattr(transformer, "_diffusers_hook", None)
    if registry is None or registry.get_hook(HOOK) is None:
        return
    registry.remove_hook(HOOK, recurse=False)
    if not registry.hooks:
        del transformer._diffusers_hook
        if transformer.__dict__.get("forward") == type(transformer).forward.__get__(transformer):
            del transformer.forward


class Handle:
    """A patched transformer. ``stats`` speak of the last run, or of the one under way."""

    def __init__(self, transformer: torch.nn.Module, hook: _Hook):
        self._transformer, self._hook = transformer, hook
        HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, HOOK)

    @property
    def stats(self) -> RunStats:
        """Statistics of the last run.

        Raises:
            RuntimeError: nothing has run yet.
        """
        if self._hook.stats is None:
            raise RuntimeError("nothing has run through this transformer since HetCache was applied")
        return self._hook.stats

    def remove(self) -> None:
        """Restore the transformer as it was."""
        remove(self._transformer)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _CallName(StateManager):
    """Where diffusers puts the name of the call (cond, uncond); the state itself is the engine's."""

    def __init__(self):
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Take a context: its bare name in older versions, an object with a name in newer ones, None at its end."""
        self.name = getattr(context, "name", context)

    def reset(self, *args: object, **kwargs: object) -> None:
        self.name = None


class _Hook(ModelHook):
    _is_stateful = True

    def __init__(self, policy: CachePolicy, mask: Tensor | None, scheduler: Any, streams: int):
        super().__init__()
        self.policy, self.mask, self.scheduler, self.streams = policy, mask, scheduler, streams
        self.call_name = _CallName()
        self.stats: RunStats | None = None
        self._engine: Engine | None = None
        self._key: tuple = ()
        self._processors: list[tuple[WanAttention, WanAttnProcessor]] = []
        self._position = (-1, None)
        self._served: list[str] = []

    # ---- life cycle

    def initialize_hook(self, module):
        self._signature = inspect.signature(type(module).forward)
        # in call order: all VACE blocks, then the main ones
        blocks = [*getattr(module, "vace_blocks", ()), *module.blocks]
        attentions = [block.attn1 for block in blocks]
        self._known_processors = all(type(a.processor) is WanAttnProcessor for a in attentions)
        if self._known_processors:
            for layer, attention in enumerate(attentions):
                self._processors.append((attention, attention.processor))
                attention.set_processor(ContextProcessor(lambda: self._engine, layer, attention.processor))
        return module

    def deinitalize_hook(self, module):
        self.reset_state(module)
        for attention, processor in self._processors:
            attention.set_processor(processor)
        self._processors.clear()
        return module

    def reset_state(self, module):
        """The run is over: diffusers' pipelines call this when they end, also between two runs."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._position, self._served = None, (-1, None), []
        return module

    # ---- one model call

    @torch.compiler.disable
    def new_forward(self, module, *args, **kwargs):
        call = self._signature.bind(module, *args, **kwargs)
        call.apply_defaults()
        call = dict(call.arguments)
        call.pop("self")
        return_dict, call["return_dict"] = call["return_dict"], False
        sample = call["hidden_states"]
        stream, evaluation = self._locate(call["timestep"])
        key = (tuple(sample.shape), sample.dtype, sample.device)
        if self._engine is None or key != self._key:
            self._begin(module, call, key)
        try:
            with torch.no_grad():
                output = self._engine.evaluate(evaluation, (stream,), sample, partial(self._compute, module, call))
        except BaseException:
            self.reset_state(module)
            raise
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _begin(self, module, call: dict, key: tuple) -> None:
        if self._engine is not None:
            self._engine.close()
        setup = read_setup(
            module, call, self.policy, self.scheduler, self.mask, self.streams, memory_works=self._known_processors
        )
        self._engine, self._key = Engine(self.policy, setup), key
        self.stats = self._engine.stats

    def _compute(self, module, call: dict, selection: Tensor | None) -> Tensor:
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

    def _locate(self, timestep: Tensor) -> tuple[str, int]:
        """Name of the call's stream and index of its evaluation; a new run is begun where the schedule starts over."""
        now = float(timestep.flatten()[0] if timestep.ndim < 2 else timestep.max())
        index, then = self._position
        name = self.call_name.name  # a pipeline that does not name its calls has them told apart by their order
        if then != now or (name or "") in self._served:
            following = self._find(now, index)
            if following <= index:
                self.reset_state(None)
            self._position, self._served = (following, now), []
        name = name or f"call {len(self._served)}"
        self._served.append(name)
        return name, self._position[0]

    def _find(self, now: float, index: int) -> int:
        timesteps = getattr(self.scheduler, "timesteps", None)
        if timesteps is None:
            return index + 1
        hits = ((timesteps.float().cpu() - now).abs() < 0.5).nonzero().flatten().tolist()
        later = [i for i in hits if i > index]
        return later[0] if later else hits[0] if hits else index + 1
