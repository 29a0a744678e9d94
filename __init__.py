"""HetCache: faster masked video edits with Wan-VACE models, as a ComfyUI custom node pack.

This folder is the package ComfyUI imports, so importing it must work with no host present and load nothing heavy.
Python users want `hetcache_core` instead, `hetcache_core.hosts.diffusers` for diffusers pipelines.
"""

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
