"""Size, threshold, edges and length of a mask."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from nodes import mask_ops
from nodes.mask_files import MaskError
from nodes.mask_ops import edited, finish, fit_length, numbers, resize, soften, spread


@pytest.fixture
def grey():
    return torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dot():
    mask = torch.zeros(1, 61, 71)
    mask[:, 30, 35] = 1
    return mask


def test_threshold_and_invert():
    frame = np.array([[0, 127, 128, 255]], np.uint8)
    assert finish([frame])[0, 0].tolist() == [0, 0, 1, 1]
    assert finish([frame], invert=True)[0, 0].tolist() == [1, 1, 0, 0]
    assert finish([frame], threshold=1.0)[0, 0].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(finish([frame], threshold=0)[0], torch.from_numpy(frame) / 255)
    torch.testing.assert_close(finish([frame], threshold=0, invert=True)[0], 1 - torch.from_numpy(frame) / 255)


def test_hard_edges_stay_hard_when_resized(square):
    mask = finish(list(square), (100, 130))
    assert mask.shape == (6, 100, 130) and mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0, 1}
    assert 0 < finish(list(square), (100, 130), threshold=0)[0].unique()[1] < 1


def test_chunks_make_no_difference(square, monkeypatch):
    settings = dict(size=(36, 44), threshold=0, grow=2, feather=3)
    whole, calls = finish(list(square), **settings), []
    monkeypatch.setattr(mask_ops, "CHUNK", 1)
    assert torch.equal(finish(list(square), **settings, progress=lambda *call: calls.append(call)), whole)
    assert calls == [(done, 6) for done in range(1, 7)]


def test_resize_keeps_the_centre(grey):
    assert torch.equal(resize(grey, 40, 56), grey)
    assert torch.equal(resize(grey, 40, 40), grey[:, :, 8:48])
    assert torch.equal(resize(grey, 20, 56), grey[:, 10:30])
    assert resize(grey, 17, 90).shape == (3, 17, 90)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 13, 14, 30, 99])
def test_spread_is_the_largest_value_near(radius, grey):
    size = (1, 2 * radius + 1, 2 * radius + 1)
    np.testing.assert_array_equal(spread(grey, radius), ndimage.maximum_filter(grey.numpy(), size))
    np.testing.assert_array_equal(spread(grey, -radius), ndimage.minimum_filter(grey.numpy(), size))


@pytest.mark.parametrize("feather", [1, 2, 7, 20])
def test_feather_fades_outward(feather, dot):
    block = spread(dot, 5)
    soft = soften(block, feather)
    assert torch.equal(soft[block > 0], block[block > 0])  # exactly: what was edited still is
    fade = soft[0, 30, 40:]  # from the edge outward
    assert (fade.diff() <= 0).all() and fade[1] < 1
    reach = int((fade > 0).sum()) - 1
    assert feather <= reach <= feather + 1
    assert 0.2 < fade[1 : reach + 1].mean() < 0.6
    torch.testing.assert_close(soft, soft.flip(1).flip(2))
    assert torch.equal(soften(block, 0), block)


def test_feather_of_a_mask_at_the_border_stays_full():
    mask = torch.zeros(1, 20, 20)
    mask[:, :, :8] = 1
    assert (soften(mask, 6)[:, :, :8] == 1).all() and (soften(torch.ones(1, 9, 9), 50) == 1).all()


def test_length(grey):
    assert torch.equal(fit_length(grey, 2, "refuse", "m"), grey[:2])
    assert torch.equal(fit_length(grey, 5, "hold", "m"), grey[[0, 1, 2, 2, 2]])
    assert torch.equal(fit_length(grey, 7, "loop", "m"), grey[[0, 1, 2, 0, 1, 2, 0]])
    with pytest.raises(MaskError, match=r"m\.mp4: gives 3 frames, and the clip has 4"):
        fit_length(grey, 4, "refuse", "m.mp4")
    for policy in mask_ops.LENGTHS:
        assert torch.equal(fit_length(grey[:1], 3, policy, "m"), grey[[0, 0, 0]])


def test_the_numbers_of_a_mask():
    mask = torch.zeros(7, 4, 4)
    mask[2, :2], mask[6, 0, 0] = 1, 0.05  # so faint that it is kept
    assert numbers(edited(mask)) == {"share": pytest.approx(1 / 14), "longest_unmasked": 4}
    assert numbers(edited(torch.ones(2, 3, 3))) == {"share": 1.0, "longest_unmasked": 0}
    assert numbers(edited(torch.zeros(3, 3, 3)))["longest_unmasked"] == 3
