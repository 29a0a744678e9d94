"""The pictures of a setting: speed against quality in the mask, a line a method; our ablations apart."""

from __future__ import annotations

from pathlib import Path

from benchmarks.overview import BESIDE, place
from benchmarks.rivals.methods import METHODS
from benchmarks.settings import Setting

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")  # Okabe-Ito
MARKERS = "s^vDPX*"
STYLES = {"ours": "-", "ablation": ":", "paper": "-.", "rival": "--"}
ABLATIONS = [name for name, method in METHODS.items() if method.kind == "ablation"]
RIVALS = [name for name in METHODS if name not in ABLATIONS or name in BESIDE]


def draw_all(result: dict, folder: Path) -> list[Path]:
    """Write the pictures of a file of the benchmark, one of the methods and, where some ran, one of our ablations.

    Args:
        result: with ``setting`` and ``summary``. folder: where to; they are named after the setting.

    Returns:
        The files.
    """
    name, summary = result["setting"], result["summary"]
    files = [folder / f"{name}.png"]
    draw(name, summary, RIVALS, files[0])
    if any(entry["name"] in ABLATIONS and entry["name"] not in BESIDE for entry in summary):
        files.append(folder / f"{name}-ablations.png")
        draw(name, summary, ["ours", *ABLATIONS], files[1])
    return files


def draw(setting: str, summary: list[dict], names: list[str], path: Path) -> None:
    """Write a PNG. A method looks the same in every picture of these names.

    A method that ran on some of the clips only is placed by its paired distance from HetCache, not by its own mean,
    which easy clips would raise.

    Args:
        summary: entries of :func:`benchmarks.summary.summarise`. names: the methods to draw of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ours_at = {e["wanted"]: e["psnr"]["mask"] for e in summary if e["name"] == "ours"}
    for i, name in enumerate(names):
        mine, method = [entry for entry in summary if entry["name"] == name], METHODS[name]
        if not mine:
            continue
        points = sorted((e.get("speed_with_planning") or e["speed"], _height(e, ours_at)) for e in mine)
        ours = method.kind == "ours"
        drawn = {"marker": "o", "color": "#D55E00"} if ours else look(i)
        axes.plot(
            *zip(*points, strict=True), STYLES[method.kind], **drawn,
            linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2, label=method.label.strip("*"),
        )  # fmt: skip
    clips = max((e["clips"] for e in summary), default=0)
    axes.set(
        title=f"{place(Setting.parse(setting))}, up to {clips} clips",
        xlabel="speed-up over full compute, planning counted",
        ylabel="PSNR in the mask against full compute, dB",
    )
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
