"""Every kind of model the host can run: the stock bytes at speed 1.0, real savings otherwise, within the budget."""

from functools import cache

import pytest
import torch
from small import FAST, QUICK, VARIANTS, Scene, cached, load, psnr, sample

from hetcache_core import CachePolicy

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@cache
def stock(variant):
    return sample(variant.model, variant.scene)


@every_variant
def test_bytes_are_stock_at_speed_one(variant):
    result, stats = cached(variant.model, variant.scene, CachePolicy(speed=1.0))
    assert torch.equal(result, stock(variant))
    assert stats.decisions == "FFFFFF" and not stats.warnings


@every_variant
def test_savings_follow_the_schedule_and_the_edit_stays_near(variant):
    result, stats = cached(variant.model, variant.scene)
    assert stats.decisions == FAST.schedule, stats.summary()
    assert not stats.warnings
    assert 0 < stats.records[2].tokens < 0.5 * stats.records[0].tokens
    assert 0 < stats.peak_context_bytes <= stats.planned_context_bytes
    assert 20 < psnr(result, stock(variant)) < 90


@every_variant
def test_context_memory_stays_within_its_budget(variant):
    policy = CachePolicy(schedule="FP", memory_budget_mb=0.2)
    _, stats = cached(variant.model, variant.scene, policy, steps=2)
    assert stats.decisions == "FP" and not stats.warnings, stats.summary()
    assert 0 < stats.peak_context_bytes <= 0.2 * 2**20
    assert "bits" in stats.tier


def test_without_a_budget_nothing_is_remembered():
    policy = CachePolicy(schedule=FAST.schedule, memory_budget_mb=0)
    _, stats = cached(load(), QUICK, policy)
    assert stats.decisions == FAST.schedule and stats.peak_context_bytes == 0


def test_reference_latents_beside_the_clip_are_only_reused():
    class Beside(Scene):
        def conds(self):
            extra = {"time_dim_concat": torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))}
            return [[[words, {**known, **extra}]] for ((words, known),) in super().conds()]

    scene, model = Beside("text", height=8, width=8, noise_mask=True), load(vace_layers=0)
    stock = sample(model, scene)
    assert torch.equal(cached(model, scene, CachePolicy(speed=1.0))[0], stock)
    result, stats = cached(model, scene)
    assert stats.decisions == "FFFRFF" and "reference latents" in stats.note and not stats.warnings
    assert psnr(result, stock) > 20
