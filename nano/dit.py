"""The nano DiT: its shape, the VACE control it reads, and the flow matching loss.

The control has the 96 channels that diffusers' WanVACEPipeline prepares: 16 of the inactive video (what is kept; grey
where masked), 16 of the reactive video (what is to be changed; grey everywhere, since nano's masks hide their content)
and 64 of the mask, one per pixel of the 8x8 cell.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanVACETransformer3DModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONFIG = dict(num_attention_heads=2, attention_head_dim=128, num_layers=6, vace_layers=[0, 2, 4], ffn_dim=768,
              text_dim=4096, freq_dim=256, in_channels=16, out_channels=16, vace_in_channels=96)
PATCH = 2
TIMESTEPS = 1000
DAMPED_ABOVE = 0.03  # radians per timestep


class DampFast(nn.Module):
    """Scales the columns of the first time layer down by 1 / (1 + (frequency / DAMPED_ABOVE)^2).

    The table goes up to one radian per timestep. A short training cannot teach the fast columns anything, yet they
    would make the prediction jump from one step to the next, which is what a cache measures.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        frequency = torch.exp(-np.log(10000.0) * torch.arange(half) / half)
        self.register_buffer("gain", (1 / (1 + (frequency / DAMPED_ABOVE) ** 2)).repeat(2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain


def build(damped: bool = False, **overrides) -> WanVACETransformer3DModel:
    """A nano DiT with random weights; `damped` for training."""
    model = WanVACETransformer3DModel(**{**CONFIG, **overrides})
    for block in model.vace_blocks:  # the control starts as a small addition
        nn.init.normal_(block.proj_out.weight, std=0.02)
    if damped:
        layer = model.condition_embedder.time_embedder.linear_1
        parametrize.register_parametrization(layer, "weight", DampFast(layer.in_features))
    return model


def plain_state(model: WanVACETransformer3DModel) -> dict[str, Tensor]:
    """The state of a model without its damping, which is multiplied in. Tensors are shared but for that layer."""
    prefix = "condition_embedder.time_embedder.linear_1"
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(f"{prefix}.parametriz")}
    state[f"{prefix}.weight"] = model.condition_embedder.time_embedder.linear_1.weight.detach()
    return state


def mask_channels(mask: Tensor) -> Tensor:
    """Pixel mask [B, F, H, W] -> [B, 64, T, H/8, W/8], as WanVACEPipeline.prepare_masks does it."""
    batch, frames, height, width = mask.shape
    cells = mask.float().view(batch, frames, height // 8, 8, width // 8, 8)
    cells = cells.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    return F.interpolate(cells, size=((frames + 3) // 4, height // 8, width // 8), mode="nearest-exact")


def generative_tokens(mask: Tensor) -> Tensor:
    """Mask channels [B, 64, T, h, w] -> float32 [B, 1, T, h, w], 1 on the latents of tokens that touch the mask."""
    cells = mask.amax(1, keepdim=True)
    tokens = F.max_pool3d(cells, (1, PATCH, PATCH))
    return F.interpolate(tokens, scale_factor=(1, PATCH, PATCH), mode="nearest")


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_loss(model: WanVACETransformer3DModel, target: Tensor, control: Tensor, text: Tensor, sigma: Tensor,
              noise: Tensor, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared error of the predicted velocity (noise - target), on (generative, context) tokens.

    target, noise: normalised latents [B, 16, T, h, w]; control [B, 96, T, h, w]; text [B, 8, 4096]; sigma [B];
    `channels` [16], mean 1, weighs the latent channels.
    """
    s = sigma.view(-1, 1, 1, 1, 1)
    prediction = model(hidden_states=(1 - s) * target + s * noise, timestep=sigma * TIMESTEPS,
                       encoder_hidden_states=text, control_hidden_states=control, return_dict=False)[0]
    error = (prediction.float() - (noise - target)).square()
    if channels is not None:
        error = error * channels.view(1, -1, 1, 1, 1)
    error = error.mean(1, keepdim=True)
    inside = generative_tokens(control[:, 32:])
    return (error * inside).sum() / inside.sum().clamp_min(1), (error * (1 - inside)).sum() / (1 - inside).sum()
