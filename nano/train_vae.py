"""Make the nano VAE: solve the encoder (nano.encoder), then train the decoder on its latents.

    python -m nano.train_vae --minutes 60
    python -m nano.train_vae --minutes 48 --cycle 2 --peak 1e-3

The encoder is written to encoder.pt of the work folder at once and never changes, so training of the DiT can begin
beside this. A second cycle goes on from what the first reached, with the learning rate at the peak again. Two of five
clips are procedural, two are photographs that move like things in films, one is photographs under a moving camera; a
sixth of all samples get a grey region, as the control video of VACE has. Loss: mostly squared error, a little L1.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np
import torch
from torch import Tensor

from . import encoder, training
from . import vae as nano_vae
from .clips import TRAIN, make_clip
from .muon import Pair
from .natural import film_clip, natural_clip

POOL, POOL_FRAMES, POOL_SIZE = 192, 17, 96
LATENT_NOISE = 0.03  # the DiT's latents are never exact


class Pool:
    """A pool of clips from which random crops are cut; each batch replaces one clip, so data never repeats for long."""

    def __init__(self, seed: int):
        self.rng, self.next = np.random.Generator(np.random.PCG64(seed)), seed * 10_000
        self.clips: list[tuple[np.ndarray, np.ndarray]] = []
        while len(self.clips) < POOL:
            self.clips.append(self._make())

    def _make(self) -> tuple[np.ndarray, np.ndarray]:
        self.next += 1
        clip = make_clip(TRAIN[self.next % len(TRAIN)], POOL_FRAMES, POOL_SIZE, POOL_SIZE)
        if self.next % 5 in (0, 2):
            return clip.video, clip.mask
        natural = natural_clip if self.next % 5 == 4 else film_clip
        return natural(self.next, POOL_FRAMES, POOL_SIZE, POOL_SIZE), clip.mask

    def batch(self, n: int, frames: int, size: int) -> Tensor:
        """float32 [n, 3, frames, size, size] in -1..1"""
        self.clips[int(self.rng.integers(POOL))] = self._make()
        out = []
        for index in self.rng.integers(0, POOL, n):
            video, mask = self.clips[index]
            f, y, x = (int(self.rng.integers(0, have - want + 1))
                       for have, want in zip(video.shape, (frames, size, size), strict=False))
            cut = slice(f, f + frames), slice(y, y + size), slice(x, x + size)
            sample = video[cut].astype(np.float32) / 127.5 - 1
            if self.rng.random() < 0.16:
                sample = sample * ~mask[cut][..., None]
            out.append(sample[::-1] if self.rng.random() < 0.3 else sample)
        return torch.from_numpy(np.stack(out)).permute(0, 4, 1, 2, 3)


def crop(step: int, batch: int) -> tuple[int, int, int]:
    """(frames, size, number) of the crops of a step: many cheap steps first, then larger crops.

    Every third step whole clips show long times and the picture's border.
    """
    if step < 300:
        return 5, 32, 2 * batch
    if step % 3 == 2:
        return POOL_FRAMES, POOL_SIZE, max(batch // 4, 1)
    return 9, 64, batch


def loss_terms(output: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """(reconstruction loss, mean squared error); both videos float32 [B, 3, F, H, W] in -1..1"""
    error = output - video
    mse = error.square().mean()
    return 10 * mse + 0.2 * error.abs().mean(), mse


def make_encoder(path: pathlib.Path) -> None:
    """Solve the encoder and save it in a VAE whose decoder is still random, with the code for the fast path."""
    code = encoder.fit(encoder.sample_blocks(240))
    vae = nano_vae.build()
    encoder.write(vae, code)
    nano_vae.fold_statistics(vae, torch.zeros(encoder.LATENTS), torch.ones(encoder.LATENTS))
    numbers = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in dataclasses.asdict(code).items()}
    training.save(path, vae=vae.state_dict(), code=numbers)


def load_encoder(path: pathlib.Path) -> tuple[dict[str, Tensor], encoder.FastEncoder]:
    """(state of the VAE, fast encoder) saved by `make_encoder`."""
    state = training.load(path)
    if state is None:
        raise SystemExit(f"{path} is missing: run python -m nano.train_vae first")
    code = encoder.LinearCode(**{name: value.numpy() for name, value in state["code"].items()})
    return state["vae"], encoder.FastEncoder(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="wall-clock budget of a cycle, resumed time included")
    parser.add_argument("--cycle", type=int, default=1, help="cycles of the learning rate there will then have been")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".nano-work"), help="checkpoint folder")
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    parser.add_argument("--compile", action="store_true", help="compile the norms (needs a C++ compiler on CPU)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = training.pick_device(args.device)
    torch.manual_seed(args.seed)
    if not (args.work / "encoder.pt").exists():
        make_encoder(args.work / "encoder.pt")
    weights, encode = load_encoder(args.work / "encoder.pt")

    path = args.work / "vae.pt"
    state = training.load(path)
    vae = nano_vae.build()
    vae.load_state_dict(state["vae"] if state else weights)
    vae = nano_vae.channels_last(vae.to(device)).train()
    if args.compile:
        nano_vae.compile_norms()
    for module in (vae.encoder, vae.quant_conv):
        module.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    hidden = [p for p in trained if p.numel() > p.shape[0] > 3]  # no vectors, not the last layer
    optimizer = Pair(hidden, [p for p in trained if all(p is not h for h in hidden)], args.peak)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    step = state["step"] if state else 0
    done = state.get("cycle", 1) if state else 0
    if done > args.cycle:
        raise SystemExit(f"{path} is in cycle {done} already")
    clock = training.Clock(args.minutes, state["seconds"] if done == args.cycle else 0.0)
    mean, std = (s.to(device) for s in nano_vae.latent_statistics(vae))
    pool, log = Pool((args.seed + step) % 90), training.Log(30)

    def checkpoint() -> None:
        training.save(path, vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step, cycle=args.cycle,
                      seconds=clock.seconds())

    while clock.progress() < 1:
        rate = training.learning_rate(args.peak, step, clock.progress())
        training.set_learning_rate(optimizer, rate)
        frames, size, n = crop(step, args.batch)
        video = pool.batch(n, frames, size)
        latents = encode(video)
        latents = (latents + LATENT_NOISE * torch.randn_like(latents)).to(device) * std + mean
        video = video.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            output = nano_vae.decode(vae, latents.contiguous(memory_format=torch.channels_last_3d)).float()
        loss, mse = loss_terms(output, video)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        log.add(n, loss=loss.item(), psnr=10 * np.log10(4 / mse.item()))
        if log.line(f"step {step}", clock.left()):
            checkpoint()
    checkpoint()


if __name__ == "__main__":
    main()
