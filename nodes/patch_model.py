"""HetCache Patch Model: the node that makes sampling faster."""

from __future__ import annotations

from comfy_api.latest import io

from ..hetcache_core import CachePolicy
from .types import CATEGORY, Policy, Report


class PatchModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCachePatchModel",
            display_name="HetCache Patch Model",
            category=CATEGORY,
            description="Makes masked edits with Wan 2.1 and 2.2 models (VACE, image-to-video, noise masks) faster: "
            "steps compute the masked region, the rest is remembered. Put it last before the sampler, "
            "after LoRAs and model sampling.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan model. Others pass through unchanged."),
                Policy.Input("policy", optional=True,
                             tooltip="From Cache Policy Settings. Without it: three times faster."),
                io.Mask.Input("mask", optional=True,
                              tooltip="The region being edited, white. Only needed where the workflow has no VACE, "
                              "noise or image-to-video mask, or when less than that mask should be computed."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to the sampler."),
                Report.Output(display_name="stats", tooltip="Connect to Cache Stats."),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # its outputs know the node they came from: they are no other node's
        )

    @classmethod
    def execute(cls, model, policy: CachePolicy | None = None, mask=None) -> io.NodeOutput:
        from ..hetcache_core.hosts import comfyui as host
        from .live import Live

        node = getattr(getattr(cls, "hidden", None), "unique_id", None)  # none where a script calls it
        observer = Live(node) if node is not None else None
        patched, report = host.apply(model, policy or CachePolicy.preset("balanced"), mask, observer)
        shown = {"hetcache_untouched": (report.untouched,)} if report.untouched else None
        return io.NodeOutput(patched, report, ui=shown)
