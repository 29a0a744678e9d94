"""Runs on a pretend card: nothing left in host memory meets what lies on the card, and layers never wait for it."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

import diffusers

from hetcache_core import CachePolicy, attention, offload
from hetcache_core.attention import KeyWeights, attend
from hetcache_core.hosts import diffusers as host
from hetcache_core.progress import snapshot, token_map
from tests.card import DEVICE, NAME, WHY_NOT, Card, OnCard
from tests.hosts.small_wan import SMALL, H, T, W, control, noise, prompts, randomised, relative
from tests.races import Event, Stream

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
STEPS = 9
ALL_KINDS = "FFPRGHBFP"


def model(layers=4):
    vace = diffusers.WanVACETransformer3DModel(**SMALL, num_layers=layers, vace_layers=[0, 2], vace_in_channels=96)
    return randomised(vace)


@pytest.fixture(scope="module")
def on_host():
    return model()


@pytest.fixture(scope="module")
def on_card():
    with torch.inference_mode(), Card() as card:
        return card.put_model(model())


def run(transformer, policy, device="cpu", mask=None, begun=lambda: None):
    """A pipeline's loop with guidance, of a model and inputs on a device; `begun` is called after the first step."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(STEPS, device=device)
    x, controls = noise().to(device), control().to(device)
    texts = dict(zip(("cond", "uncond"), (p.to(device) for p in prompts()), strict=True))
    with torch.inference_mode(), host.apply(transformer, policy, mask=mask, scheduler=scheduler) as handle:
        for step, t in enumerate(scheduler.timesteps):
            if step == 1:
                begun()
            v = {}
            for name, text in texts.items():
                with transformer.cache_context(name):
                    v[name] = transformer(x, t.expand(1), text, None, controls, return_dict=False)[0]
            x = scheduler.step(v["uncond"] + 3 * (v["cond"] - v["uncond"]), t, x, return_dict=False)[0]
        return x, handle.stats


POLICIES = {
    "every kind": CachePolicy(schedule=ALL_KINDS),
    "packed": CachePolicy(schedule="FFPRPRPF", memory_bits=6, memory_turn_bits=2, memory_apart_bits=2, memory_order=1),
    "shared and thinned": CachePolicy(schedule="FFPRPF", memory_share=0.3, memory_bits=4, memory_apart_bits=0),
    "in host memory": CachePolicy(schedule="FFPRPF", memory_offload=True),
    "packed in host memory": CachePolicy(
        schedule="FFPRPFPP", memory_offload=True, memory_bits=6, memory_turn_bits=2, memory_apart_bits=2
    ),
    "planned anew": CachePolicy(speed=2.0, replan=True, margin_space=1),
    "hetcache": CachePolicy(method="hetcache", context_sampling="both", memory_share=0.0, threshold=0.3),
    "mixcache": CachePolicy(method="mixcache", trigger=10.0, deviation=1.0),
    "profilingdit": CachePolicy(method="profilingdit", interval=3),
    "of clean clips": CachePolicy(speed=2.0, forecast_quantity="x0"),
    "scores of blocks": CachePolicy(method="profile"),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_run_on_a_card_is_the_run_on_the_host(on_host, on_card, policy):
    expected, there = run(on_host, policy)
    mask = torch.zeros(4 * T - 3, 8 * H, 8 * W)
    mask[:, 32:64, 32:64] = 1  # as the control has it; in host memory
    with torch.inference_mode(), Card() as card:
        result, stats = run(on_card, policy, NAME, mask)
        assert isinstance(result, OnCard)
        result = card.take(result)
    assert stats.decisions == there.decisions and stats.warnings == [] and stats.note == there.note
    assert [r.reason for r in stats.records] == [r.reason for r in there.records]
    assert relative(result, expected) < 1e-3
    assert card.races.untold == set()
    assert len(card.races.streams) == (3 if policy.memory_offload else 1)  # computing, copies out, copies in


def test_the_host_stays_two_layers_ahead(monkeypatch):
    waited, host_memory, begun = [], offload.HostMemory(), []
    monkeypatch.setattr(Event, "synchronize", lambda event: waited.append(event))
    with Card():
        for _ in range(5):
            host_memory.pace(DEVICE)
            begun.append(host_memory._layers[-1])
    assert waited == begun[:-2]


def test_page_locked_memory_is_given_back_once_a_run(on_card, monkeypatch):
    released = []
    monkeypatch.setattr(offload, "release_host_memory", lambda: released.append(True))
    for name, times in (("in host memory", 1), ("packed", 0)):
        with torch.inference_mode(), Card():
            run(on_card, POLICIES[name], NAME)
        assert released == [True] * times
        released.clear()


@pytest.mark.parametrize("forgotten", ["wait_stream", "wait_event", "record_stream"])
def test_what_copies_wait_for_is_needed(on_card, monkeypatch, forgotten):
    monkeypatch.setattr(OnCard if forgotten == "record_stream" else Stream, forgotten, lambda *_: None)
    with torch.inference_mode(), Card() as card:
        _, stats = run(on_card, POLICIES["packed in host memory"], NAME)
    assert card.races.untold if forgotten == "record_stream" else "may not have written yet" in str(stats.warnings)


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].schedule])
def test_no_layer_waits_for_the_card(on_card, name):
    waits = []
    for layers in (4, 8):
        with torch.inference_mode(), Card() as card:
            transformer = on_card if layers == 4 else card.put_model(model(layers))
            assert "P" in run(transformer, POLICIES[name], NAME, begun=card.waits.clear)[1].decisions
        waits.append(card.waits)
    assert waits[0] == waits[1]


def test_news_of_a_run_wait_for_nothing(on_card):
    with torch.inference_mode(), Card() as card:
        _, stats = run(on_card, POLICIES["every kind"], NAME)
        card.waits.clear()
        news = snapshot(stats, STEPS)
        assert news["decisions"] == ALL_KINDS and 0 < news["mask_fraction"] < 1 and not card.waits
        assert token_map(stats).shape == (T, H // 2, W // 2) and card.waits
    assert all(seconds > 0 for seconds in news["seconds"])  # by the card's own events


def test_the_card_refuses_what_a_card_refuses():
    with Card() as card:
        there, index = card.put(torch.ones(3)), torch.tensor([0, 2])
        with pytest.raises(RuntimeError, match="mixes tensors of card:0 and cpu"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="mixes tensors"):
            there[index] = torch.zeros(2)
        assert there[index].shape == (2,) and there[there > 0].shape == (3,)
        assert card.waits["index"] == 2  # one index fetched, one mask counted


def test_masked_attention_is_cut_where_no_kernel_takes_a_mask(monkeypatch):
    query, key, value = torch.randn(3, 1, 40, 2, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    bias = torch.arange(40) % 3 * 0.7
    expected = attend(query, key, value, KeyWeights.of(bias))
    monkeypatch.setattr(attention, "MOST_LOGITS", 2 * 40 * 7)  # seven queries at a time
    with torch.inference_mode(), Card() as card:
        weights = KeyWeights.of(card.put(bias))
        result = card.take(attend(*card.put((query, key, value)), weights))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
