"""News of a run for the browser, while it goes on: at most one small event an evaluation."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from server import PromptServer

from ..hetcache_core.progress import snapshot
from ..hetcache_core.setup import RunSetup
from ..hetcache_core.stats import RunStats

EVENT = "hetcache.progress"
MOST_SETUPS = 16
SHARE = 0.002  # of a run's time that its news may take; a small model's evaluations are over before a browser draws one


class Setups:
    """What the last runs were about, by workflow and HetCache Patch Model; for planning them anew."""

    def __init__(self):
        self._of: dict[tuple[str | None, str], RunSetup] = {}

    def keep(self, workflow: str | None, node: str, setup: RunSetup) -> None:
        self._of.pop((workflow, node), None)
        self._of[workflow, node] = on_cpu(setup)
        while len(self._of) > MOST_SETUPS:
            del self._of[next(iter(self._of))]

    def find(self, workflow: str | None, nodes: list[str]) -> tuple[RunSetup | None, bool]:
        """The last run of one of these nodes, else of their workflow, else of any; and whether it is of another one.
        Prompts that no editor queued have no workflow and count as of any."""
        of = dict(self._of)  # in one go: a run may begin in another thread meanwhile
        its = [place for place in of if place[0] in (workflow, None)]
        known = [place for place in its if place[1] in nodes] or its
        return (of[(known or list(of))[-1]], not known) if of else (None, False)


last_setups = Setups()


def on_cpu(setup: RunSetup) -> RunSetup:
    """The same without a tensor on a device, so that keeping it costs no graphics memory."""
    classes = setup.classes
    if classes is None:
        return setup
    moved = {name: getattr(classes, name).cpu() for name in ("generative", "margin", "distance")}
    return replace(setup, classes=replace(classes, **moved))


class Live:
    """An observer of :mod:`hetcache_core.hosts.comfyui` that tells the browser which queued the prompt.

    The first event comes before anything is computed, with the plan; then one after every evaluation but the first and
    the last, and one with the final numbers. Each tells everything so far, so that a lost one is not missed: those are
    left out that would make the events take more than SHARE of the run.
    """

    def __init__(self, node: str):
        self.node = node
        self._told: dict = {}
        self._prompt, self._number = None, 0
        self._total = 0
        self._begun = self._spent = 0.0  # when the run began; seconds in events since

    def began(self, stats: RunStats, setup: RunSetup | None) -> None:
        prompt, workflow = running_prompt()
        self._number = self._number + 1 if prompt is not None and prompt == self._prompt else 1
        self._prompt = prompt
        self._total = len(stats.planned) if setup is None else setup.evaluations
        self._told = {"node": self.node, "workflow": workflow, "prompt": prompt, "number": self._number,
                      "run": uuid.uuid4().hex[:12]}  # fmt: skip
        self._begun, self._spent = time.perf_counter(), 0.0
        if setup is not None:
            last_setups.keep(workflow, self.node, setup)
        self._send(stats)

    def evaluated(self, stats: RunStats) -> None:
        if 1 < stats.count < self._total and self._spent <= SHARE * (time.perf_counter() - self._begun):
            self._send(stats)

    def ended(self, stats: RunStats, finished: bool) -> None:
        if finished:  # what stopped it earlier, the browser hears from the host
            self._send(stats, wait=True)

    def _send(self, stats: RunStats, wait: bool = False) -> None:
        server = PromptServer.instance
        listener = getattr(server, "client_id", None)
        if listener is not None and listener in server.sockets:
            begun = time.perf_counter()
            server.send_sync(EVENT, {**self._told, **snapshot(stats, self._total, wait), "ended": wait}, listener)
            self._spent += time.perf_counter() - begun


def running_prompt() -> tuple[str | None, str | None]:
    """Ids of the prompt that is being worked on and of the workflow it was queued from, where the host tells."""
    try:
        _, prompt, _, extra, *_ = next(iter(PromptServer.instance.prompt_queue.currently_running.values()))
        return prompt, (extra.get("extra_pnginfo") or {}).get("workflow", {}).get("id")
    except (AttributeError, StopIteration, TypeError, ValueError):
        return None, None
