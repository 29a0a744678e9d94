"""The panels in a real browser on a real server: what they show before, while and after sampling."""

import json

import pytest

from tests.hosts.comfyui_host import ROOT
from tests.web.editor import STEPS

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
MINE = "HET.events.filter((e) => e.workflow === app.graph.id)"  # not those of runs that other tests left to end
PANELS = {"HetCachePatchModel": "hetcache_live", "HetCacheStats": "hetcache_stats",
          "HetCachePolicySettings": "hetcache_plan", "HetCacheLoadMaskVideo": "hetcache_mask"}  # fmt: skip


def told(editor) -> list[dict]:
    """What the server gave Cache Stats of its last prompt: one entry a sampling run."""
    history = editor.server.get("/history?max_items=1")
    (outputs,) = (entry["outputs"] for entry in history.values())
    (runs,) = (output["hetcache"] for output in outputs.values() if "hetcache" in output)
    return runs


def numbers(editor) -> dict:
    """What the server says of its last prompt's run."""
    return told(editor)[-1]["report"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_loads_with_a_panel_on_every_node_of_ours(editor, path):
    workflow = json.loads(path.read_text())
    editor.load(workflow)
    kinds = [node["type"] for node in workflow["nodes"]]
    assert editor.js("app.graph.nodes.length") == len(kinds)
    for kind, panel in PANELS.items():
        found = editor.js(f"app.graph.nodes.filter((n) => n.widgets?.some((w) => w.name === '{panel}')).length")
        assert found == kinds.count(kind), kind
    for node in (n for n in workflow["nodes"] if n["type"] in PANELS):  # a panel among the widgets shifts no value
        widgets = f"app.graph.getNodeById({node['id']}).widgets"
        got = editor.js(f"Object.fromEntries({widgets}.map((widget) => [widget.name, widget.value]))")
        assert {name: got.get(name) for name in node["widgets_values_named"]} == node["widgets_values_named"]
    assert overlaps(editor) == []


OVERLAPS = """app.graph.nodes.flatMap((a) => app.graph.nodes.filter((b) => b.id > a.id
    && a.pos[0] < b.pos[0] + b.size[0] && b.pos[0] < a.pos[0] + a.size[0]
    && a.pos[1] < b.pos[1] + b.size[1] && b.pos[1] < a.pos[1] + a.size[1]).map((b) => [a.type, b.type]))"""


def overlaps(editor) -> list:
    """Pairs of nodes that lie over each other for good.

    The settings' panel has been answered by then and grown for it, and Nodes 2.0 had time to measure what it guessed.
    """
    editor.until("HET.panel('hetcache_plan').dataset.state")
    for _ in range(200):
        editor.settle()
        if not (pairs := editor.js(OVERLAPS)):
            break
    return pairs


def ran(editor) -> None:
    """Run the demo to its end, to the last picture."""
    editor.run()
    for panel in ("hetcache_live", "hetcache_stats"):
        editor.comes_to(panel, "done")
    editor.finished()
    editor.settle()


def test_what_a_run_shows_covers_no_other_node(editor):
    ran(editor)
    assert overlaps(editor) == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_room_for_the_longest_note(editor, path):
    ran(editor)
    editor.load(json.loads(path.read_text()))
    editor.set("HetCachePolicySettings", "preset", "custom")
    editor.set("HetCachePolicySettings", "max_reuse", 0)
    editor.set("HetCachePolicySettings", "speed", 8.0)
    editor.until("HET.panel('hetcache_plan').textContent.includes('and so would max_reuse 1')")
    assert overlaps(editor) == []


def test_before_anything_ran_the_panels_say_so(editor):
    assert editor.state("hetcache_live") == editor.state("hetcache_stats") == "blank"
    assert "Nothing sampled yet" in editor.text("hetcache_live")


def test_the_demo_is_watched_and_its_numbers_are_the_servers(editor):
    editor.look_at("HetCachePatchModel")
    editor.run()
    editor.comes_to("hetcache_live", "sampling")
    editor.picture("1-sampling")
    editor.comes_to("hetcache_live", "done")
    editor.picture("2-done")
    editor.comes_to("hetcache_stats", "done")
    editor.finished()
    report, events = numbers(editor), editor.js("HET.events")
    assert 2 <= len(events) <= STEPS
    assert [len(event["decisions"]) for event in events] == sorted(len(event["decisions"]) for event in events)
    assert events[0]["decisions"] == "" and events[-1]["ended"]
    assert max(len(json.dumps(event)) for event in events) < 2000
    assert report["decisions"] == events[-1]["decisions"] and len(report["decisions"]) == STEPS
    speed = f"{report['speed']:.2f}×"
    assert speed in editor.text("hetcache_stats") and speed in editor.text("hetcache_live")
    label = editor.js("HET.panel('hetcache_stats').querySelector('.het-timeline').getAttribute('aria-label')")
    assert f"{STEPS} of {STEPS} evaluations done" in label and report["decisions"] in label
    rows = editor.js("HET.panel('hetcache_stats').querySelectorAll('details:last-of-type tbody tr').length")
    assert rows == STEPS
    editor.look_at("HetCacheStats")
    editor.picture("3-stats")
    editor.js("HET.panel('hetcache_stats').querySelectorAll('details').forEach((d) => { d.open = true; })")
    editor.js("HET.panel('hetcache_stats').scrollTo(0, 330)")
    editor.picture("4-stats-map")


def test_the_token_map_shows_what_was_sent(editor):
    editor.run()
    editor.comes_to("hetcache_stats", "done")
    editor.finished()
    editor.until("HET.panel('hetcache_stats').querySelector('.het-map > canvas').title !== ''")
    first = editor.js("HET.panel('hetcache_stats').querySelector('.het-map > canvas').title")
    assert "generative" in first
    editor.js("""(() => { const slider = HET.panel('hetcache_stats').querySelector('input[type=range]');
        slider.value = 0; slider.dispatchEvent(new Event('input')); })()""")
    assert "latent frame 1 of" in editor.text("hetcache_stats")


def test_runs_are_compared_without_losing_ones_place(editor):
    """By keyboard, with a section open: choosing another sampling run moves neither."""
    editor.run()
    editor.comes_to("hetcache_stats", "done")
    editor.finished()
    stats = "HET.panel('hetcache_stats')"
    give = """(output) => app.api.dispatchEvent(new CustomEvent('executed', {
        detail: { node: String(HET.node('HetCacheStats').id), output } }))"""
    editor.page.evaluate(give, {"hetcache": told(editor) * 2})
    assert editor.js(f"{stats}.querySelector('select').value") == "1"  # the latest
    every = f"[...{stats}.querySelectorAll('details')].at(-1)"
    assert not editor.js(f"{every}.open")
    editor.js(f"{every}.querySelector('summary').click()")
    editor.until(f"{every}.open")
    editor.settle()
    editor.js(f"{stats}.querySelector('select').focus()")
    editor.page.keyboard.press("ArrowUp")
    editor.until(f"{stats}.querySelector('select').value === '0'")
    assert editor.js(f"document.activeElement === {stats}.querySelector('select')")
    assert editor.js(f"{every}.open")


COPY = "HET.panel('hetcache_stats').querySelector(':scope > button')"


def test_what_is_copied_is_the_json_of_the_server(editor):
    editor.js("""(() => {
        const preview = LiteGraph.createNode('PreviewAny');
        app.graph.add(preview);
        preview.pos = [0, 1400];
        HET.node('HetCacheStats').connect(3, preview, 0);
    })()""")
    editor.run()
    editor.comes_to("hetcache_stats", "done")
    editor.finished()
    node = editor.js("HET.node('PreviewAny', 1).id")
    history = editor.server.get("/history?max_items=1")
    (outputs,) = (entry["outputs"] for entry in history.values())
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    try:
        editor.js(f"{COPY}.click()")
        editor.until(f"{COPY}.textContent === 'Copied'")
        copied = json.loads(editor.js("navigator.clipboard.readText()"))
    finally:
        editor.page.context.clear_permissions()
    assert copied == json.loads(outputs[str(node)]["text"][0])
    assert copied["runs"][0]["decisions"] and not copied["untouched"]


def test_a_browser_that_forbids_copying_is_told_another_way(editor):
    editor.run()
    editor.comes_to("hetcache_stats", "done")
    editor.finished()
    editor.js("void (navigator.clipboard.writeText = () => Promise.reject(new Error('no')))")
    try:
        editor.js(f"{COPY}.click()")
        editor.until(f"{COPY}.textContent.includes('use the json output')")
        editor.until(f"{COPY}.textContent === 'Copy JSON'")
    finally:
        editor.js("delete navigator.clipboard.writeText")


def test_the_slider_shows_what_the_planner_would_do(editor):
    editor.run()
    editor.comes_to("hetcache_plan", "known")
    editor.finished()
    editor.set("HetCachePolicySettings", "speed", 2.0)
    editor.until("Math.abs(Number(HET.panel('hetcache_plan').dataset.predicted) - 2) < 0.3")
    assert "predicted" in editor.text("hetcache_plan") and "full" in editor.text("hetcache_plan")
    editor.look_at("HetCachePolicySettings")
    editor.picture("5-plan")
    editor.set("HetCachePolicySettings", "speed", 8.0)
    editor.until("HET.panel('hetcache_plan').textContent.includes('out of reach')")
    editor.picture("6-plan-out-of-reach")
    editor.set("HetCachePolicySettings", "speed", 1.0)
    editor.until("HET.panel('hetcache_plan').textContent.includes('computed in full')")
    editor.set("HetCachePolicySettings", "schedule", "FXF")
    editor.until("HET.panel('hetcache_plan').textContent.includes('FXF')")


def test_two_prompts_are_told_apart(editor):
    editor.run()
    editor.run()
    editor.until(f"new Set({MINE}.filter((e) => e.ended).map((e) => e.prompt)).size === 2")
    editor.finished()
    last = editor.js(f"{MINE}.at(-1).run")
    assert editor.js("HET.panel('hetcache_live').dataset.run") == last
    assert editor.state("hetcache_live") == "done"


def test_bypassed_it_says_so(editor):
    editor.js("HET.node('HetCachePatchModel').mode = 4")
    editor.run()
    editor.comes_to("hetcache_stats", "plain")
    editor.finished()
    assert "bypassed" in editor.text("hetcache_stats")
    assert editor.js(f"{MINE}.length") == 0


def test_no_plan_is_shown_for_a_speed_that_comes_from_another_node(editor):
    editor.js("""(() => {
        const number = LiteGraph.createNode('PrimitiveFloat'), node = HET.node('HetCachePolicySettings');
        app.graph.add(number);
        number.pos = [0, 900];
        number.connect(0, node, node.inputs.findIndex((input) => input.name === 'speed'));
    })()""")
    editor.comes_to("hetcache_plan", "linked")
    assert "comes from another node" in editor.text("hetcache_plan")


def test_at_speed_1_the_reason_is_told(editor):
    editor.set("HetCachePolicySettings", "speed", 1.0)
    editor.run()
    editor.comes_to("hetcache_live", "done")
    editor.finished()
    assert "Nothing is being saved: speed 1.0" in editor.text("hetcache_live")


def test_a_node_that_is_deleted_takes_its_panel_along(editor):
    before = editor.js("document.querySelectorAll('[data-hetcache=hetcache_live]').length")
    editor.run()
    editor.until("HET.events.length > 0")  # the sampling state itself may pass unseen where sampling is quick
    editor.js("app.graph.remove(HET.node('HetCachePatchModel'))")
    editor.finished()
    editor.settle()
    assert before == 1 and editor.js("document.querySelectorAll('[data-hetcache=hetcache_live]').length") == 0


def test_in_a_subgraph_and_beside_another_each_patch_model_gets_its_own_news(editor):
    editor.js("""(() => {
        const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
        const other = add('HetCachePatchModel'); other.pos = [0, 900];
        app.graph.convertToSubgraph(new Set([HET.node('HetCachePatchModel', 0)]));
    })()""")
    assert editor.js("app.graph.nodes.some((node) => node.subgraph)")
    editor.run()
    editor.until("HET.events.some((event) => event.ended && event.node.includes(':'))")
    editor.finished()
    node = editor.js("HET.events.at(-1).node")
    assert ":" in node
    inside = editor.js("HET.all().filter((n) => n.type === 'HetCachePatchModel').map((n) => n.graph !== app.graph)")
    states = [editor.state("hetcache_live", n) for n in range(2)]
    assert sorted(zip(inside, states)) == [(False, "blank"), (True, "done")]
