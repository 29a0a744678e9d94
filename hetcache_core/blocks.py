"""Block reuse: what background blocks add to the hidden states, kept from a full evaluation and added again.

As in ProfilingDiT (arXiv 2504.03140, section 3.3): the blocks of a model are split into foreground ones, always
computed, and background ones. Of every run of consecutive background blocks one delta is kept. Ours: a delta is summed
over its blocks, each measured from what goes into the block to what comes out, so that what a host adds between two
blocks (VACE's hints) is never part of it and stays fresh.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

Block = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockSplit:
    """Which main blocks are background.

    Args:
        blocks: main blocks of the model.
        background: their indices, rising; may be empty.

    Raises:
        ValueError: indices out of range, repeated or out of order.
    """

    blocks: int
    background: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "background", tuple(self.background))
        known = all(type(i) is int and 0 <= i < self.blocks for i in self.background)
        if self.blocks < 1 or not known or list(self.background) != sorted(set(self.background)):
            raise ValueError(
                f"background blocks must be rising whole numbers from 0 to {self.blocks - 1}, got {self.background}"
            )

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """First and last index of every longest run of consecutive background blocks."""
        known, runs = set(self.background), []
        for first in self.background:
            if first - 1 not in known:
                last = first
                while last + 1 in known:
                    last += 1
                runs.append((first, last))
        return tuple(runs)

    def longest(self, count: int) -> BlockSplit:
        """The split that keeps only this many runs, the longest, of equals the first: a delta each, for most blocks."""
        kept = sorted(self.runs, key=lambda run: run[0] - run[1])[: max(count, 0)]
        return BlockSplit(self.blocks, tuple(sorted(i for first, last in kept for i in range(first, last + 1))))


class BlockCache:
    """Deltas of the runs of a split, one for each stream.

    Args:
        split: which blocks are background.
        streams: most streams kept; the budget was reckoned for so many, and a later one goes without.
        sample: a few tokens ``[S]`` whose deltas are compared from capture to capture, or None.
    """

    def __init__(self, split: BlockSplit, streams: int = 2, sample: Tensor | None = None):
        self.split, self.streams = split, streams
        self._sample = sample
        self._sampled: dict[tuple[Hashable, tuple[int, int]], Tensor] = {}
        self.mode = "idle"  # or capture (on full evaluations), or apply (where the background is reused)
        self._run = {i: run for run in split.runs for i in range(run[0], run[1] + 1)}
        self._deltas: dict[Hashable, dict[tuple[int, int], Tensor]] = {}
        self._next: dict[Hashable, int] = {}  # place in the background list of the block to come; -1: one was missed

    @property
    def bytes(self) -> int:
        """Bytes held."""
        kept = [*self._sampled.values(), *(delta for deltas in self._deltas.values() for delta in deltas.values())]
        return sum(delta.numel() * delta.element_size() for delta in kept)

    def has(self, streams: tuple[Hashable, ...]) -> bool:
        """Whether the deltas of all these streams are complete."""
        return all(self._next.get(stream) == len(self.split.background) for stream in streams)

    def change(self, stream: Hashable) -> float | None:
        """Relative L1 change of a stream's deltas since this was asked last, mean over runs; None the first time."""
        changes = []
        for run, delta in self._deltas.get(stream, {}).items() if self._sample is not None else ():
            new, old = delta[:, self._sample].float(), self._sampled.get((stream, run))
            self._sampled[stream, run] = new
            if old is not None:
                changes.append((new - old).abs().sum() / old.abs().sum().clamp_min(1e-12))
        return float(torch.stack(changes).mean()) if changes else None

    def clear(self) -> None:
        """Let everything go."""
        self._deltas.clear()
        self._next.clear()

    def close(self) -> None:
        """Let everything go, in the middle of an evaluation too."""
        self.clear()
        self._sampled.clear()
        self.mode = "idle"

    def begin(self, streams: tuple[Hashable, ...]) -> None:
        """An evaluation of these streams is captured from now on; what is kept of them is let go."""
        self.mode = "capture"
        for stream in streams:
            self._deltas.pop(stream, None)
            self._next.pop(stream, None)
        for stream in streams:
            if len(self._next) < self.streams:
                self._next[stream], self._deltas[stream] = 0, {}

    def capture(self, index: int, streams: tuple[Hashable, ...], hidden: Tensor, output: Tensor) -> None:
        """Take in what one block added.

        Args:
            index: of the main block.
            streams: of this call; the batch is their rows in equal chunks.
            hidden, output: what went into the block and what came out, ``[B, tokens, dim]``.
        """
        run = self._run.get(index)
        if run is None:
            return
        if output.shape != hidden.shape:
            raise ValueError(f"block {index} turned {tuple(hidden.shape)} into {tuple(output.shape)}")
        added = (output - hidden).chunk(len(streams))
        for stream, rows in zip(streams, added, strict=True):
            if stream not in self._next:
                continue
            place = self._next[stream]
            expected = place < len(self.split.background) and self.split.background[place] == index
            self._next[stream] = place + 1 if expected and place >= 0 else -1
            kept = self._deltas[stream]
            if run in kept:
                kept[run].add_(rows)
            else:  # a view would keep the other streams' rows alive
                kept[run] = rows if len(streams) == 1 else rows.clone()

    def apply(self, index: int, streams: tuple[Hashable, ...], hidden: Tensor, compute: Block) -> Tensor:
        """What stands for one block: its own output, or, for background ones, the input with their delta at the last.

        Args:
            index, streams, hidden: as in :meth:`capture`.
            compute: runs the block.
        """
        run = self._run.get(index)
        if run is None:
            return compute(hidden)
        if index == run[1]:
            deltas = [self._deltas[stream][run] for stream in streams]
            if len(deltas) == 1:
                return hidden + deltas[0]
            output = torch.empty_like(hidden)
            for rows, old, delta in zip(output.chunk(len(streams)), hidden.chunk(len(streams)), deltas, strict=True):
                torch.add(old, delta, out=rows)
            return output
        # hosts add to a block's output in place, and read the first block's input again
        return hidden.clone() if index == 0 else hidden


def delta_bytes(split: BlockSplit, tokens: int, dim: int, streams: int, itemsize: int, rows: int = 1) -> int:
    """Bytes the deltas of a split take: ``runs * streams * rows * tokens * dim * itemsize``."""
    return len(split.runs) * streams * rows * tokens * dim * itemsize


def fitting(split: BlockSplit, budget: float, tokens: int, dim: int, streams: int, itemsize: int, rows: int = 1):
    """What of a split fits a budget of bytes, and a note where that is not all of it.

    Where it is too much the longest runs are kept: every run costs one delta, however many blocks it saves.

    Returns:
        ``(split, note)``; a split without background where not even one delta fits.
    """
    needed = delta_bytes(split, tokens, dim, streams, itemsize, rows)
    if needed <= budget:
        return split, ""
    one = needed // len(split.runs)
    kept = split.longest(int(budget // one))
    counts = f"{len(kept.background)} of {len(split.background)} background blocks"
    return kept, (
        f"block reuse would need {needed / 2**20:.0f} MB, the memory budget leaves {budget / 2**20:.0f} MB: "
        f"{counts if kept.background else 'no block'} can be reused; a larger budget would help"
    )
