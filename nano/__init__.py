"""nano: a Wan2.1-VACE DiT of 10 M parameters and a small Wan VAE, with all that made them.

    pipeline = nano.load_pipeline()
    frames = pipeline(video=..., mask=..., prompt_embeds=nano.encode("red circle"),
                      negative_prompt_embeds=nano.encode(""), height=192, width=192, num_frames=33,
                      num_inference_steps=30, guidance_scale=4.0).frames

Models load from the files in `weights`, original Wan key names, without network; fp32, evaluation mode.
"""

from __future__ import annotations

import pathlib

from .shapes import COLOURS, PROMPTS, SHAPES
from .text import encode

__all__ = ["COLOURS", "PROMPTS", "SHAPES", "encode", "load_pipeline", "load_transformer", "load_vae"]

FLOW_SHIFT = 5.0
_WEIGHTS = pathlib.Path(__file__).parent / "weights"


def _load(cls, name: str, weights: pathlib.Path | None):
    folder = pathlib.Path(weights) if weights else _WEIGHTS
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: train nano (nano/README.md), then run python -m nano.export")
    model = cls.from_single_file(str(path), config=str(folder / name), local_files_only=True)
    return model.float().eval().requires_grad_(False)


def load_transformer(weights: pathlib.Path | None = None):
    """The DiT, a diffusers WanVACETransformer3DModel."""
    from diffusers import WanVACETransformer3DModel

    return _load(WanVACETransformer3DModel, "nano_vace", weights)


def load_vae(weights: pathlib.Path | None = None):
    """The VAE, a diffusers AutoencoderKLWan."""
    from diffusers import AutoencoderKLWan

    return _load(AutoencoderKLWan, "nano_vae", weights)


def load_pipeline(scheduler: str = "euler", weights: pathlib.Path | None = None):
    """A stock WanVACEPipeline with flow shift 5; give it prompts as embeddings from `nano.encode`.

    `scheduler` is 'euler' (FlowMatchEulerDiscreteScheduler) or 'unipc' (UniPCMultistepScheduler).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanVACEPipeline

    if scheduler == "euler":
        steps = FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
    elif scheduler == "unipc":
        steps = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
    else:
        raise ValueError(f"unknown scheduler {scheduler!r}: 'euler' or 'unipc'")
    return WanVACEPipeline(tokenizer=None, text_encoder=None, vae=load_vae(weights), scheduler=steps,
                           transformer=load_transformer(weights))
