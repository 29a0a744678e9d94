"""The benchmark in few rows: what the README shows first."""

from __future__ import annotations

from benchmarks.rivals.methods import METHODS
from benchmarks.settings import Setting

AT_TIME = 0.93  # share of a wanted speed that a method tuned on other clips must reach to count as as fast
ORDER = ("ours", "ablation", "rival", "paper")


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
    """A row a method, a column a speed: decibels in the mask, the measured speed, and how far ours is ahead."""
    found = {(entry["name"], entry["wanted"]): entry for entry in result["summary"] if entry["name"] != "full"}
    speeds = sorted({wanted for _, wanted in found})
    names = sorted({name for name, _ in found}, key=lambda n: (ORDER.index(METHODS[n].kind), list(METHODS).index(n)))
    most = max(entry["clips"] for entry in found.values())
    heads = " | ".join(f"at {s:g}x" for s in speeds)
    lines = [titled(result), "", f"| | {heads} |", "|---" * (len(speeds) + 1) + "|"]
    for name in names:
        mine = [found.get((name, speed)) for speed in speeds]
        clips = max(entry["clips"] for entry in mine if entry)
        label = METHODS[name].label + (f" ({clips} clips)" if clips < most else "")
        lines.append(f"| {label} | " + " | ".join(_cell(entry) for entry in mine) + " |")
    return lines


def _cell(entry: dict | None) -> str:
    if entry is None:
        return ""
    text = f"{entry['psnr']['mask']:.1f} dB at {entry['speed']:.2f}x"
    ahead = entry.get("ours_ahead")
    return text + (f" ({_spread(-ahead['mean'], ahead)})" if ahead else "")


def _spread(mean: float, ahead: dict) -> str:
    return f"{mean:+.1f} ± {ahead['spread']:.1f}" if ahead["clips"] > 1 else f"{mean:+.1f}"


def nearest(result: dict, wanted: float) -> dict | None:
    """Of the other methods as fast as wanted, fewer steps apart, the one ours is least ahead of."""
    others = [
        entry
        for entry in result["summary"]
        if entry["wanted"] == wanted and "ours_ahead" in entry and entry["speed"] >= AT_TIME * wanted
        and METHODS[entry["name"]].kind in ("rival", "paper") and entry["name"] != "fewer-steps"
    ]  # fmt: skip
    return min(others, key=lambda entry: entry["ours_ahead"]["mean"], default=None)


def overview(results: list[dict]) -> list[str]:
    """A row per setting and speed, folded away: ours, and how far ahead of fewer steps and of the best other method."""
    lines = [
        f"<details><summary>All {len(results)} settings: hosts, steps, masks, samplers, frames</summary>",
        "",
        "| setting | clips | at | speed (measured) | PSNR mask | over fewer steps | over the best other as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        setting = Setting.parse(result["setting"])
        found = {(entry["name"], entry["wanted"]): entry for entry in result["summary"]}
        for speed in sorted({wanted for name, wanted in found if name == "ours"}):
            ours, fewer, best = found["ours", speed], found.get(("fewer-steps", speed)), nearest(result, speed)
            words = f"{setting.steps} steps, cfg {setting.cfg:g}, {masks(setting)}, {hosted(setting)}"
            words += f", {setting.frames} frames"
            few = f", {best['clips']} clips" if best and best["clips"] < ours["clips"] else ""
            rival = f" ({METHODS[best['name']].label}{few})" if best else ""
            mine = f"{ours['clips']} | {speed:g}x | {ours['speed']:.2f}x | {ours['psnr']['mask']:.1f} dB"
            lines.append(f"| {words} | {mine} | {_ahead(fewer)} | {_ahead(best)}{rival} |")
    return [*lines, "", "</details>"]


def _ahead(entry: dict | None) -> str:
    ahead = entry and entry.get("ours_ahead")
    return f"{_spread(ahead['mean'], ahead)} dB" if ahead else ""
