import pytest
import torch

from hetcache_core import CachePolicy, Engine
from hetcache_core.block_profile import BlockProfile
from hetcache_core.block_scores import BlockScores, attention_columns
from hetcache_core.picture import draw_scores
from tests.core.test_engine import LAYERS, SHAPE, H, T, W, mask_classes, setup

TOKENS = T * H * W // 4
MAIN = (0, 2, 3, 5)  # of six layers, two are VACE's


def keys_at(tokens):
    """Queries and keys by which every query attends to these tokens, ``[1, L, 2, 128]``."""
    key = torch.zeros(1, TOKENS, 2, 128)
    key[:, tokens] = 10.0
    return torch.ones_like(key), key


def test_columns_are_attention_averaged_over_queries_and_heads():
    query, key = torch.randn(2, 40, 3, 16)
    full = torch.stack([(query[:, h] @ key[:, h].T / 4).softmax(-1).mean(0) for h in range(3)]).mean(0)
    torch.testing.assert_close(attention_columns(query, key), full)
    query, key = torch.randn(2, 700, 2, 16)
    assert float(attention_columns(query, key).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_block_scores_the_share_of_the_edit_it_looks_at(share):
    run = setup(main_layers=MAIN)
    scores, generative = BlockScores(run), run.classes.generative.nonzero().flatten()
    frames = [generative[generative // (TOKENS // T) == f] for f in range(T)]
    looked = torch.cat([f[: round(share * len(f))] for f in frames if len(f)])
    if not share:
        looked = (~run.classes.generative).nonzero().flatten()[:20]
    for layer in range(LAYERS):
        scores.look(layer, *keys_at(looked))
    measured = scores.profile("mine").scores
    wanted = [round(share * len(f)) / len(f) for f in frames if len(f)]
    assert measured == pytest.approx([sum(wanted) / len(wanted)] * 4) and len(measured) == 4


def test_the_blocks_that_look_least_are_background():
    run = setup(main_layers=MAIN)
    scores, generative = BlockScores(run), run.classes.generative.nonzero().flatten()
    elsewhere = (~run.classes.generative).nonzero().flatten()[:20]
    for layer in range(LAYERS):
        scores.look(layer, *keys_at(generative if layer in (2, 1) else elsewhere))
    profile = scores.profile("mine", share=0.75)
    assert profile.scores == (0, 1, 0, 0) and profile.background == (0, 2, 3)
    assert scores.profile("mine", threshold=2.0).background == (0, 1, 2, 3)
    assert scores.profile("mine", threshold=0.0).background == ()
    assert draw_scores(profile).std() > 0


def test_shares_and_thresholds_split():
    scores = (0.4, 0.1, 0.3, 0.2)
    for share, background in ((0.0, ()), (0.5, (1, 3)), (0.75, (1, 2, 3)), (1.0, (0, 1, 2, 3))):
        profile = BlockProfile.of_scores(SHAPE, scores, share=share, name="mine")
        assert profile.background == background and BlockProfile.from_json(profile.to_json()) == profile
    for share in (-0.1, 70):
        with pytest.raises(ValueError, match="from 0 to 1"):
            BlockProfile.of_scores(SHAPE, scores, share=share, name="mine")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "not a block profile"),
        ("{", "not a block profile"),
        ('{"name": "x"}', "not a block profile"),
        ('{"name": "x", "dim": 8, "layers": 2, "ffn": 8, "vace_layers": 0, "background": [2]}', "from 0 to 1"),
        ('{"name": "x", "dim": 0, "layers": 2, "ffn": 8, "vace_layers": 0, "background": []}', "dim"),
        (
            '{"name": "x", "dim": 8, "layers": 2, "ffn": 8, "vace_layers": 0, "background": [], "scores": [1]}',
            "1 scores",
        ),
    ],
)
def test_files_that_are_no_profile_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        BlockProfile.from_json(text)


def profiled(**changes):
    engine = Engine(CachePolicy(method="profile"), setup(steps=2, **changes))

    def compute(selection):
        if engine.routes_attention:
            for layer in range(LAYERS):
                q, k = keys_at(torch.arange(20))
                engine.self_attention(layer, q, k, k, lambda q, k, v, bias: q)
        return torch.ones(1, 16, T, H, W)

    outputs = [engine.evaluate(e, ("cond",), torch.zeros(1, 16, T, H, W), compute) for e in range(2)]
    assert all(torch.equal(o, torch.ones(1, 16, T, H, W)) for o in outputs)
    return engine


def test_a_profiling_run_is_exact_and_gives_a_profile():
    engine = profiled(main_layers=MAIN, weights=(1.0, 2.0))
    assert engine.wants_attention is False and engine.closed
    profile = engine.stats.block_profile("mine")
    assert len(profile.scores) == SHAPE.layers and profile.weights == (1.0, 2.0) and "2 evaluations" in profile.source


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": mask_classes(0.0)}, "no mask"),
        ({"reason": "the mask has NaN", "classes": mask_classes(0.0)}, "the mask has NaN"),
        ({"no_partials": "the model is compiled"}, "is compiled"),
        ({"main_layers": ()}, "cannot be watched"),
    ],
)
def test_what_cannot_be_profiled_says_why(changes, reason):
    engine = profiled(**{"main_layers": MAIN, **changes})
    with pytest.raises(ValueError, match=reason):
        engine.stats.block_profile("mine")
