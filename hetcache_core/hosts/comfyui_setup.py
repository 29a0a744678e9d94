"""What ComfyUI's models, guiders and calls tell about a run when it starts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.wan.model import VaceWanModel, WanModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..costs import ModelShape
from ..policy import CachePolicy
from ..setup import RunSetup
from ..tokens import (
    FRAMES_PER_CELL,
    PIXELS_PER_CELL,
    TokenClasses,
    TokenGrid,
    classify,
    pool_latent_mask,
    pool_pixel_mask,
    vace_mask,
)
from .comfyui_schedule import EvaluationSchedule

OTHER_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
I2V_CHANNELS = 36  # 16 of noise, 4 of mask (1 = keep), 16 of the image


@dataclass(frozen=True)
class Sampling:
    """What the host knows around a whole sampling run. ``sigmas`` ``[steps + 1]``, ``noise`` ``[B, C, T, H, W]``."""

    guider: Any
    noise: Tensor
    sampler: Any
    sigmas: Tensor
    denoise_mask: Tensor | None
    prompt: Any

    @classmethod
    def of(cls, guider: Any, args: tuple, kwargs: dict) -> Sampling:
        names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: given.get(name) for name in ("noise", "sampler", "sigmas", "denoise_mask")}
        return cls(guider, **given, prompt=_prompt())

    @property
    def streams(self) -> int:
        """Streams of an evaluation."""
        conds = self.guider.conds
        one = self.guider.cfg == 1.0 and not self.guider.model_options.get("disable_cfg1_optimization", False)
        return max(len(conds.get("positive", ())) if one else sum(len(c) for c in conds.values()), 1)

    def wrapped_by(self, kind: str) -> set[str]:
        """Keys of the wrappers of a kind on this run's model."""
        return set(self.guider.model_options.get("transformer_options", {}).get("wrappers", {}).get(kind, {}))

    def make_room(self, size: int, device: torch.device) -> None:
        """Ask the host to free this many bytes from other models; ours stays where it is."""
        management, patcher = comfy.model_management, self.guider.model_patcher
        ours = [m for m in management.current_loaded_models if m.model is not None and m.model.is_clone(patcher)]
        management.free_memory(size + management.minimum_inference_memory(), device, keep_loaded=ours)


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
    if type(model) not in (WanModel, VaceWanModel) or {"forward", "_forward", "forward_orig"} & vars(model).keys():
        return "another node replaced the model's forward; remove that node, or this one"
    return ""


def why_whole_run(sampling: Sampling) -> str:
    """Why a run is left to the host altogether, or empty."""
    options, patcher = sampling.guider.model_options, sampling.guider.model_patcher
    others = {OTHER_CACHES[k] for k in OTHER_CACHES if k in sampling.wrapped_by(WrappersMP.OUTER_SAMPLE)}
    if others:
        return f"{' and '.join(sorted(others))} works on the same model; keep one of the two"
    if "torch.compile" in sampling.wrapped_by(WrappersMP.APPLY_MODEL):
        return "the whole model is compiled; compile its blocks instead (KJNodes' TorchCompileModelWanVideoV2 does)"
    if options.get("context_handler") is not None:
        return "context windows cut the clip into pieces that move from step to step"
    if getattr(patcher, "get_additional_models_with_key", lambda key: ())("multigpu"):
        return "the work is split over several GPUs"
    if any(cond.get("hooks") is not None for conds in sampling.guider.conds.values() for cond in conds):
        return "prompts carry LoRA hooks, which change the model while it samples"
    return ""


# ---- the setup


def read_setup(
    call: Call, sampling: Sampling, schedule: EvaluationSchedule, policy: CachePolicy, mask: Tensor | None
) -> RunSetup:
    """A run's setup, read off its first call."""
    model, x = call.model, call.x
    control = call.extra.get("vace_context")
    copies = control.shape[1] if control is not None and control.ndim == 6 else 1
    classes, reason = _classes(call, sampling, policy, mask)
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
        streams=sampling.streams,
        rows=x.shape[0] // len(call.streams),
        stochastic=schedule.stochastic,
        no_partials=_no_partials(call),
        interrupts=(comfy.model_management.InterruptProcessingException,),
    )


def _no_partials(call: Call) -> str:
    """Why this model must always see the whole clip, or empty."""
    if call.time_dim_concat is not None or call.extra.get("context_latents") is not None:
        return "reference latents stand beside the clip; evaluations are only reused"
    if call.extra.get("reference_latent") is not None and getattr(call.model, "ref_conv", None) is not None:
        return "a reference latent stands before the clip; evaluations are only reused"
    if call.extra.get("control") is not None:
        return "a ControlNet adds to the model's blocks; evaluations are only reused"
    patches = {"attn1_patch", "attn2_patch", "double_block"} & call.transformer_options.get("patches", {}).keys()
    if patches:
        return "another node patches the model's blocks and may need the whole clip; evaluations are only reused"
    return ""


def _classes(
    call: Call, sampling: Sampling, policy: CachePolicy, mask: Tensor | None
) -> tuple[TokenClasses | None, str]:
    """Token classes, or None and why there are none."""
    grid, threshold = TokenGrid.of_latent(call.x), policy.mask_threshold
    control, references = call.extra.get("vace_context"), 0
    try:
        found = _denoised(sampling.denoise_mask, call.x)
        if control is not None:
            in_control, references = vace_mask(control)
            found = in_control if found is None else found
        elif found is None and call.x.shape[1] == I2V_CHANNELS:
            found = 1 - call.x[:, 16:20].float().amin(dim=(0, 1))
        if mask is not None:
            touched = pool_pixel_mask(*_fitted(mask, call.x, references), threshold)
            touched = torch.cat([touched.new_zeros(references, *touched.shape[1:]), touched])
        elif found is not None:
            touched = pool_latent_mask(found.to(call.x.device), grid, threshold)
        else:
            return None, "there is no mask: connect one to HetCache Patch Model"
    except ValueError as error:
        return None, str(error)
    return classify(touched, policy.margin_space, policy.margin_time, references), ""


def _denoised(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The latent's noise mask ``[T, H, W]``; None where there is none or it lets everything change."""
    if mask is None or tuple(mask.shape[-3:]) != tuple(x.shape[-3:]) or bool((mask > 0.5).all()):
        return None
    return mask.float().flatten(0, -4).amax(0)


def _fitted(mask: Tensor, x: Tensor, references: int) -> tuple[Tensor, TokenGrid]:
    """A pixel mask scaled and cut as WanVaceToVideo does it, and the clip's grid without reference frames.

    Frames that a mask is too short for are generated there, so they are here; a single frame serves all.
    """
    frames, height, width = x.shape[-3] - references, *x.shape[-2:]
    grid = TokenGrid.of_latent(x[..., references:, :, :])
    wanted = (frames - 1) * FRAMES_PER_CELL + 1
    mask = mask if mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])
    size = (width * PIXELS_PER_CELL, height * PIXELS_PER_CELL)
    mask = comfy.utils.common_upscale(mask[:wanted, None].float(), *size, "bilinear", "center")[:, 0].to(x.device)
    if 1 < len(mask) < wanted:
        mask = torch.cat([mask, mask.new_ones(wanted - len(mask), *mask.shape[1:])])
    return mask, grid


def _prompt() -> Any:
    """Which prompt of the queue is being worked on, where the host tells."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return getattr(context, "prompt_id", None)
