"""What diffusers' models and schedulers tell about a run when it starts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor

from ..block_profile import sampled_weights
from ..costs import ModelShape
from ..policy import CachePolicy
from ..setup import RunSetup
from ..tokens import TokenClasses, TokenGrid, classify, pool_latent_mask, pool_pixel_mask, vace_mask
from .diffusers_blocks import split_over_devices, why_no_blocks
from .diffusers_calls import Schedule

COMPILED = (
    "the whole transformer is compiled, which hooks undo; compile none of it, or only blocks "
    "(transformer.compile_repeated_blocks()), with which steps are only reused"
)


def read_setup(
    model: torch.nn.Module,
    call: dict[str, Any],
    policy: CachePolicy,
    schedule: Schedule,
    scheduler: Any,
    mask: Tensor | None,
    streams: int,
) -> RunSetup:
    """Read a run's setup off its first call.

    Args:
        model: the transformer. call: its forward's arguments by name.
        schedule: of the run. scheduler: where it is from.
        policy, mask, streams: as given to ``apply``.
    """
    sample, config = call["hidden_states"], model.config
    shape = ModelShape(
        config.num_attention_heads * config.attention_head_dim,
        config.num_layers,
        config.ffn_dim,
        len(getattr(model, "vace_blocks", ())),
        call["encoder_hidden_states"].shape[1],
    )
    classes, reason = _classes(call, policy, mask)
    reason = reason or _foreign_cache(model)
    if not reason and tuple(config.patch_size) != (1, 2, 2):
        reason = f"the model cuts patches of {tuple(config.patch_size)}; only (1, 2, 2) is supported"
    if not reason and not schedule.timesteps:
        known = "is not the one in use" if getattr(scheduler, "timesteps", None) is not None else "is unknown"
        reason = f"the schedule {known}; give apply(..., scheduler=pipe.scheduler) after the scheduler was chosen"
    return RunSetup(
        grid=TokenGrid.of_latent(sample),
        sigmas=schedule.sigmas,
        shape=shape,
        classes=classes,
        reason=reason,
        itemsize=sample.element_size(),
        streams=streams,
        rows=sample.shape[0],
        stochastic=_stochastic(scheduler),
        no_partials=_no_partials(model),
        no_blocks=why_no_blocks(model),
        main_layers=tuple(i + shape.vace_layers for i in range(shape.layers)),  # after all VACE blocks
        weights=sampled_weights([block.scale_shift_table for block in model.blocks]),
    )


def self_attentions(model: torch.nn.Module) -> list[WanAttention]:
    """Self-attention modules in call order: all VACE blocks, then the main ones."""
    return [block.attn1 for block in (*getattr(model, "vace_blocks", ()), *model.blocks)]


def _foreign_cache(model: torch.nn.Module) -> str:
    """Why a cache of diffusers on this transformer rules out another, or empty. All of them keep state in hooks."""
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in registry.hooks.items() if registry is not None else ():
            if hook._is_stateful and not name.startswith("hetcache"):
                return f"another cache works on this transformer ({name}); take it off: transformer.disable_cache()"
    return ""


def _no_partials(model: torch.nn.Module) -> str:
    foreign = {type(a.processor).__name__ for a in self_attentions(model) if type(a.processor) is not WanAttnProcessor}
    if foreign:
        return f"attention processor {', '.join(sorted(foreign))} is not the stock one; evaluations are only reused"
    if split_over_devices(model):
        return "each device sees a part of the tokens; evaluations are only reused"
    if getattr(model, "_compiled_call_impl", None) is not None:  # since HetCache was applied
        return COMPILED
    if any(getattr(block, "_compiled_call_impl", None) is not None for block in model.blocks):
        return "the blocks are compiled; evaluations are only reused"
    return ""


def _stochastic(scheduler: Any) -> bool:
    """Whether a scheduler adds fresh noise at every step."""
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    return (
        any(word in name for word in ("Ancestral", "LCM", "SASolver", "SDE", "TCD"))
        or "sde" in str(config.get("algorithm_type", ""))
        or bool(config.get("stochastic_sampling", False))
    )


def _classes(call: dict[str, Any], policy: CachePolicy, mask: Tensor | None) -> tuple[TokenClasses | None, str]:
    """Token classes, or None and why there are none."""
    sample, control = call["hidden_states"], call.get("control_hidden_states")
    if sample.shape[-1] % 2 or sample.shape[-2] % 2:
        return None, f"the latent's size {tuple(sample.shape[-2:])} is odd; use a clip size that 16 divides"
    if control is not None and control.shape[2:] != sample.shape[2:]:
        return None, f"control {tuple(control.shape[2:])} and latent {tuple(sample.shape[2:])} differ in size"
    grid = TokenGrid.of_latent(sample)
    try:
        found, references = vace_mask(control) if control is not None else (None, 0)
        if mask is not None:
            touched = _given_mask(mask.to(sample.device), sample, grid, references, policy.mask_threshold)
        elif found is not None:
            touched = pool_latent_mask(found, grid, policy.mask_threshold)
        else:
            return None, "there is no mask: give apply(..., mask=...), or use a VACE model"
    except ValueError as error:
        return None, str(error)
    return classify(touched, policy.margin_space, policy.margin_time, references), ""


def _given_mask(mask: Tensor, sample: Tensor, grid: TokenGrid, references: int, threshold: float) -> Tensor:
    clip = TokenGrid(grid.frames - references, grid.height, grid.width)
    latent = tuple(mask.shape) == (clip.frames, *sample.shape[-2:])
    touched = (pool_latent_mask if latent else pool_pixel_mask)(mask, clip, threshold)
    return torch.cat([touched.new_zeros(references, clip.height, clip.width), touched])
