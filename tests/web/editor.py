"""ComfyUI's editor in a headless Chromium, driven as a person would, and what our panels in it show."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import uuid
from typing import Any

from tests.hosts.comfyui_host import PATIENCE, ROOT, Server, missing

OUT = ROOT / "out" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FRAMES, SIDE, STEPS = 17, 96, 14  # of the nano demo in tests
# What the host's own page says where there is no network, or while it starts.
NOISE = ("Failed to load resource", "graph accessed before initialization", "ERR_NAME_NOT_RESOLVED", "net::ERR_")

HELPERS = (pathlib.Path(__file__).parent / "page.js").read_text()  # in the page they are `HET`


def why_not() -> str:
    """Why no browser test can run here, or empty."""
    reason = missing()
    if reason:
        return reason
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; install the extra `web`"
    if not chromium():
        return f"no browser ({', '.join(BROWSERS)}); install Chromium or set CHROMIUM"
    return ""


def chromium() -> str:
    """Path of a Chromium, or empty."""
    named = os.environ.get("CHROMIUM", "")
    return next(filter(None, map(shutil.which, filter(None, (named, *BROWSERS)))), "")


def start_server(folder: pathlib.Path) -> Server:
    """A server whose editor comes up without greeting anyone."""
    (folder / "user" / "default").mkdir(parents=True)
    quiet = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
    (folder / "user" / "default" / "comfy.settings.json").write_text(json.dumps(quiet))
    (folder / "input").mkdir()
    return Server(folder)


class Editor:
    """The editor's page. `nodes2` tells which renderer draws the nodes: the classic canvas or Nodes 2.0."""

    def __init__(self, browser, server: Server):
        self.server, self.nodes2, self._said, self._seed = server, False, [], 0
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda m: self._said.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self._said.append(f"{error}\n{error.stack}"))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.open()

    def open(self) -> None:
        """Load the page, anew if it is open."""
        self.page.goto(f"http://{self.server.address}/", wait_until="domcontentloaded")
        self.until("window.app?.graph && app.extensionManager && LiteGraph.registered_node_types?.HetCacheStats")
        self.page.evaluate(HELPERS)

    def renderer(self, nodes2: bool) -> None:
        self.nodes2 = nodes2
        self.setting("Comfy.VueNodes.Enabled", nodes2)

    def setting(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    # ---- what a person does

    def js(self, code: str) -> Any:
        """The value of an expression in the page."""
        return self.page.evaluate(code)

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}")

    def load(self, workflow: dict) -> None:
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", workflow)
        self.settle()

    def settle(self) -> None:
        """Wait for two frames to be drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def set(self, kind: str, widget: str, value: Any, n: int = 0) -> None:
        self.page.evaluate("([k, w, v, n]) => HET.set(k, w, v, n)", [kind, widget, value, n])

    def run(self) -> None:
        """Queue the workflow with a seed of its own, or the host would serve what it has; does not wait for it."""
        self._seed += 1
        self.set("KSampler", "seed", self._seed)
        self.js("app.queuePrompt(0).then(() => true)")

    def finished(self) -> None:
        """Wait until nothing is queued or running."""
        idle = "(queue) => !queue.queue_running.length && !queue.queue_pending.length"
        self.until(f"fetch('/queue').then((answer) => answer.json()).then({idle})")

    def look_at(self, kind: str, n: int = 0) -> None:
        self.page.evaluate("([kind, n]) => HET.lookAt(kind, n)", [kind, n])
        self.settle()

    def picture(self, name: str) -> None:
        """A screenshot, to be looked at."""
        OUT.mkdir(parents=True, exist_ok=True)
        self.settle()
        self.page.screenshot(path=OUT / f"{name}-{'nodes2' if self.nodes2 else 'classic'}.png")

    # ---- what our panels show

    def state(self, panel: str, n: int = 0) -> str:
        return self.js(f"HET.panel('{panel}', {n})?.dataset.state ?? ''")

    def text(self, panel: str, n: int = 0) -> str:
        return self.js(f"HET.panel('{panel}', {n})?.textContent ?? ''")

    def comes_to(self, panel: str, state: str, n: int = 0) -> None:
        self.until(f"HET.panel('{panel}', {n})?.dataset.state === '{state}'")

    def errors(self) -> list[str]:
        """What went wrong in the page since this was asked last, the host's own noise left out."""
        found = [text for text in self._said if not any(noise in text for noise in NOISE)]
        self._said.clear()
        return found


def demo() -> dict:
    """The nano demo in the editor's form, small and without what comes after Cache Stats; with an id of its own."""
    graph = json.loads((ROOT / "workflows" / "hetcache_nano_demo.json").read_text())
    after = ("VAEDecode", "ImageStitch", "CreateVideo", "SaveVideo", "MarkdownNote")
    unwanted = {node["id"] for node in graph["nodes"] if node["type"] in after}
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] not in unwanted]
    graph["links"] = [link for link in graph["links"] if link[3] not in unwanted]
    known = {link[0] for link in graph["links"]}
    values = {"WanVaceToVideo": {"width": SIDE, "height": SIDE, "length": FRAMES}, "KSampler": {"steps": STEPS}}
    for node in graph["nodes"]:
        for output in node.get("outputs", ()):
            output["links"] = [link for link in output["links"] or () if link in known] or None
        for name, value in values.get(node["type"], {}).items():
            named = node["widgets_values_named"]
            node["widgets_values"][list(named).index(name)] = named[name] = value
    graph["groups"], graph["id"] = [], str(uuid.uuid4())
    return graph
