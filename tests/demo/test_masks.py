"""The built-in mask, mask videos, and the sentence every unusable mask gets."""

import numpy as np
import pytest

from demo.errors import InputError
from demo.masks import check_mask, load_mask, moving_mask
from demo.media import load_clip, write_video


def test_the_built_in_mask_moves_and_stays_near_18_percent():
    mask = moving_mask(33, 192, 192)
    share = mask.mean((1, 2))
    assert mask.shape == (33, 192, 192)
    assert 0.16 < share.min() <= share.max() < 0.20
    assert not (mask[0] == mask[-1]).all()
    assert not mask[:, [0, -1]].any()  # never cut off by the frame
    assert not mask[:, :, [0, -1]].any()
    np.testing.assert_array_equal(mask, moving_mask(33, 192, 192))


def write_mask(path, frames=9, size=64):
    """A white square in the left half."""
    mask = np.zeros((frames, size, size, 3), np.uint8)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 255
    write_video(path, mask, 25)
    return path


def test_a_mask_video_is_cut_at_half_brightness(clip_file, tmp_path):
    mask = load_mask(write_mask(tmp_path / "mask.mp4"), load_clip(clip_file, 64, 64, 9))
    assert mask.dtype == bool
    assert mask[:, 20:28, 20:28].all()
    assert abs(mask.mean() - 1 / 16) < 0.005


@pytest.mark.parametrize("frames", [5, 13])
def test_a_mask_of_the_wrong_length(clip_file, tmp_path, frames):
    with pytest.raises(InputError, match=r"mask\.mp4: the mask has .* frames and the clip 9; make both equally long"):
        load_mask(write_mask(tmp_path / "mask.mp4", frames=frames), load_clip(clip_file, 64, 64, 9))


def test_a_mask_of_the_wrong_size(clip_file, tmp_path):
    with pytest.raises(InputError, match=r"mask\.mp4: the mask is 32 x 32 pixels and the clip 64 x 64"):
        load_mask(write_mask(tmp_path / "mask.mp4", size=32), load_clip(clip_file, 48, 48, 9))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((5, 8, 8)), r"covers all of the clip \(100%\)"),
        (np.zeros((5, 8, 8)), r"is empty \(0% of the clip\)"),
        (np.full((5, 8, 8), np.nan), "holds NaN or infinite values"),
        (np.ones((4, 8, 8)), "is 4 x 8 x 8 but the clip is 5 x 8 x 8"),
        (np.ones((5, 8, 9)), "is 5 x 8 x 9 but the clip is 5 x 8 x 8"),
        (np.ones(()), "is a single number but the clip is 5 x 8 x 8"),
    ],
)
def test_masks_no_edit_can_be_made_with(mask, message):
    with pytest.raises(InputError, match=message):
        check_mask(mask, (5, 8, 8))
