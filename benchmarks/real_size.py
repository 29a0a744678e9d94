"""Models of real size with random weights: what full, partial and reuse evaluations cost, and whole runs.

    python -m benchmarks.real_size --models 1.3B --sizes 480x832x33 480x832x81 --out benchmarks/results/real-size.json

Costs do not depend on what a model has learned, so Wan2.1-VACE 1.3B and 14B are built with random weights on the GPU in
bf16. For every mask and way of remembering context a short run with every kind of evaluation is timed by CUDA events;
`--speeds` then times whole runs as the planner makes them. Both are set against the stock model's evaluations, which
store no context, timed once for each size and mask. What deciding and choosing context take is timed beside them. A run
that was stopped, or had no more `--minutes`, goes on where it was. Without a GPU this runs too, on sizes as small as
the machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACETransformer3DModel

from benchmarks.machine import describe
from benchmarks.overheads import Overheads
from benchmarks.rows import write
from hetcache_core import CachePolicy
from hetcache_core.costs import Costs, ModelShape
from hetcache_core.hosts import diffusers as host

MODELS = {
    "1.3B": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "vace_layers": list(range(0, 30, 2))},
    "14B": {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "vace_layers": list(range(0, 40, 5))},
    "tiny": {"num_attention_heads": 1, "num_layers": 2, "ffn_dim": 128, "vace_layers": [0]},
}
UNPACKED = {"memory_bits": 16, "memory_turn_bits": 16, "memory_apart_bits": 16}
PACKED = {"memory_bits": 8, "memory_turn_bits": 2, "memory_apart_bits": 2}
TIERS = {
    "on the device": UNPACKED,
    "on the device, held": {**UNPACKED, "memory_order": 0},
    "packed": PACKED,
    "packed, slope only": {**PACKED, "memory_order": 1},
    "packed, prefetched from the host": {**PACKED, "memory_offload": True},
    "a quarter, packed": {**PACKED, "memory_share": 0.25},
    "weighted prune": {"memory_share": 0.0},
    "weighted prune, chosen by content": {"memory_share": 0.0, "context_sampling": "both"},
}
PLAN = "FF" + "PFPR" * 3 + "FF"
TEXT_TOKENS = 512


def build(name: str, device: torch.device, dtype: torch.dtype) -> WanVACETransformer3DModel:
    """A Wan-VACE of this shape, initialised at random where it will run."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = WanVACETransformer3DModel(
                attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096, vace_in_channels=96,
                **MODELS[name],
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def latent_size(size: str) -> tuple[int, int, int]:
    """``HEIGHTxWIDTHxFRAMES`` in pixels -> latent frames, height, width."""
    height, width, frames = map(int, size.split("x"))
    if height % 16 or width % 16 or frames % 4 != 1:
        raise SystemExit(f"{size}: height and width must be multiples of 16, frames 4 n + 1")
    return (frames - 1) // 4 + 1, height // 8, width // 8


def inputs(grid: tuple[int, int, int], mask: float, device: torch.device, dtype: torch.dtype) -> dict:
    """A call's arguments, with a static box of this share of the frame as the mask."""
    control = torch.randn(1, 96, *grid, device=device, dtype=dtype)
    control[:, 32:] = 0
    height, width = (2 * round(n * mask**0.5 / 2) for n in grid[1:])
    control[:, 32:, :, :height, :width] = 1
    return {
        "hidden_states": torch.randn(1, 16, *grid, device=device, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 4096, device=device, dtype=dtype),
        "control_hidden_states": control,
    }


def loop(model, call: dict, policy: CachePolicy, steps: int, streams: int):
    """A denoising loop; its statistics."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(steps)
    with host.apply(model, policy, scheduler=scheduler, streams=streams) as handle:
        for t in scheduler.timesteps:
            for stream in ("cond", "uncond")[:streams]:
                with model.cache_context(stream):
                    model(timestep=t.to(call["hidden_states"].device)[None], **call)
        return handle.stats


def stock(model, call: dict) -> float:
    """Seconds of an evaluation that keeps nothing, after one that warms up."""
    return loop(model, call, CachePolicy.preset("exact"), 4, 1).seconds_of("F")


def one(model, name: str, grid: tuple[int, int, int], call: dict, policy: CachePolicy, plain: float) -> dict:
    """Seconds of each kind of evaluation under a policy, beside the stock's and what arithmetic says; without a partial
    evaluation where the engine had to give up, which ``warnings`` say."""
    cuda = call["hidden_states"].is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with Overheads(call["hidden_states"].device) as overheads:
        stats = loop(model, call, policy, len(PLAN), 1)
    config, tokens = MODELS[name], grid[0] * grid[1] * grid[2] // 4
    shape = ModelShape(
        config["num_attention_heads"] * 128, config["num_layers"], config["ffn_dim"], len(config["vace_layers"]),
        TEXT_TOKENS,
    )  # fmt: skip
    keys = stats.selected_tokens
    if stats.tier != "none":
        share = policy.memory_share or 1.0
        edited = int(stats.classes.edited.numel())
        keys = edited + round(share * (tokens - edited))
    ideal = Costs.of(shape, tokens, stats.selected_tokens, keys).partial
    full, partial, reuse = (stats.seconds_of(kind) or None for kind in "FPR")
    storing = statistics.median([r.storing_seconds for r in stats.records[1:] if r.storing_seconds] or [0.0])
    return {
        "context_memory": stats.tier,
        "tokens": tokens,
        "mask_fraction": stats.mask_fraction,
        "ms_stock": 1e3 * plain,
        "ms_full": 1e3 * full,
        "ms_storing": 1e3 * storing,
        "ms_partial": partial and 1e3 * partial,
        "ms_reuse": reuse and 1e3 * reuse,
        "partial_over_stock": partial and partial / plain,
        "ideal_partial_over_full": ideal,
        "partial_over_ideal": partial and partial / plain / ideal,
        "context_mb": stats.peak_context_bytes / 2**20,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        **overheads.milliseconds(),
        "preparation_ms": 1e3 * stats.preparation_seconds,
        "decisions": stats.decisions,
        "warnings": stats.warnings,
        "wall_seconds": time.perf_counter() - began,
    }


def whole(model, call: dict, speed: float, steps: int, plain: float) -> dict:
    """A whole run with guidance at a target speed, beside the stock's."""
    if cuda := call["hidden_states"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
    stats = loop(model, call, CachePolicy(speed=speed, memory_budget_mb=65536), steps, 2)
    return {
        "target": speed,
        "predicted_speed": stats.predicted_speed,
        "speed": 2 * steps * plain / stats.seconds,
        "speed_within_run": stats.speed,  # against its own full evaluations
        "seconds": stats.seconds,
        "decisions": stats.decisions,
        "context_memory": stats.tier,
        "context_mb": stats.peak_context_bytes / 2**20,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "warnings": stats.warnings,
    }


def table(result: dict) -> list[str]:
    """Evaluations by model, size, mask and way to remember, then whole runs."""
    lines = [
        f"**Models of real size**, random weights ({result['machine']['device']}, {result['settings']['dtype']}):",
        "",
        "| model | size | mask | context | full | storing | partial | over ideal | reuse | deciding, selecting "
        "| choosing anew | held | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["evaluations"]:
        beside = sum(row[f"ms_{name}"] or 0.0 for name in ("decide", "select"))
        look = "" if row["ms_look"] is None else f"{row['ms_look']:.2f} ms"
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f} GB"
        times = f"{row['ms_stock']:.1f} ms | {row['ms_storing']:.1f} ms"
        if row["ms_partial"] is None:
            partial = f"none: {'; '.join(row['warnings']) or 'no memory for it'} | "
        else:
            partial = f"{row['ms_partial']:.1f} ms | {row['partial_over_ideal']:.2f} x"
        reuse = "" if row["ms_reuse"] is None else f"{row['ms_reuse']:.2f} ms"
        lines.append(
            f"| {row['model']} | {row['size']} | {row['mask_fraction']:.0%} | {row['tier']} | {times} | {partial} | "
            f"{reuse} | {beside:.2f} ms | {look} | {row['context_mb']:.0f} MB | {peak} |"
        )
    lines += ["", "| model | size | mask | wanted | predicted | measured | context | peak |", "|---" * 8 + "|"]
    for row in result["runs"]:
        speeds = f"{row['target']:g}x | {row['predicted_speed']:.2f}x | {row['speed']:.2f}x"
        peak = "" if row.get("peak_gb") is None else f"{row['peak_gb']:.1f} GB"
        where = f"| {row['model']} | {row['size']} | {row['mask']:.0%} |"
        lines.append(f"{where} {speeds} | {row['context_memory']} | {peak} |")
    return lines


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["1.3B", "14B"])
    parser.add_argument("--sizes", nargs="+", default=["480x832x33", "480x832x81", "720x1280x81"], help="HxWxFRAMES")
    parser.add_argument("--masks", type=float, nargs="+", default=[0.10, 0.20])
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--speeds", type=float, nargs="*", default=[2.0, 3.0, 4.0, 6.0], help="of whole runs")
    parser.add_argument("--steps", type=int, default=50, help="of whole runs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing more after this many")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    began, result = time.monotonic(), {"machine": describe(), "settings": {"plan": PLAN, "dtype": str(dtype)}}
    result |= {"evaluations": [], "runs": []}
    if args.out.exists():
        before = json.loads(args.out.read_text())
        if (before["machine"], before["settings"]) != (result["machine"], result["settings"]):
            raise SystemExit(f"{args.out} is of another machine, version or commit: move it away, or name another file")
        result = before

    def lacks(part: str, head: dict) -> bool:
        done = any(head.items() <= row.items() for row in result[part])
        return not done and time.monotonic() - began < 60 * args.minutes

    def add(part: str, row: dict) -> None:
        result[part].append(row)
        print(json.dumps(row), flush=True)
        write(args.out, result)

    for name in args.models:
        _measure(name, args, device, dtype, lacks, add)


def _measure(name: str, args: argparse.Namespace, device: torch.device, dtype: torch.dtype, lacks, add) -> None:
    """All of a model's rows that lack, handed to ``add(part, row)``; the model is built for the first and gone with the
    last."""
    model = functools.cache(functools.partial(build, name, device, dtype))
    for size in args.sizes:
        grid = latent_size(size)
        for mask in args.masks:
            head, call = {"model": name, "size": size, "mask": mask}, inputs(grid, mask, device, dtype)
            plain = functools.cache(lambda call=call: stock(model(), call))
            for tier in args.tiers:
                here, policy = {**head, "tier": tier}, CachePolicy(schedule=PLAN, memory_budget_mb=2**17)
                if lacks("evaluations", here):
                    found = one(model(), name, grid, call, replace(policy, **TIERS[tier]), plain())
                    add("evaluations", {**here, **found})
            for speed in args.speeds:
                here = {**head, "target": speed, "steps": args.steps}
                if lacks("runs", here):
                    add("runs", {**here, **whole(model(), call, speed, args.steps, plain())})


if __name__ == "__main__":
    main()
