"""The clip generator and the text table."""

import itertools

import numpy as np
import pytest
import torch

from nano import text
from nano.clips import HELD_OUT, MASK_FRACTION, TRAIN, TUNING, make_clip
from nano.latents import first_seed
from nano.natural import film_clip, natural_clip
from nano.shapes import COLOURS, PROMPTS, SHAPES, coverage
from nano.train_dit import STAGES

SIZE = (5, 48, 48)


def test_a_seed_makes_one_clip():
    a, b, other = make_clip(7, *SIZE), make_clip(7, *SIZE), make_clip(8, *SIZE)
    assert np.array_equal(a.video, b.video) and np.array_equal(a.mask, b.mask) and a.prompt == b.prompt
    assert not np.array_equal(a.video, other.video)


def test_shapes_and_types():
    clip = make_clip(1, 9, 64, 48)
    assert clip.video.shape == (9, 64, 48, 3) and clip.video.dtype == np.uint8
    assert clip.mask.shape == (9, 64, 48) and clip.mask.dtype == bool
    assert clip.prompt in PROMPTS


@pytest.mark.parametrize("make", [natural_clip, film_clip])
def test_natural_clips(make):
    clips = [make(seed, 9, 64, 48) for seed in range(20)]
    assert all(clip.shape == (9, 64, 48, 3) and clip.dtype == np.uint8 for clip in clips)
    assert np.array_equal(clips[3], make(3, 9, 64, 48)) and not np.array_equal(clips[3], clips[4])
    assert np.mean([clip.std() for clip in clips]) > 20 and any((clip != clip[:1]).any() for clip in clips)


def test_mask_and_target():
    low, high = MASK_FRACTION
    for seed in range(60):
        clip = make_clip(seed, *SIZE)
        assert low * 0.7 <= clip.mask.mean() <= high * 1.05
        assert (clip.mask != clip.mask[:1]).any() <= clip.moving
        assert (clip.target * ~clip.mask).sum() <= 0.02 * clip.target.sum(), "the target leaves the mask"
        assert clip.visible.sum() >= 0.69 * clip.target.sum()


def test_requested_mask():
    for seed in range(20):
        clip = make_clip(seed, 5, 96, 96, mask_fraction=(0.15, 0.20), moving=False)
        assert 0.14 <= clip.mask.mean() <= 0.21
        assert (clip.mask == clip.mask[:1]).all() and not clip.moving


def test_seed_ranges_are_disjoint():
    ranges = [TRAIN, TUNING, HELD_OUT]
    for i, a in enumerate(ranges):
        for b in ranges[i + 1 :]:
            assert a.stop <= b.start or b.stop <= a.start
    starts = sorted(first_seed(*size) for size in STAGES)
    assert all(b - a >= 20_000 for a, b in itertools.pairwise(starts)) and starts[-1] in TRAIN


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage(shape):
    alpha, box = coverage(shape, 64, 64, (31.5, 31.5), 20, 0.3)
    assert 0 <= alpha.min() and alpha.max() == 1 and alpha.shape == (box[0].stop - box[0].start,) * 2
    assert 0.25 < alpha.sum() / (np.pi * 20**2) < 1
    assert coverage(shape, 64, 64, (-90, 10), 20, 0.0)[0].size == 0


def test_text_table():
    red_circle, red_star = text.encode("red circle"), text.encode("red star")
    assert red_circle.shape == (1, 8, 4096) and red_circle.dtype == torch.float32
    assert torch.equal(red_circle[:, 0], red_star[:, 0]) and not torch.equal(red_circle[:, 1], red_star[:, 1])
    assert torch.equal(red_circle, text.encode(" Red  CIRCLE"))
    assert red_circle[:, 2:].abs().max() == 0 and text.encode("").abs().max() == 0
    # The table must never change: the weights know it.
    assert red_circle[0, 0, :3].tolist() == pytest.approx(EXPECTED_RED, abs=1e-6)


EXPECTED_RED = [0.0851195, 0.8707507, 1.4672636]


@pytest.mark.parametrize("prompt", ["red dragon", "circle red", "red", "red red", "a red circle"])
def test_unknown_prompts_say_what_is_known(prompt):
    with pytest.raises(ValueError) as error:
        text.encode(prompt)
    assert all(word in str(error.value) for word in (*COLOURS, *SHAPES))
