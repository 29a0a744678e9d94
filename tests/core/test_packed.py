import pytest
import torch

from hetcache_core.offload import HostMemory
from hetcache_core.packed import WIDEST, Channels, Rows, packed_bytes
from hetcache_core.packed import _joined as joined
from hetcache_core.packed import _planes as planes

SHAPE = (2, 40, 2, 128)


def rows(dtype=torch.float32, shape=SHAPE):
    """Normally distributed, with channels that stick out, as keys have."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(2, *shape[2:], generator=generator).exp()
    return (torch.randn(shape, generator=generator) * channels[0] + 5 * channels[1]).to(dtype)


def packed(bits, rows):
    kept = Rows(rows, bits, Channels.of(rows))
    return kept, kept.fetch(torch.device("cpu"))


@pytest.mark.parametrize("bits", WIDEST)
def test_codes_come_back_from_their_planes(bits):
    codes = torch.arange(256).remainder(2**bits).to(torch.uint8).view(1, 2, 1, 128)
    kept = planes(codes, bits)
    assert sum(t.numel() for t in kept) == codes.numel() * bits // 8
    assert torch.equal(joined(kept, bits), codes)


@pytest.mark.parametrize(("bits", "least"), [(8, 42.5), (6, 31.5), (4, 19.0), (2, 9.0)])
def test_the_error_is_that_of_the_best_uniform_quantiser(bits, least):
    rows_ = rows()
    channels = Channels.of(rows_)
    kept, fetched = packed(bits, rows_)
    error = (kept.get(fetched) - rows_) / channels.spread
    signal = (rows_ - channels.centre) / channels.spread
    assert 20 * torch.log10(signal.norm() / error.norm()) > least


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_rounding_is_foretold(bits):
    rows_ = rows()
    kept, fetched = packed(bits, rows_)
    error = (kept.get(fetched) - rows_).square().mean()
    assert 0.6 * error < kept.rounding(fetched).mean() < 1.1 * error  # what is clipped comes on top
    assert kept.rounding(fetched, torch.tensor([1, 5])).shape == (2, 2, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [None, *WIDEST])
def test_rows_come_back_in_their_own_shape_and_dtype(bits, dtype):
    rows_ = rows(dtype, (1, 7, 3, 20))  # 60 channels are no whole groups of 128
    kept, fetched = packed(bits, rows_)
    assert kept.bytes == packed_bytes(bits, 7, 60, dtype.itemsize)
    result = kept.get(fetched)
    assert result.dtype == dtype and result.shape == rows_.shape
    assert torch.equal(result, rows_) == (bits is None)
    wide, fetched = packed(bits, rows_.float())
    error, least = ((t.float() - rows_.float()).norm() for t in (result, wide.get(fetched)))
    assert error <= 1.1 * least + 0.005 * rows_.float().norm()


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_some_rows_are_renewed_alone(bits):
    kept, fetched = packed(bits, rows())
    before, slots = kept.get(fetched).clone(), torch.tensor([3, 17])
    kept.renew(slots, before[:, slots] + 1, fetched)
    after = kept.get(fetched)
    rest = torch.ones(SHAPE[1], dtype=torch.bool).index_fill_(0, slots, False)
    assert torch.equal(after[:, rest], before[:, rest]) and not torch.equal(after[:, slots], before[:, slots])
    assert torch.equal(kept.get(fetched, slots), after[:, slots])


def test_what_was_fetched_is_renewed_with_what_is_kept():
    kept = Rows(rows(), 8, Channels.of(rows()), HostMemory())
    copies, slots = [t.clone() for t in kept.fetch(torch.device("cpu"))], torch.tensor([0, 39])
    kept.renew(slots, rows()[:, [5, 6]], copies)
    for found in (kept.get(copies), kept.get(kept.fetch(torch.device("cpu")))):
        assert torch.equal(found[:, slots], found[:, [5, 6]])


@pytest.mark.parametrize("bits", WIDEST)
def test_zeros_stay_zero(bits):
    kept = Rows(torch.zeros(SHAPE), bits, Channels(None, Channels.of(rows()).spread))
    assert not kept.get(kept.fetch(torch.device("cpu"))).any()


def test_long_clips_are_coded_piece_by_piece(monkeypatch):
    whole = packed(6, rows())[1]
    monkeypatch.setattr("hetcache_core.packed._AT_ONCE", 3000)
    assert all(torch.equal(a, b) for a, b in zip(whole, packed(6, rows())[1], strict=True))
