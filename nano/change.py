"""How much nano's prediction changes from one evaluation to the next: change.json and change.png.

    python -m nano.change

30 Euler steps, cfg 4, flow shift 5, at 192x192x17, mean over held-out clips. With v(k) the prediction at evaluation k,
and |.| the root of the sum of squares over the generative or the context tokens of a clip:

    first  |v(k) - v(k-1)| / |v(k)|                what holding a prediction for one evaluation would miss
    second |v(k) - 2 v(k-1) + v(k-2)| / |v(k)|     what a forecast linear in the evaluation index would miss
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import dit, load_transformer, load_vae, sampling, training
from .clips import HELD_OUT, make_clip
from .evaluate import CFG, STEPS

HERE = pathlib.Path(__file__).parent
FRAMES, SIZE = 17, 192
ORDERS = ("first", "second")
STREAMS, CLASSES = ("cond", "uncond"), ("generative", "context")


def norm(x: Tensor, where: Tensor) -> float:
    """Root of the sum of squares of [B, 16, T, h, w] over the latents `where` is 1, [B, 1, T, h, w]."""
    return float((x.double().square() * where).sum().sqrt())


def profile(predictions: list[Tensor], where: Tensor) -> dict[str, list[float]]:
    """First and second differences over the evaluation index, relative; NaN where there are too few predictions."""
    out: dict[str, list[float]] = {order: [] for order in ORDERS}
    for k, v in enumerate(predictions):
        scale = norm(v, where)
        first = norm(v - predictions[k - 1], where) / scale if k > 0 else float("nan")
        second = norm(v - 2 * predictions[k - 1] + predictions[k - 2], where) / scale if k > 1 else float("nan")
        out["first"].append(first)
        out["second"].append(second)
    return out


def measure(clips: int, device: torch.device) -> dict:
    transformer, vae = load_transformer().to(device), load_vae().to(device)
    sigmas: list[float] = []
    rows: dict[tuple[str, str], list[dict]] = {(s, c): [] for s in STREAMS for c in CLASSES}
    for seed in tqdm(HELD_OUT[:clips], desc="clips"):
        clip = make_clip(seed, FRAMES, SIZE, SIZE)
        control = sampling.control(vae, [clip], device)
        seen: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS}
        sigmas = []

        def watch(step: int, sigma: float, cond: Tensor, uncond: Tensor, seen=seen, sigmas=sigmas) -> None:
            sigmas.append(sigma)
            seen["cond"].append(cond)
            seen["uncond"].append(uncond)

        # fp32: rounding to bf16 would itself look like change.
        sampling.sample(transformer, control, [clip.prompt], [seed], STEPS, CFG, dtype=None, watch=watch)
        inside = dit.generative_tokens(control[:, 32:])
        for stream in STREAMS:
            rows[stream, "generative"].append(profile(seen[stream], inside))
            rows[stream, "context"].append(profile(seen[stream], 1 - inside))
    out: dict = dict(frames=FRAMES, height=SIZE, width=SIZE, clips=clips, cfg=CFG, flow_shift=5.0,
                     steps=list(range(STEPS)), sigmas=[round(s, 6) for s in sigmas])
    for stream in STREAMS:
        out[stream] = {}
        for kind in CLASSES:
            means = {order: np.mean([r[order] for r in rows[stream, kind]], axis=0) for order in ORDERS}
            out[stream][kind] = {order: [None if np.isnan(v) else round(float(v), 6) for v in means[order]]
                                 for order in ORDERS}
    return out


def draw(result: dict, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, order in zip(axes, ORDERS):
        for stream, line in zip(STREAMS, ("-", "--")):
            for kind, colour in zip(CLASSES, ("tab:red", "tab:blue")):
                values = [np.nan if v is None else v for v in result[stream][kind][order]]
                axis.plot(result["steps"], values, line, color=colour, label=f"{stream}, {kind}")
        axis.set(title=f"{order} difference of the prediction", xlabel="evaluation", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative to |v|")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for change.json and change.png")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args.clips, training.pick_device(args.device))
    (args.out / "change.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, args.out / "change.png")


if __name__ == "__main__":
    main()
