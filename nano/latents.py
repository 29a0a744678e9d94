"""Encode procedural clips into shards of latents for DiT training.

    python -m nano.latents --size 96 --frames 17 --shards 40

A shard (safetensors, in latents/<frames>x<size> of the work folder) holds 64 samples: `target` and `inactive` latents,
normalised, fp16 [64, 16, T, h, w]; `mask`, the 64 mask channels packed into bits, uint8 [64, 8, T, h, w]; `prompt`, the
index into shapes.PROMPTS, int64 [64]. Shard n holds the clips of seeds 64 n to 64 n + 63 of its size's part of TRAIN.
`grey.safetensors` holds the latents of an all-grey video, which is what the reactive half of the control always is.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import dit, text
from .clips import TRAIN, make_clip
from .encoder import FastEncoder
from .shapes import PROMPTS
from .train_vae import load_encoder

SHARD = 64


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [1, 3, F, H, W] in -1..1"""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def first_seed(frames: int, size: int) -> int:
    """Where in TRAIN a size's seeds begin; the sizes that are trained on do not share seeds."""
    return TRAIN[(frames * 7 + size) % 40 * 20_000]


def pack_bits(channels: Tensor) -> Tensor:
    """0/1 [B, 64, T, h, w] -> uint8 [B, 8, T, h, w]"""
    return torch.from_numpy(np.packbits(channels.bool().numpy(), axis=1))


def unpack_bits(packed: Tensor) -> Tensor:
    """uint8 [B, 8, T, h, w] -> float32 [B, 64, T, h, w]"""
    bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device).view(8, 1, 1, 1)
    return ((packed[:, :, None] >> bits) & 1).flatten(1, 2).float()


def make_shard(encode: FastEncoder, index: int, frames: int, size: int) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"target": [], "inactive": [], "mask": [], "prompt": []}
    first = first_seed(frames, size) + index * SHARD
    for seed in range(first, first + SHARD):
        clip = make_clip(seed, frames, size, size)
        video, mask = to_video(clip.video), torch.from_numpy(clip.mask)[None]
        parts["target"].append(encode(video).half())
        parts["inactive"].append(encode(video * ~mask[:, None]).half())
        parts["mask"].append(pack_bits(dit.mask_channels(mask)))
        parts["prompt"].append(torch.tensor([PROMPTS.index(clip.prompt)]))
    return {key: torch.cat(value).contiguous() for key, value in parts.items()}


class Samples:
    """The encoded samples of one size found so far; `refresh` picks up shards written since."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.files, self.data = folder, set(), {}

    def refresh(self) -> int:
        """Number of samples now held."""
        new = sorted(set(self.folder.glob("shard-*.safetensors")) - self.files)
        shards = [load_file(path) for path in new]
        if shards:
            held = [self.data] if self.data else []
            self.data = {key: torch.cat([s[key] for s in held + shards]) for key in shards[0]}
            self.files.update(new)
            self.grey = load_file(self.folder / "grey.safetensors")["grey"].float()
        return len(self)

    def __len__(self) -> int:
        return len(self.data["prompt"]) if self.data else 0

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(target [B, 16, T, h, w], control [B, 96, T, h, w], prompt index [B]) of samples, float32"""
        target, inactive = self.data["target"][index].float(), self.data["inactive"][index].float()
        reactive = self.grey.expand(len(index), -1, -1, -1, -1)
        mask = unpack_bits(self.data["mask"][index])
        return target, torch.cat([inactive, reactive, mask], dim=1), self.data["prompt"][index]


def text_table() -> Tensor:
    """Embeddings of all prompts and, last, of the empty one, float32 [25, 8, 4096]."""
    return torch.cat([text.encode(prompt) for prompt in (*PROMPTS, "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--first", type=int, default=0, help="index of the first shard")
    parser.add_argument("--shards", type=int, default=20, help="how many; those that exist are kept")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".nano-work"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    encode = load_encoder(args.work / "encoder.pt")[1]
    folder = args.work / "latents" / f"{args.frames}x{args.size}"
    folder.mkdir(parents=True, exist_ok=True)
    grey = encode(torch.zeros(1, 3, args.frames, args.size, args.size))
    save_file({"grey": grey.half()}, folder / "grey.safetensors")
    for index in range(args.first, args.first + args.shards):
        path, start = folder / f"shard-{index:04d}.safetensors", time.monotonic()
        if path.exists():
            continue
        part = path.with_suffix(".part")
        save_file(make_shard(encode, index, args.frames, args.size), part)
        part.replace(path)
        print(f"{path}  {SHARD / (time.monotonic() - start):.1f} clips/s", flush=True)


if __name__ == "__main__":
    main()
