"""The benchmark in few rows: what the README shows first."""

from __future__ import annotations

from benchmarks.rivals.methods import ASIDE, METHODS
from benchmarks.settings import SETTINGS, Setting
from benchmarks.summary import at_equal_time, repeats
from hetcache_core.error_model import FEW_STEPS

SHORT = 0.93  # share of a wanted speed below which ours is said to have missed it
NEARLY = 0.85  # share of ours' speed from which another method is named where none is as fast
ENOUGH = 4  # clips from which a spread is shown
CLOSE = 2.0  # dB within which our forecasts alone are said to come near
SMALL = 0.2  # mask share up to which masks count as small
ORDER = ("ours", "rival", "paper", "ablation")
FEWER = ("fewer-steps", "fewer-steps-held")
BESIDE = ("forecast", "partial", "as-1.3b", "as-14b")  # ablations that stand beside the rivals
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
    together = max(m.get("workers", 1) for m in machines)
    together = f" each, {together} clips at a time" if together > 1 else ""
    return f"{' and '.join(devices)}, {threads} thread{'s' if threads != 1 else ''}{together}"


def masks(setting: Setting) -> str:
    """Its masks in words."""
    if setting.real:
        return "real footage"
    return f"{'moving' if setting.moving else 'still'} masks of {setting.mask:.0%}"


def hosted(setting: Setting) -> str:
    """Its host and sampler in words."""
    host = "ComfyUI" if setting.host == "comfyui" else setting.host
    return f"{host}, {setting.sampler}"


def by_speed(result: dict, aside: bool = False) -> list[str]:
    """A row a method, a column a speed: decibels in the mask, the speed, and how far it is from ours in the time ours
    took, or at its own speed nearest to that, which is then named. Side issues have no row here.

    Args:
        aside: show our ablations that are not of interest to all (:data:`BESIDE`) beside ours, and no other method.
    """
    found = {(entry["name"], entry["wanted"]): entry for entry in result["summary"] if entry["name"] != "full"}
    speeds = sorted({wanted for _, wanted in found})
    names = {name for name, _ in found} - {*ASIDE}
    names = {n for n in names if n == "ours" or aside == (METHODS[n].kind == "ablation" and n not in BESIDE)}
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


def ablations(results: list[dict]) -> list[str]:
    """The tables of :func:`by_speed` for our other ablations, folded away; nothing where none was run."""
    tables = [by_speed(result, aside=True) for result in results]
    lines = [line for table in tables if len(table) > 5 for line in ("", *table)]
    if not lines:
        return []
    head = "<details><summary>More ablations of ours: how much context is remembered and how, replanning</summary>"
    return [head, *lines, "", "</details>"]


def _cell(rows: list[dict], entry: dict | None) -> str:
    if entry is None:
        return ""
    text = f"{entry['psnr']['mask']:.1f} dB at {paid(entry):.2f}x"
    name, wanted = entry["name"], entry["wanted"]
    ahead = None if name == "ours" else at_equal_time(rows, name, wanted, slower=True)
    return text + (f" ({spread(0.0 - ahead['mean'], ahead)}{_elsewhere(ahead)})" if ahead else "")


def paid(entry: dict) -> float:
    """An entry's speed with what preparing the run took, where that was noted."""
    return entry.get("speed_with_planning") or entry["speed"]


def spread(mean: float, ahead: dict) -> str:
    """A difference with its standard deviation, where there are clips enough to speak of one."""
    return f"{mean:+.1f} ± {ahead['spread']:.1f}" if ahead["clips"] >= ENOUGH else f"{mean:+.1f}"


def _elsewhere(ahead: dict) -> str:
    return "" if ahead["equal"] else f", it at {ahead['speed']:.2f}x"


def nearest(result: dict, wanted: float) -> tuple[str, dict] | None:
    """Of the other methods as fast as ours, fewer steps of both kinds apart, the one ours is least ahead of at equal
    time, and by how much; where none is, of those nearly as fast, at their fastest, which took more time."""
    for slower in (False, True):
        found = {name: at_equal_time(result["rows"], name, wanted, slower) for name in _others(result)}
        others = {name: ahead for name, ahead in found.items() if ahead and ahead["share"] >= NEARLY}
        if others:
            return min(others.items(), key=lambda other: other[1]["mean"])
    return None


def _others(result: dict) -> list[str]:
    """Rivals and papers' methods that were run, fewer steps apart."""
    names = {row["name"] for row in result["rows"]} - {*FEWER, "full"}
    return sorted(name for name in names if METHODS[name].kind in ("rival", "paper"))


def fewest(result: dict, wanted: float) -> dict | None:
    """What ours is ahead of fewer steps by at equal time: of those with the last one held and those without, whichever
    were run and come nearer."""
    found = (at_equal_time(result["rows"], name, wanted, slower=True) for name in FEWER)
    return min(filter(None, found), key=lambda ahead: ahead["mean"], default=None)


def overview(results: list[dict]) -> list[str]:
    """A row per setting and speed, folded away: ours, and how far ahead of fewer steps, of our forecasts without
    partial evaluations, and of the best other method."""
    lines = [
        f"<details><summary>{_of_all(len(results))} settings: hosts, steps, masks, samplers, frames</summary>",
        "",
        "| setting | clips | at | speed | PSNR mask | over fewer steps in that time | "
        "over our forecasts alone | over the best other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        setting = Setting.parse(result["setting"])
        found = {entry["wanted"]: entry for entry in result["summary"] if entry["name"] == "ours"}
        for speed, ours in sorted(found.items()):
            words = f"{setting.steps} steps, cfg {setting.cfg:g}, {masks(setting)}, {hosted(setting)}"
            words += f", {setting.frames} frames"
            missed = " (short)" if paid(ours) < SHORT * speed else ""
            mine = f"{ours['clips']} | {speed:g}x | {paid(ours):.2f}x{missed} | {ours['psnr']['mask']:.1f} dB"
            fewer = _ahead(fewest(result, speed))
            alone = _ahead(at_equal_time(result["rows"], "forecast", speed, slower=True))
            name, best = nearest(result, speed) or ("", None)
            few = f", of {len(_others(result))}" if len(_others(result)) > 1 else ", the only one"
            few += f", {best['clips']} clips" if best and best["clips"] < ours["clips"] else ""
            rival = f"{_ahead(best)} ({METHODS[name].label}{few})" if best else ""
            rival = rival or _too_slow(result)
            lines.append(f"| {words} | {mine} | {fewer} | {alone} | {rival} |")
    return [*lines, "", *planning(results), *scatter(results), "</details>", "", *least(results), *near(results)]


def least(results: list[dict]) -> list[str]:
    """Where fewer steps and the other methods come nearest, of small masks and of large ones, in a sentence each."""

    def other(result: dict, wanted: float) -> dict | None:
        return (nearest(result, wanted) or (None, None))[1]

    lines = []
    for small, words in ((True, f"up to {SMALL:.0%}"), (False, f"over {SMALL:.0%}")):
        said = []
        for what, rival in (("fewer steps", fewest), ("the best other method", other)):
            found = [
                (ahead, setting, speed)
                for result, setting, speed in _points(results)
                if (setting.mask <= SMALL) == small and (ahead := rival(result, speed)) and ahead["equal"]
            ]
            if found:
                ahead, setting, speed = min(found, key=lambda point: point[0]["mean"])
                said.append(f"over {what} {spread(ahead['mean'], ahead)} dB ({place(setting)}, {speed:g}x)")
        if said:
            lines.append(f"Least gain at equal time, masks of {words}: {'; '.join(said)}.")
    return [*lines, ""] if lines else []


def near(results: list[dict]) -> list[str]:
    """Where our forecasts alone are as good, in a sentence."""
    places: dict[str, list[str]] = {}
    for result, setting, speed in _points(results):
        ahead = at_equal_time(result["rows"], "forecast", speed, slower=True)
        if ahead and ahead["mean"] < CLOSE:
            places.setdefault(place(setting), []).append(f"{speed:g}x {ahead['mean']:+.1f}")
    if not places:
        return []
    listed = "; ".join(f"{place}: {', '.join(found)}" for place, found in places.items())
    return [f"Our forecasts alone come within {CLOSE:g} dB, so that partial evaluations add little, at {listed}.", ""]


def _points(results: list[dict]) -> list[tuple[dict, Setting, float]]:
    """Every setting and speed of ours."""
    return [
        (result, Setting.parse(result["setting"]), entry["wanted"])
        for result in results
        for entry in sorted(result["summary"], key=lambda e: e["wanted"])
        if entry["name"] == "ours"
    ]


def place(setting: Setting) -> str:
    """A setting in words."""
    return f"{setting.steps} steps, {masks(setting)}, {hosted(setting)}, {setting.frames} frames"


def planning(results: list[dict]) -> list[str]:
    """What planning takes, in a sentence; none where no row notes it."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for result in results:
        few = Setting.parse(result["setting"]).steps <= FEW_STEPS
        noted = (row for row in result["rows"] if row["name"] == "ours" and row.get("preparation_seconds"))
        shares[few] += [row["preparation_seconds"] / row["seconds"] for row in noted]
    said = [
        f"{sorted(found)[len(found) // 2]:.1%} in the middle and {max(found):.0%} at most of {words}"
        for few, words in ((True, f"runs of up to {FEW_STEPS} steps"), (False, "longer ones"))
        if (found := shares[few])
    ]
    if not said:
        return []
    return [f"Of nano's time planning took {', '.join(said)}. It hangs on the steps, not on the model.", ""]


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
        if name not in FEWER and METHODS.get(name, OURS).kind in ("rival", "paper"):
            fastest[METHODS[name].label] = max(entry["speed"], fastest.get(METHODS[name].label, 0.0))
    most = ", ".join(f"{label} {speed:.2f}x" for label, speed in fastest.items())
    return f"none is as fast ({most} at most)" if most else "none was run"


def _ahead(ahead: dict | None) -> str:
    if not ahead:
        return ""
    return f"{spread(ahead['mean'], ahead)} dB{_elsewhere(ahead)}"
