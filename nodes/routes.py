"""What the browser may ask the host's server: what other settings would do, and what a mask file has in it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from aiohttp import web
from server import PromptServer

from ..hetcache_core.plan import Plan
from ..hetcache_core.policy import CachePolicy
from ..hetcache_core.prepare import prepare
from ..hetcache_core.setup import RunSetup, why_full
from ..hetcache_core.tiers import NO_MEMORY
from ..hetcache_core.tokens import classify
from .live import last_setups
from .mask_look import look
from .paths import is_remote
from .policy_settings import make_policy

PLAN = "/hetcache/plan"
MASK = "/hetcache/mask"
ELSEWHERE = "this is for the clip of another workflow's last run"
REMOTE = "a file of another computer is read once the workflow runs"
log = logging.getLogger("hetcache")
_one_mask, _one_plan = asyncio.Lock(), asyncio.Lock()


def register() -> None:
    """Add our routes to the host's server, where there is one and it has not got them yet."""
    server = getattr(PromptServer, "instance", None)
    if server is None or any(getattr(route, "path", None) == PLAN for route in server.routes):
        return
    server.routes.post(PLAN)(_plan)
    server.routes.get(MASK)(_mask)


async def _plan(request: web.Request) -> web.Response:
    """``{"settings": {widget: value}, "workflow": id, "nodes": [ids of Patch Models]}`` -> the plan, or why there is
    none."""
    try:
        asked = await request.json()
        settings, nodes = dict(asked["settings"]), [str(node) for node in asked.get("nodes", ())]
        workflow = asked.get("workflow")
    except (KeyError, TypeError, ValueError):
        return web.json_response({"error": "settings are missing"}, status=400)
    if any(is_remote(str(settings.get(name, ""))) for name in settings if name.endswith("profile")):
        return web.json_response({"known": True, "error": REMOTE})
    try:  # beside the event loop: it may read a file
        policy = await asyncio.to_thread(policy_of, settings)
    except (KeyError, OSError, TypeError, ValueError) as error:
        return web.json_response({"known": True, "error": str(error)})
    setup, other = last_setups.find(workflow, nodes)
    if setup is None:
        return web.json_response({"known": False})
    try:  # beside the event loop, which has a generation to report
        async with _one_plan:
            if _left(request):
                return web.Response()
            answer = await asyncio.to_thread(forecast, policy, setup)
            answer["note"] = "; ".join(filter(None, (ELSEWHERE if other else "", answer["note"])))
            return web.json_response(answer)
    except Exception as error:
        log.warning("HetCache cannot plan this: %s", error)
        return web.json_response({"known": True, "error": f"this cannot be planned ({error})"})


async def _mask(request: web.Request) -> web.Response:
    """The inputs of a Load Mask Video as a query -> the numbers of its mask, or why there are none."""
    try:
        async with _one_mask:  # a long one is decoded on every core there is
            if _left(request):
                return web.Response()
            return web.json_response(await asyncio.to_thread(look, request.query))
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    except Exception as error:
        log.warning("HetCache cannot look at this mask: %s", error)
        return web.json_response({"error": f"this mask cannot be read ({error})"})


def _left(request: web.Request) -> bool:
    """Whether who asked has gone, as the page does when a setting changes again."""
    return request.transport is None or request.transport.is_closing()


def policy_of(settings: dict) -> CachePolicy:
    """The policy of a node's widgets, as the host would hand them over: ``{"method": "plan", "method.x": 1, ...}``."""
    fine = {name: value for name, value in settings.items() if "." not in name}
    method = {"method": fine.pop("method", "plan")}
    prefix = "method."
    method |= {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return make_policy(fine.pop("preset"), fine.pop("speed"), fine.pop("memory_budget_mb"), method, **fine)


def forecast(policy: CachePolicy, setup: RunSetup) -> dict:
    """What would be done for a clip and mask, ready for JSON. Takes the time of planning; no model is run."""
    policy = policy.settled()
    frames, height, width = setup.grid.shape
    known = setup.classes
    if known is not None:  # the margin is the policy's
        touched = known.generative.view(setup.grid.shape)
        classes = classify(touched, policy.margin_space, policy.margin_time, known.reference_frames)
        setup = replace(setup, classes=classes)
    reason = why_full(policy, setup)
    if reason:
        planned, tier, note, held = Plan.full(setup.evaluations), NO_MEMORY, reason, 0
    else:
        parts = prepare(policy, setup)
        planned, tier, note, held = parts.plan, parts.tier, parts.note, parts.context_bytes + parts.block_bytes
    if setup.mask_threshold not in (None, policy.mask_threshold):
        note = "; ".join(filter(None, (note, "what another mask_threshold covers is known after the next run")))
    references, side = known.reference_frames if known else 0, 2 * setup.cell
    return {
        "known": True,
        "total": setup.evaluations,
        "planned": planned.decisions if planned else "",
        "predicted": planned.predicted_speed if planned else None,
        "target": policy.speed if policy.method == "plan" and not policy.schedule else None,
        "held_bytes": held,
        "budget_bytes": round(policy.memory_budget_mb * 2**20),
        "tier": str(tier),
        "mask_fraction": setup.classes.mask_fraction if setup.classes else 0.0,
        "note": note,
        "clip": {"latent_frames": frames - references, "width": side * width, "height": side * height},
    }
