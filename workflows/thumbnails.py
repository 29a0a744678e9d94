"""Draws the pictures of the workflows in ComfyUI's template browser.

    python -m workflows.thumbnails http://127.0.0.1:8188      # a running ComfyUI that has this pack

The nano demo is run there and shown as it came out. For the others, which need large models, the idea is drawn: the
clip with its mask, what the model is given of it, and the steps as HetCache plans them. None of it is a model's output.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
import urllib.request

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.masks import moving_mask
from demo.media import load_clip
from hetcache_core import CachePolicy
from hetcache_core.costs import Costs, ModelShape
from hetcache_core.error_model import Rules
from hetcache_core.picture import CLASSES, COLOURS, HEIGHTS
from hetcache_core.plan import plan
from hetcache_core.profile import ErrorProfile
from workflows.build import HERE

SIDE, FRAME, TOP, LEFT = 400, 192, 80, 4  # pixels; the browser puts a badge over the upper left corner
PAPER, INK, ORANGE = (24, 24, 27), (228, 228, 231), CLASSES[0][1]
VACE_14B = ModelShape(dim=5120, layers=40, ffn=13824, vace_layers=8)
TOKENS = 32_760  # of 81 frames, 832x480


def main(address: str) -> None:
    clip = load_clip(HERE.parent / "demo" / "assets" / "big_buck_bunny.mp4", FRAME, FRAME, 33).frames
    mask = moving_mask(33, FRAME, FRAME)
    video, decisions = run_demo(address)
    save("nano_demo", tinted(clip[20], mask[20]), video[20][:, FRAME:], "edit, as it came out", decisions)
    for name, frame, steps, speed in (
        ("vace_inpainting", 8, 30, 3.0), ("vace_reference", 28, 30, 2.5), ("vace_compare", 20, 30, 3.0),
        ("vace_inpainting_6_steps", 14, 6, 1.8),
    ):  # fmt: skip
        given = np.where(mask[frame][..., None], 128, clip[frame]).astype(np.uint8)
        if "reference" in name:
            given = with_reference(given)
        save(name, tinted(clip[frame], mask[frame]), given, "given to the model", planned(steps, speed, mask.mean()))


def run_demo(address: str) -> tuple[np.ndarray, str]:
    """The nano demo's video, `[F, H, 2 W, 3]`, clip and edit side by side, and what was decided for its steps."""

    def ask(path: str, body: dict | None = None) -> bytes:
        data = json.dumps(body).encode() if body else None
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", data)) as answer:
            return answer.read()

    prompt = json.loads((HERE / "api" / "hetcache_nano_demo.json").read_text())
    (stats,) = (id_ for id_, node in prompt.items() if node["class_type"] == "HetCacheStats")
    prompt["numbers"] = {"class_type": "PreviewAny", "inputs": {"source": [stats, 3]}}
    queued = json.loads(ask("prompt", {"prompt": prompt}))["prompt_id"]
    while not (history := json.loads(ask(f"history/{queued}"))):
        time.sleep(1)
    outputs = history[queued]["outputs"]
    (file,) = (f for shown in outputs.values() for f in shown.get("images", ()) if f["filename"].endswith(".mp4"))
    path = HERE / ".demo.mp4"
    path.write_bytes(ask("view?" + urllib.parse.urlencode(file)))
    with av.open(str(path)) as container:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    path.unlink()
    return video, json.loads(outputs["numbers"]["text"][0])["runs"][0]["decisions"]


def planned(steps: int, speed: float, share: float) -> str:
    """What the planner decides for Wan2.1-VACE 14B, shift 5, with a mask of this share of the clip."""
    even = np.linspace(1, 0, steps + 1)
    sigmas, profile = tuple(5 * even / (1 + 4 * even)), ErrorProfile.load("wan")
    edited = round(share * TOKENS)
    packed = profile.storing[1], profile.joining[1]
    costs = Costs.of(VACE_14B, TOKENS, edited, TOKENS, profile.overhead, TOKENS - edited, *packed)
    rules = Rules.of(CachePolicy(speed=speed), profile, steps)
    return plan(sigmas, costs, speed, rules, profile).decisions


def tinted(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame with its mask in colour."""
    return np.where(mask[..., None], 0.45 * frame + 0.55 * np.array(ORANGE), frame).astype(np.uint8)


def with_reference(frame: np.ndarray) -> np.ndarray:
    """A frame with a reference image in its corner: a ball, drawn."""
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    pen.rectangle((118, 8, 184, 74), fill="white", outline=ORANGE, width=3)
    pen.ellipse((130, 20, 172, 62), fill=COLOURS["P"])
    pen.ellipse((140, 27, 150, 37), fill="white")
    pen.line((142, 78, 122, 98), fill=ORANGE, width=3)
    pen.polygon(((114, 106), (131, 101), (119, 89)), fill=ORANGE)
    return np.asarray(image)


def save(name: str, left: np.ndarray, right: np.ndarray, says: str, decisions: str) -> None:
    """Two frames above the steps; `says` is what the right one shows."""
    image = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(17)
    for x, frame, text in ((LEFT, left, "clip, mask"), (SIDE - LEFT - FRAME, right, says)):
        image.paste(Image.fromarray(frame), (x, TOP))
        pen.text((x, TOP - 13), text, fill=INK, font=font, anchor="lm")
    bottom, step = 360, (SIDE - 2 * LEFT) / len(decisions)
    for index, letter in enumerate(decisions):
        x = LEFT + index * step
        pen.rectangle((x, bottom - 72 * HEIGHTS[letter], x + step - 3, bottom), fill=COLOURS[letter])
    for x, letter, text in ((LEFT, "F", "all computed"), (142, "P", "masked region"), (290, "R", "forecast")):
        if letter in decisions:
            pen.rectangle((x, 375, x + 12, 387), fill=COLOURS[letter])
            pen.text((x + 18, 381), text, fill=INK, font=font, anchor="lm")
    image.save(HERE / f"hetcache_{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
