"""Write the README's results section from the committed results, so that no number in it is typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def quality_table(result: dict) -> list[str]:
    """Rows for one quality benchmark: every speed with its rivals at the same time."""
    settings, summary = result["settings"], result["summary"]
    low, high = settings["mask"]
    lines = [
        f"**{settings['steps']} steps, cfg {settings['cfg']:g}**, {settings['size']}x{settings['size']}, "
        f"{settings['frames']} frames, masks of {low:.0%} to {high:.0%}, "
        f"{summary['full']['clips']} {settings['split']} clips "
        f"({result['machine']['device']}, {result['machine']['threads']} threads):",
        "",
        "| | speed (measured) | predicted | PSNR mask | ring | outside | over fewer steps, paired | context memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        if name == "full":
            continue
        gain = (
            ""
            if "gain_over_fewer_steps" not in row
            else f"{row['gain_over_fewer_steps']:+.1f} ± {row['gain_spread']:.1f} dB"
        )
        kind, _, speed = name.rpartition("-")
        label = {
            "speed": f"**HetCache, speed {speed}**",
            "fewer-steps": f"fewer steps, time of speed {speed}",
            "forecast": f"our forecasts alone, {speed}",
            "partial": f"our partial evaluations alone, {speed}",
        }[kind]
        lines.append(
            f"| {label} | {row['speed']:.2f}x | {row['predicted_speed']:.2f}x | {row['psnr_mask']:.1f} dB | "
            f"{row['psnr_ring']:.1f} | {row['psnr_outside']:.1f} | {gain} | {row['peak_context_mb']:.0f} MB |"
        )
    return lines


def costs_table(result: dict) -> list[str]:
    """Rows for the cost benchmark."""
    lines = [
        f"**What an evaluation costs** ({result['rows'][0]['tokens']:,} tokens, random weights, "
        f"{result['machine']['device']}, {result['machine']['threads']} threads):",
        "",
        "| model shape | mask | context | partial / full | partial / ideal | reuse / full | deciding / full |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['shape']} | {row['mask_fraction']:.0%} | {row['policy']} | {row['partial_over_full']:.2f} | "
            f"{row['partial_over_ideal']:.2f} | {row['reuse_over_full']:.2%} | {row['deciding_over_full']:.2%} |"
        )
    return lines


def section() -> str:
    """The whole section, markers included."""
    parts = []
    for path in sorted(RESULTS.glob("quality-*.json"), reverse=True):
        parts.append("\n".join(quality_table(json.loads(path.read_text()))))
    costs = RESULTS / "costs.json"
    if costs.exists():
        parts.append("\n".join(costs_table(json.loads(costs.read_text()))))
    return "\n\n".join([BEGIN, *parts, END])


def updated(readme: str) -> str:
    """A README's text with its results section made anew."""
    before, _, rest = readme.partition(BEGIN)
    return before + section() + rest.partition(END)[2]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))


if __name__ == "__main__":
    main()
