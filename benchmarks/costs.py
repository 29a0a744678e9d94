"""What partial and reuse evaluations cost beside their ideal, and what storing context, deciding, selecting tokens and
choosing context by its content cost.

    python -m benchmarks.costs --out benchmarks/results/costs.json --profile hetcache_core/profiles/nano.json

Random weights, real shapes of tokens: costs do not depend on what a model has learned. Ideal partial evaluation: the
linear layers' time scaled by the share of tokens, attention's by rows times keys. Full and partial evaluations take
turns, so that a machine whose speed drifts slows both.

What nano's evaluations cost beyond their arithmetic, by which the planner reckons, is fitted to its rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACETransformer3DModel
from diffusers.models.transformers import transformer_wan
from scipy.optimize import nnls

from benchmarks.machine import describe
from benchmarks.overheads import Overheads
from benchmarks.rows import run_all, write
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.costs import Costs, ModelShape
from hetcache_core.hosts import diffusers as host
from nano.text import TEXT_DIM, TEXT_TOKENS

SHAPES = {
    "nano": {"num_attention_heads": 2, "num_layers": 6, "ffn_dim": 768, "vace_layers": [0, 2, 4]},
    "wide": {"num_attention_heads": 6, "num_layers": 4, "ffn_dim": 3072, "vace_layers": [0, 2]},
}
GRIDS = {"nano": ((5, 24, 24), (9, 24, 24)), "wide": ((5, 24, 24),)}  # latents of 17 and 33 frames of 192x192
STREAMS = ("cond", "uncond")
STEPS = 13
PLAN = "FF" + "PFR" * 3 + "FF"


def build(name: str) -> WanVACETransformer3DModel:
    """A Wan-VACE of this shape with small random weights."""
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        attention_head_dim=128, in_channels=16, out_channels=16, text_dim=TEXT_DIM, vace_in_channels=96, **SHAPES[name]
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def control(mask: float, grid: tuple[int, int, int]) -> torch.Tensor:
    """A VACE control whose static square mask covers this share of the tokens."""
    control = torch.randn(1, 96, *grid)
    control[:, 32:] = 0
    side = [2 * round(n * mask**0.5 / 2) for n in grid[1:]]
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


def measure(name: str, grid: tuple[int, int, int], mask: float, policy: CachePolicy) -> dict:
    """Seconds of each kind of evaluation at one size, mask and policy, and their ratios to the ideal."""
    model, x, c = build(name), torch.randn(1, 16, *grid), control(mask, grid)
    text = torch.randn(1, TEXT_TOKENS, TEXT_DIM)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(STEPS)
    model(x, scheduler.timesteps[:1], text, None, c)  # warms up
    with AttentionClock() as clock:
        began = time.perf_counter()
        model(x, scheduler.timesteps[:1], text, None, c)
        share = clock.seconds / (time.perf_counter() - began)
    beside = Overheads(x.device)
    with beside, host.apply(model, replace(policy, schedule=PLAN), scheduler=scheduler, streams=len(STREAMS)) as handle:
        for t in scheduler.timesteps:
            for stream in STREAMS:
                with model.cache_context(stream):
                    model(x, t[None], text, None, c)
        stats = handle.stats
        remembered = 0 if stats.remembered is None else len(stats.remembered)
        keys = len(stats.classes.edited) + remembered if remembered else stats.selected_tokens
    took = beside.milliseconds()
    full, partial, reuse = (stats.seconds_of(d) for d in "FPR")
    storing = statistics.median([r.storing_seconds for r in stats.records[1:] if r.storing_seconds] or [0.0])
    tokens = grid[0] * grid[1] * grid[2] // 4
    selected = stats.selected_tokens / tokens
    ideal = full * ((1 - share) * selected + share * selected * keys / tokens)
    return {
        "shape": name,
        "grid": grid,
        "asked_mask": mask,
        "tokens": tokens,
        "mask_fraction": stats.mask_fraction,
        "selected": selected,
        "keys": keys,
        "remembered": remembered,
        "packed": policy.memory_bits is not None,
        "context_memory": stats.tier,
        "attention_share_of_full": share,
        "seconds_full": full,
        "seconds_partial": partial,
        "partial_over_full": partial / full,
        "partial_over_ideal": partial / ideal,
        "storing_over_full": storing / full,
        "predicted_partial_over_full": stats.costs.partial,
        "predicted_storing_over_full": stats.costs.storing,
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


def typical(shape: str, grid: tuple[int, int, int], mask: float, name: str, rounds: int) -> dict:
    """The median of some rounds of :func:`measure`."""
    found = [measure(shape, grid, mask, POLICIES[name]) for _ in range(rounds)]
    return {"policy": name, **sorted(found, key=lambda r: r["partial_over_ideal"])[len(found) // 2]}


def nano_shape(profile: ErrorProfile) -> ModelShape:
    """What runs of nano reckon with: the model that its profile names, and prompts as short as its own."""
    return ModelShape(*profile.model, text_tokens=TEXT_TOKENS)


def foretold(profile: ErrorProfile, row: dict) -> Costs:
    """What a run of nano expects evaluations as a row's to cost."""
    tokens, packed = row["tokens"], row["packed"]
    selected, beyond = round(row["selected"] * tokens), (profile.storing[packed], profile.joining[packed])
    return Costs.of(
        nano_shape(profile), tokens, selected, row["keys"], profile.overhead, row["remembered"], *beyond
    )  # fmt: skip


def fitted(profile: ErrorProfile, shape: ModelShape, rows: list[dict]) -> ErrorProfile:
    """The profile with the overhead, and what storing and joining take, that rows of a shape show.

    Least squares of what partial evaluations cost beyond their arithmetic, and of what storing does.
    """
    token_wise, remembered, beyond = [], [], []
    for row in rows:
        full = shape.flops(row["tokens"], row["tokens"])
        token_wise.append(shape.flops(row["tokens"], 0) / full)
        kept = token_wise[-1] * row["remembered"] / row["tokens"]
        remembered.append([kept * (row["packed"] == packed) for packed in (False, True)])
        selected = round(row["selected"] * row["tokens"])
        beyond.append(row["partial_over_full"] - shape.flops(selected, row["keys"]) / full)
    storing, _ = nnls(np.array(remembered), np.array([row["storing_over_full"] for row in rows]))
    (overhead, *joining), _ = nnls(np.column_stack([token_wise, remembered]), np.array(beyond))
    storing, joining = (tuple(round(float(v), 3) for v in pair) for pair in (storing, joining))
    return replace(profile, overhead=round(float(overhead), 3), storing=storing, joining=joining)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--masks", type=float, nargs="+", default=(0.10, 0.20))
    parser.add_argument("--rounds", type=int, default=3, help="the median of this many is reported")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time, each in a process of one thread")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", type=Path, help="takes what is fitted to nano's rows")
    args = parser.parse_args()
    rows = []

    def done(row: dict) -> None:
        rows.append(row)
        print(
            f"{row['shape']:5} {row['tokens']:5} tokens, mask {row['mask_fraction']:.0%}  {row['policy']:24} "
            f"partial {row['partial_over_full']:.3f} of full, {row['partial_over_ideal']:.2f} x ideal; "
            f"storing {row['storing_over_full']:.3f}; reuse {row['reuse_over_full']:.2%}, "
            f"deciding {row['deciding_over_full']:.2%}, choosing {row['choosing_over_full'] or 0:.2%}",
            flush=True,
        )

    cases = [
        (shape, grid, mask, name, args.rounds)
        for shape in args.shapes for grid in GRIDS[shape] for mask in args.masks for name in POLICIES
    ]  # fmt: skip
    run_all(typical, cases, args.workers, 1, done)
    order = {case[:4]: place for place, case in enumerate(cases)}
    rows.sort(key=lambda row: order[row["shape"], tuple(row["grid"]), row["asked_mask"], row["policy"]])
    if measured := [row for row in rows if row["shape"] == "nano"]:
        profile = ErrorProfile.load("nano")
        profile = fitted(profile, nano_shape(profile), measured)
        print(f"nano: overhead {profile.overhead}, storing {profile.storing}, joining {profile.joining}")
        for row in measured:
            expected = foretold(profile, row)
            row |= {
                "predicted_partial_over_full": expected.partial, "predicted_storing_over_full": expected.storing
            }  # fmt: skip
        if args.profile:
            args.profile.write_text(profile.to_json() + "\n")
    settings = {"rounds": args.rounds, "plan": PLAN, "workers": args.workers}
    write(args.out, {"machine": describe(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
