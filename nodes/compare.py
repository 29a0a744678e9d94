"""Compare Edits: how much a speed changes a clip, seen and measured."""

from __future__ import annotations

import json
import math

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..hetcache_core import CachePolicy
from ..hetcache_core import comparison as draw
from ..hetcache_core.quality import RING, by_frame, compare
from .compat import known
from .mask_ops import fit_length, resize
from .types import CATEGORY

MASKED = CachePolicy().mask_threshold  # what is above this is edited, as in HetCache Patch Model


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCacheCompare",
            display_name="Compare Edits",
            category=CATEGORY,
            description="Shows what a speed costs on your own clip: the edit made without HetCache beside the one made "
            "with it, where they differ, and by how much inside the mask, around it and outside. Use the same seed for "
            "both.",
            inputs=[
                io.Image.Input("before", tooltip="The edit made without HetCache (Patch Model bypassed, or speed 1), "
                               "with the same seed. Not the clip you began with: an edit is meant to differ from "
                               "that."),
                io.Image.Input("after", tooltip="The same edit made with HetCache."),
                io.Mask.Input("mask", tooltip="The region that was edited. It is scaled to the videos' size; a single "
                              "image stands for every frame."),
                io.Float.Input("gain", default=8.0, min=1.0, max=64.0, step=1.0,
                               tooltip="How strongly differences are brightened in the picture, so that small ones "
                               "can be seen. The numbers do not change with it."),
                io.Int.Input("ring", **known(io.Int.Input, default=RING, min=0, max=256, optional=True, advanced=True,
                             tooltip="Pixels around the mask that are measured apart, as a seam would show there.")),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="Before, after and difference beside each other, with "
                                "the mask outlined; for Save Video. At most 3840 pixels wide."),
                io.Image.Output(display_name="difference", tooltip="Where the two differ: black where they are equal, "
                                "then blue, orange, white."),
                io.String.Output(display_name="report", tooltip="The numbers in words."),
                io.String.Output(display_name="json", tooltip="All numbers, for scripts."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, before, after, mask, gain: float = 8.0, ring: int = RING) -> io.NodeOutput:
        before, after, mask = fitted(before, after, mask)
        bar = comfy.utils.ProgressBar(2 * len(before))
        result = compare(after, before, mask, ring, lambda done, total: bar.update_absolute(done, 2 * total))
        decibels = by_frame(after, before, mask)
        frames = None
        for index, frame in enumerate(draw.side_by_side(before, after, mask, gain, decibels)):
            frames = frame.new_empty(len(before), *frame.shape) if frames is None else frames  # each held once only
            frames[index] = frame
            bar.update_absolute(len(before) + index + 1, 2 * len(before))
        shown = draw.card(before, after, mask, gain, worst(decibels), result)
        report, numbers = told(result, decibels, mask, ring)
        differing = draw.difference(after, before, gain)
        picture = ui.PreviewImage(shown[None], cls=cls).as_dict()
        return io.NodeOutput(frames, differing, report, numbers, ui={"text": (report,), **picture})


def fitted(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Two videos of one shape and the mask that belongs to them.

    Args:
        before, after: ``[F, H, W, 3 or 4]`` from 0 to 1.
        mask: ``[F or fewer or more, h, w]`` or ``[h, w]``: scaled as Load Mask Video does it; a shorter one holds its
            last frame.

    Returns:
        Both videos ``[F, H, W, 3]``, and the mask as bool ``[F, H, W]``.

    Raises:
        ValueError: the videos differ in size or length, or are too small to be compared.
    """
    before, after, mask = before[..., :3].cpu(), after[..., :3].cpu(), mask.cpu()  # one of them may be on a card
    if before.shape[1:3] != after.shape[1:3]:
        raise ValueError(f"Compare Edits: 'before' is {_size(before)} pixels and 'after' {_size(after)}. Make both at "
                         "the same width and height, or scale one with Upscale Image.")  # fmt: skip
    if len(before) != len(after):
        raise ValueError(f"Compare Edits: 'before' has {len(before)} frames and 'after' {len(after)}. Make both with "
                         "the same length, or cut the longer one with ImageFromBatch.")  # fmt: skip
    if min(before.shape[1:3]) < 16:
        raise ValueError(f"Compare Edits: the videos are {_size(before)} pixels, too small to compare. Connect the "
                         "decoded videos, at least 16 pixels each way.")  # fmt: skip
    mask = mask[None] if mask.ndim == 2 else mask.reshape(-1, *mask.shape[-2:])
    mask = fit_length(resize(mask.float(), *before.shape[1:3]), len(before), "hold", "mask")
    return before, after, mask > MASKED


def worst(decibels: list[float]) -> int:
    """The frame that lost most inside the mask; the middle one where no frame has a mask or all are equal."""
    known_ = [index for index, value in enumerate(decibels) if math.isfinite(value)]
    return min(known_, key=decibels.__getitem__) if known_ else len(decibels) // 2


def told(result: dict, decibels: list[float], mask: torch.Tensor, ring: int) -> tuple[str, str]:
    """The report in words and in JSON, which knows neither infinity nor NaN: null stands for both."""
    psnr, ssim, share = result["psnr"], result["ssim"], mask.float().mean().item()
    places = {"mask": "inside the mask", "ring": f"{ring} pixels around it", "outside": "outside", "all": "overall"}
    lines = [_verdict(psnr["mask"], psnr["all"])]
    lines += [f"{place + ':':<24} PSNR {draw.say(psnr[name])}, SSIM {draw.similarity(ssim[name])}"
              for name, place in places.items()]  # fmt: skip
    if math.isfinite(decibels[index := worst(decibels)]):
        lines.append(f"worst frame inside the mask: {index + 1} of {len(decibels)}, {draw.say(decibels[index])}")
    lines.append(f"mask: {share:.0%} of the clip")
    numbers = {
        "frames": len(mask), "height": mask.shape[1], "width": mask.shape[2], "mask_fraction": share, "ring": ring,
        "psnr": _finite(psnr), "ssim": _finite(ssim),
        "equal": {name: value == math.inf for name, value in psnr.items()},
        "psnr_mask_by_frame": list(_finite(dict(enumerate(decibels))).values()),
    }  # fmt: skip
    return "\n".join(lines), json.dumps(numbers, indent=1)


def _verdict(inside: float, everywhere: float) -> str:
    """One sentence. The steps are rules of thumb for video; what counts is what you see."""
    value = everywhere if math.isnan(inside) else inside
    where = "" if math.isnan(inside) else " inside the mask"
    if everywhere == math.inf:
        return "The two videos are equal, bit for bit."
    for least, words in ((45, "no difference to be seen"), (38, "hard to tell apart"),
                         (30, "fine detail differs")):  # fmt: skip
        if value >= least:
            return f"As a rule of thumb, {words}{where}: {draw.say(value)}."
    return f"The two differ visibly{where}: {draw.say(value)}. A lower speed brings them closer."


def _finite(values: dict) -> dict:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _size(video: torch.Tensor) -> str:
    return f"{video.shape[2]}x{video.shape[1]}"
