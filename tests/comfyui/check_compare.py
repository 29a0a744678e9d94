"""Compare Edits on the host: what it takes, what it gives, what it shows, and what it says when it cannot."""

import json

import folder_paths
import pytest
import torch
from pack import load
from PIL import Image

COMPARE = load()[1]["HetCacheCompare"]


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def edit():
    """(before, after, mask): 5 frames of 48x64, the fourth of them furthest off."""
    before = torch.rand(5, 48, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    mask = torch.zeros(5, 48, 64)
    mask[:, 12:30, 20:44] = 1
    change = torch.tensor([0.01, 0.01, 0.01, 0.1, 0.01])[:, None, None] * mask
    return before, before + change[..., None], mask


def run(*args, **kwargs):
    output = COMPARE.execute(*args, **kwargs)
    return *output.args, output.ui


def test_what_it_gives(edit, temp):
    frames, difference, report, numbers, shown = run(*edit)
    numbers = json.loads(numbers)
    mean = (4 * 0.01**2 + 0.1**2) / 5
    assert numbers["psnr"]["mask"] == pytest.approx(-10 * torch.tensor(mean).log10().item(), abs=0.01)
    assert numbers["psnr"]["ring"] is None and numbers["equal"] == {
        "mask": False, "ring": True, "outside": True, "all": False}  # fmt: skip
    assert numbers["psnr_mask_by_frame"][3] == pytest.approx(20, abs=0.01)
    assert "worst frame inside the mask: 4 of 5, 20.0 dB" in report and "outside:" in report
    assert len(frames) == 5 and frames.shape[2] == 3 * 64
    assert difference.shape == (5, 48, 64, 3) and (difference[edit[2] == 0] == 0).all()
    (picture,) = shown["images"]
    assert shown["text"] == (report,) and picture["type"] == "temp"
    assert Image.open(temp / picture["subfolder"] / picture["filename"]).size[0] > 700


def test_equal_videos_are_called_so(edit):
    before, _, mask = edit
    *_, report, numbers, _ = run(before, before.clone(), mask)
    assert report.startswith("The two videos are equal")
    assert set(json.loads(numbers)["equal"].values()) == {True}


def test_masks_of_every_shape(edit):
    before, after, mask = edit
    whole = json.loads(run(before, after, mask)[3])
    for same in (mask[:1], mask[0], mask[:, None], mask[:2], torch.cat([mask, mask]), mask.repeat_interleave(2, 1).
                 repeat_interleave(2, 2)):  # fmt: skip
        assert json.loads(run(before, after, same)[3])["psnr"]["mask"] == pytest.approx(whole["psnr"]["mask"])


def test_without_anything_masked_it_still_compares(edit):
    before, after, mask = edit
    *_, report, numbers, _ = run(before, after, mask * 0)
    assert json.loads(numbers)["psnr"]["mask"] is None and not json.loads(numbers)["equal"]["mask"]
    assert "inside the mask:         PSNR -" in report


def test_transparency_is_left_out(edit):
    before, after, mask = edit
    assert run(torch.cat([before, before[..., :1]], -1), after, mask)[3] == run(before, after, mask)[3]


@pytest.mark.parametrize("change, says", [
    (lambda v: v[:3], "'before' has 5 frames and 'after' 3. Make both with the same length"),
    (lambda v: v[:, :32], "'before' is 64x48 pixels and 'after' 64x32. Make both at the same width"),
])  # fmt: skip
def test_videos_that_do_not_fit_are_named(edit, change, says):
    before, after, mask = edit
    with pytest.raises(ValueError) as error:
        run(before, change(after), mask)
    assert says in str(error.value)


def test_videos_too_small_are_refused():
    tiny = torch.zeros(1, 8, 8, 3)
    with pytest.raises(ValueError, match="too small to compare"):
        run(tiny, tiny, torch.ones(1, 8, 8))


def test_inputs_are_left_as_they_are(edit):
    kept = [tensor.clone() for tensor in edit]
    run(*edit)
    assert all(torch.equal(a, b) for a, b in zip(kept, edit))


