"""Load Mask Video inside ComfyUI, run by its own Python: COMFYUI_DIR=... python host_load_mask_video.py <folder>.

The folder receives the inputs and outputs. Raises where something is not as the host has it.
"""

import importlib
import os
import re
import sys
import types
from pathlib import Path

ROOT, WORK = Path(__file__).parents[2], Path(sys.argv[1])
sys.path.insert(0, os.environ["COMFYUI_DIR"])
sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(WORK)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import asyncio  # noqa: E402

import av  # noqa: E402
import comfy.utils  # noqa: E402
import execution  # noqa: E402
import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import InputImpl  # noqa: E402
from comfy_extras.nodes_mask import GrowMask, MaskPreview  # noqa: E402
from PIL import Image  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
pack = types.ModuleType("a_pack-under_x_any name")  # the host names packs after their folder
pack.__path__ = [str(ROOT)]
sys.modules[pack.__name__] = pack
node = importlib.import_module(f"{pack.__name__}.nodes.load_mask_video").LoadMaskVideo
ops = importlib.import_module(f"{pack.__name__}.nodes.mask_ops")
looked = importlib.import_module(f"{pack.__name__}.nodes.mask_look")

SETTINGS = dict(file="m.mp4", channel="luma", threshold=0.5, invert=False, grow=0, feather=0, length_policy="hold",
                frame_rate=0.0, skip_frames=0, frame_cap=0, path="")  # fmt: skip


def write_mask(path: Path, frames: int, rotation: int = 0) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        if rotation and hasattr(stream, "set_display_rotation"):
            stream.set_display_rotation(rotation)
        for index in range(frames):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[8:24, 8 + 4 * index : 24 + 4 * index] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


class Server:
    """As much of the host's server as an execution needs."""

    client_id = last_node_id = last_prompt_id = None

    def __init__(self):
        self.sent = []
        self.client_id = "test"

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data))


def ui_outputs(server) -> dict:
    return {data["node"]: data["output"] for event, data in server.sent if event == "executed" and data.get("output")}


def check_resize() -> None:
    generator = torch.Generator().manual_seed(0)
    for (h, w), (height, width) in [((48, 64), (64, 48)), ((61, 33), (80, 80)), ((720, 1280), (480, 832)),
                                    ((35, 35), (35, 35)), ((100, 37), (16, 256)), ((31, 97), (97, 31))]:  # fmt: skip
        mask = torch.rand(2, h, w, generator=generator)
        host = comfy.utils.common_upscale(mask[:, None], width, height, "bilinear", "center")[:, 0]
        assert torch.equal(ops.resize(mask, height, width), host), ((h, w), (height, width))


def check_grow() -> None:
    mask = torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0))
    for expand in (3, -3):
        assert torch.equal(ops.spread(mask, expand), GrowMask.execute(mask, expand, False)[0]), expand


def check_schema() -> None:
    inputs, info = node.INPUT_TYPES(), node.GET_NODE_INFO_V1()
    assert (info["name"], info["display_name"], info["category"]) == (
        "HetCacheLoadMaskVideo", "Load Mask Video", "image/mask")  # fmt: skip
    assert info["output"] == ["MASK", "INT", "FLOAT"] and info["output_name"] == ["mask", "frame_count", "fps"]
    required, optional = inputs["required"], inputs["optional"]
    assert set(SETTINGS) == {*required, *optional} - {"images"} and "images" in optional
    assert required["file"][1]["options"] == ["broken.mp4", "m.mp4", "short.mp4", "turned.mp4", "a.png"]
    assert required["file"][1]["video_upload"]
    folded = {name for name, (_, options) in optional.items() if options.get("advanced")}
    assert folded == set(optional) - {"images"}, folded
    assert all(options["tooltip"] for _, options in [*required.values(), *optional.values()])
    assert all(info["output_tooltips"])
    usual = node.execute(**SETTINGS).args[0]  # a prompt may leave out what is folded away
    assert torch.equal(node.execute(**{name: SETTINGS[name] for name in required}).args[0], usual)


def check_same_pixels_as_the_hosts_own_loader() -> None:
    for name in ("m.mp4", "turned.mp4"):
        images = InputImpl.VideoFromFile(str(WORK / "input" / name)).get_components().images
        if name == "turned.mp4" and images.shape[1:3] == (48, 64):
            continue  # ComfyUI 0.8 loads videos as they lie
        mask, count, fps = node.execute(**SETTINGS | {"file": name}, images=images).args
        assert torch.equal(mask, (images[..., 0] >= 0.5).float()) and count == 6 and fps == 16, name
        assert mask.shape == images.shape[:3]


def check_clip_length() -> None:
    clip = torch.zeros(9, 32, 64, 3)
    assert node.execute(**SETTINGS, images=clip[:4]).args[0].shape == (4, 32, 64)
    assert node.execute(**SETTINGS, images=clip[:1]).args[0].shape == (6, 32, 64)
    held, count, _ = node.execute(**SETTINGS, images=clip).args
    assert count == 9 and torch.equal(held[8], held[5])
    assert torch.equal(node.execute(**SETTINGS | {"length_policy": "loop"}, images=clip).args[0][6], held[0])
    try:
        node.execute(**SETTINGS | {"length_policy": "refuse"}, images=clip)
    except ValueError as error:
        assert "m.mp4: gives 6 frames, and the clip has 9" in str(error)
    else:
        raise AssertionError("a short mask was not refused")


def check_look() -> None:
    """The numbers before a run are those of a run without a clip; and nothing is read that was not chosen."""

    def look(**changes):
        return looked.look({name: str(value) for name, value in (SETTINGS | changes | {"invert": "false"}).items()})

    panel = (ROOT / "web/hetcache/mask_panel.js").read_text()
    asked = set(re.findall(r'"(\w+)"', re.search(r"ASKED = \[(.*?)\]", panel)[1]))
    for changes in ({}, {"grow": 5, "feather": 3}, {"skip_frames": 2, "frame_cap": 3}, {"frame_rate": 8.0},
                    {"file": "turned.mp4"}, {"file": "a.png"}, {"path": "short.mp4", "file": "(none)"}):  # fmt: skip
        (told,) = node.execute(**SETTINGS | changes).ui["hetcache_mask"]
        made = told.pop("settings")
        assert look(**changes) == told, changes
        assert made == {name: value for name, value in {**SETTINGS, **changes}.items() if name in made}
        assert made.keys() == asked, "the page compares these with its own"
    inverted = looked.look({"file": "m.mp4", "threshold": "0.5", "invert": "true"})
    assert abs(inverted["share"] + look()["share"] - 1) < 1e-6
    assert look(file="(none)") == {}
    assert "cannot be opened" in look(file="broken.mp4")["error"] and "no such file" in look(file="gone.mp4")["error"]
    assert "no alpha channel" in look(channel="alpha")["error"]
    looked.LOOKED_AT = 1000
    assert look() == {"error": looked.LONG}
    looked.LOOKED_AT = 256 << 20
    (WORK / "m.mp4").write_bytes((WORK / "input" / "m.mp4").read_bytes())
    for changes in ({"file": "../m.mp4"}, {"file": str(WORK / "m.mp4")}, {"file": "../m.mp4 [input]"}, {"grow": 600},
                    {"channel": "depth"}, {"threshold": "nan"}, {"feather": -1}, {"frame_cap": "many"}):  # fmt: skip
        try:
            look(**changes)
        except ValueError:
            continue
        raise AssertionError(f"{changes} was not refused")


def check_run() -> None:
    """Validation, execution, preview, and what makes the host read the file again."""
    nodes.NODE_CLASS_MAPPINGS |= {"HetCacheLoadMaskVideo": node, "MaskPreview": MaskPreview}

    def prompt(**changes):
        return {"1": {"class_type": "HetCacheLoadMaskVideo", "inputs": SETTINGS | changes},
                "2": {"class_type": "MaskPreview", "inputs": {"mask": ["1", 0]}}}  # fmt: skip

    def errors(**changes):
        valid, _, outputs, found = asyncio.run(execution.validate_prompt("id", prompt(**changes), None))
        return outputs if valid else str(found)

    assert errors() == ["2"]
    assert errors(path="short.mp4", file="(none)") == ["2"]  # the path counts, the file does not
    assert "no such file" in errors(file="gone.mp4") and "gone.mp4" in errors(file="gone.mp4")
    assert " broken.mp4: cannot be opened" in errors(file="broken.mp4")
    assert "value_bigger_than_max" in errors(threshold=1.5)

    server = Server()
    executor = execution.PromptExecutor(server, cache_args={"ram": 0.0, "ram_inactive": 0.0})

    def run(**changes):
        server.sent.clear()
        executor.execute(prompt(**changes), "id", {"client_id": "test"}, ["2"])
        assert executor.success, executor.status_messages
        cached = [data["nodes"] for event, data in executor.status_messages if event == "execution_cached"]
        return "1" in cached[0], ui_outputs(server).get("1")

    cached, preview = run()
    assert not cached and list(preview["animated"]) == [True]
    video = preview["images"][0]
    assert video["type"] == "temp" and video["filename"].endswith(".mp4")
    assert (Path(folder_paths.get_temp_directory()) / video["subfolder"] / video["filename"]).stat().st_size > 500
    assert run()[0]
    os.utime(WORK / "input" / "m.mp4", ns=(1, 1))
    assert not run()[0]


if __name__ == "__main__":
    for folder in ("input", "temp"):
        (WORK / folder).mkdir(exist_ok=True)
    write_mask(WORK / "input" / "m.mp4", 6)
    write_mask(WORK / "input" / "turned.mp4", 6, rotation=90)
    write_mask(WORK / "input" / "short.mp4", 2)
    (WORK / "input" / "broken.mp4").write_bytes(b"no video")
    (WORK / "input" / "notes.txt").write_bytes(b"not offered")
    Image.new("L", (8, 8)).save(WORK / "input" / "a.png")
    for check in [value for name, value in list(globals().items()) if name.startswith("check_")]:
        check()
        print("ok", check.__name__)
