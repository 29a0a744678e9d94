"""Rivals as others ship them: diffusers' first-block cache, and cache-dit from PyPI (the extra ``rivals``)."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig

from benchmarks.rivals.hooks import Cache


class FirstBlockOfDiffusers(Cache):
    """diffusers' `FirstBlockCacheConfig` as it is.

    On VACE it runs, but wrongly: its hooks know the main blocks only, so on a skipped evaluation the forward adds the
    hints to a residual that holds them already (and computes the VACE branch for that).
    """

    counted = False

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    @contextmanager
    def attached(self, transformer: torch.nn.Module) -> Iterator[None]:
        transformer.enable_cache(FirstBlockCacheConfig(self.threshold))
        try:
            yield
        finally:
            transformer.disable_cache()


class CacheDiT(Cache):
    """cache-dit's DBCache, one block before the decision and none after (its F1B0; nano has six).

    It folds the hints into the blocks, so they are neither added twice nor fresh on a skipped evaluation, and it
    computes the VACE branch every time, which caps its speed-up.
    """

    counted = False

    def __init__(self, pipe: Any, threshold: float, steps: int):
        super().__init__()
        self.pipe, self.threshold, self.steps = pipe, threshold, steps

    @contextmanager
    def attached(self, transformer: torch.nn.Module) -> Iterator[None]:
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        cache_dit = importlib.import_module("cache_dit")
        logging.getLogger("cache_dit").setLevel(logging.ERROR)
        forwards = [(module, module.__dict__.get("forward")) for module in (transformer, *transformer.blocks)]
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=max(2, self.steps // 10),
            residual_diff_threshold=self.threshold, num_inference_steps=self.steps,
        )  # fmt: skip
        cache_dit.enable_cache(self.pipe, cache_config=config)
        try:
            yield
        finally:
            cache_dit.disable_cache(self.pipe)
            for module, forward in forwards:  # it leaves its own forwards behind
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward
            transformer.__dict__.pop("_is_patched", None)
