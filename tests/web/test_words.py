"""The panels in the editor's language."""

import pytest

from locales import build
from tests.web.editor import STEPS
from tests.web.test_page import RUN

PANELS = ("hetcache_live", "hetcache_stats", "hetcache_plan")
TEXTS = """(name) => {
    const walker = document.createTreeWalker(HET.panel(name), NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) found.push(walker.currentNode.data.trim());
    return found.filter(Boolean);
}"""


@pytest.fixture
def chinese(editor):
    """The demo in Chinese: the host loads the workflow anew when its language is changed."""
    editor.setting("Comfy.Locale", "zh")
    editor.until("HET.panel('hetcache_live')?.textContent.includes('尚未采样')")
    yield editor
    editor.finished()
    editor.setting("Comfy.Locale", "en")
    editor.until("!/[\u4e00-\u9fff]/.test(HET.panel('hetcache_live')?.textContent ?? '')")


def test_several_reasons_are_each_translated(chinese):
    words, known = build.panel("zh"), "a stream not seen before"
    node = chinese.js("String(HET.node('HetCachePatchModel').id)")
    covered = "the mask covers 95% of the clip, more than 90%; caching pays for smaller edits"
    note = f"{known}; 3 of them are unknown; {covered}"
    chinese.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node, "note": note})
    said = chinese.text("hetcache_live")
    covered = "遮罩覆盖片段的 95%，超过 90%；缓存适合更小的编辑区域"
    assert f"{words[known]}; 3 of them are unknown; {covered}" in said


def test_values_in_a_reason_keep_their_places_and_are_translated_too(chinese):
    node = chinese.js("String(HET.node('HetCachePatchModel').id)")
    note = (
        "speed 3 is out of reach, 2.10 is the most: 1 warm-up and 2 cool-down evaluations are full; more steps or a "
        "shorter warm-up would help, and so would max_reuse 1, which lets single evaluations be forecast"
    )
    chinese.page.evaluate("(detail) => HET.tell(detail)", {**RUN, "node": node, "note": note})
    said = chinese.text("hetcache_live")
    assert "速度 3 达不到，最多 2.10：1 步预热和 2 步收尾" in said and "把 max_reuse 设为 1 也会有帮助" in said


def test_the_panels_speak_the_editors_language(chinese):
    words = build.panel("zh")
    chinese.until("HET.panel('hetcache_plan').textContent !== ''")
    chinese.run()
    chinese.comes_to("hetcache_stats", "done")
    chinese.finished()
    chinese.comes_to("hetcache_plan", "known")
    english = {text for text, translated in words.items() if text != translated}
    for panel in PANELS:
        texts = chinese.page.evaluate(TEXTS, panel)
        assert not english & set(texts), panel
    assert {words["Copy JSON"], words["Token map"], words["predicted"]} <= set(chinese.page.evaluate(TEXTS, PANELS[1]))
    label = chinese.js("HET.panel('hetcache_stats').querySelector('.het-timeline').getAttribute('aria-label')")
    assert f"已完成 {STEPS} / {STEPS} 次计算" in label
    for number, kind in enumerate(("HetCachePatchModel", "HetCachePolicySettings", "HetCacheStats")):
        chinese.look_at(kind)
        chinese.picture(f"10-chinese-{number}")


def test_a_reason_of_the_server_is_translated_where_it_is_always_the_same(chinese):
    chinese.set("HetCachePolicySettings", "speed", 1.0)
    chinese.run()
    chinese.comes_to("hetcache_live", "done")
    chinese.finished()
    assert "没有节省：速度 1.0 要求得到完全相同的结果。" in chinese.text("hetcache_live")


def test_a_language_without_words_of_ours_stays_english(editor):
    editor.setting("Comfy.Locale", "fr")
    try:
        editor.until("app.extensionManager.setting.get('Comfy.Locale') === 'fr'")
        editor.settle()
        assert "Nothing sampled yet" in editor.text("hetcache_live")
    finally:
        editor.setting("Comfy.Locale", "en")
