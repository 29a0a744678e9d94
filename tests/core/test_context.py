
import pytest
import torch

from hetcache_core.attention import KeyWeights, attend, attend_in_groups, has_flash
from hetcache_core.context import ContextSampler, even_positions, remember
from hetcache_core.tokens import classify


@pytest.fixture
def classes():
    touched = torch.zeros(4, 10, 10, dtype=torch.bool)
    touched[:, 4:6, 4:6] = True
    return classify(touched)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_remembered_weights_add_up_to_the_context(classes, share):
    kept = remember(classes, share)
    total = len(classes.context)
    assert len(kept.indices) == round(share * total)
    assert kept.indices.tolist() == sorted(set(kept.indices.tolist()))
    assert set(kept.indices.tolist()) <= set(classes.context.tolist())
    if share:
        assert kept.weights.sum().item() == pytest.approx(total, rel=1e-5)
        assert len(kept.weights.unique()) <= 4  # each level is an attention of its own on a GPU


def test_remembered_context_is_denser_near_the_edit_and_takes_from_every_row_and_column(classes):
    kept = remember(classes, 0.5)
    distance = classes.distance[kept.indices]
    density = torch.bincount(distance) / torch.bincount(classes.distance)
    assert density[1] == 1 and density[1] > density[2] > density[4] > 0.1
    far = kept.indices[distance > 1] % 100
    assert len((far // 10).unique()) == len((far % 10).unique()) == 10


def test_context_near_the_edit_is_kept_whole(classes):
    kept = remember(classes, 0.5)
    near = classes.context[classes.distance[classes.context] <= 1]
    assert set(near.tolist()) <= set(kept.indices.tolist())
    assert not kept.uniform and remember(classes, 1.0).uniform


def test_reference_images_are_remembered_whole_while_they_take_no_more_than_half():
    touched = torch.zeros(9, 10, 10, dtype=torch.bool)
    touched[5:, 4:6, 4:6] = True
    classes = classify(touched, reference_frames=1)
    assert classes.distance[classes.references].min() > 1 and len(classes.references) == 100
    for share in (0.02, 0.1, 0.25, 0.4, 0.9):
        kept, count = remember(classes, share), round(share * len(classes.context))
        of_it = (kept.indices < 100).sum()
        assert of_it == 100 if count >= 200 else of_it > 1.5 * count * 100 / len(classes.context)
        assert len(kept.indices) == count and kept.weights.sum().item() == pytest.approx(len(classes.context), rel=1e-5)


@pytest.mark.parametrize("mode", ["stride", "rotating", "stalest"])
def test_picks_are_sorted_distinct_and_constant_in_number(classes, mode):
    sampler = ContextSampler(classes.context, mode, 0.15)
    computed_at = torch.zeros(400)
    picks = [sampler.pick(computed_at) for _ in range(5)]
    for pick in picks:
        assert len(pick) == sampler.count == round(0.15 * len(classes.context))
        assert pick.tolist() == sorted(set(pick.tolist()))
    assert torch.equal(picks[0], picks[1]) == (mode != "rotating")


def test_stalest_first_visits_everything(classes):
    sampler = ContextSampler(classes.context, "stalest", 0.25)
    computed_at = torch.zeros(400)
    seen = set()
    for evaluation in range(1, 5):
        pick = sampler.pick(computed_at)
        assert not seen & set(pick.tolist())
        seen |= set(pick.tolist())
        computed_at[pick] = evaluation
    assert seen == set(classes.context.tolist())


def test_none_picks_nothing_and_unknown_modes_are_refused(classes):
    assert len(ContextSampler(classes.context, "none", 0.5).pick(torch.zeros(400))) == 0
    assert len(ContextSampler(classes.context, "stride", 0.0).pick(torch.zeros(400))) == 0
    with pytest.raises(ValueError, match="unknown context sampling 'best'"):
        ContextSampler(classes.context, "best", 0.5)


@pytest.mark.parametrize("count", [1, 3, 7, 16, 17])
def test_even_positions_are_distinct_for_every_shift(count):
    for shift in (0.0, 0.37, 0.999):
        assert len(set(even_positions(17, count, shift).tolist())) == count


def test_a_weighted_key_counts_as_that_many_copies():
    query, key, value = torch.randn(3, 1, 6, 2, 128).unbind(0)
    copies = torch.tensor([1, 1, 3, 1, 2, 1])
    repeated = attend(query, key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1))
    weighted = attend(query, key, value, KeyWeights.of(copies.float().log()))
    torch.testing.assert_close(weighted, repeated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "dtype", "built", "runs", "expected"),
    [
        ("cuda", torch.bfloat16, True, True, True),
        ("cuda", torch.float16, True, False, False),  # as before Ampere
        ("cuda", torch.float32, True, True, False),
        ("cuda", torch.bfloat16, False, True, False),
        ("cpu", torch.bfloat16, True, True, False),
    ],
)
def test_flash_attention_is_asked_for_where_torch_says_it_runs(monkeypatch, device, dtype, built, runs, expected):
    asked, zeros, cuda = [], torch.zeros, torch.backends.cuda
    monkeypatch.setattr(torch, "zeros", lambda *size, device, dtype: zeros(*size, dtype=dtype))
    monkeypatch.setattr(cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(cuda, "can_use_flash_attention", lambda params: asked.append(params) or runs)
    assert has_flash.__wrapped__(torch.device(device), dtype, 128) is expected
    assert all(p.query.dtype == dtype and p.query.shape[-1] == 128 and p.attn_mask is None for p in asked)


@pytest.mark.parametrize("groups", [1, 2, 17])
def test_groups_merged_by_log_sum_exp_equal_one_biased_call(groups):
    query = torch.randn(2, 5, 2, 128)
    key, value = torch.randn(2, 2, 40, 2, 128).unbind(0)
    bias = (1 + 5.5 * (torch.arange(40) % groups)).log()
    weights = KeyWeights.of(bias)
    merged = attend_in_groups(query, key, value, weights)
    assert len(weights.groups) == groups
    torch.testing.assert_close(merged, attend(query, key, value, weights), rtol=1e-5, atol=1e-6)
