"""Runs inside ComfyUI's own Python, for `benchmarks.panel`: the same edit with and without news of it for the browser.

    python panel_runs.py COMFYUI_DIR ROOT TASK.json

TASK holds ``sigmas``, ``cfg``, ``threads``, ``size``, ``frames``, ``mask``, ``policy``, ``rounds``, and ``file``, which
gets the runs in order: ``kind`` ("off"; "watched": the events are sent and read; "unwatched": nobody is connected),
``seconds`` of sampling, ``live``: those of every event, ``decisions``, and ``evaluations``: seconds of each; and how
many events ``arrived``.

The server is the host's own, on a thread beside the one that samples; what reads the socket is another process.
"""

import asyncio
import importlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time

COMFYUI, ROOT, TASK = sys.argv[1:4]
sys.path[:0] = [COMFYUI, ROOT]
SCRATCH = tempfile.TemporaryDirectory()  # the host makes its folders here
sys.argv = [sys.argv[0], "--cpu", "--base-directory", SCRATCH.name]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 - as the host starts: later another `utils` may stand in its place
from comfy_extras.nodes_wan import WanVaceToVideo  # noqa: E402
from execution import PromptQueue  # noqa: E402
from server import PromptServer  # noqa: E402

sys.path.insert(2, f"{ROOT}/tests/comfyui")

import pack  # noqa: E402

from nano.clips import TUNING, make_clip  # noqa: E402

NODES = pack.load()[1]
core = importlib.import_module("custom_nodes_hetcache.hetcache_core")
host = importlib.import_module("custom_nodes_hetcache.hetcache_core.hosts.comfyui")
live = importlib.import_module("custom_nodes_hetcache.nodes.live")

KINDS = ("watched", "unwatched")
LISTENER = """
import asyncio, json, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as session, session.ws_connect(sys.argv[1]) as socket:
        seen = 0
        async for message in socket:
            kind = json.loads(message.data)["type"] if message.type == aiohttp.WSMsgType.TEXT else ""
            seen += kind == "hetcache.progress"
            if kind == "benchmark.end":
                break
        print(seen)
asyncio.run(main())
"""


class Browser:
    """The host's server on a thread of its own, and a process that reads what it sends."""

    name = "benchmark"

    def __init__(self):
        loop, ready, port = asyncio.new_event_loop(), threading.Event(), free_port()

        async def serve():
            self.server = PromptServer(loop)
            self.server.prompt_queue = PromptQueue(self.server)
            workflow = {"extra_pnginfo": {"workflow": {"id": "benchmark"}}}
            self.server.prompt_queue.currently_running = {0: (0, "benchmark", {}, workflow, [])}
            self.server.add_routes()
            await self.server.start_multi_address([("127.0.0.1", port)], lambda *_: ready.set(), verbose=False)
            await self.server.publish_loop()

        threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True).start()
        if not ready.wait(120):
            raise SystemExit("the host's server does not start")
        address = f"http://127.0.0.1:{port}/ws?clientId={self.name}"
        self.listener = subprocess.Popen([sys.executable, "-c", LISTENER, address], stdout=subprocess.PIPE, text=True)
        while self.name not in self.server.sockets:
            if self.listener.poll() is not None:
                raise SystemExit("what reads the socket cannot connect")
            time.sleep(0.05)

    def look(self, kind: str) -> None:
        """Whether this browser queued what is sampled next."""
        self.server.client_id = self.name if kind == "watched" else None

    def close(self) -> int:
        """How many of our events arrived."""
        self.server.send_sync("benchmark.end", {}, self.name)
        return int(self.listener.communicate(timeout=60)[0])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Timed:
    """An observer that notes what every call of another one takes."""

    def __init__(self, observer):
        self.observer, self.seconds = observer, []

    def __getattr__(self, name):
        call = getattr(self.observer, name)

        def timed(*args):
            began = time.perf_counter()
            call(*args)
            self.seconds.append(time.perf_counter() - began)

        return timed


def scene(task: dict, demo):
    """(model, mask, how to sample a model)"""
    clip = make_clip(TUNING[0], task["frames"], task["size"], task["size"], tuple(task["mask"]))
    model, vae, positive, negative = demo.execute(*clip.prompt.split()).result[:4]
    mask = torch.from_numpy(clip.mask).float()
    video = torch.from_numpy(np.where(clip.mask[..., None], 0.5, clip.video / 255).astype(np.float32))
    size = (task["size"], task["size"], task["frames"], 1, 1.0)
    positive, negative, latent, _ = WanVaceToVideo.execute(
        positive, negative, vae, *size, control_video=video, control_masks=mask
    ).result
    noise, sigmas = comfy.sample.prepare_noise(latent["samples"], 7), torch.tensor(task["sigmas"])
    sampler = comfy.samplers.sampler_object("euler")

    def sample(patched):
        return comfy.samplers.sample(
            patched, noise, positive, negative, task["cfg"], patched.load_device, sampler, sigmas,
            latent_image=latent["samples"], seed=7, disable_pbar=True,
        )  # fmt: skip

    return model, mask, sample


def run(kind: str, task: dict, model, mask, sample) -> dict:
    """One edit, timed around the sampler."""
    observer = None if kind == "off" else Timed(live.Live("1"))
    patched, report = host.apply(model, core.CachePolicy.from_json(task["policy"]), mask, observer)
    began = time.perf_counter()
    sample(patched)
    row = {"kind": kind, "seconds": time.perf_counter() - began, "live": observer.seconds if observer else []}
    stats = report.runs[-1]
    return row | {"decisions": stats.decisions, "evaluations": [record.seconds for record in stats.records]}


@torch.inference_mode()
def main() -> None:
    with open(TASK) as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    model, mask, sample = scene(task, NODES["HetCacheDemoModel"])
    browser, rows = Browser(), []
    browser.look("off")
    for _ in range(2):
        run("off", task, model, mask, sample)  # warms up
    for turn in range(task["rounds"]):
        for kind in KINDS:
            for one in ("off", kind, kind, "off"):  # whatever drifts, drifts alike for both
                browser.look(one)
                rows.append(run(one, task, model, mask, sample))
        print(f"round {turn + 1} of {task['rounds']}", flush=True)
    with open(task["file"], "w") as file:
        json.dump({"rows": rows, "arrived": browser.close()}, file)


main()
