"""HetCache Demo Model: the nano model that ships with the pack, to try it in a minute without any download."""

from __future__ import annotations

import pathlib

import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from .. import demo, nano
from ..demo.masks import moving_mask
from ..demo.media import load_clip

WEIGHTS = pathlib.Path(nano.__file__).parent / "weights"
CLIP = pathlib.Path(demo.__file__).parent / "assets" / "big_buck_bunny.mp4"
FRAMES, SIDE = 33, 192


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCacheDemoModel",
            display_name="HetCache Demo Model",
            category="model/loaders",
            description="A toy Wan-VACE model of 10 million parameters that ships with HetCache and runs on any "
            "computer, with a clip and a moving mask to try it on. It fills the masked part of a clip with a coloured "
            "shape. Meant for 192x192 pixels, up to 33 frames, 30 steps, cfg 4, euler.",
            inputs=[
                io.Combo.Input("colour", options=list(nano.COLOURS), tooltip="Its colour."),
                io.Combo.Input("shape", options=list(nano.SHAPES), tooltip="The shape to put in the mask."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to HetCache Patch Model. Flow shift 5 is set."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, for WanVaceToVideo and VAE Decode."),
                io.Conditioning.Output(display_name="positive", tooltip="The colour and the shape."),
                io.Conditioning.Output(display_name="negative", tooltip="The empty prompt."),
                io.Image.Output(display_name="video",
                                tooltip=f"A clip of {FRAMES} frames, {SIDE}x{SIDE}. Big Buck Bunny, (c) Blender "
                                "Foundation, CC BY 3.0."),
                io.Mask.Output(display_name="mask", tooltip="A region that moves through the clip, to be edited."),
            ],
        )

    @classmethod
    def execute(cls, colour: str, shape: str) -> io.NodeOutput:
        model = comfy.sd.load_diffusion_model(str(WEIGHTS / "nano_vace.safetensors"))
        (model,) = ModelSamplingSD3().patch(model, nano.FLOW_SHIFT)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "nano_vae.safetensors")))
        prompts = (nano.encode(f"{colour} {shape}"), nano.encode(""))
        conds = ([[prompt, {"pooled_output": None}]] for prompt in prompts)
        clip = torch.from_numpy(load_clip(CLIP, SIDE, SIDE, FRAMES).frames).float() / 255
        mask = torch.from_numpy(moving_mask(FRAMES, SIDE, SIDE)).float()
        return io.NodeOutput(model, vae, *conds, clip, mask)
