"""The pack as ComfyUI imports it: this repository's root, under a name of the host's choosing."""

import asyncio
import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]


def load():
    """The pack's module and its nodes by id."""
    name = "custom_nodes_hetcache"
    if name not in sys.modules:
        folders = [str(ROOT)]
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=folders)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    module = sys.modules[name]

    async def nodes():
        return await (await module.comfy_entrypoint()).get_node_list()

    return module, {node.define_schema().node_id: node for node in asyncio.run(nodes())}
