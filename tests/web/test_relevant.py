"""Cache Policy Settings shows what its method looks at, and hides only what makes no difference to it."""

import re
from dataclasses import replace

import pytest
import torch

from hetcache_core import CachePolicy
from tests.core.test_engine import whole_run
from tests.hosts.comfyui_host import ROOT

NODE, METHODS = "HetCachePolicySettings", ("plan", "hetcache", "mixcache", "profilingdit", "off")
OTHERWISE = {
    "refresh": 2, "margin_space": 2, "margin_time": 1, "context_share": 0.5, "partials": False, "memory_offload": True,
    "max_reuse": 0, "profile": "nano", "warmup": 5, "cooldown": 3, "mask_threshold": 0.5, "max_mask_fraction": 0.0,
    "memory_budget_mb": 0.0, "replan": True,
}  # fmt: skip
OF_THE_HOST = ("mask_threshold", "margin_space", "margin_time")  # looked at before the engine has the mask's classes

UNSEEN = {  # by this small model, which has no blocks to reuse and mixes guidance alone; the core's tests see them
    "mixcache": ("max_reuse", "profile", "memory_budget_mb"), "profilingdit": ("memory_budget_mb",)
}  # fmt: skip


def unused() -> dict[str, list[str]]:
    """By method, what the page hides, read from its source."""
    source = (ROOT / "web" / "hetcache" / "relevant.js").read_text()
    lists = {name: re.findall(r'"(\w+)"', body) for name, body in re.findall(r"const (\w+) = \[(.*?)\]", source)}
    table = re.search(r"const UNUSED = \{.*?\n(.*?)\n\};", source, re.DOTALL)[1]
    found = {}
    for method, value in re.findall(r"(\w+): (.*?),?$", table, re.MULTILINE):
        spread = [name for part in re.findall(r"[A-Z]+", value) for name in lists[part]]
        found[method] = spread + re.findall(r'"(\w+)"', value)
    return found


@pytest.mark.parametrize(("method", "name"), [(m, n) for m, names in unused().items() for n in names])
def test_what_is_hidden_makes_no_difference(method, name):
    policy = CachePolicy(method=method, profile="wan", threshold=0.2, trigger=10.0, deviation=10.0, interval=2)
    if name == "schedule":
        if method != "off":
            with pytest.raises(ValueError, match="needs method 'plan'"):
                replace(policy, schedule="FR")
        return
    engine, _, outputs = whole_run(policy)
    other, _, changed = whole_run(replace(policy, **{name: OTHERWISE[name]}))
    done = engine.stats.planned or engine.stats.decisions
    assert method == "off" or set(done) > {"F"}
    assert done == (other.stats.planned or other.stats.decisions)
    assert all(torch.equal(a, b) for x, y in zip(outputs, changed, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, n) for m in METHODS[:-1] for n in OTHERWISE if n not in (*unused()[m], *OF_THE_HOST, *UNSEEN.get(m, ()))],
)
def test_what_is_shown_makes_a_difference(method, name):
    usual = {"plan": {"speed": 3.0}, "profilingdit": {"interval": 2}}.get(method, {})
    usual |= {"threshold": 0.2, "trigger": 10.0, "deviation": 10.0, "profile": "wan"}
    policies = CachePolicy(method=method, **usual), CachePolicy(method=method, **{**usual, name: OTHERWISE[name]})
    (first, _, outputs), (second, _, changed) = (whole_run(policy) for policy in policies)
    told = [(e.stats.planned, e.stats.decisions, e.stats.tier, e.stats.selected_tokens) for e in (first, second)]
    equal = all(torch.equal(a, b) for x, y in zip(outputs, changed, strict=True) for a, b in zip(x, y, strict=True))
    assert not equal or told[0] != told[1]


def shown(editor) -> set[str]:
    """Settings on the node that can be seen."""
    editor.settle()
    if not editor.nodes2:
        return set(editor.js(f"HET.node('{NODE}').widgets.filter((w) => !w.hidden).map((w) => w.name)"))
    text = f"document.querySelector(`[data-node-id='${{HET.node('{NODE}').id}}']`).innerText"
    text += ".replace(HET.panel('hetcache_plan').innerText, '')"  # which speaks of speed and schedules too
    return set(re.findall(r"[a-z_]+", editor.js(text)))


def test_every_method_shows_its_own_settings(editor):
    editor.js(f"HET.node('{NODE}').showAdvanced = true")
    editor.look_at(NODE)
    all_of_them = set(editor.js(f"HET.node('{NODE}').widgets.map((w) => w.name)"))
    assert {name for names in unused().values() for name in names} <= all_of_them
    for method in METHODS:
        editor.set(NODE, "method", method)
        hidden = unused()[method]
        editor.until(f"HET.node('{NODE}').widgets.filter((w) => w.hidden).length === {len(hidden)}")
        assert not shown(editor) & set(hidden) and {"speed", "warmup"} - set(hidden) <= shown(editor), method
    editor.set(NODE, "method", "plan")
    editor.set(NODE, "schedule", "FFRP")
    editor.set(NODE, "profile", "lost.json")
    editor.set(NODE, "method", "off")
    editor.until(f"HET.widget('{NODE}', 'refresh').hidden")
    editor.set(NODE, "preset", "balanced")  # with which the memory budget counts whatever the method says, and no other
    editor.until(f"!HET.widget('{NODE}', 'memory_budget_mb').hidden && HET.widget('{NODE}', 'speed').hidden")
    assert {"preset", "memory_budget_mb"} <= shown(editor) and not shown(editor) & {"speed", "method", "schedule"}
    editor.set(NODE, "preset", "custom")
    editor.until(f"!HET.widget('{NODE}', 'speed').hidden")
    editor.until(f"HET.widget('{NODE}', 'refresh').hidden")
    assert {"schedule", "profile"} <= shown(editor)  # they would be refused: they must be seen to be taken out
