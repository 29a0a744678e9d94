"""Compare ways to remember context: what an edit gains from each, and what it holds.

    python -m benchmarks.tiers --clips 4 --workers 2 --out benchmarks/results/tiers.json

Tuning clips of nano. Everything between the full evaluations is partial, nothing is forecast, so that what is lost is
lost to the context. Errors are those of the final latent in the edit, against the edit in full, in dB (20 log10 of the
RMS of the reference over that of the error).
"""

from __future__ import annotations

import math
import statistics
from operator import itemgetter
from unittest import mock

from benchmarks.latent import LatentEdit
from benchmarks.rows import compare_all
from benchmarks.settings import MAIN
from hetcache_core import CachePolicy
from hetcache_core import setup as run_setup
from hetcache_core.tiers import LADDER, MemoryTier

CONTEXT = 0.75  # share of the tokens that is context under a mask of 20%
REAL = {  # width, self-attention layers, tokens: Wan2.1-VACE in bfloat16 at 480x832, two streams
    "1.3B, 33 frames": (1536, 45, 9 * 30 * 52),
    "1.3B, 81 frames": (1536, 45, 21 * 30 * 52),
    "14B, 81 frames": (5120, 48, 21 * 30 * 52),
}
BUDGETS = (2048, 4096, 8192, 16384)
SCHEDULE = "FFPPPPPPPPFPPPPPPPPFPPPPPPPPFF"
ASIDE = (  # no rungs of the ladder
    MemoryTier(order=1),
    MemoryTier(order=0),
    MemoryTier(bits=8, turn_bits=2, order=1),
    MemoryTier(bits=4, turn_bits=2, apart_bits=2, order=1),
    MemoryTier(bits=6, apart_bits=2, order=0),
    MemoryTier(bits=6, apart_bits=0, order=0),
)
FRONT = (0, 1, 2, 3, 5, 7, 8, 9, 10, 12, 13)
TIERS = (*(tier for tier in LADDER if tier.share in (1.0, 0.75, 0.5, 0.25, 0.1)), *ASIDE)


def compare(index: int) -> list[dict]:
    """Every tier on one clip."""
    edit = LatentEdit(MAIN.source(index, "tuning"), MAIN.cfg)
    reference, _ = edit.sample(MAIN.steps, CachePolicy.preset("exact"))
    rows = []
    for tier in TIERS:
        with mock.patch.object(run_setup, "LADDER", (tier,)):
            result, stats = edit.sample(MAIN.steps, CachePolicy(schedule=SCHEDULE))
        error = edit.error(result, reference, stats.classes.generative)
        row = {"clip": index, "tier": stats.tier, "decisions": stats.decisions, "db": -20 * math.log10(error)}
        rows.append(row | {"bytes": stats.peak_context_bytes})
    return rows


def front(result: dict) -> list[str]:
    """The table of the ladder's main rungs, and what fits a budget."""
    return [*table(result, tuple(TIERS[i] for i in FRONT)), "", *budgets()]


def budgets() -> list[str]:
    """The best way to remember that fits a budget, by model; by arithmetic, as :data:`REAL`."""
    lines = [f"| with `memory_budget_mb` | {' | '.join(REAL)} |", "|---" * (len(REAL) + 1) + "|"]
    for budget in BUDGETS:
        best = [
            next(t for t in LADDER if t.bytes(round(CONTEXT * tokens), dim, layers, 2, 2) <= budget * 2**20)
            for dim, layers, tokens in REAL.values()
        ]
        lines.append(f"| {budget} | {' | '.join(map(str, best))} |")
    return lines


def table(result: dict, shown: tuple[MemoryTier, ...] = TIERS) -> list[str]:
    """A line a tier: means over the clips."""
    tiers: dict[str, list[dict]] = {}
    for row in result["rows"]:
        tiers.setdefault(row["tier"], []).append(row)
    clips = len({row["clip"] for row in result["rows"]})
    aside = f" (the last {len(ASIDE)} only if asked for)" if shown == TIERS else ""
    lines = [
        f"**Ways to remember context**, best first{aside}: error of the final latent in the edit on nano, with only "
        "partial evaluations between six full ones "
        f"({clips} tuning clip{'s' * (clips > 1)}, "
        f"{result['machine']['device']}), and, by arithmetic, what real models need at 480x832 with guidance and a "
        "mask of 20%:",
        "",
        f"| remembered | error in the edit | {' | '.join(REAL)} |",
        "|---" * (len(REAL) + 2) + "|",
    ]
    for tier in (tier for tier in shown if str(tier) in tiers):
        sizes = (tier.bytes(round(CONTEXT * tokens), dim, layers, 2, 2) for dim, layers, tokens in REAL.values())
        db = statistics.mean(row["db"] for row in tiers[str(tier)])
        lines.append(f"| {tier} | {db:.1f} dB | {' | '.join(f'{size / 2**30:.1f} GB' for size in sizes)} |")
    return lines


if __name__ == "__main__":
    clip = itemgetter("clip")
    compare_all(__doc__.split("\n")[0], compare, lambda clips: [(i,) for i in range(clips)], clip, table)
