"""Edit a clip with the pack's own nodes and the host's VACE node, for comparison with diffusers.

    python nano_edit.py input.safetensors output.safetensors

Input: ``video`` float32 [F, H, W, 3], ``mask`` float32 [F, H, W], ``sigmas`` [n + 1]; metadata ``prompt``, ``policy``
(JSON) and ``cfg``. Output: the latent as diffusers has it, float32 [1, 16, T, h, w]; metadata ``stats`` (JSON).
"""

import sys

source, target = sys.argv[1:3]

import conftest  # noqa: E402, F401  # isort: skip

import comfy.latent_formats  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import pack  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_wan import WanVaceToVideo  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from hetcache_core import CachePolicy  # noqa: E402


def main() -> None:
    with safe_open(source, "pt") as file:
        video, mask, sigmas = (file.get_tensor(name) for name in ("video", "mask", "sigmas"))
        told = file.metadata()
    nodes = pack.load()[1]
    colour, shape = told["prompt"].split()
    model, vae, positive, negative, *_ = nodes["HetCacheDemoModel"].execute(colour, shape).result
    policy = CachePolicy.from_json(told["policy"])
    model, report = nodes["HetCachePatchModel"].execute(model, policy, mask).result
    frames, height, width = mask.shape
    with torch.inference_mode():
        positive, negative, latent, _ = WanVaceToVideo.execute(
            positive, negative, vae, width, height, frames, 1, 1.0, control_video=video, control_masks=mask
        ).result
        noise = comfy.sample.prepare_noise(latent["samples"], 7)
        result = comfy.samplers.sample(
            model, noise, positive, negative, float(told["cfg"]), model.load_device,
            comfy.samplers.ksampler("euler"), sigmas, latent_image=latent["samples"], seed=7, disable_pbar=True,
        )  # fmt: skip
        result = comfy.latent_formats.Wan21().process_in(result)
    save_file({"latent": result.contiguous()}, target, {"stats": report.runs[-1].to_json()})


main()
