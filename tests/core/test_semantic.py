import pytest
import torch

from hetcache_core.semantic import SemanticSampler, best_of_clusters, importance, kmeans


def test_kmeans_finds_separate_clouds():
    random = torch.Generator().manual_seed(0)
    truth = torch.arange(240) % 4
    clouds = torch.eye(4).repeat(1, 3)[truth] * 20 + torch.randn(240, 12, generator=random)
    labels = kmeans(clouds, 4)
    assert all(len(labels[truth == cloud].unique()) == 1 for cloud in range(4))
    assert len(labels.unique()) == 4


def test_kmeans_does_not_spend_its_clusters_on_outliers():
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    rows[::70] *= 8
    sizes = kmeans(rows, 16).bincount()
    assert sizes.max() < 400 and (sizes > 20).sum() >= 5


def test_importance_is_a_share_of_all_attention_and_not_the_same_for_all():
    """The reference implementation normalises over generative tokens and then sums over them: all ones."""
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 2, 16, generator=random) for n in (8, 50))
    scores = importance(query, key)
    logits = torch.einsum("qhd,khd->hqk", query, key) * 16**-0.5
    assert torch.allclose(scores, logits.softmax(-1).mean((0, 1)), atol=1e-6)
    assert scores.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert scores.max() > 2 * scores.min()


@pytest.mark.parametrize("scores", [None, torch.arange(100.0).flip(0)])
@pytest.mark.parametrize("count", [1, 3, 10, 37, 100])
def test_clusters_keep_their_share_and_weights_add_up(scores, count):
    labels = torch.tensor([0] * 70 + [1] * 25 + [3] * 5)
    chosen, weights = best_of_clusters(labels, scores, count)
    assert len(chosen) == count and chosen.tolist() == sorted(set(chosen.tolist()))
    if count >= 3:
        assert set(labels[chosen].tolist()) == {0, 1, 3}
        if scores is None:
            assert weights.sum().item() == pytest.approx(100, rel=1e-5)
        else:
            assert (weights * scores[chosen]).sum().item() == pytest.approx(scores.sum().item(), rel=1e-5)
            assert (weights >= 1).all()
    if scores is not None and count == 10:
        for cluster in (0, 1, 3):
            rows = chosen[labels[chosen] == cluster]
            assert rows.tolist() == (labels == cluster).nonzero().flatten()[: len(rows)].tolist()


@pytest.mark.parametrize("mode", ["kmeans", "attention", "both"])
def test_picks_change_with_what_is_seen_and_stay_constant_in_number(mode):
    random = torch.Generator().manual_seed(0)
    pool, generative = torch.arange(20, 200), torch.arange(20)
    sampler = SemanticSampler(pool, generative, mode, 0.1)
    before = sampler.pick(torch.zeros(200))
    query, key, value = (torch.randn(1, 200, 2, 16, generator=random) for _ in range(3))
    key[0, 150:160] = query[0, :20].mean(0) * 40  # what the edit looks at
    sampler.look(query, key, value)
    after = sampler.pick(torch.zeros(200))
    assert len(before) == len(after) == sampler.count == 18 == len(sampler.log_weights)
    assert after.tolist() == sorted(set(after.tolist())) and set(after.tolist()) <= set(pool.tolist())
    assert not torch.equal(before, after)
    if mode == "attention":
        assert len(set(after.tolist()) & set(range(150, 160))) == 10
    weights = sampler.log_weights.exp()
    assert (weights >= 1).all() and weights.sum().item() <= 180 * (1 + 1e-4)
    assert mode != "kmeans" or weights.sum().item() == pytest.approx(180, rel=1e-4)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="unknown semantic sampling"):
        SemanticSampler(torch.arange(4), torch.arange(2), "best", 0.5)
