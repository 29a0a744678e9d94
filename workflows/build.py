"""Writes the workflows of graphs.py in the two forms ComfyUI reads: for its editor, and in api/ for its HTTP API.

    python -m workflows.build http://127.0.0.1:8188      # a running ComfyUI that has this pack, asked for its nodes
"""

from __future__ import annotations

import json
import pathlib
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workflows.graphs import GRAPHS, MODELS

HERE = pathlib.Path(__file__).parent
PACK = "hetcache"  # in the registry
GREEN, BROWN = {"color": "#232", "bgcolor": "#353"}, {"color": "#432", "bgcolor": "#653"}  # the editor's own
MARGIN, TITLE, GAP = 20, 30, 50  # pixels: inside a group, of a node's title, between nodes
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings inputs of its own
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}  # set on the node; everything else is linked


@dataclass
class Node:
    """A node; `node["name"]` is one of its outputs, to be given to another as input."""

    id: int
    kind: str
    inputs: dict[str, Any]
    title: str = ""
    tall: int = 0  # pixels; 0: what its inputs and outputs take

    def __getitem__(self, output: str) -> Slot:
        return Slot(self, output)


class Slot(NamedTuple):
    node: Node
    output: str


@dataclass
class Group:
    title: str
    width: int
    new_column: bool
    nodes: list[Node] = field(default_factory=list)


class Graph:
    """What a function of graphs.py fills: nodes in groups, groups in columns from left to right."""

    def __init__(self):
        self.groups: list[Group] = []

    @property
    def nodes(self) -> list[Node]:
        return [node for group in self.groups for node in group.nodes]

    def group(self, title: str, width: int = 320, below: bool = False) -> None:
        """Begin a group, in a new column or below the one before."""
        self.groups.append(Group(title, self.groups[-1].width if below else width, not below))

    def add(self, kind: str, title: str = "", tall: int = 0, **inputs) -> Node:
        self.groups[-1].nodes.append(Node(len(self.nodes) + 1, kind, inputs, title, tall))
        return self.groups[-1].nodes[-1]

    def note(self, title: str, text: str, tall: int) -> None:
        self.add("MarkdownNote", title, tall, text=text.strip())


class Input(NamedTuple):
    name: str
    type: str
    optional: bool = False
    widget: bool = False
    value: Any = None
    editor_only: bool = False


def inputs_of(given: dict[str, Any], definition: dict, prefix: str = "") -> Iterator[Input]:
    """A node's inputs as its definition has them, with the given values or the defaults."""
    upload = False
    for optional in (False, True):
        for name, (kind, *more) in definition.get("optional" if optional else "required", {}).items():
            path, options = prefix + name, more[0] if more else {}
            if isinstance(kind, list):  # how the host writes the choices of its older nodes
                kind, options = "COMBO", {"options": kind, **options}
            if kind not in WIDGETS:
                yield Input(path, kind, optional)
                continue
            choices = options.get("options", [""])
            if kind == DYNAMIC:
                choices, bring = [choice["key"] for choice in choices], {c["key"]: c["inputs"] for c in choices}
            value = given.get(path, options.get("default", choices[0] if choices else ""))
            if isinstance(value, Slot):
                value = options.get("default", choices[0])
            yield Input(path, kind, optional, True, value)
            if kind == DYNAMIC:
                yield from inputs_of(given, bring[value], f"{path}.")
            if options.get("control_after_generate"):
                yield Input("control_after_generate", "", widget=True, value="fixed", editor_only=True)
            upload |= bool(options.get("image_upload") or options.get("video_upload"))
    if upload:  # the editor puts its button behind all that the node has
        yield Input("upload", "", widget=True, value="image", editor_only=True)


def api_form(graph: Graph, definitions: dict) -> dict:
    """What the host executes."""
    prompt = {}
    for node in graph.nodes:
        if node.kind in definitions:
            inputs = {i.name: i.value for i in inputs_of(node.inputs, definitions[node.kind]["input"])
                      if i.widget and not i.editor_only}  # fmt: skip
            for name, value in node.inputs.items():
                if isinstance(value, Slot):
                    inputs[name] = [str(value.node.id), _index(value, definitions)]
            title = node.title or definitions[node.kind]["display_name"] or node.kind
            prompt[str(node.id)] = {"inputs": inputs, "class_type": node.kind, "_meta": {"title": title}}
    return prompt


def editor_form(graph: Graph, definitions: dict, version: str) -> dict:
    """What the editor opens, laid out."""
    nodes, groups, links, x, y, bottom = [], [], [], 0, 0, 0
    for number, group in enumerate(graph.groups, 1):
        if group.new_column and number > 1:
            x, y = x + graph.groups[number - 2].width + 2 * MARGIN + GAP, 0
        top, y = y, y + 50
        for node in group.nodes:
            form = _editor_node(node, definitions, version, links)
            form["pos"], form["size"] = [x + MARGIN, y + TITLE], [group.width, form["size"][1]]
            nodes.append(form)
            y += TITLE + form["size"][1] + GAP
        y += MARGIN - GAP
        groups.append({"id": number, "title": group.title, "bounding": [x, top, group.width + 2 * MARGIN, y - top],
                       "color": "#3f789e", "font_size": 24, "flags": {}})  # fmt: skip
        y, bottom = y + GAP, max(bottom, y)
    outgoing = {(link[1], link[2]): [other[0] for other in links if other[1:3] == link[1:3]] for link in links}
    for form in nodes:
        for index, output in enumerate(form["outputs"]):
            output["links"] = outgoing.get((form["id"], index))
    return {
        "revision": 0,  # without an id: the editor gives one to every copy that is opened, and panels tell by it
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links, "groups": groups,
        "config": {}, "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}}, "version": 0.4,
    }  # fmt: skip


def _editor_node(node: Node, definitions: dict, version: str, links: list) -> dict:
    """A node without its place; its links are added to `links`. A note is a node that the editor alone knows."""
    definition = definitions.get(node.kind, {"input": {"required": {"text": ["STRING"]}}, "output": []})
    inputs = list(inputs_of(node.inputs, definition["input"]))
    ours, note = definition.get("python_module", "").startswith("custom_nodes"), node.kind not in definitions
    widgets = [i for i in inputs if i.widget]
    written = []
    for socket in () if note else sorted((i for i in inputs if not i.editor_only), key=lambda i: i.widget):
        link, source = None, node.inputs.get(socket.name)
        if isinstance(source, Slot):
            link, output = len(links) + 1, _index(source, definitions)
            type_ = definitions[source.node.kind]["output"][output]
            links.append([link, source.node.id, output, node.id, len(written), type_])
        written.append({"name": socket.name, "type": socket.type, **({"shape": 7} if socket.optional else {}),
                        **({"widget": {"name": socket.name}} if socket.widget else {}), "link": link})  # fmt: skip
    names = definition.get("output_name", [])
    outputs = [{"name": name, "type": kind, "links": None} for name, kind in zip(names, definition["output"])]
    rows = max(len(inputs) - len(widgets), len(outputs))
    models = [{"name": i.value, **MODELS[i.value]} for i in widgets if i.value in MODELS]
    return {
        "id": node.id, "type": node.kind, **({"title": node.title} if node.title else {}), "pos": [],
        "size": [0, node.tall or 20 * rows + (24 * len(widgets) + 8 if widgets else 0) + 6],
        "flags": {}, "order": node.id - 1, "mode": 0, "inputs": written, "outputs": outputs,
        "properties": {} if note else {
            "Node name for S&R": node.kind, **({"cnr_id": PACK} if ours else {"cnr_id": "comfy-core", "ver": version}),
            **({"models": models} if models else {})},
        "widgets_values": [i.value for i in widgets],
        **({} if note else {"widgets_values_named": {i.name: i.value for i in widgets}}),
        **(BROWN if note else GREEN if ours else {}),
    }  # fmt: skip


def _index(slot: Slot, definitions: dict) -> int:
    return definitions[slot.node.kind]["output_name"].index(slot.output)


def files(definitions: dict, version: str) -> dict[pathlib.Path, str]:
    """Every workflow file and its text.

    Args:
        definitions: the nodes of a host, as its `/object_info` gives them.
        version: of that host.
    """
    forms = {}
    for name, draw in GRAPHS.items():
        graph = Graph()
        draw(graph)
        forms[HERE / f"{name}.json"] = editor_form(graph, definitions, version)
        forms[HERE / "api" / f"{name}.json"] = api_form(graph, definitions)
    return {path: json.dumps(form, indent=1, ensure_ascii=False) + "\n" for path, form in forms.items()}


def main(address: str) -> None:
    def ask(path: str) -> dict:
        with urllib.request.urlopen(f"{address}/{path}") as answer:
            return json.load(answer)

    version = ask("system_stats")["system"]["comfyui_version"]
    for path, text in files(ask("object_info"), version).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(HERE))


if __name__ == "__main__":
    main(sys.argv[1])
