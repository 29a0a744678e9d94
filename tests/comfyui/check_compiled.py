"""Compiled models: blocks that stay compiled beside HetCache, and whole models, which it makes way for."""

from weakref import WeakKeyDictionary

import comfy.utils
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from small import QUICK, cached, load, made_way, psnr, sample

from hetcache_core import CachePolicy

EXACT = CachePolicy(speed=1.0)


def test_blocks_compiled_one_by_one():
    model, compiled = load(layers=2, vace_layers=1).clone(), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    set_torch_compile_wrapper(model, backend=backend, keys=["diffusion_model.blocks.1"])
    policy, run = CachePolicy(schedule="FFPRP"), {"steps": 5, "cfg": 1.0}
    stock = sample(model, QUICK, **run)
    assert compiled and torch.equal(cached(model, QUICK, EXACT, **run)[0], stock)
    result, stats = cached(model, QUICK, policy, **run)
    assert stats.decisions == policy.schedule and not stats.warnings, stats.summary()
    assert psnr(result, stock) > 20
    compiled.clear()
    cached(model, QUICK, policy, **run)
    assert not compiled  # a second prompt compiles nothing anew


TABLE = WeakKeyDictionary()  # as KJNodes' node keeps what it compiled, by the model


def by_table(executor, *args, **kwargs):
    swapped = {key: comfy.utils.get_attr(executor.class_obj, key) for key in TABLE[executor.class_obj]}
    for key, part in TABLE[executor.class_obj].items():
        comfy.utils.set_attr(executor.class_obj, key, part)
    try:
        return executor(*args, **kwargs)
    finally:
        for key, part in swapped.items():
            comfy.utils.set_attr(executor.class_obj, key, part)


def compiled_by_table(keys, **options):
    model = load(layers=2, vace_layers=1).clone()
    TABLE[model.model] = {key: torch.compile(model.get_model_object(key), **options) for key in keys}
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", by_table)
    return model


def deaf(guards):
    """What KJNodes' node does about guards, so that a graph is not made anew for every change of the options."""
    return ["transformer_options" not in guard.name for guard in guards]


@pytest.mark.parametrize("stock_first", [False, True])
def test_blocks_compiled_so_as_not_to_look_again(stock_first):
    """Graphs of a run without HetCache go on without it: that is noticed, and nothing wrong comes of it."""
    torch.compiler.reset()
    keys = [f"diffusion_model.blocks.{i}" for i in range(2)]
    model = compiled_by_table(keys, backend="eager", dynamic=False, options={"guard_filter_fn": deaf})
    policy, run = CachePolicy(schedule="FFPRP"), {"steps": 5, "cfg": 1.0}
    if stock_first:
        sample(model, QUICK, **run)
    result, stats = cached(model, QUICK, policy, **run)
    if stock_first and stats.warnings:  # by torch's version
        assert "P" not in stats.decisions and stats.warnings[0].startswith("not all attention layers"), stats.summary()
    else:
        assert stats.decisions == policy.schedule and not stats.warnings, stats.summary()
    assert psnr(result, sample(load(layers=2, vace_layers=1), QUICK, **run)) > 20


def test_a_wrapper_that_compiles_the_whole_model_by_a_table(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: model)
    made_way(compiled_by_table(["diffusion_model"]), "compile its blocks instead")


def test_the_whole_model_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: model)  # what it compiles to does not matter here
    model = load().clone()
    set_torch_compile_wrapper(model, backend="eager")
    made_way(model, "compile its blocks instead")
