"""Guidance reuse inside the host: only the anchor's rows are computed, batched or not, in any order."""

from dataclasses import replace

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch
from check_guidance import THREE, guided, skipping
from small import QUICK, VARIANTS, cached, load, never_batched, psnr, sample

from hetcache_core import CachePolicy
from hetcache_core.hosts import comfyui as host

GUIDED = CachePolicy(schedule="FFGFGF", warmup=1)
HALVES = CachePolicy(schedule="FFHPHF", warmup=1)


def rows_of(model, run):
    """What `run` gives, and the rows of every call that reached the model's blocks."""
    rows, block = [], model.get_model_object("diffusion_model").blocks[0]
    hook = block.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        return run(), rows
    finally:
        hook.remove()


@pytest.mark.parametrize("policy", [GUIDED, HALVES], ids=["all tokens", "a selection of them"])
@pytest.mark.parametrize("name", VARIANTS)
def test_half_of_the_rows_on_every_kind_of_model(name, policy):
    variant = VARIANTS[name]
    batch = variant.scene.batch
    (result, stats), rows = rows_of(variant.model, lambda: cached(variant.model, variant.scene, policy))
    assert stats.decisions == policy.schedule and not stats.warnings, stats.summary()
    assert rows == [batch * n for n in (2, 2, 1, 2, 1, 2)]
    stock = sample(variant.model, variant.scene)
    assert psnr(result, stock) > 25 and not torch.equal(result, stock)


def test_mixcache_decides_on_the_way():
    """On the host's own model; what it reuses ends up near the stock result."""
    policy = CachePolicy(method="mixcache", trigger=1.0, deviation=1.0, warmup=2)
    result, stats = cached(load(), QUICK, policy, steps=20)
    assert "G" in stats.decisions and not stats.warnings, stats.summary()
    assert psnr(result, sample(load(), QUICK, steps=20)) > 20


def test_in_two_calls_as_in_one(monkeypatch):
    together, _ = cached(load(), QUICK, GUIDED)
    never_batched(monkeypatch)
    (apart, stats), rows = rows_of(load(), lambda: cached(load(), QUICK, GUIDED))
    assert stats.decisions == GUIDED.schedule and not stats.warnings, stats.summary()
    assert rows == [1] * (2 * 4 + 2)
    # the host's first call is uncond's, which is then the one computed
    assert psnr(apart, together) > 40


def test_batching_that_flips_between_steps(monkeypatch):
    asked, stock = [], sample(load(), QUICK)
    never_batched(monkeypatch, when=lambda: asked.append(0) or len(asked) % 2)
    result, stats = cached(load(), QUICK, GUIDED)
    assert stats.decisions == GUIDED.schedule and not stats.warnings, stats.summary()
    assert psnr(result, stock) > 25


def test_prompts_of_unequal_length():
    scene = replace(QUICK, prompts=(8, 5))
    (result, stats), rows = rows_of(load(), lambda: cached(load(), scene, GUIDED))
    assert stats.decisions == GUIDED.schedule and not stats.warnings, stats.summary()
    assert rows == [1] * (2 * 4 + 2) and psnr(result, sample(load(), scene)) > 25


def test_without_guidance_it_is_stock():
    result, stats = cached(load(), QUICK, GUIDED, cfg=1.0)
    assert torch.equal(result, sample(load(), QUICK, cfg=1.0))
    assert stats.decisions == "FFFFFF" and "there is one stream" in stats.summary()


def reused(run, rows):
    """A run with guidance reuse, near the stock one, with this many rows in each call of the model."""
    stock = run(load())
    patched, report = host.apply(load(), GUIDED)
    result, computed = rows_of(load(), lambda: run(patched))
    stats = report.runs[-1]
    assert stats.decisions == GUIDED.schedule and not stats.warnings, stats.summary()
    assert computed == rows and psnr(result, stock) > 20


def test_one_of_three_streams():
    reused(guided(custom.Guider_DualCFG, (3.0, 2.0), nested=False), [3, 3, 1, 3, 1, 3])


def test_two_prompts_combined():
    first, second, negative = THREE.conds()
    reused(guided(comfy.samplers.CFGGuider, (4.0,), conds=(first + second, negative)), [3, 3, 1, 3, 1, 3])


def test_skip_layer_guidance_follows_the_anchor_too():
    stock = sample(skipping(load()), QUICK)
    patched, report = host.apply(skipping(load()), GUIDED)
    result, rows = rows_of(load(), lambda: sample(patched, QUICK))
    stats = report.runs[-1]
    assert stats.decisions == GUIDED.schedule and not stats.warnings, stats.summary()
    assert rows == [2, 1, 2, 1, 1, 2, 1, 1, 2, 1] and psnr(result, stock) > 20
