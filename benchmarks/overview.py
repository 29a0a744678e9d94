"""The benchmark in few rows: what the README shows first."""

from __future__ import annotations

from benchmarks.rivals.methods import ASIDE, METHODS
from benchmarks.settings import SETTINGS, Setting
from benchmarks.summary import at_equal_time, repeats

SHORT = 0.93  # share of a wanted speed below which ours is said to have missed it
ORDER = ("ours", "ablation", "rival", "paper")
OURS = METHODS["ours"]


def titled(result: dict) -> str:
    """A setting in words, with its clips and machine."""
    setting = Setting.parse(result["setting"])
    clips = max(entry["clips"] for entry in result["summary"])
    return (
        f"**{setting.steps} steps, cfg {setting.cfg:g}, {masks(setting)}**, {hosted(setting)}, {setting.size}x"
        f"{setting.size}, {setting.frames} frames, {clips} clips ({made_on(*machines(result))}):"
    )


def machines(result: dict) -> list[dict]:
    """Those that a file's rows were made on."""
    return [result["machines"][number] for number in sorted({row["machine"] for row in result["rows"]})]


def made_on(*machines: dict) -> str:
    """Machines in words."""
    devices, threads = dict.fromkeys(m["device"] for m in machines), machines[0]["threads"]
    return f"{' and '.join(devices)}, {threads} thread{'s' if threads != 1 else ''}"


def masks(setting: Setting) -> str:
    """Its masks in words."""
    if setting.real:
        return "real footage"
    return f"{'moving' if setting.moving else 'still'} masks of {setting.mask:.0%}"


def hosted(setting: Setting) -> str:
    """Its host and sampler in words."""
    host = "ComfyUI" if setting.host == "comfyui" else setting.host
    return f"{host}, {setting.sampler}"


def by_speed(result: dict) -> list[str]:
    """A row a method, a column a speed: decibels in the mask, the measured speed, and how far it is from ours in the
    time ours took (or, where it is never as fast, at its fastest). Side issues have no row here."""
    found = {(entry["name"], entry["wanted"]): entry for entry in result["summary"] if entry["name"] != "full"}
    speeds = sorted({wanted for _, wanted in found})
    names = {name for name, _ in found} - {*ASIDE}
    names = sorted(names, key=lambda n: (ORDER.index(METHODS[n].kind), list(METHODS).index(n)))
    most = max(entry["clips"] for entry in found.values())
    heads = " | ".join(f"at {s:g}x" for s in speeds)
    lines = [titled(result), "", f"| | {heads} |", "|---" * (len(speeds) + 1) + "|"]
    for name in names:
        mine = [found.get((name, speed)) for speed in speeds]
        clips = max(entry["clips"] for entry in mine if entry)
        label = METHODS[name].label + (f" ({clips} clips)" if clips < most else "")
        lines.append(f"| {label} | " + " | ".join(_cell(result["rows"], entry) for entry in mine) + " |")
    return lines


def _cell(rows: list[dict], entry: dict | None) -> str:
    if entry is None:
        return ""
    text = f"{entry['psnr']['mask']:.1f} dB at {entry['speed']:.2f}x"
    name, wanted = entry["name"], entry["wanted"]
    ahead = None if name == "ours" else at_equal_time(rows, name, wanted, slower=True)
    return text + (f" ({_spread(0.0 - ahead['mean'], ahead)})" if ahead else "")


def _spread(mean: float, ahead: dict) -> str:
    return f"{mean:+.1f} ± {ahead['spread']:.1f}" if ahead["clips"] > 1 else f"{mean:+.1f}"


def nearest(result: dict, wanted: float) -> tuple[str, dict] | None:
    """Of the other methods as fast as ours, fewer steps apart, the one ours is least ahead of at equal time, and by how
    much."""
    others = {
        name: ahead for name in _others(result) if (ahead := at_equal_time(result["rows"], name, wanted))
    }  # fmt: skip
    return min(others.items(), key=lambda other: other[1]["mean"], default=None)


def _others(result: dict) -> list[str]:
    """Rivals and papers' methods that were run, fewer steps apart."""
    names = {row["name"] for row in result["rows"]} - {"fewer-steps", "full"}
    return sorted(name for name in names if METHODS[name].kind in ("rival", "paper"))


def overview(results: list[dict]) -> list[str]:
    """A row per setting and speed, folded away: ours, and how far ahead of fewer steps, of our forecasts without
    partial evaluations, and of the best other method."""
    lines = [
        f"<details><summary>{_of_all(len(results))} settings: hosts, steps, masks, samplers, frames</summary>",
        "",
        "| setting | clips | at | speed (measured) | PSNR mask | over fewer steps in that time | "
        "over our forecasts alone | over the best other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        setting = Setting.parse(result["setting"])
        found = {entry["wanted"]: entry for entry in result["summary"] if entry["name"] == "ours"}
        for speed, ours in sorted(found.items()):
            words = f"{setting.steps} steps, cfg {setting.cfg:g}, {masks(setting)}, {hosted(setting)}"
            words += f", {setting.frames} frames"
            missed = " (short)" if ours["speed"] < SHORT * speed else ""
            mine = f"{ours['clips']} | {speed:g}x | {ours['speed']:.2f}x{missed} | {ours['psnr']['mask']:.1f} dB"
            fewer, alone = (
                _ahead(at_equal_time(result["rows"], name, speed, slower=True)) for name in ("fewer-steps", "forecast")
            )
            name, best = nearest(result, speed) or ("", None)
            few = f", of {len(_others(result))}" if len(_others(result)) > 1 else ", the only one"
            few += f", {best['clips']} clips" if best and best["clips"] < ours["clips"] else ""
            rival = f"{_ahead(best)} ({METHODS[name].label}{few})" if best else ""
            rival = rival or _too_slow(result)
            lines.append(f"| {words} | {mine} | {fewer} | {alone} | {rival} |")
    return [*lines, "", *scatter(results), "</details>"]


def scatter(results: list[dict]) -> list[str]:
    """How much measured speeds scatter, in a sentence; none where nothing was run twice."""
    found = sorted(ratio for result in results for ratio in repeats(result["rows"]))
    if not found:
        return []
    middle, most = (found[int(share * len(found))] - 1 for share in (0.5, 0.9))
    return [
        f"Runs that were made more than once, {len(found)}: the speeds of each lay {middle:.0%} apart in the "
        f"middle, {most:.0%} or less nine times of ten, {found[-1] - 1:.0%} at most.",
        "",
    ]


def _of_all(count: int) -> str:
    return f"All {count}" if count == len(SETTINGS) else f"{count} of {len(SETTINGS)}"


def _too_slow(result: dict) -> str:
    """Which other methods were run, and how fast they are at most."""
    fastest = {}
    for entry in result["summary"]:
        name = entry["name"]
        if name != "fewer-steps" and METHODS.get(name, OURS).kind in ("rival", "paper"):
            fastest[METHODS[name].label] = max(entry["speed"], fastest.get(METHODS[name].label, 0.0))
    most = ", ".join(f"{label} {speed:.2f}x" for label, speed in fastest.items())
    return f"none is as fast ({most} at most)" if most else "none was run"


def _ahead(ahead: dict | None) -> str:
    if not ahead:
        return ""
    return f"{_spread(ahead['mean'], ahead)} dB" + ("" if ahead["equal"] else f", it at {ahead['speed']:.2f}x")
