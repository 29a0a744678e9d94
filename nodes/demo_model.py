"""HetCache Demo Model: the nano model that ships with the pack, to try it in a minute without any download."""

from __future__ import annotations

import pathlib

import comfy.sd
import comfy.utils
from comfy_api.latest import io
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from .. import nano

WEIGHTS = pathlib.Path(nano.__file__).parent / "weights"


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCacheDemoModel",
            display_name="HetCache Demo Model",
            category="model/loaders",
            description="A toy Wan-VACE model of 10 million parameters that ships with HetCache and runs on any "
            "computer. It fills the masked part of a clip with a coloured shape. For trying the pack, at 192x192 pixels, "
            "up to 33 frames, 30 steps, cfg 4, euler.",
            inputs=[
                io.Combo.Input("colour", options=list(nano.COLOURS), tooltip="Its colour."),
                io.Combo.Input("shape", options=list(nano.SHAPES), tooltip="The shape to put in the mask."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to HetCache Patch Model. Flow shift 5 is set."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, for WanVaceToVideo and VAE Decode."),
                io.Conditioning.Output(display_name="positive", tooltip="The colour and the shape."),
                io.Conditioning.Output(display_name="negative", tooltip="The empty prompt."),
            ],
        )

    @classmethod
    def execute(cls, colour: str, shape: str) -> io.NodeOutput:
        model = comfy.sd.load_diffusion_model(str(WEIGHTS / "nano_vace.safetensors"))
        (model,) = ModelSamplingSD3().patch(model, nano.FLOW_SHIFT)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "nano_vae.safetensors")))
        prompts = (nano.encode(f"{colour} {shape}"), nano.encode(""))
        return io.NodeOutput(model, vae, *([[prompt, {"pooled_output": None}]] for prompt in prompts))
