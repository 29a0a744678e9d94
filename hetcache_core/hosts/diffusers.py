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
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from torch import Tensor

from ..attention import attend_in_groups, split_by_weight
from ..costs import ModelShape
from ..engine import Engine, RunSetup
from ..packing import gather_rows, pack, pack_timesteps
from ..policy import CachePolicy
from ..stats import RunStats
from ..tokens import TokenClasses, TokenGrid, classify, pool_latent_mask, pool_pixel_mask, vace_mask

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


class _NoState(BaseState):
    """diffusers hands the name of the call (cond, uncond) to a hook's state managers; state itself is the engine's."""

    def reset(self) -> None:
        pass


class _Hook(ModelHook):
    _is_stateful = True

    def __init__(self, policy: CachePolicy, mask: Tensor | None, scheduler: Any, streams: int):
        super().__init__()
        self.policy, self.mask, self.scheduler, self.streams = policy, mask, scheduler, streams
        self.contexts = StateManager(_NoState)
        self.stats: RunStats | None = None
        self._engine: Engine | None = None
        self._key: tuple = ()
        self._processors: list[tuple[WanAttention, WanAttnProcessor]] = []
        self._position = (-1, None)
        self._served: list[str] = []

    # ---- life cycle

    def initialize_hook(self, module):
        self._signature = inspect.signature(type(module).forward)
        blocks = [
            *getattr(module, "vace_blocks", ()),
            *module.blocks,
        ]  # call order: all VACE blocks, then the main ones
        attentions = [block.attn1 for block in blocks]
        self._known_processors = all(type(a.processor) is WanAttnProcessor for a in attentions)
        if self._known_processors:
            for layer, attention in enumerate(attentions):
                self._processors.append((attention, attention.processor))
                attention.set_processor(_Processor(self, layer, attention.processor))
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
            self._engine, self._key = Engine(self.policy, self._setup(module, call)), key
            self.stats = self._engine.stats
        engine = self._engine
        compute = partial(self._compute, module, call)
        with torch.no_grad():
            output = engine.evaluate(evaluation, (stream,), sample, compute)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

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
        with _rotary_rows(module.rope, sample, selection):
            return forward(**packed)[0]

    def _locate(self, timestep: Tensor) -> tuple[str, int]:
        """Name of the call's stream and index of its evaluation; a new run is begun where the schedule starts over."""
        now = float(timestep.flatten()[0] if timestep.ndim < 2 else timestep.max())
        index, then = self._position
        try:
            name = self.contexts.context.name
        except ValueError:  # a pipeline that does not name its calls: told apart by their order
            name = None
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

    # ---- what is known at the start of a run

    def _setup(self, module, call: dict) -> RunSetup:
        sample = call["hidden_states"]
        config = module.config
        shape = ModelShape(
            config.num_attention_heads * config.attention_head_dim,
            config.num_layers,
            config.ffn_dim,
            len(getattr(module, "vace_blocks", ())),
            call["encoder_hidden_states"].shape[1],
        )
        classes, reason = self._classes(call)
        sigmas = self._sigmas()
        if not reason and not sigmas:
            reason = "the schedule is unknown; give apply(..., scheduler=pipe.scheduler)"
        return RunSetup(
            grid=TokenGrid.of_latent(sample),
            sigmas=sigmas,
            shape=shape,
            classes=classes,
            reason=reason,
            itemsize=sample.element_size(),
            streams=self.streams * sample.shape[0],
            stochastic=_stochastic(self.scheduler),
            memory_works=self._known_processors,
        )

    def _sigmas(self) -> tuple[float, ...]:
        sigmas, timesteps = (getattr(self.scheduler, name, None) for name in ("sigmas", "timesteps"))
        if sigmas is None or timesteps is None or len(sigmas) < len(timesteps):
            return ()
        return tuple(float(s) for s in [*sigmas[: len(timesteps)], 0.0])

    def _classes(self, call: dict) -> tuple[TokenClasses | None, str]:
        sample, control = call["hidden_states"], call.get("control_hidden_states")
        if sample.shape[-1] % 2 or sample.shape[-2] % 2:
            return None, f"the latent's size {tuple(sample.shape[-2:])} is odd; use a clip size that 16 divides"
        grid = TokenGrid.of_latent(sample)
        found, references = vace_mask(control) if control is not None else (None, 0)
        try:
            if self.mask is None and found is None:
                return None, "there is no mask: give apply(..., mask=...), or use a VACE model"
            if self.mask is None:
                touched = pool_latent_mask(found, grid, self.policy.mask_threshold)
            else:
                touched = self._given_mask(sample, grid, references)
        except ValueError as error:
            return None, str(error)
        policy = self.policy
        return classify(touched, policy.margin_space, policy.margin_time, references), ""

    def _given_mask(self, sample: Tensor, grid: TokenGrid, references: int) -> Tensor:
        mask = self.mask.to(sample.device)
        clip = TokenGrid(grid.frames - references, grid.height, grid.width)
        latent = tuple(mask.shape) == (clip.frames, *sample.shape[-2:])
        pool = pool_latent_mask if latent else pool_pixel_mask
        touched = pool(mask, clip, self.policy.mask_threshold)
        return torch.cat([touched.new_zeros(references, clip.height, clip.width), touched])


class _Processor(WanAttnProcessor):
    """Stock self-attention, except while the engine captures or joins context.

    Those calls repeat the stock arithmetic step by step up to the attention itself; a test holds them to equal bytes.
    """

    def __init__(self, hook: _Hook, layer: int, stock: WanAttnProcessor):
        super().__init__()
        self._hook, self._layer, self._stock = hook, layer, stock
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        engine = self._hook._engine
        if engine is None or not engine.routes_attention:
            return self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (t.unflatten(2, (attn.heads, -1)) for t in (query, key, value))
        query, key = (apply_rotary_emb(t, tuple(f[0, :, 0] for f in rotary_emb), sequence_dim=1) for t in (query, key))
        output = engine.self_attention(self._layer, query, key, value, self._attend)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None and self._attention_backend is not None:  # most kernels take no mask
            return attend_in_groups(query, split_by_weight(key, value, bias))
        mask = None if bias is None else bias.to(query.dtype).expand(1, 1, query.shape[1], -1)
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )


@contextmanager
def _rotary_rows(rope: torch.nn.Module, sample: Tensor, selection: Tensor):
    """While open, the rotary module answers for the whole clip and hands out the selected rows."""
    whole = rope.register_forward_pre_hook(lambda module, args: (sample, *args[1:]))
    rows = rope.register_forward_hook(
        lambda module, args, output: tuple(gather_rows(table, selection) for table in output)
    )
    try:
        yield
    finally:
        whole.remove()
        rows.remove()


def _stochastic(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    return "sde" in str(config.get("algorithm_type", "")) or bool(config.get("stochastic_sampling", False))
