"""Keeps the nodes' words in every language: what is missing, what is stale, and the English ones, which the nodes have.

    python -m locales.build http://127.0.0.1:8188      # a running ComfyUI that has this pack, asked for its nodes

writes `en/nodeDefs.json` from the nodes themselves and lists what the other languages lack or have too much. Those are
edited by hand, in the layout the host reads: of a node its `display_name`, `description`, inputs by name, outputs by
number. `main.json` has the panels' words under `hetcache`, by the English ones: those that `web/` says, and of the
server's reasons such as say always the same.
"""

from __future__ import annotations

import ast
import itertools
import json
import pathlib
import re
import sys
import urllib.request
from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "ja", "ko", "zh")
_TEXT = r'"(?:[^"\\]|\\.)*"'
_SAID = re.compile(rf"\bsay\(\s*({_TEXT}(?:\s*\+\s*{_TEXT})*)")


def english(definitions: dict) -> dict:
    """The catalogue of some nodes.

    Args:
        definitions: the nodes, as a host's `/object_info` gives them.
    """
    return {name: _node(node) for name, node in sorted(definitions.items())}


def _node(node: dict) -> dict:
    inputs = {name.replace(".", "_"): {"name": name.split(".")[-1], "tooltip": tooltip}
              for name, tooltip in _inputs(node["input"])}  # fmt: skip
    pairs = zip(node["output_name"], node["output_tooltips"])
    outputs = {str(index): {"name": name, "tooltip": tooltip} for index, (name, tooltip) in enumerate(pairs)}
    return {"display_name": node["display_name"], "description": node["description"], "inputs": inputs,
            "outputs": outputs}  # fmt: skip


def _inputs(definition: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every input and its tooltip, those a choice brings with it as `choice.input`, which the host writes so too."""
    for part in ("required", "optional"):
        for name, (kind, *more) in definition.get(part, {}).items():
            options = more[0] if more else {}
            yield prefix + name, options.get("tooltip", "")
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for choice in options["options"]:
                    yield from _inputs(choice["inputs"], f"{prefix}{name}.")


def read(language: str) -> dict:
    """The catalogue of a language."""
    return json.loads((HERE / language / "nodeDefs.json").read_text(encoding="utf-8"))


def panel(language: str) -> dict[str, str]:
    """The panels' words of a language, by the English ones."""
    return json.loads((HERE / language / "main.json").read_text(encoding="utf-8"))["hetcache"]


def said() -> set[str]:
    """Everything the panels say, in English, as `web/` has it."""
    found = set()
    for file in (ROOT / "web").rglob("*.js"):
        for said_ in _SAID.findall(file.read_text(encoding="utf-8")):
            found.add("".join(json.loads(part) for part in re.findall(_TEXT, said_)))
    return found


def reasons() -> set[str]:
    """Every text of the nodes and of the core, {1}, {2} and so on for values: among them, what the panels are sent."""
    files = [file for folder in ("nodes", "hetcache_core") for file in (ROOT / folder).rglob("*.py")]
    parts = [part for file in files for part in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    same = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return same | {_form(part.values) for part in parts if isinstance(part, ast.JoinedStr)}


def _form(parts: list[ast.expr]) -> str:
    numbers = itertools.count(1)
    return "".join(p.value if isinstance(p, ast.Constant) else f"{{{next(numbers)}}}" for p in parts)


def text(catalogue: dict) -> str:
    """A catalogue as its file has it."""
    return json.dumps(catalogue, indent=1, ensure_ascii=False) + "\n"


def paths(catalogue: dict, prefix: str = "") -> dict[str, str]:
    """Every string of a catalogue by its place, as in `HetCacheStats.inputs.latent.tooltip`."""
    found = {}
    for name, value in catalogue.items():
        found |= paths(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def problems(language: str, wanted: dict) -> list[str]:
    """What is wrong with a language beside the catalogue it should follow, a line each."""
    have, want = paths(read(language)), paths(wanted)
    lines = [f"{language}: {place} is missing (en: {want[place]!r})" for place in want if not have.get(place)]
    lines += [f"{language}: {place} is stale; take it out" for place in have if place not in want]
    # What the frontend's translation library would read as code.
    lines += [f"{language}: {place} has one of {{ }} @ |" for place in have if set("{}@|") & set(have[place])]
    return lines


def panel_problems(language: str) -> list[str]:
    """What is wrong with the panels' words of a language beside what the panels say, a line each."""
    have, want = panel(language), said()
    lines = [f"{language}: {text!r} of the panels is missing" for text in sorted(want - set(have))]
    lines += [f"{language}: {text!r} is said nowhere; take it out" for text in sorted(set(have) - want - reasons())]
    for text, words in have.items():
        if sorted(re.findall(r"{\w+}", text)) != sorted(re.findall(r"{\w+}", words)):
            lines.append(f"{language}: {text!r} has other values in braces than {words!r}")
    return lines


def main(address: str) -> int:
    with urllib.request.urlopen(f"{address}/object_info") as answer:
        known = json.load(answer)
    catalogue = english({name: node for name, node in known.items() if name.startswith("HetCache")})
    (HERE / "en" / "nodeDefs.json").write_text(text(catalogue), encoding="utf-8")
    found = [line for language in LANGUAGES for line in problems(language, catalogue)]
    found += [line for language in LANGUAGES if language != "en" for line in panel_problems(language)]
    print("\n".join(found) or f"{', '.join(LANGUAGES)}: complete")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
