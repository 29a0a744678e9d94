"""Cache Stats: what was saved, what it cost in memory, and why not more."""

from __future__ import annotations

import json
import logging

import numpy as np
import torch
from comfy_api.latest import io, ui

from .stats_panel import panel
from .types import CATEGORY, Report

NOTHING = "nothing was sampled with this model; connect the patched model to the sampler"
KEPT = "The sampler kept its result from an earlier run; these are the numbers of the last time it sampled."
log = logging.getLogger("hetcache")


class Stats(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCacheStats",
            display_name="Cache Stats",
            category=CATEGORY,
            description="Shows what HetCache did in the sampling before it: measured speed, every step's kind, memory, "
            "and the reason where nothing was saved.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's result. It passes through, so that the numbers are "
                                "read after sampling."),
                # Optional, so that a workflow still runs when HetCache Patch Model is bypassed to compare.
                Report.Input("stats", optional=True, tooltip="From HetCache Patch Model."),
                io.Image.Input("video", optional=True,
                               tooltip="The clip. Its middle frame is drawn under the map of what was computed."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The sampler's result, unchanged."),
                io.String.Output(display_name="report", tooltip="The numbers in words."),
                io.Image.Output(display_name="picture", tooltip="Timeline of the steps and map of the tokens."),
                io.String.Output(display_name="json", tooltip="Everything, for scripts."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict, stats=None, video: torch.Tensor | None = None) -> io.NodeOutput:
        report, pictures, everything = read(stats, video)
        if stats is not None and stats.kept:
            report = f"{KEPT}\n\n{report}"
        shown = {"text": (report,)}
        if stats is None or not stats.runs:
            shown["hetcache_unmeasured"] = (report,)
        else:
            shown |= ui.PreviewImage(pictures, cls=cls).as_dict()
            shown["hetcache"] = tuple({**panel(run, video), "kept": stats.kept and KEPT} for run in stats.runs)
        return io.NodeOutput(latent, report, pictures, everything, ui=shown)


def read(stats, video: torch.Tensor | None = None) -> tuple[str, torch.Tensor, str]:
    """(report, pictures float32 ``[runs, H, W, 3]``, JSON) of a :class:`hetcache_core.hosts.comfyui.Report` or None."""
    if stats is None or not stats.runs:
        if stats is None:
            reason = "HetCache Patch Model is bypassed or not connected: everything was computed in full"
        else:
            reason = stats.untouched or NOTHING
        return reason, torch.zeros(1, 64, 64, 3), json.dumps({"untouched": reason, "runs": []})
    frame = None
    if video is not None:
        frame = (video[len(video) // 2, ..., :3].cpu().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
    heads = [f"run {i + 1}\n" if len(stats.runs) > 1 else "" for i in range(len(stats.runs))]
    report = "\n\n".join(head + run.summary() for head, run in zip(heads, stats.runs))
    drawn = [_picture(run, frame) for run in stats.runs]
    size = [max(d.shape[i] for d in drawn) for i in (0, 1)]
    padded = [
        torch.nn.functional.pad(d.movedim(-1, 0), (0, size[1] - d.shape[1], 0, size[0] - d.shape[0]), value=0.98)
        for d in drawn
    ]
    everything = {"untouched": "", "runs": [run.to_dict() for run in stats.runs]}
    return report, torch.stack(padded).movedim(1, -1), json.dumps(everything, indent=1)


def _picture(run, frame: np.ndarray | None) -> torch.Tensor:
    """Of a run, float32 ``[H, W, 3]``. Failing to draw it must not stop a workflow whose sampling is done."""
    try:
        return torch.tensor(run.picture(frame)).float() / 255
    except Exception as error:
        log.warning("Cache Stats draws no picture: %s", error)
        return torch.zeros(64, 64, 3)
