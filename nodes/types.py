"""The pack's own link types and where its nodes stand in the menu."""

from comfy_api.latest import io

Policy = io.Custom("HETCACHE_POLICY")
Report = io.Custom("HETCACHE_STATS")
CATEGORY = "model/patch/wan"
