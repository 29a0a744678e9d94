"""Rows of the benchmark put together: means per method and speed, and what ours is ahead by, clip by clip."""

from __future__ import annotations

import statistics

from benchmarks.rows import rounded

EQUAL = 100.0  # dB at which two edits count as equal, so that means stay finite
REGIONS = ("mask", "ring", "outside", "all")


def summarise(rows: list[dict]) -> list[dict]:
    """An entry per method and wanted speed.

    ``ours_ahead``: mean and standard deviation over the clips of ours minus the method in the mask, in dB, at the same
    wanted speed; only clips that have both.
    """
    groups: dict[tuple[str, float], dict[int, dict]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["wanted"]), {})[row["clip"]] = row
    entries = []
    for (name, wanted), mine in groups.items():
        held = [row["held_bytes"] for row in mine.values()]
        peaks = [row["peak_bytes"] for row in mine.values() if row["peak_bytes"] is not None]
        entry = {
            "name": name, "wanted": wanted, "clips": len(mine),
            "speed": statistics.median(row["speed"] for row in mine.values()),
            "seconds": statistics.median(row["seconds"] for row in mine.values()),
            "psnr": {region: _mean(row["psnr"][region] for row in mine.values()) for region in REGIONS},
            "ssim": {region: _mean(row["ssim"][region] for row in mine.values()) for region in REGIONS},
            "held_mb": None if None in held else max(held) / 2**20,
            "peak_mb": max(peaks) / 2**20 if peaks else None,
        }  # fmt: skip
        ours = groups.get(("ours", wanted), {})
        both = sorted(mine.keys() & ours.keys())
        if both and name != "ours":
            ahead = [_capped(ours[clip]["psnr"]["mask"]) - _capped(mine[clip]["psnr"]["mask"]) for clip in both]
            entry["ours_ahead"] = {
                "mean": statistics.mean(ahead),
                "spread": statistics.stdev(ahead) if len(ahead) > 1 else 0.0,
                "worst": min(ahead),
                "clips": len(both),
            }
        entries.append(rounded(entry))
    return sorted(entries, key=lambda e: (e["wanted"], e["name"] != "ours"))


def _capped(decibels: float) -> float:
    return min(decibels, EQUAL)


def _mean(values) -> float | None:
    """None where a region has no pixels (then it is NaN)."""
    known = [_capped(v) for v in values if v == v]
    return statistics.mean(known) if known else None
