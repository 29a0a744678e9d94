"""The ComfyUI on this machine: where it is, and a server of it for tests.

COMFYUI_DIR says where it is (default ~/comfy/ComfyUI, where comfy-cli puts it), COMFYUI_PYTHON which Python it runs on
(default the `.venv` inside).
"""

import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]
HOST = pathlib.Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
PYTHON = pathlib.Path(os.environ.get("COMFYUI_PYTHON", HOST / ".venv/bin/python")).expanduser()
PATIENCE = 600  # seconds; a busy machine is slow


def missing(module: str = "") -> str:
    """Why tests cannot run there, or empty. `module` is one they need besides ComfyUI."""
    if not (HOST / "main.py").exists():
        return f"no ComfyUI in {HOST}; set COMFYUI_DIR"
    if not PYTHON.exists():
        return f"no Python of ComfyUI at {PYTHON}; set COMFYUI_PYTHON"
    if module and subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
        return f"{PYTHON} has no {module}"
    return ""


@dataclass
class Outcome:
    """What became of a prompt."""

    events: list[dict]  # messages of the websocket, in order
    outputs: dict[str, dict]  # what nodes show, by node id

    @property
    def end(self) -> dict:
        return self.events[-1]

    @property
    def cached(self) -> set[str]:
        """Nodes that were not executed anew."""
        return {node for event in self.events if event["type"] == "execution_cached" for node in event["data"]["nodes"]}


class Server:
    """A headless server with this repository as its only custom node pack; `folder` gets its inputs and outputs."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "custom_nodes").mkdir()
        (folder / "custom_nodes" / "hetcache").symlink_to(ROOT, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [PYTHON, "main.py", "--cpu", "--port", self.address.split(":")[1], "--base-directory", folder,
                   "--database-url", "sqlite:///:memory:"]  # fmt: skip
        with self.log.open("w") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=HOST, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        for _ in range(PATIENCE):
            assert self.process.poll() is None, self.log.read_text()[-6000:]
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(1)
        raise TimeoutError(self.log.read_text()[-6000:])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> dict:
        return json.loads(self.bytes(path))

    def post(self, path: str, body: dict) -> dict:
        """The answer, be it a refusal."""
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            return json.load(refusal)

    def run(self, prompt: dict) -> Outcome:
        """Queue a prompt and listen to its end."""
        import websocket

        client, events = uuid.uuid4().hex, []
        listener = websocket.create_connection(f"ws://{self.address}/ws?clientId={client}", timeout=PATIENCE)
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            assert not answer.get("error") and not answer["node_errors"], answer
            id_ = answer["prompt_id"]
            while not events or events[-1]["type"] not in ("execution_success", "execution_error"):
                message = listener.recv()
                if isinstance(message, str) and (event := json.loads(message))["data"].get("prompt_id") == id_:
                    events.append(event)
        finally:
            listener.close()
        history = {}
        while id_ not in history:  # written just after the last message
            history = self.get(f"/history/{id_}")
        return Outcome(events, history[id_]["outputs"])
