import pytest
import torch

from hetcache_core.context import RememberedContext, remember
from hetcache_core.memory import ContextMemory
from hetcache_core.tiers import LADDER, NO_MEMORY, MemoryTier
from hetcache_core.tokens import classify

LAYERS, HEADS, WIDTH = 3, 2, 16
RUNGS = [tier for tier in LADDER if tier.share in (1.0, 0.5)]


@pytest.fixture
def classes():
    touched = torch.zeros(2, 6, 6, dtype=torch.bool)
    touched[:, 2:4, 2:4] = True
    return classify(touched)


def rows(tokens, seed, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, tokens, HEADS, WIDTH, generator=generator).unbind(0)


def filled(classes, tier, streams=("cond", "uncond")):
    memory = ContextMemory(remember(classes, tier.share), 72, LAYERS, tier)
    for stream, name in enumerate(streams):
        for layer in range(LAYERS):
            memory.capture(layer, (name,), *rows(72, 10 * stream + layer))
    return memory


def test_joined_rows_hold_every_token_once(classes):
    memory = filled(classes, MemoryTier())
    selection = torch.cat([classes.edited, classes.context[:5]]).sort().values
    memory.select(selection)
    stored_k, _ = rows(72, 1)
    fresh_k, fresh_v = rows(len(selection), 99)
    key, value = memory.join(1, ("cond",), fresh_k, fresh_v)
    assert key.shape == value.shape == (1, 72, HEADS, WIDTH)
    expected = stored_k.clone()
    expected[:, selection] = fresh_k
    order = torch.cat([classes.context, classes.edited])
    assert torch.equal(key, expected[:, order])
    assert memory.log_weights() is None


def test_renewed_context_replaces_what_was_remembered(classes):
    memory = filled(classes, MemoryTier())
    picked = classes.context[3:6]
    fresh = rows(len(classes.edited) + 3, 7)
    memory.select(torch.cat([classes.edited, picked]).sort().values)
    memory.join(0, ("cond",), *fresh)
    memory.select(classes.edited)
    key, _ = memory.join(0, ("cond",), *rows(len(classes.edited), 8))
    where = torch.cat([classes.edited, picked]).sort().values
    position = torch.searchsorted(where, picked)
    assert torch.equal(key[:, torch.searchsorted(classes.context, picked)], fresh[0][:, position])


@pytest.mark.parametrize("tier", RUNGS, ids=str)
def test_bytes_are_counted_and_predicted(classes, tier):
    memory = filled(classes, tier)
    predicted = tier.bytes(len(classes.context), HEADS * WIDTH, LAYERS, 2, 4)
    assert memory.bytes == predicted > 0
    memory.clear()
    assert memory.bytes == 0 and not memory.has(("cond",))


@pytest.mark.parametrize("tier", [tier for tier in RUNGS[1:] if tier.share == 1], ids=str)
@pytest.mark.parametrize("stream", [0, 1])
def test_what_is_packed_stays_close(classes, tier, stream):
    memory = filled(classes, tier)
    memory.select(classes.edited)
    key, _ = memory.join(2, (("cond", "uncond")[stream],), *rows(len(classes.edited), 5))
    stored = rows(72, 2 + 10 * stream * (tier.apart_bits != 0))[0][:, classes.context]
    error = (key[:, : len(classes.context)] - stored).norm() / stored.norm()
    of_values = {None: 1e-6, 8: 0.007, 6: 0.03, 4: 0.13}[tier.bits]
    of_differences = {None: 0, 0: 0, 4: 0.15, 2: 0.5}[tier.apart_bits]  # unlike a model's, these streams are strangers
    assert error < of_values + stream * of_differences


def test_shared_memory_serves_the_second_stream_from_the_first(classes):
    memory = filled(classes, MemoryTier(apart_bits=0))
    memory.select(classes.edited)
    fresh = rows(len(classes.edited), 5)
    first, second = (memory.join(0, (name,), *fresh)[0] for name in ("cond", "uncond"))
    assert torch.equal(first, second)


@pytest.mark.parametrize("tier", RUNGS, ids=str)
@pytest.mark.parametrize("names", [("cond", "uncond"), ("uncond", "cond")])
def test_batched_streams_equal_separate_ones(classes, tier, names):
    picked = torch.cat([classes.edited, classes.context[3:9]]).sort().values
    fresh = {"cond": rows(len(picked), 5), "uncond": rows(len(picked), 6)}
    apart, together = filled(classes, tier), filled(classes, tier)
    for position in (1, 2):  # the second time, with what was renewed the first
        for memory in (apart, together):
            memory.begin(position)
            memory.select(picked)
        keys = {name: apart.join(0, (name,), *fresh[name])[0] for name in ("cond", "uncond")}
        both, _ = together.join(0, names, *(torch.cat([fresh[name][i] for name in names]) for i in range(2)))
        torch.testing.assert_close(both, torch.cat([keys[name] for name in names]))
        picked = torch.cat([classes.edited, classes.context[-6:]]).sort().values


def test_offload_on_a_host_without_cuda_is_plain_memory(classes):
    memory = filled(classes, MemoryTier(offload=True))
    memory.select(classes.edited)
    fresh = rows(len(classes.edited), 5)
    plain = filled(classes, MemoryTier())
    plain.select(classes.edited)
    assert torch.equal(memory.join(0, ("cond",), *fresh)[0], plain.join(0, ("cond",), *fresh)[0])


@pytest.mark.parametrize("tier", [MemoryTier(), MemoryTier(bits=6, turn_bits=2, apart_bits=2)], ids=str)
def test_gradients_may_be_on(classes, tier):
    memory = ContextMemory(remember(classes, 1.0), 72, 1, tier)
    for position in (0, 1):
        memory.begin(position)
        memory.capture(0, ("cond", "uncond"), *(t.requires_grad_() for t in rows(72, position, batch=2)))
    memory.begin(2)
    memory.select(torch.cat([classes.edited, classes.context[:5]]).sort().values)
    key, value = memory.join(0, ("cond", "uncond"), *(t.requires_grad_() for t in rows(len(memory._slots), 2, batch=2)))
    assert not key.requires_grad and key.isfinite().all() and value.isfinite().all()


def test_thinned_memory_weighs_its_keys(classes):
    memory = filled(classes, MemoryTier(0.25))
    memory.select(classes.edited)
    weights = memory.log_weights().exp()
    assert weights.sum().item() == pytest.approx(72, rel=1e-5)


def test_no_memory_passes_fresh_rows_through():
    memory = ContextMemory(RememberedContext(torch.zeros(0, dtype=torch.long), torch.zeros(0)), 72, LAYERS, NO_MEMORY)
    key, value = rows(9, 1)
    memory.capture(0, ("cond",), key, value)
    assert memory.join(0, ("cond",), key, value) == (key, value)
    assert memory.bytes == 0


def test_a_layer_that_was_skipped_means_the_stream_is_not_remembered(classes):
    memory = ContextMemory(remember(classes, 1.0), 72, LAYERS)
    for layer in range(LAYERS - 1):
        memory.capture(layer, ("cond",), *rows(72, layer))
    assert not memory.has(("cond",))


@pytest.mark.parametrize("shared", [False, True])
def test_batch_rows_count(classes, shared):
    tier = MemoryTier(bits=8, apart_bits=0 if shared else 4)
    memory = ContextMemory(remember(classes, 1.0), 72, LAYERS, tier)
    for layer in range(LAYERS):
        memory.capture(layer, ("cond",), *rows(72, layer, batch=3))
        memory.capture(layer, ("uncond",), *rows(72, layer, batch=3))
    assert memory.bytes == tier.bytes(len(classes.context), HEADS * WIDTH, LAYERS, 2, 4, rows=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_packing_survives_channels_that_are_zero(classes, dtype):
    memory = ContextMemory(remember(classes, 1.0), 72, 1, MemoryTier(bits=8, turn_bits=2))
    key, value = (torch.zeros_like(t, dtype=dtype) for t in rows(72, 0))
    memory.capture(0, ("cond",), key, value)
    memory.select(classes.edited)
    joined, _ = memory.join(0, ("cond",), key[:, classes.edited], value[:, classes.edited])
    assert joined.dtype == dtype and torch.equal(joined, torch.zeros_like(joined))
