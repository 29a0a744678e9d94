"""What ComfyUI's models, guiders and calls tell about a run when it starts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import torch
from comfy.ldm.wan.model import VaceWanModel, WanModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..block_profile import sampled_weights
from ..costs import ModelShape
from ..policy import CachePolicy
from ..setup import RunSetup
from ..tokens import PIXELS_PER_CELL, TokenGrid
from .comfyui_masks import token_classes
from .comfyui_schedule import EvaluationSchedule

KEY = "hetcache"  # of our wrappers
OTHER_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
TENSORS = ("x", "timestep", "context", "clip_fea", "time_dim_concat")  # of a call, one row a stream and clip
FORWARDS = ("forward", "_forward", "forward_orig")


@dataclass(frozen=True)
class Sampling:
    """What the host knows around a whole sampling run. ``sigmas`` ``[steps + 1]``, ``noise`` ``[B, C, T, H, W]``."""

    guider: Any
    noise: Tensor
    sampler: Any
    sigmas: Tensor
    denoise_mask: Tensor | None
    prompt: Any
    cfg: Any  # before the run, in which nodes may set it as they like

    @classmethod
    def of(cls, guider: Any, args: tuple, kwargs: dict) -> Sampling:
        names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: given.get(name) for name in ("noise", "sampler", "sigmas", "denoise_mask")}
        return cls(guider, **given, prompt=running_prompt(), cfg=getattr(guider, "cfg", None))

    def streams(self, uncond: bool) -> int:
        """Streams of an evaluation; a guider with more than two prompts has strengths of its own.

        Args:
            uncond: whether the sampler wants the negative prompt without guidance too.
        """
        guider, conds = self.guider, self.guider.conds
        unguided = conds.keys() <= {"positive", "negative"} and not self._guides_later and math.isclose(self.cfg, 1.0)
        if unguided and not (uncond or guider.model_options.get("disable_cfg1_optimization", False)):
            return max(len(conds.get("positive", ())), 1)
        return max(sum(len(c) for c in conds.values()), 1)

    @property
    def _guides_later(self) -> bool:
        """Whether guidance may begin in mid-run: a strength for every step, or nodes that set it as the run goes on."""
        others = self.wrappers(WrappersMP.PREDICT_NOISE).keys() - {KEY}
        return bool(others) or not isinstance(self.cfg, (int, float))

    def wrappers(self, kind: str) -> dict[str, list]:
        """Wrappers of a kind on this run's model, by key."""
        return self.guider.model_options.get("transformer_options", {}).get("wrappers", {}).get(kind, {})

    def make_room(self, size: int, x: Tensor) -> None:
        """Have the host free this many bytes beside what a call on ``x`` takes: other models first, then some of our
        weights, which it then brings in as they are needed. (Newer hosts do the latter by themselves.)"""
        management, patcher = comfy.model_management, self.guider.model_patcher
        needed = size + patcher.memory_required(list(x.shape))
        beside = [*(getattr(self.guider, "loaded_models", None) or ()), *patcher.model_patches_models()]
        ours = [
            m for m in management.current_loaded_models
            if m.model is not None and (m.model.is_clone(patcher) or any(m.model is other for other in beside))
        ]  # fmt: skip
        management.free_memory(needed, x.device, keep_loaded=ours)
        lacking = needed - management.get_free_memory(x.device)
        evicts = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
        if lacking > 0 and not evicts:
            patcher.partially_unload(patcher.offload_device, lacking)


@dataclass(frozen=True)
class Call:
    """One call of the diffusion model, as its wrappers see it."""

    executor: Any
    x: Tensor
    timestep: Tensor
    context: Tensor
    clip_fea: Tensor | None
    time_dim_concat: Tensor | None
    transformer_options: dict
    extra: dict

    @classmethod
    def of(cls, executor: Any, args: tuple, kwargs: dict) -> Call:
        names = ("x", "timestep", "context", "clip_fea", "time_dim_concat", "transformer_options")
        extra = {**dict(zip(names, args, strict=False)), **kwargs}
        named = {name: extra.pop(name, None) for name in names}
        named["transformer_options"] = named["transformer_options"] or {}
        return cls(executor, **named, extra=extra)

    @property
    def model(self) -> torch.nn.Module:
        return self.executor.class_obj

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """Keys of the streams whose rows make up the batch.

        A prompt that comes again with other blocks replaced (skip-layer guidance) is a stream of its own.
        """
        options = self.transformer_options
        replaced = tuple(sorted(map(str, options.get("patches_replace", {}).get("dit", {}))))
        shape = (tuple(self.x.shape[1:]), self.x.dtype, self.x.device)
        pairs = zip(options.get("uuids", ()), options.get("cond_or_uncond", ()), strict=False)
        return tuple((*pair, replaced, *shape) for pair in pairs) or ((None, 0, replaced, *shape),)

    @property
    def read(self) -> set[int]:
        """Lengths of what cross-attention reads: the prompt and, where there is one, the image."""
        return {read.shape[-2] for read in (self.context, self.clip_fea) if read is not None}

    @property
    def conditional(self) -> Hashable | None:
        """The stream of the positive prompt in the host's own guidance, where it is in this call."""
        return next((s for s in self.streams if s[1] == 0 and s[0] is not None and not s[2]), None)

    def only(self, index: int) -> Call:
        """The call with the rows of one of its streams alone."""
        count, batch = len(self.streams), self.x.shape[0]
        if count == 1:
            return self

        def rows(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: rows(part) for name, part in value.items()}
            if isinstance(value, list):
                return [rows(part) for part in value]
            batched = isinstance(value, Tensor) and value.ndim and value.shape[0] == batch
            return value.chunk(count)[index] if batched else value

        options = dict(self.transformer_options)
        options.update({name: options[name][index : index + 1] for name in ("uuids", "cond_or_uncond")})
        tensors = {name: rows(getattr(self, name)) for name in TENSORS}
        return replace(self, transformer_options=options, extra=rows(self.extra), **tensors)

    def proceed(self, transformer_options: dict) -> Tensor:
        """The host's own answer."""
        return self.executor(
            self.x, self.timestep, self.context, self.clip_fea, self.time_dim_concat, transformer_options, **self.extra
        )


# ---- what stands in the way


def why_untouched(patcher: Any) -> str:
    """Why HetCache can do nothing for a model, or empty."""
    model = patcher.get_model_object("diffusion_model")
    if type(model) not in (WanModel, VaceWanModel):
        return f"it is a {type(model).__name__}; HetCache knows the Wan 2.1 and 2.2 text, image and VACE models"
    return ""


def why_replaced(model: torch.nn.Module) -> str:
    """Why a model's own forward cannot be called on a part of the tokens, or empty."""
    kind = type(model)
    # by method, not by attribute: a host that takes a patch away leaves the class's own method on the model
    own = (getattr(getattr(model, name), "__func__", None) is getattr(kind, name) for name in FORWARDS)
    if kind in (WanModel, VaceWanModel) and all(own):
        return ""
    return "another node replaced the model's forward; remove that node, or this one"


def why_whole_run(sampling: Sampling) -> str:
    """Why a run is left to the host altogether, or empty."""
    options, patcher = sampling.guider.model_options, sampling.guider.model_patcher
    others = {OTHER_CACHES[k] for k in OTHER_CACHES if k in sampling.wrappers(WrappersMP.OUTER_SAMPLE)}
    if others:
        return f"{' and '.join(sorted(others))} works on the same model; keep one of the two"
    compiling = sampling.wrappers(WrappersMP.APPLY_MODEL).get("torch.compile", ())
    if any("diffusion_model" in _compiled(wrapper, patcher.model) for wrapper in compiling):
        return "the whole model is compiled; compile its blocks instead (KJNodes' TorchCompileModelAdvanced does)"
    if options.get("context_handler") is not None:
        return "context windows cut the clip into pieces that move; take them out, or edit a shorter clip"
    if getattr(patcher, "get_additional_models_with_key", lambda key: ())("multigpu"):
        return "the work is split over several GPUs; take the split out to use HetCache"
    if any(cond.get("hooks") is not None for conds in sampling.guider.conds.values() for cond in conds):
        return "prompts carry LoRA hooks, which change the model while it samples; load the LoRA on the model"
    return ""


def _compiled(wrapper: Any, model: Any) -> Collection[str]:
    """Names of what a compiling wrapper swaps; the whole model where it does not say.

    Only the wrapper knows: the host's in its closure, KJNodes' in a table by model that stands beside it.
    """
    if not inspect.isfunction(wrapper):
        return ("diffusion_model",)
    known = inspect.getclosurevars(wrapper)
    if "compiled_module_dict" in known.nonlocals:
        return known.nonlocals["compiled_module_dict"]
    tables = (table for table in known.globals.values() if isinstance(table, WeakKeyDictionary))
    return next((table[model] for table in tables if model in table), ("diffusion_model",))


# ---- the setup


def _asked(control: Tensor, sampling: Sampling) -> Tensor:
    """VACE controls of all positive prompts, ``[n, 96, T, H, W]``: what any of them masks is edited.

    A negative prompt without a control of its own gets one from the host that masks everything. Where the guider does
    not say which prompts are positive, the control of this call.
    """
    conds = [cond.get("model_conds", {}).get("vace_context") for cond in sampling.guider.conds.get("positive", ())]
    found = [cond.cond.to(control.device).flatten(0, -5) for cond in conds if cond is not None]
    return torch.cat([c for c in found if c.shape[-4:] == control.shape[-4:]] or [control.flatten(0, -5)])


def read_setup(
    call: Call, sampling: Sampling, schedule: EvaluationSchedule, policy: CachePolicy, mask: Tensor | None
) -> RunSetup:
    """A run's setup, read off its first call."""
    model, x = call.model, call.x
    control = call.extra.get("vace_context")
    copies = control.shape[1] if control is not None and control.ndim == 6 else 1
    asked = None if control is None else _asked(control, sampling)
    classes, reason = token_classes(call.x, asked, sampling.denoise_mask, mask, policy)
    return RunSetup(
        grid=TokenGrid.of_latent(x),
        sigmas=schedule.sigmas,
        shape=ModelShape(
            model.dim,
            len(model.blocks),
            model.ffn_dim,
            copies * len(getattr(model, "vace_blocks", ())),
            call.context.shape[1],
        ),
        classes=classes,
        reason=why_replaced(model) or reason,
        itemsize=x.element_size(),
        streams=max(sampling.streams(schedule.uncond), len(call.streams)),
        conditional=call.conditional,
        rows=x.shape[0] // len(call.streams),
        stochastic=schedule.stochastic,
        no_partials=_no_partials(call),
        main_layers=_main_layers(model, copies),
        weights=sampled_weights([block.modulation for block in model.blocks]),
        interrupts=(comfy.model_management.InterruptProcessingException,),
        cell=_cell(sampling.guider.model_patcher),
        mask_threshold=policy.mask_threshold,
    )


def _cell(patcher: Any) -> int:
    """Pixels along a side of a latent cell: 8, and 16 of the 5B model's."""
    latent_format = getattr(patcher.model, "latent_format", None)
    return getattr(latent_format, "spacial_downscale_ratio", PIXELS_PER_CELL)


def _main_layers(model: torch.nn.Module, copies: int) -> tuple[int, ...]:
    """Which self-attention calls are the main blocks': a VACE block's come after its main block's, once a control."""
    mapping = getattr(model, "vace_layers_mapping", {})
    layers, call = [], 0
    for block in range(len(model.blocks)):
        layers.append(call)
        call += 1 + copies * (block in mapping)
    return tuple(layers)


def _no_partials(call: Call) -> str:
    """Why this model must always see the whole clip, or empty."""
    if call.time_dim_concat is not None or call.extra.get("context_latents") is not None:
        return "reference latents stand beside the clip; evaluations are only reused"
    if call.extra.get("reference_latent") is not None and getattr(call.model, "ref_conv", None) is not None:
        return "a reference latent stands before the clip; evaluations are only reused"
    if call.extra.get("control") is not None:
        return "a ControlNet adds to the model's blocks; evaluations are only reused"
    patches = {"attn1_patch", "attn2_patch", "double_block"} & call.transformer_options.get("patches", {}).keys()
    if patches or any(map(_patched, (*call.model.blocks, *getattr(call.model, "vace_blocks", ())))):
        return "another node patches the model's blocks and may need the whole clip; evaluations are only reused"
    return ""


def _patched(block: torch.nn.Module) -> bool:
    """Whether a block's forward or that of its self-attention was replaced, which may count on whole frames; compiling
    a block, and another cross-attention, which reads the prompt, change nothing."""
    block = getattr(block, "_orig_mod", block)
    return any(getattr(part.forward, "__func__", None) is not type(part).forward for part in (block, block.self_attn))


def running_prompt() -> Any:
    """Which prompt of the queue is being worked on, where the host tells."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return getattr(context, "prompt_id", None)
