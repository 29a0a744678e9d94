"""What must be exact, on nano: stock bytes at speed 1, packed evaluations, the kv oracle, and the count of bytes held.

    python -m benchmarks.exactness --out benchmarks/results/exactness.json

The tests hold the same on random weights and more cases; this is the same promise on the model that ships.
"""

from __future__ import annotations

import argparse
import gc
import json
import types
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor

from benchmarks.latent import LatentEdit, pipeline
from benchmarks.machine import describe
from demo.models import Edit, Model
from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from hetcache_core.packing import pack, to_patches, unpack
from nano import text
from nano.clips import HELD_OUT, make_clip

GRID = (5, 24, 24)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.inference_mode()
def packed(order: Tensor, x: Tensor, control: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction of all tokens in this order by a packed call, and the stock prediction's same rows."""
    model, timestep = pipeline().transformer, torch.tensor([700.0])
    stock = model(x, timestep, prompt, None, control, return_dict=False)[0]
    with host.rotary_rows(model.rope, x, order):
        row = model(pack(x, order), timestep, prompt, None, pack(control, order), return_dict=False)[0]
    return unpack(row), to_patches(stock)[:, :, order]


@torch.inference_mode()
def kv_oracle(x: Tensor, control: Tensor, prompt: Tensor) -> float:
    """Relative error of a subset that attends to the remembered keys and values of the rest, at the same input."""
    pipe = pipeline()
    model, scheduler = pipe.transformer, pipe.scheduler
    scheduler.set_timesteps(2)
    scheduler.timesteps = torch.full((3,), 700.0)
    scheduler.sigmas = torch.tensor([0.7, 0.7, 0.7, 0.0])
    outputs = []
    with host.apply(model, CachePolicy(schedule="FP"), scheduler=scheduler, streams=1) as handle:
        for _ in range(2):
            with model.cache_context("cond"):
                outputs.append(model(x, torch.tensor([700.0]), prompt, None, control, return_dict=False)[0])
        selection = handle._hook._engine.partials.selection
        assert handle.stats.decisions == "FP"
    full, partial = (to_patches(o)[:, :, selection] for o in outputs)
    return relative(partial, full)


def bytes_held(budget_mb: float) -> dict:
    """Context memory of a balanced run: its tensors, found one by one after every step, and what the stats say."""
    clip, policy = make_clip(HELD_OUT[0], 17, 192, 192, mask_fraction=(0.15, 0.2)), CachePolicy.preset("balanced")
    pipe, counted = pipeline(), []
    model = Model("nano", pipe, text.encode(clip.prompt), text.encode(""))

    def count():
        engine = HookRegistry.check_if_exists_or_initialize(pipe.transformer).get_hook(host.HOOK)._engine
        memory = engine.partials.memory if engine and engine.partials else None
        counted.append(storage_bytes(memory) if memory else 0)

    edit = Edit(clip.video, clip.mask, 4.0, 7)
    policy = replace(policy, memory_budget_mb=budget_mb, schedule="FFPRPRFF")
    _, stats = edit.sample(model, 8, policy, count, decode=False)
    budget = round(budget_mb * 2**20)
    return {"budget": budget, "tier": stats.tier, "said": stats.peak_context_bytes, "counted": max(counted)}


def storage_bytes(root: object) -> int:
    """Bytes of all tensor storages that can be reached from an object."""
    seen, queue, storages = set(), [root], {}
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        else:
            queue += gc.get_referents(item)
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    x, control, prompt = torch.randn(1, 16, *GRID), torch.randn(1, 96, *GRID), torch.randn(1, 8, 4096)
    control[:, 32:] = 0
    control[:, 32:, :, 6:14, 6:16] = 1
    tokens = GRID[0] * GRID[1] * GRID[2] // 4
    in_order, rows = packed(torch.arange(tokens), x, control, prompt)
    permuted = relative(*packed(torch.randperm(tokens), x, control, prompt))
    edit = LatentEdit(make_clip(HELD_OUT[0], 17, 192, 192, mask_fraction=(0.15, 0.2)), 4.0)
    stock, _ = edit.sample(8, None)
    exact, _ = edit.sample(8, CachePolicy(speed=1.0))
    full, stats = edit.sample(8, CachePolicy(schedule="F" * 8))
    result = {
        "machine": describe(),
        "speed_1_equals_stock_bytes": torch.equal(exact, stock),
        "all_full_plan_equals_stock_bytes": torch.equal(full, stock) and stats.decisions == "F" * 8,
        "packed_in_order_equals_stock_bytes": torch.equal(in_order, rows),
        "packed_permuted_relative_error": permuted,
        "kv_oracle_relative_error": kv_oracle(x, control, prompt),
        "context_memory_bytes": [bytes_held(budget) for budget in (2048, 12, 4)],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
