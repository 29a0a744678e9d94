"""The page around the panels: reloads, themes, and a server without our backend."""

import pytest

PANELS = ("hetcache_live", "hetcache_stats", "hetcache_plan")
RUN = {
    "run": "long", "total": 30, "planned": "FFRPRP" * 5, "decisions": "FFR", "seconds": [1, 1, 0.1], "speed": 1.2,
    "estimated": False, "target": 8.0, "predicted": 2.78, "saved_seconds": 1.0, "mask_fraction": 0.4, "held_bytes": 1,
    "peak_held_bytes": 1, "budget_bytes": 2**31, "note": "", "warnings": [], "number": 1, "ended": False,
    "workflow": None, "prompt": "p",
}  # fmt: skip


def sampled(editor) -> None:
    editor.run()
    editor.comes_to("hetcache_stats", "done")
    editor.finished()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_and_bars_stand_out(editor, theme):
    sampled(editor)
    try:
        editor.setting("Comfy.ColorPalette", theme)
        editor.until(f"document.documentElement.classList.contains('dark-theme') === {str(theme == 'dark').lower()}")
        every = "{ decisions: 'FPRBG', planned: 'FPRBGFPRBG', total: 10, ended: false }"
        editor.js(f"HET.tell({{ ...HET.events.at(-1), ...{every} }})")
        for panel in PANELS:
            assert editor.js(f"HET.faint('{panel}')") == [], panel
        editor.look_at("HetCachePatchModel")
        editor.picture(f"9-{theme}")
    finally:
        editor.setting("Comfy.ColorPalette", "dark")


def test_a_long_note_is_not_cut_off(editor):
    editor.look_at("HetCachePatchModel")
    note = "speed 8 is out of reach, 2.78 is the most; " * 4 + "a smaller mask or a shorter warm-up would help"
    node = editor.js("String(HET.node('HetCachePatchModel').id)")
    editor.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node, "note": note})
    assert "shorter warm-up" in editor.text("hetcache_live")
    editor.settle()
    editor.settle()
    assert editor.js("HET.hidden('hetcache_live')") <= 1
    editor.picture("9-long-note")
    tall = editor.js("HET.panel('hetcache_live').clientHeight")
    editor.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node})
    editor.settle()
    if not editor.nodes2:  # nothing jumps; Nodes 2.0 fits every panel to what it shows by itself
        assert editor.js("HET.panel('hetcache_live').clientHeight") == tall


def test_a_run_that_was_stopped_stays_so_and_no_other(editor):
    """The host tells every page of every prompt; what is opened again shows what became of its run."""
    node = editor.js("String(HET.node('HetCachePatchModel').id)")
    editor.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node})
    editor.js("HET.stop('another')")
    assert editor.state("hetcache_live") == "sampling"
    editor.js("HET.stop('p')")
    assert editor.state("hetcache_live") == "stopped" and "stopped" in editor.text("hetcache_live")
    editor.load(editor.js("app.graph.serialize()"))
    editor.until("HET.panel('hetcache_live')?.dataset.state === 'stopped'")


def test_a_run_whose_end_was_not_heard_of_is_not_shown_as_going_on(editor):
    """The connection broke, or the server did: once it is back, what is in no queue has ended."""
    node = editor.js("String(HET.node('HetCachePatchModel').id)")
    editor.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node, "run": "lost", "prompt": "lost"})
    assert editor.state("hetcache_live") == "sampling"
    editor.js("app.api.dispatchEvent(new CustomEvent('reconnected'))")
    editor.until("HET.panel('hetcache_live').dataset.state === 'stopped'")
    assert "ended while the connection was lost" in editor.text("hetcache_live")


def test_statistics_go_to_the_workflow_that_was_run(editor):
    """The host hands what a node gave to whichever workflow is on screen."""
    patch, stats = (editor.js(f"String(HET.node('{kind}').id)") for kind in ("HetCachePatchModel", "HetCacheStats"))
    here = editor.js("app.graph.id")
    give = """(detail) => app.api.dispatchEvent(new CustomEvent("executed", { detail }))"""
    for workflow in ("another", here):
        told = {**RUN, "node": patch, "workflow": workflow, "prompt": workflow, "ended": True}
        editor.page.evaluate("(detail) => HET.tell(detail)", told)
        output = {"hetcache_unmeasured": [f"of {workflow}"]}
        editor.page.evaluate(give, {"prompt_id": workflow, "node": stats, "display_node": stats, "output": output})
        assert (f"of {workflow}" in editor.text("hetcache_stats")) == (workflow == here)


def test_the_wheel_zooms_over_a_panel_with_nothing_to_scroll(editor):
    if editor.nodes2:
        pytest.skip("Nodes 2.0 handles the wheel itself")
    editor.look_at("HetCachePatchModel")
    before = editor.js("app.canvas.ds.scale")
    editor.js("HET.panel('hetcache_live').dispatchEvent(new WheelEvent('wheel', { deltaY: -120, bubbles: true, "
              "cancelable: true, clientX: 400, clientY: 300 })) && 0")  # fmt: skip
    editor.until(f"app.canvas.ds.scale !== {before}")


def test_what_is_kept_of_earlier_pages_is_bounded(editor):
    """A browser grants a few megabytes, and the host keeps its workflows there as well."""
    editor.js("Array.from({ length: 60 }, (_, i) => sessionStorage.setItem(`hetcache:gone/${i}`, '{}')).length")
    editor.js("window.dispatchEvent(new Event('pagehide'))")
    assert editor.js("Object.keys(sessionStorage).filter((name) => name.startsWith('hetcache:')).length") <= 24


def test_a_reload_brings_the_panels_back_as_they_were(editor):
    sampled(editor)
    before = {panel: editor.text(panel) for panel in PANELS[:2]}
    workflow = editor.js("app.graph.serialize()")
    editor.open()
    editor.load(workflow)
    editor.until("HET.panel('hetcache_stats')?.dataset.state === 'done'")
    assert {panel: editor.text(panel) for panel in PANELS[:2]} == before
    assert editor.js("app.graph.nodes.every((n) => (n.widgets ?? []).filter((w) => w.type === 'hetcache').length < 2)")
    editor.comes_to("hetcache_plan", "known")


def test_no_panel_is_saved_with_the_workflow_or_sent_with_the_prompt(editor):
    sampled(editor)
    saved = editor.js("JSON.stringify(app.graph.serialize().nodes.map((n) => n.widgets_values ?? []))")
    assert "hetcache_" not in saved
    prompt = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        assert not any(name.startswith("hetcache_") for name in node["inputs"])


def test_without_our_backend_the_panels_say_what_is_missing(editor):
    editor.page.route("**/hetcache/plan", lambda route: route.fulfill(status=404, body="no such route"))
    try:
        editor.set("HetCachePolicySettings", "speed", 2.5)
        editor.comes_to("hetcache_plan", "failed")
        assert "no planner (404)" in editor.text("hetcache_plan")
    finally:
        editor.page.unroute("**/hetcache/plan")


def test_news_for_nodes_that_are_not_there_do_no_harm(editor):
    for detail in ({}, {"node": "999"}, {"node": "1:2:3", "decisions": "F"}, {"node": None, "workflow": "another"}):
        editor.page.evaluate("(detail) => HET.tell(detail)", detail)
    editor.settle()
    assert editor.state("hetcache_live") == "blank"


def test_an_event_costs_the_page_less_than_two_milliseconds(editor):
    sampled(editor)
    took = editor.page.evaluate("""() => {
        const run = { ...HET.events.at(-1), total: 50, planned: 'FRRPRR'.repeat(9).slice(0, 50), ended: false };
        const times = [];
        for (let i = 0; i < 200; i++) {
            const detail = { ...run, decisions: run.planned.slice(0, i % 50), seconds: Array(i % 50).fill(0.1) };
            const begun = performance.now();
            HET.tell(detail);
            times.push(performance.now() - begun);
        }
        return times.sort((a, b) => a - b)[100];
    }""")
    print(f"median {took:.2f} ms an event")
    assert took < 2
