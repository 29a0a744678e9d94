"""What diffusers' models and schedulers tell about a run when it starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..costs import ModelShape
from ..engine import RunSetup
from ..policy import CachePolicy
from ..tokens import TokenClasses, TokenGrid, classify, pool_latent_mask, pool_pixel_mask, vace_mask


def read_setup(
    model: torch.nn.Module,
    call: dict[str, Any],
    policy: CachePolicy,
    scheduler: Any,
    mask: Tensor | None,
    streams: int,
    memory_works: bool,
) -> RunSetup:
    """Read a run's setup off its first call.

    Args:
        model: the transformer. call: its forward's arguments by name.
        policy, scheduler, mask, streams: as given to ``apply``.
        memory_works: whether self-attention can be routed through the engine.
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
    sigmas = _sigmas(scheduler)
    if not reason and not sigmas:
        reason = "the schedule is unknown; give apply(..., scheduler=pipe.scheduler)"
    return RunSetup(
        grid=TokenGrid.of_latent(sample),
        sigmas=sigmas,
        shape=shape,
        classes=classes,
        reason=reason,
        itemsize=sample.element_size(),
        streams=streams * sample.shape[0],
        stochastic=_stochastic(scheduler),
        memory_works=memory_works,
    )


def _sigmas(scheduler: Any) -> tuple[float, ...]:
    sigmas, timesteps = (getattr(scheduler, name, None) for name in ("sigmas", "timesteps"))
    if sigmas is None or timesteps is None or len(sigmas) < len(timesteps):
        return ()
    return tuple(float(s) for s in [*sigmas[: len(timesteps)], 0.0])


def _stochastic(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    return "sde" in str(config.get("algorithm_type", "")) or bool(config.get("stochastic_sampling", False))


def _classes(call: dict[str, Any], policy: CachePolicy, mask: Tensor | None) -> tuple[TokenClasses | None, str]:
    """Token classes, or None and why there are none."""
    sample, control = call["hidden_states"], call.get("control_hidden_states")
    if sample.shape[-1] % 2 or sample.shape[-2] % 2:
        return None, f"the latent's size {tuple(sample.shape[-2:])} is odd; use a clip size that 16 divides"
    grid = TokenGrid.of_latent(sample)
    found, references = vace_mask(control) if control is not None else (None, 0)
    try:
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
