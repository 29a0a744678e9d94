"""Rows of the benchmark put together: means per method and speed, and what ours is ahead by, clip by clip."""

from __future__ import annotations

import math
import statistics

from benchmarks.rows import rounded

AS_FAST = 0.97  # share of our speed that a method must reach to count as as fast
EQUAL = 100.0  # dB at which two edits count as equal, so that means stay finite
UNTIMED = ("full", "fewer-steps", "fewer-steps-held")  # their speeds are ratios of steps
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
            "speed_with_planning": _median(_with_planning(row) for row in mine.values()),
            "stock_speed": _median(_of_stock(row) for row in mine.values()),
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
            entry["ours_ahead"] = _spread_of(ahead)
        entries.append(rounded(entry))
    return sorted(entries, key=lambda e: (e["wanted"], e["name"] != "ours"))


def at_equal_time(rows: list[dict], name: str, wanted: float, slower: bool = False) -> dict | None:
    """What ours is ahead of another method by, at the time ours took, in the mask and paired clip by clip, all of it on
    the clips that both have.

    Times have in them what preparing a run took, planning above all, where that was noted. Speeds come in lumps, ours
    too. So the other method is read off between its two budgets around the speed ours measured, along the logarithm of
    speed; where all it has is faster than that, at its slowest, which took less time. Where it made the very same run
    of a clip, there is no difference, however the times of the two came out.

    Args:
        rows: of one setting. name: of the other method. wanted: ours' budget.
        slower: whether a method that was never as fast is read off at its fastest, which took more time.

    Returns:
        As ``ours_ahead`` of :func:`summarise`, with ``speed``, at which the other was read off, ``share``, which that
        is of ours, and ``equal``, whether the two are the same; None where it has not run on any clip of ours, or was
        never as fast (:data:`AS_FAST`).
    """
    ours = {row["clip"]: row for row in rows if row["name"] == "ours" and row["wanted"] == wanted}
    others: dict[float, dict[int, dict]] = {}
    for row in rows:
        if row["name"] == name and row["clip"] in ours:
            others.setdefault(row["wanted"], {})[row["clip"]] = row
    if not others:
        return None
    # clips that only one of the two has, maybe of another machine's rows, are to move neither's speed
    ours = {clip: row for clip, row in ours.items() if any(clip in mine for mine in others.values())}
    speed = _paid(ours)
    curve = [(_paid(mine), mine) for mine in others.values()]
    curve.sort(key=lambda point: point[0])
    if curve[-1][0] < AS_FAST * speed and not slower:
        return None
    read = min(max(speed, curve[0][0]), curve[-1][0])
    before = next(point for point in reversed(curve) if point[0] <= read)
    after = next(point for point in curve if point[0] >= read)
    span = math.log(after[0] / before[0])
    share = math.log(read / before[0]) / span if span else 0.0
    both = sorted(ours.keys() & before[1].keys() & after[1].keys())
    ahead = []
    for clip in both:
        if any(_same(ours[clip], mine[clip]) for mine in others.values() if clip in mine):
            ahead.append(0.0)
            continue
        low, high = (_capped(mine[clip]["psnr"]["mask"]) for _, mine in (before, after))
        ahead.append(_capped(ours[clip]["psnr"]["mask"]) - (low + share * (high - low)))
    if not both:
        return None
    share = read / speed
    return {**_spread_of(ahead), "speed": read, "share": share, "equal": AS_FAST <= share <= 1 / AS_FAST}


def repeats(rows: list[dict]) -> list[float]:
    """How far apart the speeds of the very same run of a clip came out, fastest over slowest, where one machine and
    commit made it more than once; sorted."""
    speeds: dict[tuple, list[float]] = {}
    for row in rows:
        if row["name"] not in UNTIMED:
            run = row["machine"], row["clip"], row.get("decisions"), str(row["psnr"])
            speeds.setdefault(run, []).append(row["speed"])
    return sorted(max(found) / min(found) for found in speeds.values() if len(found) > 1)


def _same(a: dict, b: dict) -> bool:
    return bool(a.get("decisions")) and (a["decisions"], a["psnr"]) == (b["decisions"], b["psnr"])


def _paid(rows: dict[int, dict]) -> float:
    """The median speed, preparation counted where it was noted."""
    return statistics.median(_with_planning(row) or row["speed"] for row in rows.values())


def _with_planning(row: dict) -> float | None:
    """Speed with the time that preparing the run took in it; None where that was not noted."""
    noted = row.get("preparation_seconds") is not None and row["seconds"]
    return row["speed"] * _sampling(row) if noted else None


def _of_stock(row: dict) -> float | None:
    """Speed against the clip's run in full, preparation counted where it was noted."""
    speed = row.get("speed_against_full_run")
    return None if speed is None else speed * _sampling(row)


def _sampling(row: dict) -> float:
    """The share of a run's time that was not its preparation."""
    took = row.get("preparation_seconds") or 0.0
    return row["seconds"] / (row["seconds"] + took) if row["seconds"] else 1.0


def _spread_of(ahead: list[float]) -> dict:
    return {
        "mean": statistics.mean(ahead),
        "spread": statistics.stdev(ahead) if len(ahead) > 1 else 0.0,
        "worst": min(ahead),
        "clips": len(ahead),
    }


def _capped(decibels: float) -> float:
    return min(decibels, EQUAL)


def _median(values) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values) -> float | None:
    """None where a region has no pixels (then it is NaN)."""
    known = [_capped(v) for v in values if v == v]
    return statistics.mean(known) if known else None
