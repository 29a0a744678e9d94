"""The picture of a setting: speed against quality in the mask, a line a method."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals.methods import METHODS

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")  # Okabe-Ito
MARKERS = "s^vDPX*"


def draw(title: str, summary: list[dict], path: Path) -> None:
    """Write a PNG.

    A method that ran on some of the clips only is placed by its paired distance from HetCache, not by its own mean,
    which easy clips would raise.

    Args:
        summary: entries of :func:`benchmarks.summary.summarise`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ours_at = {e["wanted"]: e["psnr"]["mask"] for e in summary if e["name"] == "ours"}
    styles = {"ours": "-", "ablation": ":", "paper": "-.", "rival": "--"}
    for i, (name, method) in enumerate((n, m) for n, m in METHODS.items() if any(e["name"] == n for e in summary)):
        mine = [entry for entry in summary if entry["name"] == name]
        points = sorted((e.get("speed_with_planning") or e["speed"], _height(e, ours_at)) for e in mine)
        ours = method.kind == "ours"
        drawn = {"marker": "o", "color": "#D55E00"} if ours else look(i)
        axes.plot(
            *zip(*points, strict=True), styles[method.kind], **drawn,
            linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2, label=method.label.strip("*"),
        )  # fmt: skip
    clips = max((e["clips"] for e in summary), default=0)
    axes.set(title=f"{title}, up to {clips} clips", xlabel="speed-up over full compute, planning counted",
             ylabel="PSNR in the mask against full compute, dB")  # fmt: skip
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=3, loc="outside lower center")
    figure.savefig(path, metadata={"Software": None})


def look(i: int) -> dict[str, str]:
    """Colour and marker of a line; a single point has no line to be told by, so that no two lines share both."""
    turn, place = divmod(i, len(COLOURS))
    return {"marker": MARKERS[(place + turn) % len(MARKERS)], "color": COLOURS[place]}


def _height(entry: dict, ours_at: dict[float, float]) -> float:
    ahead = entry.get("ours_ahead")
    return ours_at[entry["wanted"]] - ahead["mean"] if ahead else entry["psnr"]["mask"]
