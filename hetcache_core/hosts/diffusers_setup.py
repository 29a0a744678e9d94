"""What diffusers' models and schedulers tell about a run when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor

from ..block_profile import sampled_weights
from ..costs import ModelShape
from ..policy import CachePolicy
from ..setup import RunSetup
from ..tokens import TokenClasses, TokenGrid, classify, pool_latent_mask, pool_pixel_mask, vace_mask
from .diffusers_blocks import split_over_devices, why_no_blocks

COMPILED = "the whole transformer is compiled, which hooks undo; compile blocks: transformer.compile_repeated_blocks()"


class CallName(StateManager):
    """Where diffusers puts the name of the call (cond, uncond); the state itself is the engine's."""

    def __init__(self):
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Take a context: its bare name in older versions, an object with a name in newer ones, None at its end."""
        self.name = getattr(context, "name", context)

    def reset(self, *args: object, **kwargs: object) -> None:
        self.name = None


@dataclass(frozen=True)
class Schedule:
    """The part of a scheduler's schedule one transformer serves.

    Args:
        timesteps: of its evaluations, ``[n]``. sigmas: their noise levels and the one after the last, ``[n + 1]``.
    """

    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()

    @classmethod
    def starting_at(cls, timestep: float, scheduler: Any, last: float = 0.0) -> Schedule:
        """What is left of a scheduler's schedule from a timestep on; empty where that timestep is not in it.

        Args:
            timestep: of the first call.
            scheduler: with ``timesteps`` and ``sigmas``, or None.
            last: timesteps below it belong to another transformer (Wan 2.2's boundary).
        """
        timesteps, sigmas = (getattr(scheduler, name, None) for name in ("timesteps", "sigmas"))
        if timesteps is None or sigmas is None or len(sigmas) < len(timesteps):
            return cls()
        timesteps = [float(t) for t in timesteps]
        first = next((i for i, t in enumerate(timesteps) if _same(t, timestep)), None)
        if first is None:
            return cls()
        end = next((i for i, t in enumerate(timesteps) if i > first and t < last), len(timesteps))
        levels = [*(float(s) for s in sigmas[: len(timesteps)]), 0.0]
        return cls(tuple(timesteps[first:end]), tuple(levels[first : end + 1]))

    def has(self, evaluation: int, timestep: float) -> bool:
        """Whether an evaluation is at this timestep."""
        return evaluation < len(self.timesteps) and _same(self.timesteps[evaluation], timestep)


def boundary(source: Any, module: torch.nn.Module) -> float:
    """Timestep below which another transformer takes over, where a pipeline has two (Wan 2.2) and this is the first."""
    config = getattr(source, "config", {})
    ratio = config.get("boundary_ratio") if getattr(source, "transformer_2", None) is not None else None
    if ratio is None or getattr(source, "transformer", None) is not module:
        return 0.0
    return ratio * source.scheduler.config.num_train_timesteps


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 0.5  # models are called with rounded timesteps


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


def _no_partials(model: torch.nn.Module) -> str:
    foreign = {type(a.processor).__name__ for a in self_attentions(model) if type(a.processor) is not WanAttnProcessor}
    if foreign:
        return f"attention processor {', '.join(sorted(foreign))} is not the stock one; evaluations are only reused"
    if split_over_devices(model):
        return "each device sees a part of the tokens; evaluations are only reused"
    if getattr(model, "_compiled_call_impl", None) is not None:  # since HetCache was applied
        return f"{COMPILED}; evaluations are only reused"
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
