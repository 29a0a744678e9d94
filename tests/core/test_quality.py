"""Regions that add up, and numbers known beforehand."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from hetcache_core.quality import REGIONS, by_frame, compare, regions


@pytest.fixture
def mask():
    mask = np.zeros((2, 64, 64), bool)
    mask[:, 24:40, 24:40] = True
    return mask


def test_mask_ring_and_outside_are_all(mask):
    parts = regions(mask, ring=4)
    assert tuple(parts) == REGIONS
    np.testing.assert_array_equal(parts["mask"].int() + parts["ring"].int() + parts["outside"].int(), 1)
    assert parts["ring"][0, 24 - 4, 30]
    assert not parts["ring"][0, 24 - 5, 30]


def test_equal_videos(mask):
    video = np.random.default_rng(0).random((2, 64, 64, 3))
    result = compare(video, video, mask)
    assert all(value == math.inf for value in result["psnr"].values())
    assert all(value == pytest.approx(1) for value in result["ssim"].values())


def test_a_known_error_inside_the_mask_only(mask):
    reference = np.full((2, 64, 64, 3), 0.5, np.float32)
    video = reference.copy()
    video[mask] += 0.1
    psnr = compare(video, reference, mask)["psnr"]
    assert psnr["mask"] == pytest.approx(20, abs=1e-4)
    assert psnr["ring"] == psnr["outside"] == math.inf
    assert psnr["all"] == pytest.approx(20 - 10 * math.log10(mask.mean()), abs=1e-4)


def test_uint8_and_floats_mean_the_same(mask):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)
    assert compare(a, b, mask)["psnr"]["all"] == pytest.approx(compare(a / 255, b / 255, mask)["psnr"]["all"])


def test_ssim_falls_where_the_damage_is(mask):
    rng = np.random.default_rng(2)
    reference = rng.random((2, 64, 64, 3))
    video = reference.copy()
    video[mask] = rng.random((mask.sum(), 3))
    ssim = compare(video, reference, mask, ring=8)["ssim"]
    assert ssim["mask"] < 0.3
    assert ssim["ring"] > 0.6
    assert ssim["outside"] == pytest.approx(1)


def test_a_region_without_pixels_is_nan():
    mask = np.ones((1, 16, 16), bool)
    video = np.zeros((1, 16, 16, 3))
    assert math.isnan(compare(video, video, mask)["psnr"]["outside"])


def test_shapes_must_agree(mask):
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.zeros((2, 64, 64, 3)), np.zeros((2, 64, 32, 3)), mask)


def test_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(3)
    reference = rng.random((2, 40, 56, 3))
    video = (reference + rng.normal(0, 0.1, reference.shape)).clip(0, 1)
    mask = rng.random((2, 40, 56)) > 0.7
    maps = [
        structural_similarity(a, b, channel_axis=-1, data_range=1.0, full=True)[1].mean(-1)
        for a, b in zip(video, reference)
    ]
    ssim = compare(video, reference, mask, ring=2)["ssim"]
    for name, region in regions(mask, ring=2).items():
        assert ssim[name] == pytest.approx(np.stack(maps)[region.numpy()].mean(), abs=1e-12)


def test_the_ring_is_square():
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 10, 20] = True
    ring = regions(mask, ring=3)["ring"][0]
    assert ring.sum() == 7 * 7 - 1
    assert ring[7, 17] and ring[13, 23] and not ring[6, 20]


def test_by_frame_finds_the_worst(mask):
    reference = np.full((2, 64, 64, 3), 0.5, np.float32)
    video = reference.copy()
    video[1][mask[1]] += 0.1
    assert by_frame(video, reference, mask) == [math.inf, pytest.approx(20, abs=1e-4)]
    mask[0] = False
    assert math.isnan(by_frame(video, reference, mask)[0])


def test_progress_is_told(mask):
    told = []
    compare(np.zeros((2, 64, 64, 3)), np.zeros((2, 64, 64, 3)), mask, progress=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
