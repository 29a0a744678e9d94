import pytest
import torch

from hetcache_core.layer_memory import LayerMemory
from hetcache_core.tiers import MemoryTier

SHAPE, CPU = (1, 6, 2, 16), torch.device("cpu")
START, SLOPE, OTHER, OWN = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind(0)
PACKED = MemoryTier(bits=8, turn_bits=4, apart_bits=4)


def moving(stream, position):
    """Both streams move together, the second a little otherwise."""
    common = START + 0.1 * position * SLOPE
    return common if stream == "cond" else common + 0.3 * OTHER + 0.01 * position * OWN


def filled(tier, at=(0, 4)):
    memory = LayerMemory(tier)
    for position in at:
        memory.record({stream: moving(stream, position) for stream in ("cond", "uncond")}, position)
    return memory


def expected(memory, streams, position):
    rows = {stream: torch.full(SHAPE, torch.nan) for stream in streams}
    memory.expect(rows, position, 1.0, memory.fetch(streams, CPU))
    return rows


def error(memory, stream, position, truly=None):
    truth = (truly or moving)(stream, position)
    return float((expected(memory, (stream,), position)[stream] - truth).norm() / truth.norm())


def test_a_difference_moves_with_the_stream_it_is_from():
    assert error(filled(PACKED), "cond", 8) < 0.06
    assert error(filled(PACKED), "uncond", 8) < 0.08
    assert error(filled(MemoryTier(order=0)), "uncond", 8) > 0.2


def test_renewed_differences_are_from_what_is_kept_of_the_first():
    memory, slots = filled(PACKED), torch.tensor([1, 4])
    streams = ("uncond", "cond")  # in any order
    fresh = {stream: moving(stream, 6)[:, slots] + 1 for stream in streams}
    memory.renew(fresh, 6, 1.0, slots, memory.fetch(streams, CPU))
    rows = expected(memory, streams, 6)
    for stream in streams:
        torch.testing.assert_close(rows[stream][:, slots], fresh[stream], rtol=0, atol=0.15)


def surprised(stream, position):
    """As moving, but from position 5 on something both streams share has changed at once."""
    return moving(stream, position) + (0.5 * OWN if position >= 5 else 0)


def test_a_stream_renewed_before_the_leading_one_does_not_take_its_surprise_twice():
    memory, slots = filled(PACKED), torch.arange(SHAPE[1])
    for stream in ("uncond", "cond"):  # a host that begins with the one that does not lead
        memory.renew({stream: surprised(stream, 6)}, 6, 1.0, slots, memory.fetch((stream,), CPU))
    for stream in ("cond", "uncond"):
        assert error(memory, stream, 6, surprised) < 0.1  # 0.4 if told apart from where the other was expected


def test_where_the_calls_change_their_order_every_stream_is_what_it_was_seen_to_be():
    memory = filled(PACKED)  # both at once, as long as the host had the room
    for position in (8, 12):
        for stream in ("uncond", "cond"):
            memory.record({stream: surprised(stream, position)}, position, whole=True)
        rows = expected(memory, ("cond", "uncond"), position)
        for stream in rows:
            torch.testing.assert_close(rows[stream], surprised(stream, position), rtol=0, atol=0.15)
    for stream in ("uncond", "cond"):
        assert error(memory, stream, 16, surprised) < 0.06


def test_a_stream_computed_alone_leaves_the_others_where_they_are_expected():
    """In a partial evaluation, one that was away is computed in full; the leading one is only renewed."""
    memory, slots = filled(PACKED), torch.tensor([1, 4])
    both = {stream: moving(stream, 5)[:, slots] for stream in ("cond", "uncond")}
    memory.renew(both, 5, 1.0, slots, memory.fetch(("cond", "uncond"), CPU))
    memory.record({"uncond": moving("uncond", 6)}, 6)
    assert memory.has("cond") and error(memory, "cond", 8) < 0.06 and error(memory, "uncond", 8) < 0.08
    fresh = moving("cond", 6)[:, slots] + 1
    memory.renew({"cond": fresh}, 6, 1.0, slots, memory.fetch(("cond",), CPU))
    assert error(memory, "uncond", 6) < 0.06  # it was seen where it is, whatever became of the other
    torch.testing.assert_close(expected(memory, ("cond",), 6)["cond"][:, slots], fresh, rtol=0, atol=0.15)


def test_a_stream_renewed_alone_leans_on_where_the_first_is_expected():
    memory, slots = filled(PACKED), torch.tensor([1, 4])
    fresh = {"uncond": moving("uncond", 6)[:, slots]}
    memory.renew(fresh, 6, 1.0, slots, memory.fetch(("uncond",), CPU))
    assert error(memory, "uncond", 8) < 0.08 and error(memory, "cond", 8) < 0.06
    fresh = {"uncond": moving("uncond", 6)[:, slots] + 0.5}
    memory.renew(fresh, 6, 1.0, slots, memory.fetch(("uncond",), CPU))
    torch.testing.assert_close(expected(memory, ("uncond",), 6)["uncond"][:, slots], fresh["uncond"], rtol=0, atol=0.15)
    assert error(memory, "cond", 8) < 0.06


def test_one_trajectory_may_serve_all():
    memory = filled(MemoryTier(apart_bits=0))
    assert memory.has("cond") and memory.has("uncond") and not memory.has("another")
    torch.testing.assert_close(expected(memory, ("uncond",), 8)["uncond"], moving("cond", 8))
    memory.renew({"uncond": START[:, :1]}, 8, 1.0, torch.tensor([0]), memory.fetch(("uncond",), CPU))
    assert error(memory, "cond", 8) < 1e-6


def test_the_conditional_stream_leads_and_is_recorded_first_in_whatever_order():
    rows = {stream: moving(stream, 0) for stream in ("uncond", "cond")}
    led, unled = LayerMemory(PACKED, "cond"), LayerMemory(PACKED)
    for memory in (led, unled):
        memory.record(rows, 0)
    assert error(led, "cond", 0) < error(unled, "cond", 0)
    alone = LayerMemory(PACKED, "cond")
    alone.record({"uncond": rows["uncond"]}, 0)  # the one that should lead comes later
    alone.record(rows, 0)
    assert error(alone, "uncond", 0) < error(led, "uncond", 0)


@pytest.mark.parametrize("bits", [0, 4])
def test_where_the_leading_stream_leaves_the_run_another_leads(bits):
    memory = filled(MemoryTier(bits=8, turn_bits=4, apart_bits=bits))
    for position in (8, 12, 16, 20):  # cfg 1 from here on, for the one that did not lead
        memory.record({"uncond": moving("uncond", position)}, position)
    assert error(memory, "uncond", 24) < 0.06
    assert memory.has("uncond") and not memory.has("cond")


@pytest.mark.parametrize("field", ["bits", "turn_bits", "apart_bits"])
def test_tiers_of_odd_widths_are_refused(field):
    with pytest.raises(ValueError, match=field):
        MemoryTier(**{field: 5})
