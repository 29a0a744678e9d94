"""Runs inside ComfyUI's own Python, for `benchmarks.comfyui`: nano's edits through the pack's nodes and the host's.

    python comfyui_runs.py COMFYUI_DIR ROOT TASKS.json

TASKS holds ``sigmas``, ``cfg``, ``threads``, ``seed``, ``sampler``, ``clips`` and ``runs``: name -> ``{}`` for full
compute, which comes first, or ``{"policy": JSON}``, or ``{"easycache": [threshold, start, end]}``, and with
``{"sigmas": [...]}`` on another schedule. A clip is video, mask and prompt in its ``source``, an npz. Its ``file``
becomes an npz with the latent of each run under its name, ``seconds.NAME`` of its sampling (of the run in full,
the mean of one before the others and one after them), and ``stats.NAME``, what HetCache said of it.
"""

import json
import sys
import time

COMFYUI, ROOT, TASKS = sys.argv[1:4]
sys.path[:0] = [COMFYUI, ROOT]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_easycache import EasyCacheNode  # noqa: E402
from comfy_extras.nodes_wan import WanVaceToVideo  # noqa: E402

from hetcache_core import CachePolicy  # noqa: E402
from hetcache_core.hosts import comfyui as host  # noqa: E402
from hetcache_core.plan import forget  # noqa: E402


def load_pack():
    """The pack's nodes, imported as ComfyUI imports them."""
    sys.path.insert(2, f"{ROOT}/tests/comfyui")
    import pack

    return pack.load()[1]


def copied(executor, x, *args, **kwargs):
    """A wrapper of the model's forward that hands on a copy of its input."""
    return executor(x.clone(), *args, **kwargs)


def patched(model, run: dict, mask: torch.Tensor):
    """(model for this run, report or None)"""
    if "policy" in run:
        return host.apply(model, CachePolicy.from_json(run["policy"]), mask)
    if "easycache" in run:
        # The node adds into its input: of 16-bit models the host's copy, of nano's 32 bits the sampler's own
        # latent, which would be spoilt. It gets a copy here, as in real use.
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "copy", copied)
        return EasyCacheNode.execute(model, *run["easycache"], False).result[0], None
    return model, None


def edit(task: dict, demo, tasks: dict) -> dict:
    """All runs of one clip."""
    runs, cfg, seed, full_sigmas = tasks["runs"], tasks["cfg"], tasks["seed"], torch.tensor(tasks["sigmas"])
    with np.load(task["source"]) as source:
        video, covered, prompt = source["video"], source["mask"], str(source["prompt"])
    model, vae, positive, negative = demo.execute(*prompt.split()).result[:4]
    mask = torch.from_numpy(covered).float()
    video = torch.from_numpy(np.where(covered[..., None], 0.5, video / 255).astype(np.float32))
    frames, height, width = covered.shape
    size = (width, height, frames, 1, 1.0)
    positive, negative, latent, _ = WanVaceToVideo.execute(
        positive, negative, vae, *size, control_video=video, control_masks=mask
    ).result
    noise = comfy.sample.prepare_noise(latent["samples"], seed)

    def sample(model, sigmas):
        sampler = comfy.samplers.sampler_object(tasks["sampler"])
        return comfy.samplers.sample(
            model, noise, positive, negative, cfg, model.load_device, sampler, sigmas,
            latent_image=latent["samples"], seed=seed, disable_pbar=True,
        )  # fmt: skip

    out, took = {"mask": covered}, {}
    sample(model, full_sigmas[:3])  # warms up
    for name, run in [*runs.items(), *list(runs.items())[:1]]:  # the first, in full, once more: machines drift
        forget()
        used, report = patched(model, run, mask)
        began = time.perf_counter()
        result = sample(used, torch.tensor(run.get("sigmas", tasks["sigmas"])))
        took.setdefault(name, []).append(time.perf_counter() - began)
        out[name] = result.numpy()
        if report is not None:
            out[f"stats.{name}"] = report.runs[-1].to_json()
    return out | {f"seconds.{name}": sum(seconds) / len(seconds) for name, seconds in took.items()}


@torch.inference_mode()
def main() -> None:
    with open(TASKS) as file:
        tasks = json.load(file)
    torch.set_num_threads(tasks["threads"])
    demo = load_pack()["HetCacheDemoModel"]
    for task in tasks["clips"]:
        out = edit(task, demo, tasks)
        np.savez(task["file"], **out)
        seconds = {name: round(value, 2) for name, value in out.items() if name.startswith("seconds")}
        print(json.dumps({"clip": task["index"], **seconds}), flush=True)


main()
