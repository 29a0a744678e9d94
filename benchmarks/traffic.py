"""What remembering context moves: memory read and written, and operations, in one layer of a partial evaluation, and of
a full one that stores.

    python -m benchmarks.traffic --out benchmarks/results/traffic.json

On a graphics card unpacking is bound by memory, not by arithmetic, so that this is what it costs there, by count and
not by time: it is the same on every machine. Bytes are those of every operation's inputs and outputs, as multiples of
the layer's keys and values in bfloat16, both streams; views move nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.machine import describe
from benchmarks.rows import write
from hetcache_core.context import remember
from hetcache_core.memory import ContextMemory
from hetcache_core.tiers import LADDER, MemoryTier
from hetcache_core.tokens import classify

HEADS, WIDTH, GRID = 12, 128, (5, 30, 30)  # of Wan2.1-VACE 1.3B; fewer tokens than it has, which changes no ratio
SIDE = 13  # of the square edit: a fifth of the tokens
RENEWED = 7  # every so-many-th remembered token is computed anew
ALLOCATES = ("empty", "new_empty", "empty_like")
PART = {"index_copy_": 3, "copy_": 1, "index_select": None, "index": None}  # argument that moves; None: the result
STREAMS = ("cond", "uncond")


class Traffic(TorchDispatchMode):
    """While open, counts bytes and operations."""

    def __init__(self):
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        answer = function(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        reads = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
        places = {t.untyped_storage().data_ptr() for t in reads}
        writes = _tensors(answer)
        view = all(t.untyped_storage().data_ptr() in places for t in writes)
        if name in ALLOCATES or (view and not function._schema.is_mutable):
            return answer
        self.operations += 1
        if name in PART:
            moved = 2 * _bytes(writes if PART[name] is None else _tensors(args[PART[name]]))
        else:
            moved = _bytes(reads) + _bytes(writes)
        self.bytes += moved
        return answer


def measure(tier: MemoryTier) -> dict:
    """A row of the table: what one layer moves, with renewed context and without, and where it is stored."""
    touched = torch.zeros(GRID, dtype=torch.bool)
    touched[:, :SIDE, :SIDE] = True
    classes = classify(touched)
    remembered, tokens = remember(classes, tier.share), touched.numel()
    generator, found = torch.Generator().manual_seed(0), {}

    def rows(count: int) -> Tensor:
        return torch.randn(1, count, HEADS, WIDTH, generator=generator).bfloat16()

    memory = ContextMemory(remembered, tokens, 1, tier)
    for position in (0.0, 1.0):
        memory.begin(position)
        for stream in STREAMS:
            memory.capture(0, (stream,), rows(tokens), rows(tokens))
    own = len(STREAMS) * 2 * len(remembered.indices) * HEADS * WIDTH * torch.bfloat16.itemsize
    for what, anew in (("joined", remembered.indices[:0]), ("renewed", remembered.indices[::RENEWED])):
        memory.begin(2.0)
        memory.select(torch.cat([classes.edited, anew]).sort().values, torch.tensor(1.0))
        fresh = rows(len(classes.edited) + len(anew))
        with Traffic() as traffic:
            for stream in STREAMS:
                memory.join(0, (stream,), fresh, fresh)
        found[what] = {"times": traffic.bytes / own, "operations": traffic.operations}
    memory.begin(3.0)
    fresh = rows(tokens)
    with Traffic() as traffic:
        for stream in STREAMS:
            memory.capture(0, (stream,), fresh, fresh)
    found["stored"] = {"times": traffic.bytes / own, "operations": traffic.operations}
    return {"tier": str(tier), **found}


def table(result: dict) -> list[str]:
    """A line a tier."""
    lines = [
        "**What remembering moves**, in one layer of a partial evaluation: memory read and written, as multiples of "
        "the keys and values remembered (bfloat16, both streams), and operations; by count, so that it is the same on "
        f"every machine. With every {RENEWED}th token renewed, as usual, and with none; and of a full evaluation that "
        "stores:",
        "",
        "| remembered | moved | operations | moved, none renewed | operations | stored | operations |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = (f"{row[what]['times']:.0f}x | {row[what]['operations']}" for what in ("renewed", "joined", "stored"))
        lines.append(f"| {row['tier']} | {' | '.join(cells)} |")
    return lines


def _tensors(value) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    tiers = [tier for tier in LADDER if tier.share == 1.0]
    with torch.inference_mode():
        result = {"machine": describe(), "rows": [measure(tier) for tier in tiers]}
    write(args.out, result, compact=True)
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
