"""The nodes' words in every language, as far as no host is needed; tests/hosts compares them with the nodes."""

import json
import re

import pytest

from locales import build

ENGLISH = build.read("en")
TRANSLATED = [language for language in build.LANGUAGES if language != "en"]
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]"}

PAGES = sorted((build.ROOT / "web" / "docs").glob("*.md"))

KEPT = r"\b(?:hold|loop|refuse|balanced|few-step|alpha|luma|FFRPRF|WanVaceToVideo|3840|192x192)\b"


@pytest.mark.parametrize("language", build.LANGUAGES)
def test_every_word_is_there_and_none_is_stale(language):
    assert build.problems(language, ENGLISH) == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_tooltips_are_in_their_language(language):
    script = re.compile(SCRIPTS[language])
    for place, words in build.paths(build.read(language)).items():
        if place.endswith(("tooltip", "description")):
            assert script.search(words) or (language == "ja" and re.search(SCRIPTS["zh"], words)), place


@pytest.mark.parametrize("language", TRANSLATED)
def test_choices_and_numbers_survive_translation(language):
    """What is typed or chosen stays as it is on the node, in every language."""
    translated = build.paths(build.read(language))
    for place, words in build.paths(ENGLISH).items():
        kept = re.findall(KEPT, words)
        assert [word for word in kept if word not in translated[place]] == [], place


def outline(page) -> list[str]:
    """What a help page is made of, in order: headings, rows of tables, items of lists, its picture; not their words."""
    lines = page.read_text(encoding="utf-8").splitlines()
    starts = (re.match(r"#+ |[|] *$|[|]|- |\d+\. |!\[[^]]+(?=\])", line) for line in lines)
    return [re.search(r"\((.*)\)", line)[1] if found[0][0] == "!" else found[0].strip()
            for line, found in zip(lines, starts) if found]  # fmt: skip


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_help_pages_say_the_same_in_every_language(page, language):
    translated = page.with_suffix("") / f"{language}.md"
    assert outline(translated) == outline(page)
    words = translated.read_text(encoding="utf-8")
    assert re.search(SCRIPTS[language], words) and build.read(language)[page.stem]["display_name"] in words
    assert [word for word in re.findall(KEPT, page.read_text(encoding="utf-8")) if word not in words] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_panels_speak_every_language(language):
    assert build.panel_problems(language) == []


def test_what_the_panels_lack_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "xx").mkdir()
    words = {text: text for text in build.said()} | {"old": "x", "{done} of {total}": "{done}"}
    words.pop("Copy JSON")
    (tmp_path / "xx" / "main.json").write_text(json.dumps({"hetcache": words}))
    assert build.panel_problems("xx") == [
        "xx: 'Copy JSON' of the panels is missing", "xx: 'old' is said nowhere; take it out",
        "xx: '{done} of {total}' has other values in braces than '{done}'",
    ]  # fmt: skip


def test_what_is_missing_or_stale_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "xx").mkdir()
    (tmp_path / "xx" / "nodeDefs.json").write_text('{"A": {"display_name": "", "old": "x", "b": "{y}"}}')
    wanted = {"A": {"display_name": "Name", "b": "B"}, "C": {"description": "d"}}
    assert build.problems("xx", wanted) == [
        "xx: A.display_name is missing (en: 'Name')", "xx: C.description is missing (en: 'd')",
        "xx: A.old is stale; take it out", "xx: A.b has one of { } @ |",
    ]  # fmt: skip


def test_inputs_that_a_choice_brings_are_named_as_the_frontend_asks_for_them():
    brought = {"required": {"x": ["INT", {"tooltip": "u"}]}}
    options = [{"key": "a", "inputs": brought}, {"key": "b", "inputs": {}}]
    choice = ["COMFY_DYNAMICCOMBO_V3", {"tooltip": "t", "options": options}]
    node = {"display_name": "N", "description": "d", "input": {"required": {"way": choice}}, "output_name": ["o"],
            "output_tooltips": ["p"]}  # fmt: skip
    assert build.english({"N": node})["N"] == {
        "display_name": "N", "description": "d",
        "inputs": {"way": {"name": "way", "tooltip": "t"}, "way_x": {"name": "x", "tooltip": "u"}},
        "outputs": {"0": {"name": "o", "tooltip": "p"}},
    }  # fmt: skip
