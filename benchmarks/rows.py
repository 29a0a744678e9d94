"""Rows of a results file: how one is measured, and how files fill up clip by clip and go on after a stop."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe
from hetcache_core.quality import compare
from hetcache_core.stats import RunStats


def measured(name: str, stats: RunStats, full_seconds: float, video: np.ndarray, reference: np.ndarray,
             mask: np.ndarray) -> dict:  # fmt: skip
    """One run of one clip.

    Args:
        stats: of the run. full_seconds: of the clip's run in full.
        video, reference: the run's edit and the full one, ``[F, H, W, 3]``. mask: bool ``[F, H, W]``.
    """
    return {
        "name": name,
        "predicted_speed": stats.predicted_speed,
        "speed": stats.speed,
        "speed_against_full_run": full_seconds / stats.seconds,
        "seconds": stats.seconds,
        "preparation_seconds": stats.preparation_seconds,
        "decisions": stats.decisions,
        "mask_fraction": stats.mask_fraction,
        "peak_context_bytes": stats.peak_context_bytes,
        "planned_context_bytes": stats.planned_context_bytes,
        **compare(video, reference, mask),
    }


def run_all(work: Callable, tasks: Iterable[tuple], workers: int, threads: int, done: Callable[[object], None]) -> None:
    """Do every task in a pool of processes and hand over each result as it comes.

    Args:
        work: called as ``work(*task)`` in another process; importable. threads: of each process.
        done: called here with each result.
    """
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        for future in as_completed([pool.submit(work, *task) for task in tasks]):
            done(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def compare_all(
    what: str, work: Callable[..., list[dict]], tasks: Callable[[int], list[tuple]], order: Callable, table: Callable
) -> None:
    """Main program of a comparison on tuning clips: reads the command line, measures, writes rows and prints the table.

    Args:
        what: is compared, for ``--help``. work: called as ``work(*task)`` in another process; importable.
        tasks: those of so many clips. order: sort key of a row.
        table: lines of the page, from ``{"machine": ..., "rows": [...]}``.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each in a process of one thread")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = {"machine": describe(), "rows": []}

    def done(rows: list[dict]) -> None:
        result["rows"] = sorted(result["rows"] + rows, key=order)
        write(args.out, result, compact=True)

    run_all(work, tasks(args.clips), args.workers, 1, done)
    print("\n".join(table(result)))


def write(path: Path, result: dict, compact: bool = False) -> None:
    """Write a results file; never half of one. A compact one has a row a line, numbers to five digits."""
    text = json.dumps({**result, "rows": []} if compact else result, indent=1)
    if compact:
        rows = ",\n  ".join(json.dumps(rounded(row)) for row in result["rows"])
        text = text.replace('"rows": []', f'"rows": [\n  {rows}\n ]' if rows else '"rows": []')
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def rounded(value):
    """Numbers of a row to five digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def mean(values: Iterable[float]) -> float:
    """Of the finite ones; infinite where there are none, as PSNR is of equal videos."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("inf")
