import torch

from hetcache_core.packing import (
    from_patches,
    gather_rows,
    pack,
    pack_timesteps,
    pad_to_patches,
    row_of,
    to_patches,
    unpack,
)


def test_patches_are_tokens_in_time_row_column_order():
    latent = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = to_patches(latent)
    assert patches.shape == (1, 12, 2, 2)
    assert torch.equal(patches[0, 1 * 6 + 1 * 3 + 2], latent[0, 1, 2:4, 4:6])


def test_patches_round_trip():
    latent = torch.randn(2, 16, 3, 8, 6)
    assert torch.equal(from_patches(to_patches(latent), 3, 8, 6), latent)


def test_pack_lays_tokens_in_a_row():
    latent = torch.randn(2, 5, 3, 8, 6)
    selection = torch.tensor([0, 7, 35])
    packed = pack(latent, selection)
    assert packed.shape == (2, 5, 1, 2, 6)
    assert torch.equal(packed[:, :, 0, :, 2:4], latent[:, :, 0, 4:6, 2:4])
    assert torch.equal(unpack(packed), to_patches(latent)[:, :, selection])
    assert torch.equal(row_of(unpack(packed)), packed)


def test_stacked_controls_pack_too():
    control = torch.randn(1, 2, 96, 3, 8, 6)
    assert pack(control, torch.arange(4)).shape == (1, 2, 96, 1, 2, 8)


def test_padding_wraps_round_and_leaves_even_sizes_alone():
    even, odd = torch.randn(1, 4, 2, 6, 8), torch.randn(1, 4, 2, 5, 7)
    assert pad_to_patches(even) is even
    padded = pad_to_patches(odd)
    assert padded.shape == (1, 4, 2, 6, 8)
    assert torch.equal(padded[..., :5, :7], odd)
    assert torch.equal(padded[..., 5, :7], odd[..., 0, :])


def test_timesteps_per_clip_frame_and_token():
    selection = torch.tensor([1, 4, 5])
    assert pack_timesteps(torch.tensor([7.0]), selection, 3, 6).tolist() == [7.0]
    assert pack_timesteps(torch.tensor([[0.0, 9.0]]), selection, 3, 6).tolist() == [[0.0, 9.0, 9.0]]
    assert pack_timesteps(torch.arange(6.0)[None], selection, 3, 6).tolist() == [[1.0, 4.0, 5.0]]


def test_rotary_rows():
    table = torch.randn(1, 6, 1, 4)
    assert torch.equal(gather_rows(table, torch.tensor([2, 5])), table[:, [2, 5]])
