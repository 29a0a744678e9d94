"""The picture of a setting: speed against quality in the mask, a line a method."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals.methods import METHODS

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")  # Okabe-Ito


def draw(title: str, summary: list[dict], path: Path) -> None:
    """Write a PNG.

    Args:
        summary: entries of :func:`benchmarks.summary.summarise`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = {"ours": "-", "ablation": ":", "paper": "-.", "rival": "--"}
    for i, (name, method) in enumerate((n, m) for n, m in METHODS.items() if any(e["name"] == n for e in summary)):
        points = sorted((e["speed"], e["psnr"]["mask"]) for e in summary if e["name"] == name)
        ours = method.kind == "ours"
        axes.plot(
            *zip(*points, strict=True), styles[method.kind], marker="o" if ours else "s^vDPX*"[i % 7],
            color="#D55E00" if ours else COLOURS[i % len(COLOURS)], linewidth=2.5 if ours else 1.2,
            zorder=3 if ours else 2, label=method.label.strip("*"),
        )  # fmt: skip
    clips = max((e["clips"] for e in summary), default=0)
    axes.set(title=f"{title}, {clips} clips", xlabel="measured speed-up over full compute",
             ylabel="PSNR in the mask against full compute, dB")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
