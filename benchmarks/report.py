"""Write the results into the README and the pages behind it from the committed files, and draw their plots; no number
is typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import few_forecasts, forecasts, foretold, real_size, tiers, traffic
from benchmarks.kinds import OPTIMIST
from benchmarks.overview import ablations, by_speed, made_on, overview, spread, titled
from benchmarks.pareto import draw_all
from benchmarks.rivals.methods import ASIDE, METHODS, why_not
from benchmarks.settings import MAIN, SETTINGS, Setting
from benchmarks.summary import REGIONS, summarise

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def bench_table(result: dict) -> list[str]:
    """Rows for one setting of the benchmark: every method at every speed, ours first."""
    lines = [
        titled(result),
        "",
        "| at | | clips | seconds | speed | planning counted | of the stock run | PSNR mask | ring | outside | all | "
        "SSIM mask | ring | outside | all | ours ahead at that budget, paired (worst clip) | held | "
        "peak, whole process |",
        "|---" * 18 + "|",
    ]
    for entry in result["summary"]:
        if entry["name"] == "full":
            continue
        ahead, psnr, held = entry.get("ours_ahead"), entry["psnr"], entry["held_mb"]
        gain = f"{spread(ahead['mean'], ahead)} dB ({ahead['worst']:+.1f})" if ahead else ""
        quality = " | ".join("" if psnr[part] is None else f"{psnr[part]:.1f} dB" for part in REGIONS)
        alike = " | ".join("" if value is None else f"{value:.3f}" for value in map(entry["ssim"].get, REGIONS))
        kinds = (entry.get("speed_with_planning"), entry["stock_speed"])
        planned, stock = ("" if speed is None else f"{speed:.2f}x" for speed in kinds)
        memory = " | ".join("" if size is None else f"{size:.0f} MB" for size in (held, entry["peak_mb"]))
        label = METHODS[entry["name"]].label
        lines.append(
            f"| {entry['wanted']:g}x | {label} | {entry['clips']} | {entry['seconds']:.1f} | {entry['speed']:.2f}x | "
            f"{planned} | {stock} | {quality} | {alike} | {gain} | {memory} |"
        )
    pictures = [f"[{words}](bench/{path.name})" for words, path in zip(("Plot", "our ablations"), _plots(result))]
    return [*lines, "", f"{', '.join(pictures)}. {absent(result)}".strip()]


def _plots(result: dict) -> list[Path]:
    """The pictures of a setting that there are."""
    files = [RESULTS / "bench" / f"{result['setting']}{which}.png" for which in ("", "-ablations")]
    return [path for path in files if path.exists()]


def absent(result: dict) -> str:
    """The rivals and papers' methods that have no row in a setting, and why, in a sentence; empty where all have."""
    setting, there = Setting.parse(result["setting"]), {row["name"] for row in result["rows"]}
    reasons: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if name not in there and name not in ASIDE and method.kind in ("rival", "paper"):
            reasons.setdefault(why_not(name, setting), []).append(method.label)
    said = [", ".join(labels) + (f" ({reason})" if reason else "") for reason, labels in sorted(reasons.items())]
    return f"Not run: {'; '.join(said)}." if said else ""


def bench_results() -> list[dict]:
    """The committed files of the benchmark, in the order of its settings."""
    paths = [RESULTS / "bench" / f"{setting.name}.json" for setting in SETTINGS]
    found = [read(path) for path in paths if path.exists()]
    return [{**result, "summary": summarise(result["rows"])} for result in found]


def costs_table(result: dict) -> list[str]:
    """Rows for the cost benchmark."""
    lines = [
        f"**What an evaluation costs** (random weights, both streams, "
        f"{made_on(result['machine'])}):",
        "",
        "| model shape | tokens | mask | context | partial / full | planned | partial / ideal | storing / full | "
        "planned | reuse / full | deciding / full | choosing by content / full |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['shape']} | {row['tokens']:,} | {row['mask_fraction']:.0%} | {row['policy']} | "
            f"{row['partial_over_full']:.2f} | {row['predicted_partial_over_full']:.2f} | "
            f"{row['partial_over_ideal']:.2f} | {row['storing_over_full']:.2f} | "
            f"{row['predicted_storing_over_full']:.2f} | {row['reuse_over_full']:.2%} | "
            f"{row['deciding_over_full']:.2%} | {_share(row['choosing_over_full'])} |"
        )
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def panel_table(result: dict) -> list[str]:
    """What watching a run costs it, in a sentence."""
    settings, summary, machine = result["settings"], result["summary"], result["machine"]
    seen = summary["watched"]
    return [
        f"**Watching costs**: with the live panel open, sampling took {seen['ratio']:.3f} times as long as without "
        f"(quartiles {seen['ratio_low']:.3f} to {seen['ratio_high']:.3f} of {seen['pairs']} alternated pairs; "
        f"{settings['steps']} steps in {summary['run_seconds']:.1f} s); events took {seen['share']:.2%} of the time "
        f"({made_on(machine)})."
    ]


def nano_table(result: dict) -> list[str]:
    """What was measured of nano itself."""
    lines = [
        "| | clips | fill has the colour | and the shape | blurred judge | context PSNR | VAE PSNR | "
        "judge on source: colour, shape, blurred | judge on VAE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, row in result.items():
        if "rows" not in row:
            continue
        judged = (
            ", ".join(f"{row[who][what]:.0%}" for what in ("colour", "shape", "shape_blurred"))
            for who in ("judge_on_source", "judge_on_vae")
        )
        lines.append(
            f"| {size} | {row['clips']} | {row['colour']:.0%} | {row['shape']:.0%} | {row['shape_blurred']:.0%} | "
            f"{row['context_psnr']:.1f} dB | {row['vae_psnr']:.1f} dB | {' | '.join(judged)} |"
        )
    run = result["settings"]
    lines += [
        "",
        f"Held-out clips, {run['steps']} steps, cfg {run['cfg']:g}, flow shift {run['flow_shift']:g}, "
        f"{run['arithmetic']} (`results.json`). The VAE alone on the demo's real clip, which it never saw: "
        f"{result['real']['vae_psnr']:.1f} dB.",
    ]
    return lines


def kinds_table(result: dict) -> list[str]:
    """What each kind of evaluation saves and spoils, and what plans gain by reusing guidance or blocks."""
    size = f"{result['kinds'][0]['clips']} tuning clips ({result['machine']['device']})"
    lines = [
        f"**Each kind of evaluation in the same gaps**, 30 steps, cfg 4, masks of 15% to 25%, {size}; "
        "G reuses guidance, H does so on a partial evaluation, B reuses background blocks:",
        "",
        "| between full ones | cost of the run | error in the edit |",
        "|---|---|---|",
    ]
    lines += [f"| {row['name']} | {row['cost']:.2f} | {row['db']:.1f} dB |" for row in result["kinds"]]
    lines += [
        "",
        "**Plans that may reuse guidance and blocks** at the prices measured "
        f"(guidance {result['guidance']:g}, blocks {result['blocks']:g}: their error over that of a prediction "
        f"forecast or held as long), and as an optimist would have it ({OPTIMIST:g} for both):",
        "",
        "| mask | wanted | without | at measured prices | uses | optimist | uses |",
        "|---|---|---|---|---|---|---|",
    ]
    plans = {(row["mask"], row["wanted"], row["profile"]): row for row in result["plans"]}
    for mask, wanted in dict.fromkeys((row["mask"], row["wanted"]) for row in result["plans"]):
        without, measured, optimist = (plans[mask, wanted, name] for name in ("without", "measured", "optimist"))
        cells = [f"{row['db']:.1f} dB at {row['speed']:.2f}x" for row in (without, measured, optimist)]
        uses = [row["uses"] for row in (measured, optimist)]
        lines.append(f"| {mask:.0%} | {wanted:g}x | {cells[0]} | {cells[1]} | {uses[0]} | {cells[2]} | {uses[1]} |")
    return lines


def sections() -> dict[Path, str]:
    """The page that shows results -> its results section."""
    benched = bench_results()
    few = [Setting(steps=6, cfg=1.0, sampler=sampler).name for sampler in ("unipc", "euler")]
    shown = {result["setting"]: result for result in benched}
    tables = [shown[name] for name in (MAIN.name, *few) if name in shown]
    front = [*map(by_speed, tables), ablations(tables)]
    front += [overview(benched)] if benched else []
    behind = [bench_table(result) for result in benched]
    others = (
        ("tiers", tiers.front, front), ("tiers", tiers.table, behind), ("traffic", traffic.table, behind),
        ("real-size", real_size.table, front), ("panel", panel_table, front),
        ("costs", costs_table, behind), ("forecasts", forecasts.table, behind), ("kinds", kinds_table, behind),
        ("foretold", foretold.table, behind), ("few-forecasts", few_forecasts.table, behind),
    )  # fmt: skip
    for name, table, parts in others:
        if (RESULTS / f"{name}.json").exists():
            parts.append(table(read(RESULTS / f"{name}.json")))
    return {
        ROOT / "README.md": _page(front),
        RESULTS / "README.md": _page(behind),
        ROOT / "nano" / "README.md": "\n".join(nano_table(read(ROOT / "nano" / "results.json"))),
    }


def _page(parts: list[list[str]]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def updated(page: str, section: str) -> str:
    """A page's text with its results section made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no section between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def main() -> None:
    for result in bench_results():
        draw_all(result, RESULTS / "bench")
    for path, section in sections().items():  # which link the pictures that there are
        path.write_text(updated(path.read_text(), section))


if __name__ == "__main__":
    main()
