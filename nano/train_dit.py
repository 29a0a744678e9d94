"""Train the nano DiT by flow matching on encoded samples (nano.latents), to a wall-clock deadline.

    python -m nano.train_dit --minutes 85
    torchrun --nproc-per-node 2 -m nano.train_dit --minutes 85 --threads 1     # two CPU cores, or two GPUs

Small clips first, then mostly large ones; shards written while this runs are picked up. Sigma is uniform, shifted by
SIGMA_SHIFT and stratified over the batch. Resumable: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
import torch
from torch import Tensor

from . import dit, training
from .attention import TrainingAttention
from .latents import Samples, text_table
from .muon import Pair
from .train_vae import load_encoder

# (frames, size): batch size per process and share of steps at each of KNOTS of the progress, interpolated between.
# Steps of all sizes cost much the same. Short clips show the most shapes per second, long ones what lasts.
KNOTS = (0.0, 0.35, 0.55, 0.9, 1.0)
STAGES = {
    (5, 96): (20, (0.0, 0.0, 0.40, 0.35, 0.35)),
    (5, 192): (5, (0.0, 0.0, 0.30, 0.35, 0.25)),
    (17, 96): (8, (1.0, 1.0, 0.15, 0.10, 0.20)),
    (17, 192): (2, (0.0, 0.0, 0.10, 0.10, 0.10)),
    (33, 192): (1, (0.0, 0.0, 0.05, 0.10, 0.10)),
}
GENERATIVE_WEIGHT, CONTEXT_WEIGHT = 1.0, 0.5
PROMPT_DROPOUT = 0.12
SIGMA_SHIFT = 3.0
HOLD = 0.93  # progress at which the learning rate begins to fall
EMA = 0.993


def shares(progress: float, held: dict[tuple[int, int], int]) -> Tensor:
    """Probability of each size in STAGES; 0 for one of which no samples are held."""
    out = [float(np.interp(progress, KNOTS, values)) if held[size] >= batch else 0.0
           for size, (batch, values) in STAGES.items()]
    total = torch.tensor(out)
    return total / total.sum() if total.sum() > 0 else total


def draw(samples: Samples, n: int, table: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """(target, control, text, sigma, noise) of a random batch; see dit.flow_loss for the shapes."""
    index = torch.randint(len(samples), (n,), generator=generator)
    target, control, prompt = samples.batch(index)
    drop = torch.rand(n, generator=generator) < PROMPT_DROPOUT
    uniform = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    sigma = dit.shift_sigma(uniform, SIGMA_SHIFT)
    noise = torch.randn(target.shape, generator=generator)
    return target, control, table[torch.where(drop, len(table) - 1, prompt)], sigma, noise


@torch.no_grad()
def update_average(average: dict[str, Tensor], state: dict[str, Tensor], step: int) -> None:
    decay = min(EMA, (1 + step) / (10 + step))
    for key, value in state.items():
        average[key].lerp_(value, 1 - decay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=85, help="wall-clock budget, resumed time included")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".nano-work"))
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, workers = training.pick_device(args.device), training.Workers()
    torch.manual_seed(args.seed)

    path = args.work / "dit.pt"
    state = training.load(path)
    model = dit.build(damped=True).to(device).train()
    if device.type == "cpu":
        model.set_attn_processor(TrainingAttention())
    if state:
        model.load_state_dict(state["model"])
    average = state["average"] if state else {k: v.detach().clone() for k, v in dit.plain_state(model).items()}
    average = {key: value.to(device) for key, value in average.items()}
    weights = list(model.parameters())
    hidden = [p for name, p in model.named_parameters() if "blocks." in name and p.dim() == 2]
    others = [p for p in weights if all(p is not h for h in hidden)]
    optimizer = Pair(hidden, others, args.peak, weight_decay=0.01, ratio=0.5)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    step = state["step"] if state else 0
    clips = state["clips"] if state else 0
    clock = training.Clock(args.minutes, state["seconds"] if state else 0.0)
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step * 64 + workers.rank)
    table = text_table()
    channels = load_encoder(args.work / "encoder.pt")[1].channel_weights().to(device)
    pools = {size: Samples(args.work / "latents" / f"{size[0]}x{size[1]}") for size in STAGES}
    sizes, log, refreshed, saved = list(STAGES), training.Log(30), -1e9, time.monotonic()

    def checkpoint() -> None:
        if workers.rank:
            return
        training.save(path, model=model.state_dict(), average=average, optimizer=optimizer.state_dict(), step=step,
                      clips=clips, seconds=clock.seconds())

    while True:
        if time.monotonic() - refreshed > 60:
            held = {size: pool.refresh() for size, pool in pools.items()}
            refreshed = time.monotonic()
        chances = shares(clock.progress(), held)
        if chances.sum() == 0:
            raise SystemExit(f"no samples in {args.work / 'latents'}: run python -m nano.latents first")
        choice = float(torch.multinomial(chances, 1, generator=generator))
        progress, choice = workers.agree([clock.progress(), choice], device)
        if progress >= 1:
            break
        size = sizes[int(choice)]
        batch = STAGES[size][0]
        if len(pools[size]) < batch:  # another process has seen a shard that this one has not
            held, refreshed = {size: pool.refresh() for size, pool in pools.items()}, time.monotonic()
        inputs = [t.to(device) for t in draw(pools[size], batch, table, generator)]
        training.set_learning_rate(optimizer, training.learning_rate(args.peak, step, progress, HOLD))
        with torch.autocast(device.type, torch.bfloat16):
            generative, context = dit.flow_loss(model, *inputs, channels)
        (GENERATIVE_WEIGHT * generative + CONTEXT_WEIGHT * context).backward()
        workers.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, dit.plain_state(model), step)
        step, clips = step + 1, clips + batch * workers.count
        log.add(batch * workers.count, generative=generative.item(), context=context.item())
        if workers.rank == 0:
            log.line(f"step {step}  {clips} clips", f"held {list(held.values())}  {clock.left()}")
        if time.monotonic() - saved > 60:
            checkpoint()
            saved = time.monotonic()
    checkpoint()


if __name__ == "__main__":
    main()
