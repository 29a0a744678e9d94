"""The nano VAE: its shape, and an unchunked forward over diffusers' modules for training and fast encoding.

diffusers runs the Wan VAE four frames at a time with a cache per convolution. Everything in it is causal, so one pass
over all frames gives the same numbers; it is several times faster and keeps gradients simple. Rules that make it equal:

- `downsample3d`: the first frame passes; `time_conv` (kernel 3, stride 2, no padding) makes the rest from all frames.
- `upsample3d`: the first frame passes; the rest go through `time_conv` with zeros before them and double in number.

Everything here takes and gives video in -1..1 as [B, 3, F, H, W] and raw latents as [B, 16, T, h, w].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock
from torch import Tensor, nn

CONFIG = dict(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
              temperal_downsample=[False, True, True], dropout=0.0)


def build(**overrides) -> AutoencoderKLWan:
    """A nano VAE with random weights; its residual blocks start as identities, which trains much faster."""
    vae = AutoencoderKLWan(**{**CONFIG, **overrides})
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


def channels_last(module: nn.Module) -> nn.Module:
    """Lay convolution weights out channels-last in place: on CPU the bf16 kernels are several times faster so."""
    for p in module.parameters():
        if p.dim() == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
        elif p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return module


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """WanRMS_norm over channels with the sum taken in float32."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    gamma = norm.gamma.view(1, -1, *[1] * (x.dim() - 2)).to(x.dtype)
    return x * (norm.scale / length).to(x.dtype) * gamma


def _rows_norm_silu(rows: Tensor, gamma: Tensor) -> Tensor:
    """SiLU of the RMS-normalised rows, [M, C]; gamma [C] has the norm's scale in it."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return F.silu(rows * length.reciprocal().to(rows.dtype) * gamma.to(rows.dtype))


def compile_norms() -> None:
    """Compile norm and activation into one kernel; uncompiled they take most of a training step on CPU."""
    global _rows_norm_silu, _mark
    torch._dynamo.config.automatic_dynamic_shapes = False  # one kernel per width, for any number of rows
    torch._dynamo.config.recompile_limit = 64
    _rows_norm_silu, _mark = torch.compile(_rows_norm_silu), lambda rows: torch._dynamo.mark_dynamic(rows, 0)


def _mark(rows: Tensor) -> None:
    """Replaced when norms are compiled."""


def _norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm and activation of [B, C, F, H, W]; for channels-last input the rows are a view of it."""
    last = x.permute(0, 2, 3, 4, 1)
    rows = last.reshape(-1, x.shape[1])
    _mark(rows)
    return _rows_norm_silu(rows, norm.scale * norm.gamma.flatten()).view(last.shape).permute(0, 4, 1, 2, 3)


def _conv(conv: nn.Module, x: Tensor) -> Tensor:
    """WanCausalConv3d: zeros before the first frame, zeros around the picture."""
    width, _, height, _, before, _ = conv._padding
    if before:
        x = F.pad(x, (0, 0, 0, 0, before, 0))
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, (0, height, width))


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    x = _conv(block.conv1, _norm_silu(block.norm1, x))
    return shortcut + _conv(block.conv2, _norm_silu(block.norm2, x))


def _per_frame(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B F, C, H, W]"""
    return x.permute(0, 2, 1, 3, 4).reshape(-1, x.shape[1], *x.shape[3:])


def _per_clip(x: Tensor, batch: int) -> Tensor:
    """[B F, C, H, W] -> [B, C, F, H, W]"""
    return x.view(batch, -1, *x.shape[1:]).permute(0, 2, 1, 3, 4)


def _resample(block: nn.Module, x: Tensor) -> Tensor:
    batch, up = x.shape[0], block.mode.startswith("up")
    if block.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], x[:, :, 1:]
        pair = _conv(block.time_conv, rest).unflatten(1, (2, x.shape[1]))  # [B, 2, C, F, H, W]
        x = torch.cat([first, pair.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    x = _per_frame(x)
    if up:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        x = F.conv2d(x, block.resample[1].weight, block.resample[1].bias, padding=1)
    else:
        conv = block.resample[1]
        x = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    x = _per_clip(x, batch)
    if block.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], _conv(block.time_conv, x)], dim=2)
    return x


def _attention(block: nn.Module, x: Tensor) -> Tensor:
    batch, (height, width) = x.shape[0], x.shape[3:]
    y = _norm(block.norm, _per_frame(x))
    q, k, v = block.to_qkv(y).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # [B F, 1, H W, C]
    y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
    return x + _per_clip(block.proj(y), batch)


def _middle(block: nn.Module, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    return _residual(block.resnets[1], _attention(block.attentions[0], x))


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the raw latents, each [B, 16, T, H/8, W/8] with T = 1 + (F - 1) / 4."""
    encoder, x = vae.encoder, video
    x = _conv(encoder.conv_in, x)
    for block in encoder.down_blocks:
        x = _resample(block, x) if hasattr(block, "resample") else _residual(block, x)
    x = _middle(encoder.mid_block, x)
    x = _conv(encoder.conv_out, _norm_silu(encoder.norm_out, x))
    mean, logvar = _conv(vae.quant_conv, x).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video of raw latents, not clamped, [B, 3, F, H, W]."""
    decoder = vae.decoder
    x = _middle(decoder.mid_block, _conv(decoder.conv_in, _conv(vae.post_quant_conv, latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    return _conv(decoder.conv_out, _norm_silu(decoder.norm_out, x))


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation that normalised latents are relative to, each [1, 16, 1, 1, 1]."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    return torch.tensor(vae.config.latents_mean).view(shape), torch.tensor(vae.config.latents_std).view(shape)


@torch.no_grad()
def fold_statistics(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Rescale the latents so that channels of given `mean` and `std` [16] get the statistics of the official VAE.

    Exact: the encoder ends and the decoder begins with a 1x1x1 convolution; they absorb the affine map and its inverse.
    Every program that loads Wan VAEs normalises by the official constants, so latents come out near N(0, 1) in all.
    """
    want_mean, want_std = (s.flatten() for s in latent_statistics(vae))
    gain = want_std / std
    shift = want_mean - gain * mean
    quant, post = vae.quant_conv, vae.post_quant_conv
    z = len(gain)
    quant.weight[:z] *= gain.view(-1, 1, 1, 1, 1)
    quant.bias[:z] = quant.bias[:z] * gain + shift
    quant.bias[z:] += 2 * gain.log()
    post.weight /= gain.view(1, -1, 1, 1, 1)
    post.bias -= (post.weight[:, :, 0, 0, 0] @ shift)
