"""On a pretend card: what the host keeps in its memory meets nothing that lies on the card."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from small import FAST, VARIANTS, cached

from hetcache_core import CachePolicy
from hetcache_core.hosts.comfyui_setup import Sampling
from tests.card import WHY_NOT, Card

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
POLICIES = {
    "every kind": CachePolicy(schedule="FFPRPF"),
    "packed": CachePolicy(schedule="FFPRPF", memory_bits=6, memory_turn_bits=2, memory_apart_bits=2, memory_order=1),
    "in host memory": CachePolicy(schedule="FFPRPF", memory_offload=True, memory_bits=8, memory_apart_bits=4),
    "guidance and blocks": CachePolicy(schedule="FFBGHF"),
}


@pytest.fixture
def card(monkeypatch):
    """A card that is never full."""

    def free(device=None, torch_free_too=False):
        return (2**34, 2**34) if torch_free_too else 2**34

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    card = Card()
    card.asked = []
    monkeypatch.setattr(Sampling, "make_room", lambda self, size, x: card.asked.append(size))
    return card


def on_card(model, card: Card, monkeypatch):
    """A clone whose diffusion model works on the card: what goes in is moved there, what comes out back."""
    with torch.inference_mode(), card:
        for module in model.model.diffusion_model.modules():
            monkeypatch.setattr(module, "_parameters", dict(module._parameters))
            monkeypatch.setattr(module, "_buffers", dict(module._buffers))
        card.put_model(model.model.diffusion_model)
    clone = model.clone()

    def moved(executor, *args, **kwargs):
        with card:
            return card.take(executor(*card.put(args), **card.put(kwargs)))

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "card", moved)
    return clone


def check(variant, policy, card, monkeypatch):
    expected, there = cached(variant.model, variant.scene, policy)
    result, stats = cached(on_card(variant.model, card, monkeypatch), variant.scene, policy)
    assert stats.decisions == there.decisions and stats.warnings == [] and stats.note == there.note
    assert (result - expected).norm() < 1e-3 * expected.norm()
    assert card.waits and card.races.untold == set()  # it did work there


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_run_on_a_card_is_the_run_on_the_host(policy, card, monkeypatch):
    check(VARIANTS["vace, every 2nd block"], policy, card, monkeypatch)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_model_works_there(name, card, monkeypatch):
    check(VARIANTS[name], FAST, card, monkeypatch)


def test_room_is_asked_for_what_lies_on_the_card(card, monkeypatch):
    variant = VARIANTS["vace, every 2nd block"]
    model = on_card(variant.model, card, monkeypatch)
    for offload in (False, True):
        cached(model, variant.scene, CachePolicy(schedule="FFPRPF", memory_offload=offload))
    resident, offloaded = card.asked
    assert 0 < offloaded < resident
