"""HetCache: faster masked video edits with Wan models, as a ComfyUI custom node pack.

This folder is the package ComfyUI imports, so importing it must work with no host present and load nothing heavy.
Python users want `hetcache_core` instead, `hetcache_core.hosts.diffusers` for diffusers pipelines.
"""

import logging

OLDEST_HOST = (0, 8, 0)
WEB_DIRECTORY = "./web"  # where ComfyUI finds what runs in the browser


def _host_version() -> tuple[int, ...] | None:
    """Version of the ComfyUI that imports this, () where it does not say, None where there is none."""
    try:
        from comfyui_version import __version__
    except ImportError:
        try:
            import comfy_api.latest  # noqa: F401
        except ImportError:
            return None
        return ()
    return tuple(int(part) for part in __version__.split(".") if part.isdigit())


_version = _host_version()
if _version and _version < OLDEST_HOST:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # with this the host looks no further
    logging.getLogger("hetcache").warning(
        "HetCache needs ComfyUI %s or newer, this is %s; its nodes are not loaded. Update ComfyUI to use them.",
        ".".join(map(str, OLDEST_HOST)), ".".join(map(str, _version)),
    )  # fmt: skip
elif _version is not None:

    async def comfy_entrypoint():
        """Where ComfyUI asks for the nodes."""
        from comfy_api.latest import ComfyExtension

        class HetCacheExtension(ComfyExtension):
            async def get_node_list(self):
                from .nodes import all_nodes
                from .nodes.routes import register

                register()
                return all_nodes()

        return HetCacheExtension()
