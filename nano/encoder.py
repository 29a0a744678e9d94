"""The nano VAE's encoder, solved instead of trained: the best linear code that its convolutions can express.

Each latent of a Wan VAE stands for 8x8 pixels of one frame (the first) or of four. The 16 numbers kept of those 768 are
the leading directions of a reduced-rank regression on procedural and natural clips, found in half a minute. They are
then written into the encoder's convolutions: residual branches are zero, strided convolutions carry pixel blocks into
channels, `time_conv` takes means and differences of frame pairs. The head (RMS norm and SiLU) is made linear by a
constant channel that fixes the norm and by pairs silu(y) - silu(-y) = y. So the latents are fixed before any training,
the DiT's training can start at once, and encoding for it is one matrix product (`FastEncoder`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from .clips import TRAIN, make_clip
from .natural import natural_clip

LATENTS = 16
SPATIAL, CHANGES = 20, 12  # features of a 4x4 block, and of its change between two frames: 32 channels
CONSTANT = 128.0  # what the constant channel holds; large against any latent
LOG_VARIANCE = -8.0


@dataclass(frozen=True)
class LinearCode:
    """`spatial` [48, SPATIAL] of a 4x4x3 block (y, x, colour); `changes` [SPATIAL, CHANGES]; `early` and `late`
    [128, 16] of the features (y, x, feature) of the first and second frame pair; `offset` [16]. float64."""

    spatial: np.ndarray
    changes: np.ndarray
    early: np.ndarray
    late: np.ndarray
    offset: np.ndarray


def _leading(vectors: np.ndarray, n: int) -> np.ndarray:
    """The n directions of largest variance, [D, n]."""
    return np.linalg.eigh(np.cov(vectors.T))[1][:, ::-1][:, :n]


def features(blocks: np.ndarray, spatial: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """What the last stage sees of pixel blocks [N, 4, 8, 8, 3]: [N, 2 pairs * 128]."""
    n = len(blocks)
    cells = blocks.reshape(n, 4, 2, 4, 2, 4, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(n, 4, 2, 2, 48) @ spatial
    first, second = cells[:, 0::2], cells[:, 1::2]
    pair = np.concatenate([(first + second) / 2, (first - second) / 2 @ changes], axis=-1)
    return pair.reshape(n, -1)


def sample_blocks(clips: int, seed: int = 0) -> np.ndarray:
    """Pixel blocks [N, 4, 8, 8, 3] in -1..1 of procedural clips, and of natural ones half as many."""
    rng, out = np.random.default_rng(seed), []
    for index in range(clips):
        natural = index % 3 == 2
        video = natural_clip(index, 9, 96, 96) if natural else make_clip(TRAIN[-1 - index], 9, 96, 96).video
        blocks = video[1:].reshape(2, 4, 12, 8, 12, 8, 3).transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, 4, 8, 8, 3)
        out.append(blocks[rng.permutation(len(blocks))[:150]].astype(np.float64) / 127.5 - 1)
    return np.concatenate(out)


def fit(blocks: np.ndarray) -> LinearCode:
    """The code for pixel blocks [N, 4, 8, 8, 3]; latents have zero mean and unit variance on them."""
    n = len(blocks)
    cells = blocks.reshape(n, 4, 2, 4, 2, 4, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(-1, 48)
    spatial = _leading(cells, SPATIAL)
    frames = (cells @ spatial).reshape(n, 4, 4, SPATIAL)
    changes = _leading((frames[:, 0::2] - frames[:, 1::2]).reshape(-1, SPATIAL), CHANGES)
    seen, pixels = features(blocks, spatial, changes), blocks.reshape(n, -1)
    mean = seen.mean(0)
    # Regress pixels on features, then keep the 16 leading directions of what the regression explains.
    centred = seen - mean
    slope = np.linalg.solve(centred.T @ centred + 1e-6 * n * np.eye(centred.shape[1]), centred.T @ pixels)
    code = slope @ _leading((seen - mean) @ slope, LATENTS)
    code /= ((seen - mean) @ code).std(0)
    return LinearCode(spatial, changes, code[:128], code[128:], -(mean @ code))


def _clear(*modules: torch.nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)


def _identity(conv: torch.nn.Module) -> None:
    """A 1x1x1 or centred convolution that passes its input channels on (causal: the last tap in time)."""
    _clear(conv)
    middle = [size // 2 for size in conv.weight.shape[3:]]
    for channel in range(min(conv.weight.shape[:2])):
        conv.weight[channel, channel, -1, middle[0], middle[1]] = 1.0


@torch.no_grad()
def write(vae: AutoencoderKLWan, code: LinearCode) -> None:
    """Write the code into the encoder and `quant_conv` of a nano VAE; the raw latents come out near N(0, 1)."""
    def f32(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).float()

    encoder = vae.encoder
    residuals = [m for m in encoder.modules() if hasattr(m, "conv2")]
    _clear(*(block.conv2 for block in residuals), *(a.proj for a in encoder.mid_block.attentions))
    for block in residuals:
        if not isinstance(block.conv_shortcut, torch.nn.Identity):
            _identity(block.conv_shortcut)
    _identity(encoder.conv_in)
    half, quarter, eighth = (block for block in encoder.down_blocks if hasattr(block, "resample"))

    _clear(half)  # 2x2 pixels of a colour become four channels
    for colour in range(3):
        for y in range(2):
            for x in range(2):
                half.resample[1].weight[colour * 4 + y * 2 + x, colour, y, x] = 1.0

    _clear(quarter)
    cells = f32(code.spatial.T).view(SPATIAL, 2, 2, 2, 2, 3)  # out, tap y, pixel y, tap x, pixel x, colour
    quarter.resample[1].weight[:SPATIAL, :12, :2, :2] = cells.permute(0, 5, 2, 4, 1, 3).reshape(SPATIAL, 12, 2, 2)
    time = quarter.time_conv.weight[..., 0, 0]
    for channel in range(SPATIAL):
        time[channel, channel, 1:] = 0.5
    time[SPATIAL : SPATIAL + CHANGES, :SPATIAL, 1] = f32(code.changes.T) / 2
    time[SPATIAL : SPATIAL + CHANGES, :SPATIAL, 2] = -f32(code.changes.T) / 2

    # The first frame passes no time_conv: it must find here what a still clip would give, the sum of both halves.
    _clear(eighth)
    width = SPATIAL + CHANGES
    total, change = (f32((code.early + sign * code.late).T).view(LATENTS, 2, 2, width).permute(0, 3, 1, 2)
                     for sign in (1, -1))
    plus, minus, other = slice(0, LATENTS), slice(2 * LATENTS, 3 * LATENTS), slice(LATENTS, 2 * LATENTS)
    down, offset = eighth.resample[1], f32(code.offset)
    down.weight[plus, :width, :2, :2], down.weight[minus, :width, :2, :2] = total, -total
    down.weight[other, :width, :2, :2] = change
    down.bias[plus], down.bias[minus], down.bias[-1] = offset, -offset, CONSTANT
    time = eighth.time_conv.weight[..., 0, 0]
    for i in range(LATENTS):
        for out, sign in ((i, 1.0), (i + 2 * LATENTS, -1.0)):
            time[out, i, 1:] = 0.5 * sign
            time[out, i + LATENTS, 1], time[out, i + LATENTS, 2] = 0.5 * sign, -0.5 * sign
    eighth.time_conv.bias[-1] = CONSTANT

    _clear(encoder.conv_out)
    torch.nn.init.ones_(encoder.norm_out.gamma)
    gain = CONSTANT / encoder.norm_out.scale
    for i in range(LATENTS):
        encoder.conv_out.weight[i, i, -1, 1, 1] = gain
        encoder.conv_out.weight[i, i + 2 * LATENTS, -1, 1, 1] = -gain
    _identity(vae.quant_conv)
    vae.quant_conv.bias[LATENTS:] = LOG_VARIANCE


class FastEncoder:
    """The same code as one matrix product per pixel block: normalised latents hundreds of times faster."""

    def __init__(self, code: LinearCode):
        unit = features(np.eye(768).reshape(-1, 4, 8, 8, 3), code.spatial, code.changes)
        self.matrix = torch.from_numpy(unit @ np.concatenate([code.early, code.late])).float()  # [768, 16]
        self.first = self.matrix.view(4, 192, LATENTS).sum(0)
        self.offset = torch.from_numpy(code.offset).float()

    def channel_weights(self) -> Tensor:
        """How much each latent moves the pixels (root of the energy), mean 1, [16].

        All latents have unit variance, but those of fine texture hardly show and cannot be predicted.
        """
        size = torch.linalg.pinv(self.matrix.double()).norm(dim=1)
        return (size / size.mean()).float()

    def __call__(self, video: Tensor) -> Tensor:
        """float32 [B, 3, F, H, W] in -1..1 -> [B, 16, T, h, w], near N(0, 1)"""
        batch, _, frames, height, width = video.shape
        grid = (height // 8, width // 8)
        first = video[:, :, 0].reshape(batch, 3, grid[0], 8, grid[1], 8).permute(0, 2, 4, 3, 5, 1)
        out = [(first.reshape(batch, 1, *grid, 192) @ self.first)]
        if frames > 1:
            rest = video[:, :, 1:].reshape(batch, 3, -1, 4, grid[0], 8, grid[1], 8).permute(0, 2, 4, 6, 3, 5, 7, 1)
            out.append(rest.reshape(batch, -1, *grid, 768) @ self.matrix)
        return (torch.cat(out, dim=1) + self.offset).permute(0, 4, 1, 2, 3).contiguous()
