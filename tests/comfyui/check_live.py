"""News of a run for the browser: how many, how large, how long they take, and that they never stand in a run's way."""

import asyncio
import importlib
import json
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy_extras.nodes_easycache as easycache
import pack
import pytest
import torch
from server import PromptServer
from small import QUICK, load, sample

pack.load()
core = importlib.import_module("custom_nodes_hetcache.hetcache_core")
host = importlib.import_module("custom_nodes_hetcache.hetcache_core.hosts.comfyui")
live = importlib.import_module("custom_nodes_hetcache.nodes.live")
routes = importlib.import_module("custom_nodes_hetcache.nodes.routes")

FAST = core.CachePolicy(schedule="FFPRPF", warmup=1)
STEPS = 6
Interrupt = comfy.model_management.InterruptProcessingException


class Browser:
    """A server with one tab open on it: what it was sent, and how long sending took."""

    def __init__(self, tab: str | None = "tab"):
        self.client_id, self.sockets, self.sent = tab, {"tab": object()}, []
        workflow = {"workflow": {"id": "flow"}}
        self.prompt_queue = SimpleNamespace(currently_running={0: (0, "prompt", {}, {"extra_pnginfo": workflow}, [])})

    def send_sync(self, event, data, sid):
        self.sent.append((event, json.loads(json.dumps(data)), sid))


@pytest.fixture
def browser(monkeypatch):
    browser = Browser()
    monkeypatch.setattr(PromptServer, "instance", browser, raising=False)
    monkeypatch.setattr(live, "SHARE", float("inf"))  # runs here are over in no time
    return browser


def watched(policy=FAST, observer=None, **kwargs):
    """(samples, statistics) of a run that is watched."""
    patched, report = host.apply(load(), policy, None, observer or live.Live("7"))
    return sample(patched, QUICK, **kwargs), report.runs[-1]


def test_there_is_at_most_one_event_an_evaluation_and_the_last_tells_the_end(browser):
    _, stats = watched()
    events = [data for _, data, _ in browser.sent]
    assert {(event, sid) for event, _, sid in browser.sent} == {(live.EVENT, "tab")}
    assert len(events) == STEPS
    assert [len(e["decisions"]) for e in events] == [0, 2, 3, 4, 5, 6]
    assert all(e["planned"] == "FFPRPF" and e["total"] == STEPS and e["node"] == "7" for e in events)
    assert [e["ended"] for e in events] == [False] * (STEPS - 1) + [True]
    assert events[-1]["decisions"] == stats.decisions and events[-1]["speed"] == stats.speed
    assert len({e["run"] for e in events}) == 1 and events[0]["workflow"] == "flow"
    assert max(len(json.dumps(e)) for e in events) < 2000


@pytest.mark.parametrize("evaluation, kept", [(10.0, 18), (1.0, 18), (0.1, 9), (0.001, 0)])
def test_events_take_no_more_than_their_share_of_a_run(browser, monkeypatch, evaluation, kept):
    """By a clock that only evaluations and events move on, an event a millisecond."""
    clock, send = [0.0], browser.send_sync

    def slow(*args):
        clock[0] += 0.001
        send(*args)

    monkeypatch.setattr(live, "SHARE", 0.005)
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(live, "snapshot", lambda stats, *_: {"count": stats.count})
    browser.send_sync, watcher = slow, live.Live("7")
    stats = SimpleNamespace(planned="F" * 20, count=0)
    watcher.began(stats, None)
    for stats.count in range(1, 21):
        clock[0] += evaluation
        watcher.evaluated(stats)
    watcher.ended(stats, True)
    told = [data["count"] for _, data, _ in browser.sent]
    assert told[0] == 0 and told[-1] == 20 and len(told) - 2 == kept


def test_a_second_run_of_a_prompt_is_numbered(browser):
    patched, _ = host.apply(load(), FAST, None, live.Live("7"))
    for _ in range(2):
        sample(patched, QUICK)
    assert [data["number"] for _, data, _ in browser.sent if data["ended"]] == [1, 2]
    assert len({data["run"] for _, data, _ in browser.sent}) == 2


def test_why_nothing_is_saved_is_told_before_anything_is_computed(browser):
    watched(core.CachePolicy(speed=1.0))
    first = browser.sent[0][1]
    assert first["decisions"] == "" and first["planned"] == "F" * STEPS and "exact" in first["note"]


def test_a_run_that_is_left_to_the_host_ends_as_well(browser):
    model = easycache.EasyCacheNode.execute(load(), 0.3, 0.1, 0.95, False).result[0]
    patched, report = host.apply(model, FAST, None, live.Live("7"))
    sample(patched, QUICK)
    assert [data["ended"] for _, data, _ in browser.sent] == [False, True]
    last = browser.sent[-1][1]
    assert last["speed"] is None and last["total"] == STEPS and "EasyCache" in last["note"]
    summary = report.runs[-1].summary()
    assert summary.startswith(f"{STEPS} evaluations, all left to the host") and "measured" not in summary


def test_a_run_whose_last_steps_ask_nothing_of_the_model_ends_as_well(browser):
    timed = [[[words, {**told, "end_percent": 0.6}] for words, told in side] for side in QUICK.conds()]
    scene = SimpleNamespace(conds=lambda: timed, mask=QUICK.mask, noise_mask=False, latent=QUICK.latent)
    patched, report = host.apply(load(), FAST, None, live.Live("7"))
    sample(patched, scene)
    assert report.runs[-1].count < STEPS and browser.sent[-1][1]["ended"]


@pytest.mark.parametrize("tab", [None, "another"])
def test_nothing_is_sent_where_nobody_listens(browser, tab):
    browser.client_id = tab
    _, stats = watched()
    assert stats.decisions == "FFPRPF" and not browser.sent


def test_watching_changes_no_byte(browser):
    patched, _ = host.apply(load(), FAST)
    assert torch.equal(sample(patched, QUICK), watched()[0])


def test_a_listener_that_fails_is_left_and_the_run_goes_on(browser):
    def broken(*_):
        raise OSError("the connection is gone")

    browser.send_sync = broken
    samples, stats = watched()
    assert stats.decisions == "FFPRPF" and torch.isfinite(samples).all()


def test_an_interrupted_run_sends_no_end(browser):
    def callback(step, *_):
        if step == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        watched(callback=callback)
    assert browser.sent and not any(data["ended"] for _, data, _ in browser.sent)


def test_an_event_of_a_long_run_takes_less_than_two_milliseconds(browser):
    watcher = live.Live("7")
    _, stats = watched(core.CachePolicy(speed=3.0), watcher, steps=50)
    watcher.began(stats, None)
    took = []
    for _ in range(100):
        begun = time.perf_counter()
        watcher.evaluated(stats)
        watcher._send(stats)
        took.append(time.perf_counter() - begun)
    print(f"median {1000 * statistics.median(took):.2f} ms an event")
    assert statistics.median(took) < 2e-3


def test_the_planner_is_asked_about_the_last_run(browser):
    _, stats = watched(core.CachePolicy(speed=2.0), steps=20)
    setup, other = live.last_setups.find("flow", ["7"])
    assert setup is not None and not other and live.last_setups.find("flow", ["no such node"]) == (setup, False)
    same = routes.forecast(core.CachePolicy(speed=2.0), setup)
    assert same["planned"] == stats.planned and same["predicted"] == stats.predicted_speed
    assert same["held_bytes"] == stats.planned_context_bytes + stats.planned_block_bytes and same["total"] == 20
    preset = routes.policy_of({"preset": "quality", "speed": 8.0, "memory_budget_mb": 2048.0})
    assert routes.forecast(preset, setup) == same
    faster = routes.forecast(core.CachePolicy(speed=3.0), setup)
    assert faster["predicted"] > same["predicted"]
    assert "out of reach" in routes.forecast(core.CachePolicy(speed=8.0, max_reuse=0), setup)["note"]
    wide = routes.forecast(core.CachePolicy(speed=2.0, margin_space=16), setup)
    assert wide["planned"] != same["planned"] or wide["predicted"] < same["predicted"]


def test_the_last_run_of_the_same_workflow_goes_first(browser):
    watched(core.CachePolicy(speed=2.0), steps=20)
    setup, kept = live.last_setups.find("flow", ["7"])[0], live.Setups()
    for workflow, node, cell in ((None, "7", 8), ("a", "7", 9), ("b", "8", 10), ("a", "9", 11)):
        kept.keep(workflow, node, replace(setup, cell=cell))
    asked = [("a", ["7"]), ("a", []), ("b", ["7"]), ("c", ["7"]), ("c", ["5"])]
    assert [(s.cell, other) for s, other in (kept.find(*place) for place in asked)] == [
        (9, False), (11, False), (8, False), (8, False), (8, False)
    ]  # fmt: skip
    only = live.Setups()
    only.keep("a", "7", setup)
    assert [only.find(workflow, ["7"])[1] for workflow in "ab"] == [False, True]
    assert live.Setups().find("a", []) == (None, False)


def test_the_planner_says_what_the_clip_is(browser):
    _, stats = watched(core.CachePolicy(speed=2.0), steps=20)
    setup, _ = live.last_setups.find("flow", ["7"])
    clip = routes.forecast(core.CachePolicy(), setup)["clip"]
    frames, height, width = setup.grid.shape
    assert clip == {"latent_frames": frames, "width": 16 * width, "height": 16 * height}
    behind = replace(setup, cell=16, classes=replace(setup.classes, reference_frames=1))
    clip = routes.forecast(core.CachePolicy(), behind)["clip"]
    assert clip == {"latent_frames": frames - 1, "width": 32 * width, "height": 32 * height}


def test_the_planner_knows_the_mask_by_the_last_runs_threshold_only(browser):
    watched(core.CachePolicy(speed=2.0), steps=20)
    setup, _ = live.last_setups.find("flow", ["7"])
    assert "mask_threshold" not in routes.forecast(core.CachePolicy(), setup)["note"]
    assert "after the next run" in routes.forecast(core.CachePolicy(mask_threshold=0.5), setup)["note"]


def test_settings_come_as_the_nodes_widgets_have_them():
    widgets = {"preset": "custom", "speed": 4.0, "memory_budget_mb": 512.0, "method": "hetcache",
               "method.threshold": 0.2, "method.partial_factor": 2.0, "warmup": -1, "schedule": " "}  # fmt: skip
    policy = routes.policy_of(widgets)
    assert (policy.method, policy.threshold, policy.partial_factor, policy.warmup) == ("hetcache", 0.2, 2.0, None)
    with pytest.raises(ValueError, match="speed"):
        routes.policy_of({**widgets, "speed": 99.0})


def test_settings_are_refused_before_anything_ran(monkeypatch):
    """So that a wrong one is seen where it is set, and not once the workflow has come to the node."""

    class Request:
        async def json(self):
            return {"settings": {"preset": "custom", "speed": 3.0, "memory_budget_mb": 512.0, "schedule": "XYZ"}}

    monkeypatch.setattr(routes, "last_setups", live.Setups())
    answer = json.loads(asyncio.run(routes._plan(Request())).body)
    assert "schedule must start with F" in answer["error"]


@pytest.mark.parametrize("path", [r"\\nas\share\p.json", "//nas/share/p.json", '"//nas/p.json"'])
def test_looking_at_a_workflow_goes_to_no_other_computer(path):
    """A workflow that is opened names files; what only shows its numbers must not send credentials around."""

    class Request:
        async def json(self):
            return {"settings": {"preset": "custom", "speed": 3.0, "memory_budget_mb": 512.0, "profile": path}}

    assert "once the workflow runs" in json.loads(asyncio.run(routes._plan(Request())).body)["error"]
    assert "once the workflow runs" in routes.look({"path": path, "channel": "luma"})["error"]
