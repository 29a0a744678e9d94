"""HetCache Profile Model: which blocks of a model look at the edit, measured in a few steps and kept as a file."""

from __future__ import annotations

import pathlib
import re

import comfy.sample
import folder_paths
import latent_preview
import torch
from comfy_api.latest import io, ui

from ..hetcache_core import CachePolicy
from ..hetcache_core.picture import draw_scores
from .types import CATEGORY

FOLDER = "hetcache"  # inside the host's output folder
_lost: dict[pathlib.Path, int] = {}  # files written in this session -> how often they were found to be gone


class ProfileModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCacheProfileModel",
            display_name="HetCache Profile Model",
            category=CATEGORY,
            description="Runs a few steps and measures which blocks of the model look at the masked region, for the "
            "method 'profilingdit' of Cache Policy Settings. Needed once for a model; the file can be shared.",
            inputs=[
                io.Model.Input("model", tooltip="The model as it goes to the sampler, with its LoRAs."),
                io.Conditioning.Input("positive", tooltip="As it goes to the sampler, with the VACE control."),
                io.Latent.Input("latent", tooltip="As it goes to the sampler."),
                io.Mask.Input("mask", optional=True,
                              tooltip="The region being edited, white. Only needed where the workflow has no VACE, "
                              "noise or image-to-video mask."),
                io.String.Input("name", default="my model",
                                tooltip="Names the file. One of the same name is replaced."),
                io.Int.Input("steps", default=6, min=1, max=50, tooltip="Steps of the run. A few are enough."),
                io.Float.Input("reused_share", default=0.7, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of the blocks that are reused: those that look at the masked region "
                               "least. More is faster."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                             tooltip="Of the run's noise."),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="For block_profile of Cache Policy Settings."),
                io.Image.Output(display_name="picture", tooltip="The blocks' scores."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name=None, **_) -> int:
        """Changes where the file this node wrote was deleted since."""
        path = profile_file(name) if isinstance(name, str) else None
        if path in _lost and not path.is_file():
            _lost[path] += 1
        return _lost.get(path, 0)

    @classmethod
    def execute(
        cls, model, positive, latent: dict, name: str, steps: int, reused_share: float, seed: int, mask=None
    ) -> io.NodeOutput:
        profile = measure(model, positive, latent, name, steps, reused_share, seed, mask)
        path = profile_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile.to_json(), encoding="utf-8")
        _lost.setdefault(path, 0)
        picture = torch.tensor(draw_scores(profile)).float()[None] / 255
        shown = {"text": (str(path),), **ui.PreviewImage(picture, cls=cls).as_dict()}
        return io.NodeOutput(str(path), picture, ui=shown)


def measure(model, positive, latent: dict, name: str, steps: int, share: float, seed: int, mask=None):
    """The :class:`~hetcache_core.block_profile.BlockProfile` of a model, from a short run without guidance.

    Raises:
        ValueError: nothing could be measured; the message says why.
    """
    from ..hetcache_core.hosts import comfyui as host

    patched, report = host.apply(model, CachePolicy(method="profile"), mask)
    if report.untouched:
        raise ValueError(f"this model cannot be profiled: {report.untouched}")
    samples = comfy.sample.fix_empty_latent_channels(patched, latent["samples"])
    comfy.sample.sample(
        patched, comfy.sample.prepare_noise(samples, seed), steps, 1.0, "euler", "simple", positive, positive, samples,
        noise_mask=latent.get("noise_mask"), seed=seed, callback=latent_preview.prepare_callback(patched, steps),
    )  # fmt: skip
    if not report.runs:
        raise ValueError("nothing was sampled")
    return report.runs[-1].block_profile(name, share=share)


def profile_file(name: str) -> pathlib.Path:
    """Where the profile of a name is kept."""
    return pathlib.Path(folder_paths.get_output_directory()) / FOLDER / f"blocks_{file_name(name)}.json"


def file_name(name: str) -> str:
    """A name fit for any file system."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"
