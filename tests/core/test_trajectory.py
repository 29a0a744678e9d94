import pytest
import torch

from hetcache_core.error_model import HISTORY
from hetcache_core.extrapolation import derivatives
from hetcache_core.memory import ContextMemory
from hetcache_core.tiers import MemoryTier
from hetcache_core.trajectory import Trajectory
from tests.core.test_memory import LAYERS, WIDTH, classes, rows  # noqa: F401 (classes is a fixture)

SHAPE = (1, 5, 2, WIDTH)
START, SLOPE, BEND = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind(0)
WAYS = [{}, {"turn_bits": 4}, {"bits": 8, "turn_bits": 4}, {"bits": 8, "turn_bits": 2}]


def moving(position, bend=0.0):
    return START + 0.1 * SLOPE * position + bend * BEND * position**2


def followed(order=2, at=(0, 4), bend=0.0, **how):
    trajectory = Trajectory(at[0], moving(at[0], bend), order, **how)
    for position in at[1:]:
        trajectory.record(position, moving(position, bend))
    return trajectory


def error(trajectory, position, bend=0.0):
    truth = moving(position, bend)
    return float((trajectory.at(position) - truth).norm() / truth.norm())


def test_rows_go_on_as_they_did():
    torch.testing.assert_close(followed().at(9), moving(9))
    assert torch.equal(followed(order=0).at(9), moving(4))
    torch.testing.assert_close(followed().at(9, damping=torch.tensor(0.0)), moving(4))
    assert torch.equal(followed(at=(3,)).at(9), moving(3))


def test_what_is_known_need_not_be_asked():
    age, span = (torch.full((5, 1, 1), value) for value in (4.0, 3.0))
    for bend in (None, BEND):
        asked, known = (derivatives(START.clone(), age, span, SLOPE, bend, known=k) for k in (False, True))
        assert all(torch.equal(a, k) for a, k in zip(asked, known, strict=True))


@pytest.mark.parametrize("how", [{}, {"bits": 8, "turn_bits": 4}], ids=str)
def test_rows_recorded_twice_at_a_position_keep_their_slope(how):
    once, twice = followed(at=(0, 4, 8), **how), followed(at=(0, 4, 8, 8), **how)
    torch.testing.assert_close(twice.at(12), once.at(12), rtol=0, atol=1e-4 if not how else 0.1)


def test_three_values_tell_all_there_is_to_know():
    assert HISTORY == 3
    torch.testing.assert_close(followed(at=(0, 2, 4, 6, 9), bend=0.01).at(11), followed(at=(4, 6, 9), bend=0.01).at(11))


def test_a_bend_is_followed_for_a_while():
    line, curve = (error(followed(order, (0, 4, 8), bend=0.01), 12, bend=0.01) for order in (1, 2))
    assert curve < 0.9 * line


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_rows_computed_alone_follow_their_own_times(how):
    trajectory, slots = followed(**how), torch.tensor([1, 3])
    trajectory.renew(6, slots, moving(6)[:, slots] + 0.2)
    trajectory.renew(8, slots, moving(8)[:, slots] + 0.4)
    ahead = trajectory.at(10)
    close = {"rtol": 0, "atol": 1e-4 if not how else 0.3}
    torch.testing.assert_close(ahead[:, slots], moving(10)[:, slots] + 0.6, **close)
    rest = torch.tensor([0, 2, 4])
    torch.testing.assert_close(ahead[:, rest], followed(**how).at(10)[:, rest])


def test_rows_computed_alone_show_where_they_go_after_a_single_full_evaluation():
    trajectory, slots = followed(at=(0,)), torch.tensor([1, 3])
    trajectory.renew(4, slots, moving(4)[:, slots])
    torch.testing.assert_close(trajectory.at(9)[:, slots], moving(9)[:, slots])
    torch.testing.assert_close(trajectory.at(9)[:, 0], moving(0)[:, 0])


@pytest.mark.parametrize("how", WAYS[1:], ids=str)
def test_what_is_packed_follows_too(how):
    held, followed_on = error(followed(order=0, **how), 8), error(followed(**how), 8)
    assert followed_on < 0.6 * held


def test_what_only_rounding_changed_is_not_taken_for_movement():
    trajectory = Trajectory(0, START, 2, bits=8, turn_bits=4)
    trajectory.record(1, START)
    trajectory.record(2, START)
    drift = (trajectory.at(30) - trajectory.at(2)).norm() / START.norm()
    assert drift < 0.1


def test_a_second_stage_renews_values_and_keeps_slopes():
    trajectory = followed()
    trajectory.record(4, moving(4) + 1)
    torch.testing.assert_close(trajectory.at(9), moving(9) + 1)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_bytes_are_a_copy_for_every_order(how):
    tier = MemoryTier(**how)
    assert 2 * followed(order=2, **how).bytes == tier.bytes(SHAPE[1], 2 * WIDTH, 1, 1, 4)


def test_the_memory_goes_on_where_it_is_told_the_time(classes):  # noqa: F811
    from hetcache_core.context import remember

    memory, context = ContextMemory(remember(classes, 1.0), 72, LAYERS, MemoryTier()), classes.context
    first, last = rows(72, 0)[0], rows(72, 1)[0]
    for position, key in ((0, first), (2, last)):
        memory.begin(position)
        memory.capture(0, ("cond",), key, key)
    memory.begin(3)
    for damping, expected in ((1.0, last + (last - first) / 2), (0.0, last)):
        memory.select(classes.edited, damping)
        key, _ = memory.join(0, ("cond",), *rows(len(classes.edited), 5))
        torch.testing.assert_close(key[:, : len(context)], expected[:, context])
