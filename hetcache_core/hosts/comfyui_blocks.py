"""Main blocks of ComfyUI's Wan models through the engine, in the host's block replacement slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..engine import Engine

KIND = "double_block"  # what the host calls a main block of Wan


def routed(engine: Engine, transformer_options: dict, blocks: int) -> dict:
    """Options for one call whose main blocks pass through the engine; the options given stay as they are.

    A replacement another node has put in a slot keeps its place inside.

    Args:
        engine: of the run.
        transformer_options: of the call.
        blocks: main blocks of the model.
    """
    replaced = transformer_options.get("patches_replace", {})
    slots = dict(replaced.get("dit", {}))
    for index in range(blocks):
        slots[KIND, index] = _Slot(engine, index, slots.get((KIND, index)))
    return {**transformer_options, "patches_replace": {**replaced, "dit": slots}}


class _Slot:
    """One block's replacement. The host adds VACE's hints to what it returns, outside."""

    def __init__(self, engine: Engine, index: int, inner: Callable | None):
        self._engine, self._index, self._inner = engine, index, inner

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        def compute(hidden: torch.Tensor) -> torch.Tensor:
            given = {**args, "img": hidden}
            answer = self._inner(given, extra) if self._inner else extra["original_block"](given)
            return answer["img"]

        return {"img": self._engine.block(self._index, args["img"], compute)}
