"""Main blocks of diffusers' Wan models through the engine, by diffusers' own hooks on each block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from ..engine import Engine

HOOK = "hetcache_block"
HIDDEN = "hidden_states"


class BlockHook(ModelHook):
    """Sends one block's calls through the engine while it captures or reuses blocks.

    Args:
        engine: gives the engine of the run under way, or None.
        index: of the main block.
    """

    def __init__(self, engine: Callable[[], Engine | None], index: int):
        super().__init__()
        self._engine, self._index = engine, index

    @torch.compiler.disable
    def new_forward(self, module: torch.nn.Module, *args, **kwargs) -> Tensor:
        forward, engine = self.fn_ref.original_forward, self._engine()
        if engine is None or not engine.routes_blocks:
            return forward(*args, **kwargs)
        if HIDDEN in kwargs:
            return engine.block(self._index, kwargs[HIDDEN], lambda x: forward(*args, **{**kwargs, HIDDEN: x}))
        return engine.block(self._index, args[0], lambda x: forward(x, *args[1:], **kwargs))


def hook_blocks(model: torch.nn.Module, engine: Callable[[], Engine | None]) -> None:
    """Hook every main block."""
    for index, block in enumerate(model.blocks):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(BlockHook(engine, index), HOOK)
    _forget_cached(model)


def unhook_blocks(model: torch.nn.Module) -> None:
    """Undo :func:`hook_blocks`; nothing happens where blocks are not hooked."""
    for block in model.blocks:
        registry = getattr(block, "_diffusers_hook", None)
        if registry is not None and registry.get_hook(HOOK) is not None:
            registry.remove_hook(HOOK, recurse=False)
            tidy(block, registry)
    _forget_cached(model)


def tidy(module: torch.nn.Module, registry: HookRegistry) -> None:
    """Leave no trace of a registry without hooks: neither itself nor the forward it put in the instance."""
    if registry.hooks:
        return
    del module._diffusers_hook
    if module.__dict__.get("forward") == type(module).forward.__get__(module):
        del module.forward


def why_no_blocks(model: torch.nn.Module) -> str:
    """Why single blocks cannot be left out on this model, or empty."""
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in (model, *model.blocks)):
        return "the model is compiled, with every block in it; no blocks are reused"
    if split_over_devices(model):
        return "each device sees a part of the tokens; no blocks are reused"
    registries = (getattr(block, "_diffusers_hook", None) for block in model.blocks)
    if any("offloading" in name for registry in registries if registry for name in registry.hooks):
        return "blocks are offloaded in groups, each of which fetches the next; no blocks are reused"
    return ""


def split_over_devices(model: torch.nn.Module) -> bool:
    """Whether diffusers' context parallelism spreads a clip's tokens over several devices."""
    return any(getattr(block.attn1.processor, "_parallel_config", None) is not None for block in model.blocks)


def _forget_cached(model: torch.nn.Module) -> None:
    registry = getattr(model, "_diffusers_hook", None)
    forget = getattr(registry, "invalidate_child_registries_cache", None)  # newer versions list the blocks' hooks once
    if forget is not None:
        forget()
