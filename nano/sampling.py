"""Batched sampling with the nano DiT, for evaluation: the loop of WanVACEPipeline over several clips at once.

bf16 arithmetic makes it several times faster on CPU; `dtype=None` computes in fp32 as the pipeline does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from . import FLOW_SHIFT, dit, text
from . import latents as nano_latents
from . import vae as nano_vae
from .clips import Clip


def autocast(device: torch.device, dtype: torch.dtype | None):
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def stack_video(clips: list[Clip]) -> Tensor:
    """float32 [B, 3, F, H, W] in -1..1"""
    return torch.cat([nano_latents.to_video(clip.video) for clip in clips])


@torch.no_grad()
def encode(vae, video: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Normalised latents, float32, of video [B, 3, F, H, W] in -1..1."""
    mean, std = (s.to(video.device) for s in nano_vae.latent_statistics(vae))
    with autocast(video.device, dtype):
        raw = nano_vae.encode(vae, video.contiguous(memory_format=torch.channels_last_3d))[0]
    return (raw.float() - mean) / std


@torch.no_grad()
def control(vae, clips: list[Clip], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """VACE control of clips whose masked part is grey, float32 [B, 96, T, h, w]."""
    video = stack_video(clips).to(device)
    mask = torch.from_numpy(np.stack([clip.mask for clip in clips])).to(device)
    kept = video * ~mask[:, None]
    inactive = encode(vae, kept, dtype)
    reactive = encode(vae, torch.zeros_like(kept[:1]), dtype).expand_as(inactive)
    return torch.cat([inactive, reactive, dit.mask_channels(mask)], dim=1)


@torch.no_grad()
def sample(transformer, control: Tensor, prompts: list[str], seeds: list[int], steps: int = 30, cfg: float = 4.0,
           dtype: torch.dtype | None = torch.bfloat16,
           watch: Callable[[int, float, Tensor, Tensor], None] | None = None) -> Tensor:
    """Normalised latents [B, 16, T, h, w] after Euler steps at flow shift 5; each clip's noise comes from its own seed.

    `watch(step, sigma, cond, uncond)` sees the two predictions of every evaluation.
    """
    device = control.device
    scheduler = FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
    scheduler.set_timesteps(steps, device=device)
    shape = (16, *control.shape[2:])
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)
    embeds = torch.cat([text.encode(p) for p in prompts] + [text.encode("")] * len(prompts)).to(device)
    both = torch.cat([control, control])
    for step, t in enumerate(scheduler.timesteps):
        with autocast(device, dtype):
            v = transformer(hidden_states=torch.cat([x, x]), timestep=t.expand(2 * len(prompts)),
                            encoder_hidden_states=embeds, control_hidden_states=both, return_dict=False)[0].float()
        cond, uncond = v.chunk(2)
        if watch:
            watch(step, float(scheduler.sigmas[step]), cond, uncond)
        x = scheduler.step(uncond + cfg * (cond - uncond), t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def decode(vae, x: Tensor, dtype: torch.dtype | None = torch.bfloat16) -> np.ndarray:
    """uint8 video [B, F, H, W, 3] of normalised latents."""
    mean, std = (s.to(x.device) for s in nano_vae.latent_statistics(vae))
    with autocast(x.device, dtype):
        raw = (x * std + mean).contiguous(memory_format=torch.channels_last_3d)
        video = nano_vae.decode(vae, raw).float()
    pixels = ((video.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
