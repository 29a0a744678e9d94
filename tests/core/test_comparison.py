"""Pictures of a comparison: sizes, colours, outlines, and text that fits."""

import math

import pytest
import torch

from hetcache_core import comparison
from hetcache_core.quality import by_frame, compare


@pytest.fixture
def edit():
    """(before, after, mask), 3 frames of 48x64; the second frame differs most, and only inside the mask."""
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(3, 48, 64, 3, generator=generator)
    mask = torch.zeros(3, 48, 64, dtype=torch.bool)
    mask[:, 12:30, 20:44] = True
    after = before.clone()
    for frame, change in enumerate((0.01, 0.1, 0.02)):
        after[frame][mask[frame]] = (before[frame][mask[frame]] + change).clamp(0, 1)
    return before, after, mask


def test_the_difference_is_black_where_equal_and_white_from_the_gain_on(edit):
    before, _, mask = edit
    shifted = before.clone()
    shifted[mask] = 1 - (before[mask] > 0.5).float()
    heat = comparison.difference(shifted, before, gain=64)
    assert heat.shape == before.shape
    assert (heat[~mask] == 0).all()
    assert (heat[mask] > 0.99).all()


def test_the_difference_brightens_with_the_distance():
    before = torch.zeros(1, 1, 256, 3)
    after = torch.linspace(0, 1, 256)[None, None, :, None].expand(1, 1, 256, 3)
    light = comparison.difference(after, before, gain=1)[0, 0] @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (light[1:] >= light[:-1]).all() and light[0] == 0 and light[-1] == pytest.approx(1)


def test_the_outline_hides_nothing_of_the_edit(edit):
    before, _, mask = edit
    drawn = comparison.outlined(before[0], mask[0])
    changed = (drawn != before[0]).any(-1)
    assert changed.any() and not changed[mask[0]].any()
    assert not changed[:10].any() and not changed[:, 46:].any()


def test_frames_are_whole_and_even(edit):
    before, after, mask = edit
    frames = list(comparison.side_by_side(before, after, mask, 8.0, by_frame(after, before, mask)))
    assert len(frames) == 3 and frames[0].shape == (48 + 18, 3 * 64, 3)
    for index, video in enumerate((before, after)):
        panel = frames[1][18:, 64 * index : 64 * (index + 1)]
        assert torch.equal(panel[mask[1]], video[1][mask[1]])
    assert all(side % 2 == 0 for side in frames[0].shape[:2])


@pytest.mark.parametrize("size", [(1080, 1920), (2048, 512)])
def test_wide_videos_shrink_to_4k(size):
    before = torch.rand(1, *size, 3)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    (frame,) = comparison.side_by_side(before, before, mask, 8.0, [math.nan])
    assert frame.shape[1] <= comparison.WIDEST and frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    panel = frame.shape[1] // 3
    bar = max(18, 2 * round(panel / 28))
    assert panel / (frame.shape[0] - bar) == pytest.approx(size[1] / size[0], rel=0.01)


@pytest.mark.parametrize("size", [(192, 192), (480, 832), (832, 480), (64, 256), (1080, 1920)])
def test_the_card_is_large_print_at_any_size(size):
    before = torch.rand(2, *size, 3)
    after = (before + 0.02).clamp(0, 1)
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[:, : size[0] // 2] = True
    corner = (slice(None), slice(64), slice(64))
    card = comparison.card(before, after, mask, 8.0, 1, compare(after[corner], before[corner], mask[corner]))
    height, width = card.shape[:2]
    assert width <= comparison.CARD and height <= 1.3 * comparison.CARD
    assert card.dtype == torch.float32 and 0 <= card.min() and card.max() <= 1
    numbers = card[height // 2 - 20 :, width - 400 :]
    assert (numbers > 0.8).any() and (card[-2:] < 0.2).all()


def test_numbers_in_words():
    assert [comparison.say(v) for v in (math.inf, math.nan, 41.26)] == ["equal", "-", "41.3 dB"]
    assert [comparison.similarity(v) for v in (1.0, 0.99999, math.nan)] == ["1.0000", "0.9999", "-"]
