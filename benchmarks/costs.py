"""What partial and reuse evaluations cost beside their ideal, and what deciding, selecting tokens and choosing context
by its content cost.

    python -m benchmarks.costs --out benchmarks/results/costs.json

Random weights, real shapes of tokens: costs do not depend on what a model has learned. Ideal partial evaluation: the
linear layers' time scaled by the share of tokens, attention's by rows times keys. Full and partial evaluations take
turns, so that a machine whose speed drifts slows both.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACETransformer3DModel
from diffusers.models.transformers import transformer_wan

from benchmarks.machine import describe
from benchmarks.overheads import Overheads
from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host

SHAPES = {
    "nano": {"num_attention_heads": 2, "num_layers": 6, "ffn_dim": 768, "vace_layers": [0, 2, 4]},
    "wide": {"num_attention_heads": 6, "num_layers": 4, "ffn_dim": 3072, "vace_layers": [0, 2]},
}
GRID = (9, 44, 44)  # latent frames, height, width: 4,356 tokens
STEPS = 13
PLAN = "FF" + "PFR" * 3 + "FF"


def build(name: str) -> WanVACETransformer3DModel:
    """A Wan-VACE of this shape with small random weights."""
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        attention_head_dim=128, in_channels=16, out_channels=16, text_dim=64, vace_in_channels=96, **SHAPES[name]
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def control(mask: float) -> torch.Tensor:
    """A VACE control whose static square mask covers this share of the tokens."""
    frames, height, width = GRID
    control = torch.randn(1, 96, *GRID)
    control[:, 32:] = 0
    side = [2 * round(n * mask**0.5 / 2) for n in (height, width)]
    control[:, 32:, :, : side[0], : side[1]] = 1
    return control


class AttentionClock:
    """Adds up the time self-attention spends in its kernel, by wrapping the function the processors call."""

    def __enter__(self):
        self.seconds, self._stock = 0.0, transformer_wan.dispatch_attention_fn

        def timed(query, key, value, *args, **kwargs):
            began = time.perf_counter()
            output = self._stock(query, key, value, *args, **kwargs)
            if key.shape[1] == query.shape[1]:
                self.seconds += time.perf_counter() - began
            return output

        transformer_wan.dispatch_attention_fn = timed
        return self

    def __exit__(self, *_):
        transformer_wan.dispatch_attention_fn = self._stock


def measure(name: str, mask: float, policy: CachePolicy) -> dict:
    """Seconds of each kind of evaluation at one mask and policy, and their ratios to the ideal."""
    model, x, c = build(name), torch.randn(1, 16, *GRID), control(mask)
    text, scheduler = torch.randn(1, 8, 64), FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(STEPS)
    with AttentionClock() as clock:
        began = time.perf_counter()
        model(x, scheduler.timesteps[:1], text, None, c)
        share = clock.seconds / (time.perf_counter() - began)
    beside = Overheads(x.device)
    with beside, host.apply(model, replace(policy, schedule=PLAN), scheduler=scheduler, streams=1) as handle:
        for t in scheduler.timesteps:
            model(x, t[None], text, None, c)
        stats = handle.stats
        keys = stats.selected_tokens
        if stats.remembered is not None:
            keys = len(stats.classes.edited) + len(stats.remembered)
    took = beside.milliseconds()
    full, partial, reuse = (stats.seconds_of(d) for d in "FPR")
    tokens = GRID[0] * GRID[1] * GRID[2] // 4
    selected = stats.selected_tokens / tokens
    ideal = full * ((1 - share) * selected + share * selected * keys / tokens)
    return {
        "shape": name,
        "tokens": tokens,
        "mask_fraction": stats.mask_fraction,
        "selected": selected,
        "keys": keys,
        "context_memory": stats.tier,
        "attention_share_of_full": share,
        "seconds_full": full,
        "seconds_partial": partial,
        "partial_over_full": partial / full,
        "partial_over_ideal": partial / ideal,
        "predicted_partial_over_full": stats.costs.partial,
        "reuse_over_full": reuse / full,
        "deciding_over_full": (took["ms_decide"] + took["ms_select"]) / 1e3 / full,
        "choosing_over_full": took["ms_look"] and took["ms_look"] / 1e3 / full,
        "planning_seconds": stats.preparation_seconds,
    }


POLICIES = {
    "all context remembered": CachePolicy(),
    "packed as a real model's": CachePolicy(
        memory_bits=8, memory_order=1, memory_turn_bits=2, memory_apart_bits=2
    ),
    "a quarter remembered": CachePolicy(memory_share=0.25),
    "weighted prune": CachePolicy(memory_share=0.0),
    "chosen by content": CachePolicy(memory_share=0.0, context_sampling="both", context_share=0.7),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--masks", type=float, nargs="+", default=(0.10, 0.20))
    parser.add_argument("--rounds", type=int, default=3, help="the median of this many is reported")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for shape in args.shapes:
        for mask in args.masks:
            for name, policy in POLICIES.items():
                rounds = [measure(shape, mask, policy) for _ in range(args.rounds)]
                row = sorted(rounds, key=lambda r: r["partial_over_ideal"])[len(rounds) // 2]
                rows.append({"policy": name, **row})
                print(
                    f"{shape:5} mask {row['mask_fraction']:.0%}  {name:22} "
                    f"partial {row['partial_over_full']:.3f} of full, "
                    f"{row['partial_over_ideal']:.2f} x ideal; reuse {row['reuse_over_full']:.2%}, "
                    f"deciding {row['deciding_over_full']:.2%}, choosing {row['choosing_over_full'] or 0:.2%}",
                    flush=True,
                )
    settings = {"rounds": args.rounds, "plan": PLAN, "latent": GRID}
    args.out.write_text(json.dumps({"machine": describe(), "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
