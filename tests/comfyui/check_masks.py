"""Which tokens are generated: the explicit mask, else the latent's noise mask, the control's, the image's."""

from dataclasses import replace

import pytest
import torch
from small import FAST, QUICK, VARIANTS, Scene, cached, load, never_batched, psnr, sample

PIXELS = 8 * QUICK.width
FRAMES = 5  # of the clip: two latent frames


def pixels(frames=FRAMES, size=PIXELS, rows=slice(0, None)):
    """A mask over the left quarter of the clip, in some of its rows."""
    mask = torch.zeros(frames, size, size)
    mask[:, rows, : size // 4] = 1
    return mask


def tokens(mask=None, scene=QUICK, **kwargs):
    """Generated tokens ``[T, h, w]`` of a run of two steps."""
    _, stats = cached(load(), scene, FAST, mask, steps=2, **kwargs)
    assert not stats.warnings and stats.classes is not None, stats.summary()
    return stats.classes.generative.reshape(stats.grid)


LEFT = torch.zeros(2, 4, 4, dtype=torch.bool)
LEFT[:, :, 0] = True


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_mask_is_found_in_every_kind_of_model(variant):
    _, stats = cached(variant.model, variant.scene, FAST, steps=2)
    scene = variant.scene
    expected = torch.nn.functional.max_pool2d(scene.mask[:, None], 2, ceil_mode=True)[:, 0] > 0
    nothing = torch.zeros(scene.references, *expected.shape[1:], dtype=torch.bool)
    assert torch.equal(stats.classes.generative.reshape(stats.grid), torch.cat([nothing, expected]))
    assert stats.classes.reference_frames == scene.references


@pytest.mark.parametrize("memory_short", [False, True])
def test_a_negative_prompt_without_a_control_hides_no_mask(monkeypatch, memory_short):
    if memory_short:  # then prompts come in calls of their own
        never_batched(monkeypatch)
    positive, negative = QUICK.conds()
    bare = [[negative[0][0], {"pooled_output": None}]]
    monkeypatch.setattr(Scene, "conds", lambda scene: [positive, bare])
    stock = sample(load(), QUICK)
    result, stats = cached(load(), QUICK)
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    assert torch.equal(stats.classes.generative.reshape(stats.grid)[0], tokens()[0]) and psnr(result, stock) > 20


def test_what_any_positive_prompt_masks_is_edited(monkeypatch):
    whole = tokens()
    positive, negative = QUICK.conds()
    (text, extra), cells = positive[0], torch.zeros(1, 64, 2, 8, 8)
    cells[..., :2] = 1
    other = [text, extra | {"vace_mask": [cells], "vace_strength": [0.5]}]  # of another strength: in another call
    monkeypatch.setattr(Scene, "conds", lambda scene: [[*positive, other], negative])
    assert torch.equal(tokens(), whole | LEFT)


MASKS = {
    "of the clip": pixels(),
    "of another size": pixels(size=3 * PIXELS),
    "of another shape": torch.nn.functional.pad(pixels(), (0, 0, 2 * PIXELS, 2 * PIXELS)),
    "of one frame": pixels(frames=1),
    "without a time": pixels(frames=1)[0],
    "with a channel": pixels()[:, None],
    "longer than the clip": torch.cat([pixels(), torch.ones(4, PIXELS, PIXELS)]),
    "soft": 0.3 * pixels(),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_an_explicit_mask_comes_first_and_is_fitted(mask):
    assert torch.equal(tokens(mask), LEFT)


def test_frames_an_explicit_mask_is_too_short_for_are_generated():
    found = tokens(pixels(frames=3))
    assert torch.equal(found[0], LEFT[0]) and found[1].all()


def test_an_explicit_mask_leaves_reference_frames_out():
    found = tokens(pixels(), replace(QUICK, references=1))
    assert not found[0].any() and torch.equal(found[1:], LEFT)


def test_a_thin_mask_in_one_frame_is_not_lost():
    mask = torch.zeros(FRAMES, PIXELS, PIXELS)
    mask[3, 17, 40] = 1
    found = tokens(mask)
    assert found.sum() == 1 and found[1, 1, 2]


def test_the_noise_mask_comes_before_the_control():
    scene = replace(QUICK, noise_mask=True)
    assert torch.equal(tokens(scene=scene), tokens())
    assert not torch.equal(tokens(pixels(), scene), tokens())


NOTHING_TO_DO = {
    "empty": (torch.zeros(1, PIXELS, PIXELS), QUICK, "the mask is empty"),
    "everything": (torch.ones(1, PIXELS, PIXELS), QUICK, "the mask covers 100%"),
    "not a number": (torch.full((1, PIXELS, PIXELS), float("nan")), QUICK, "NaN"),
    "no mask at all": (None, Scene("text", height=8, width=8), "there is no mask"),
}


@pytest.mark.parametrize(("mask", "scene", "reason"), NOTHING_TO_DO.values(), ids=NOTHING_TO_DO)
def test_without_a_usable_mask_everything_is_computed_and_said_why(mask, scene, reason):
    model = load(vace_layers=2 if scene.kind == "vace" else 0)
    result, stats = cached(model, scene, FAST, mask)
    assert torch.equal(result, sample(model, scene))
    assert reason in stats.note and stats.decisions == "FFFFFF"


class Posed(Scene):
    """A second control, poses say, that nobody gave a mask."""

    def conds(self) -> list:
        conds = super().conds()
        for ((_, extra),) in conds:
            extra["vace_mask"] = [extra["vace_mask"][0], torch.ones_like(extra["vace_mask"][1])]
        return conds


def test_a_control_without_a_mask_of_its_own_is_named_as_what_masks_everything():
    scene = Posed(height=8, width=8, copies=2)
    _, stats = cached(load(), scene)
    assert "without control_masks" in stats.note and "its mask to HetCache Patch Model" in stats.note
    assert stats.mask_fraction == 1.0 and stats.decisions == "FFFFFF"
    _, stats = cached(load(), scene, FAST, pixels())
    assert stats.decisions == FAST.schedule and not stats.note
    _, stats = cached(load(), scene, replace(FAST, max_mask_fraction=1.0))
    assert stats.decisions == FAST.schedule  # whoever asks for it gets it
