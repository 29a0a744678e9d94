import pytest
import torch

from hetcache_core.tokens import TokenGrid, classify, pool_latent_mask, pool_pixel_mask, vace_mask


def test_grid_pads_odd_latents_up():
    assert TokenGrid.of_latent(torch.zeros(1, 16, 3, 15, 21)).shape == (3, 8, 11)


def test_grid_refuses_emptiness():
    with pytest.raises(ValueError, match="at least one token"):
        TokenGrid(0, 4, 4)


def test_one_pixel_in_any_of_four_frames_marks_its_token():
    grid = TokenGrid(3, 4, 4)
    for frame, latent in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        mask = torch.zeros(9, 64, 64)
        mask[frame, 33, 17] = 1
        touched = pool_pixel_mask(mask, grid)
        assert touched.nonzero().tolist() == [[latent, 2, 1]]


def test_first_pixel_frame_stands_alone():
    mask = torch.zeros(9, 64, 64)
    mask[0] = 1
    assert pool_pixel_mask(mask, TokenGrid(3, 4, 4)).flatten(1).all(1).tolist() == [True, False, False]


def test_single_frame_mask_repeats_and_soft_values_count_above_threshold():
    mask = torch.full((1, 64, 64), 0.05)
    mask[0, :16, :16] = 0.3
    touched = pool_pixel_mask(mask, TokenGrid(3, 4, 4), threshold=0.1)
    assert touched.sum().item() == 3
    assert touched[:, 0, 0].all()


def test_a_mask_of_larger_cells_is_the_same():
    """Wan 2.2 5B's latent cells are 16 pixels wide."""
    mask = torch.zeros(5, 32, 48)
    mask[2, 20, 33] = 1
    grid = TokenGrid(2, 2, 3)
    wide = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(pool_pixel_mask(wide, grid), pool_pixel_mask(mask, grid))


def test_odd_pixel_sizes_pad_like_the_model():
    touched = pool_pixel_mask(torch.ones(1, 72, 120), TokenGrid(1, 5, 8))
    assert touched.all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(8, 64, 64), "8 frames but the clip has 9"),
        (torch.zeros(9, 32, 64), "scale the mask"),
        (torch.full((9, 64, 64), float("nan")), "NaN"),
        (torch.zeros(64, 64), "2 dimensions"),
    ],
)
def test_impossible_masks_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        pool_pixel_mask(mask, TokenGrid(3, 4, 4))


def test_latent_mask_pools_two_by_two():
    mask = torch.zeros(2, 8, 8)
    mask[1, 3, 4] = 1
    assert pool_latent_mask(mask, TokenGrid(2, 4, 4)).nonzero().tolist() == [[1, 1, 2]]


def control(frames=4, references=1):
    control = torch.randn(1, 96, frames + references, 8, 8)
    control[:, 32:] = 0
    control[:, 16:32, :references] = 0
    return control


def test_vace_mask_finds_references_and_widens_in_time():
    c = control()
    c[:, 40, 2, 3, 3] = 1  # one of 64 sub-pixels, one sampled frame
    mask, references = vace_mask(c)
    assert references == 1
    assert mask[:, 3, 3].tolist() == [0, 1, 1, 1, 0]


def test_vace_mask_of_stacked_controls_is_their_union():
    c = torch.stack([control(references=0), control(references=0)], 1)
    c[:, 0, 32, 0, 0, 0] = 1
    c[:, 1, 32, 3, 7, 7] = 1
    mask, references = vace_mask(c)
    assert references == 0
    assert mask[0, 0, 0] == 1 and mask[3, 7, 7] == 1


def test_a_reference_is_known_where_its_zeros_were_rounded():
    c = control()
    c[:, 16:32, 0] = 1e-4 * torch.randn(1, 16, 8, 8)
    assert vace_mask(c)[1] == 1


def test_a_control_of_zeros_has_no_references():
    assert vace_mask(torch.zeros(1, 96, 3, 8, 8))[1] == 0


def test_classes_partition_and_distances_grow():
    touched = torch.zeros(3, 6, 6, dtype=torch.bool)
    touched[1, 2, 2] = True
    classes = classify(touched, margin_space=1, margin_time=1)
    assert classes.generative.sum() == 1
    assert classes.margin.sum() == 26
    together = torch.cat([classes.edited, classes.context]).sort().values
    assert together.tolist() == list(range(3 * 6 * 6))
    assert classes.distance[classes.edited].max() == 0
    assert classes.distance.view(3, 6, 6)[1, 2].tolist() == [1, 0, 0, 0, 1, 2]


def test_reference_frames_are_always_context():
    touched = torch.ones(3, 4, 4, dtype=torch.bool)
    classes = classify(touched, margin_space=1, margin_time=2, reference_frames=1)
    assert classes.context.tolist() == list(range(16))


def test_empty_mask_is_all_context():
    classes = classify(torch.zeros(2, 4, 4, dtype=torch.bool))
    assert len(classes.context) == 32 and classes.mask_fraction == 0
