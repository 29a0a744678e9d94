"""HetCache's paper mode without the mistakes of the reference implementation; each test names one."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hetcache_core import CachePolicy, Engine
from hetcache_core.costs import ModelShape
from hetcache_core.error_model import Rules
from hetcache_core.forecast import Seen
from hetcache_core.methods.hetcache import HetCache
from hetcache_core.packing import pack
from hetcache_core.prepare import prepare
from hetcache_core.semantic import CLUSTERS, SemanticSampler, importance
from hetcache_core.tokens import TokenGrid, classify, pool_pixel_mask
from tests.core.test_engine import LAYERS, H, T, W, mask_classes, setup

PAPER = CachePolicy(
    method="hetcache", threshold=0.1, warmup=2, cooldown=1, context_share=0.3, memory_share=1.0, profile="wan"
)
PUBLISHED = CachePolicy(method="hetcache", threshold=0.1, warmup=2, cooldown=1, profile="wan")  # prunes and holds
both = pytest.mark.parametrize("policy", [PAPER, PUBLISHED], ids=["remembers", "prunes"])


def test_the_method_is_as_published_unless_asked_otherwise():
    """It prunes and holds, keeps a margin, and chooses context by cluster and attention; plans do none of that."""
    engine = Engine(CachePolicy(method="hetcache"), setup())
    assert engine.partials.memory is None and engine.policy.forecast_order == 0
    assert isinstance(engine.partials.sampler, SemanticSampler) and engine.partials.sampler.mode == "both"
    assert engine.partials.sampler.count == round(0.7 * len(engine.partials.sampler.pool))
    assert CachePolicy(method="hetcache").settled().margin_space == 1
    kept = CachePolicy(method="hetcache", memory_share=1.0, forecast_order=2, margin_space=0).settled()
    assert (kept.memory_share, kept.forecast_order, kept.margin_space) == (1.0, 2, 0)
    planned = CachePolicy().settled()
    assert (planned.margin_space, planned.context_sampling, planned.forecast_order) == (0, "stalest", 2)
    assert planned.memory_share is None and planned.settled() == planned


def test_reference_images_are_never_pruned():
    """They are context that stands in front of the clip, where sampling would thin it like any other."""
    touched = torch.zeros(T, H // 2, W // 2, dtype=torch.bool)
    touched[1:, 2:4, 2:4] = True
    for sampling in ("both", "rotating"):
        policy = CachePolicy(method="hetcache", context_share=0.1, context_sampling=sampling)
        partials = prepare(policy, setup(classify(touched, reference_frames=1))).partials
        per_frame = touched[0].numel()
        assert partials.memory is None and partials.sampler.pool.min() >= per_frame
        assert partials.edited[:per_frame].tolist() == list(range(per_frame))


def watched_run(policy=PAPER, steps=24, **changes):
    """(engine, tokens computed by every model call, what is remembered after every evaluation).

    Keys and values are the number of the evaluation, predictions grow by a twentieth an evaluation.
    """
    engine = Engine(policy, setup(steps=steps, **changes))
    base = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(0))
    calls, remembered = [[] for _ in range(steps)], []
    for evaluation in range(steps):

        def compute(selection, evaluation=evaluation):
            output = base * (1 + 0.05 * evaluation)
            output = output if selection is None else pack(output, selection)
            tokens = output[0, 0].numel() // 4
            calls[evaluation].append(tokens)
            if engine.routes_attention:
                qkv = torch.full((1, tokens, 2, 128), float(evaluation))
                for layer in range(LAYERS):
                    engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, weights: q)
            return output

        engine.evaluate(evaluation, ("cond",), torch.zeros(1, 16, T, H, W), compute)
        memory = engine.partials.memory
        kept = {layer: keys for layer, (keys, _) in memory._layers.items()} if memory else {}
        now = {layer: torch.empty(1, len(engine.partials.memory.remembered.indices), 2, 128) for layer in kept}
        for layer, keys in kept.items():
            keys.expect({"cond": now[layer]}, evaluation, 0.0, keys.fetch(("cond",), base.device))
        remembered.append(now)
    return engine, calls, remembered


def fixed(policy=PAPER, rates=(), positions=None, **changes):
    """Decisions of the method alone where the prediction changes at these rates per evaluation."""
    rules = Rules(**{"warmup": 2, "cooldown": 1, "max_reuse": 20, "refresh": 100, **changes})
    positions = positions or [float(i) for i in range(len(rates))]
    method, done, last, value = HetCache(policy.threshold, policy.partial_factor, positions, rules), "", None, 1.0
    for i, rate in enumerate(rates):
        done += method.decide(i)[0]
        value *= 1 + rate
        if done[-1] != "R":
            if last and positions[i] > last[0]:
                method.observe_forecast(i, Seen(positions[i] - last[0], abs(value - last[1]) / last[1], 0.0))
            last = positions[i], value
    return done


def test_reuse_up_to_d_partial_up_to_one_and_a_half_d_full_beyond():
    """Section 1.1: D <= threshold, D <= 1.5 threshold; a computed evaluation begins the sum anew."""
    assert PAPER.partial_factor == 1.5
    assert fixed(rates=[0.04] * 12) == "FF" + "RRP" * 3 + "F"  # 0.04, 0.08, 0.12 <= 0.15
    assert fixed(rates=[0.12] * 8) == "FF" + "P" * 5 + "F"
    assert fixed(rates=[0.16] * 8) == "F" * 8


def test_change_is_counted_by_noise_level_not_by_evaluation():
    """Heun evaluates every level but the first twice, with next to no change between the two."""
    rates, positions = [0.0] + [0.04, 0.0] * 9, [0.0] + [level for level in range(1, 10) for _ in range(2)]
    for warmup in (2, 3, 4):  # whichever of the two it ends with
        done = fixed(rates=rates, positions=[float(p) for p in positions], warmup=warmup)
        assert "P" in done  # the rate is not the nothing between the two
        by_level = {}
        for position, decision in zip(positions[warmup:-1], done[warmup:-1], strict=True):
            by_level.setdefault(position, set()).add(decision)
        renewed = [level for level, found in by_level.items() if found != {"R"}]
        gaps = {after - before for before, after in pairwise(renewed)}
        assert gaps == {3}, done  # 0.04, 0.08, 0.12 <= 0.15, as with one evaluation a level


def test_samplers_that_add_noise_are_judged_by_the_clip_not_by_the_noise():
    """Their predictions hold fresh noise at every step; the clean clip under it hardly moves."""
    clean, steps = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(0)), 24
    engine = Engine(PUBLISHED, setup(steps=steps, stochastic=True))
    for evaluation in range(steps):
        sigma = engine.setup.sigmas[evaluation]
        fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(evaluation))
        sample = (1 - sigma) * clean + sigma * fresh

        def compute(selection, fresh=fresh):
            return fresh - clean if selection is None else pack(fresh - clean, selection)

        output = engine.evaluate(evaluation, ("cond",), sample, compute)
        torch.testing.assert_close(output, fresh - clean, rtol=1e-3, atol=1e-3)
    assert set(engine.stats.decisions[2:-1]) == {"R", "P", "F"} and engine.stats.decisions.count("F") == 5


def test_importance_is_no_constant():
    """Mistake B: normalised over the generative tokens and summed over them, every score is one."""
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 3, 8, generator=random) for n in (7, 40))
    theirs = torch.einsum("khd,qhd->hkq", key, query).softmax(-1).sum(-1).mean(0)
    assert torch.allclose(theirs, torch.ones(40))
    ours = importance(query, key)
    assert ours.std() > 0.1 * ours.mean() and ours.sum().item() == pytest.approx(1, abs=1e-5)


@both
def test_a_full_evaluation_computes_and_remembers_everything_anew(policy):
    """Mistake C: "full" steps took the partial path with 1% of the context renewed. Here nothing is averaged."""
    engine, calls, remembered = watched_run(policy)
    done = engine.stats.decisions
    assert "P" in done and "F" in done[3:-1]
    assert all(bool(now) == (policy is PAPER) for now in remembered[1:3])
    for evaluation, decision in enumerate(done[:-2]):
        if decision == "F":
            assert calls[evaluation] == [engine.setup.grid.size]
            assert all((keys == evaluation).all() for keys in remembered[evaluation].values())


def test_what_is_not_computed_keeps_its_keys_and_values_and_nothing_of_its_hidden_states():
    """Mistake A: cached block outputs were put where attention outputs belong. Here only keys and values are kept,
    those of context that was computed are renewed, all others stay what the last computation made them."""
    engine, _, remembered = watched_run()
    done = engine.stats.decisions
    for evaluation in range(3, len(done) - 2):
        if done[evaluation] == "P":
            for layer, keys in remembered[evaluation].items():
                rows, before = keys[0, :, 0, 0], remembered[evaluation - 1][layer][0, :, 0, 0]
                assert ((rows == evaluation) | (rows == before)).all() and 0 < (rows == evaluation).sum() < len(rows)


def test_every_layer_takes_part():
    """Mistake D: with all layers cached the partial path failed on an undefined name; so a third never took part."""
    engine, _, remembered = watched_run()
    assert not engine.stats.warnings
    first = engine.stats.decisions.index("P")
    assert set(remembered[first]) == set(range(LAYERS))


def test_every_layer_sees_the_pruned_context_by_what_it_stands_for(monkeypatch):
    """The same where nothing is remembered: a partial evaluation's layers see its tokens, each with its weight."""
    seen, real = [], Engine.self_attention

    def watched(self, layer, query, key, value, attend):
        def attended(q, k, v, weights):
            seen.append((layer, k.shape[1], weights))
            return attend(q, k, v, weights)

        return real(self, layer, query, key, value, attended)

    monkeypatch.setattr(Engine, "self_attention", watched)
    engine, calls, _ = watched_run(PUBLISHED)
    assert not engine.stats.warnings
    tokens = calls[engine.stats.decisions.index("P")][0]
    partial = [(layer, weights) for layer, keys, weights in seen if keys == tokens]
    assert {layer for layer, _ in partial} == set(range(LAYERS))
    assert all(weights.bias.max() > 0 for _, weights in partial)


@both
def test_warm_up_and_the_last_evaluation_go_by_the_true_index(policy):
    """Mistake: the step counter advanced on computed steps alone, so warm-up never ended and no last step was full."""
    engine, calls, _ = watched_run(CachePolicy(**{**vars(policy), "threshold": 5.0, "max_reuse": 20}))
    done = engine.stats.decisions
    assert done[:2] == "FF" and done[2] == "R" and done[-1] == "F"
    assert calls[-1] == [engine.setup.grid.size]


def test_asking_changes_nothing_that_was_not_computed():
    """Mistake: two checks each advanced and reset their sums, so one reset without a computation."""
    done = fixed(rates=[0.03] * 14)
    assert done == "FF" + "RRRP" * 2 + "RRR" + "F"


def test_a_thin_mask_does_not_vanish():
    """Mistake: a mean above one half over a cell of 16 x 16 pixels and four frames loses a hair or a rope."""
    mask = torch.zeros(9, 64, 64)
    mask[5, :, 20] = 1
    touched = pool_pixel_mask(mask, TokenGrid(3, 4, 4))
    assert touched.nonzero().tolist() == [[2, row, 1] for row in range(4)]


def test_few_coarse_steps_have_partials_though_every_change_is_beyond_the_band():
    """Mistake: with 4 to 8 steps every change exceeds 1.5 D and all is full. A plan does not wait for a band."""
    assert fixed(rates=[0.4] * 6) == "F" * 6
    engine, _, _ = watched_run(CachePolicy.preset("few-step", profile="wan"), steps=6)
    assert engine.stats.decisions.count("P") >= 3 and engine.stats.decisions[0] == "F"
    wide = CachePolicy(**{**vars(PAPER), "partial_factor": 10.0})
    assert fixed(wide, rates=[0.4] * 6) == "FFPPPF"


@both
def test_nothing_of_the_model_runs_on_reuse(policy):
    """Mistake: the VACE branch, a third of the 1.3B model, ran on reused steps too."""
    engine, calls, _ = watched_run(policy)
    assert "R" in engine.stats.decisions
    for tokens, decision in zip(calls, engine.stats.decisions, strict=True):
        assert (tokens == []) == (decision == "R")


@both
def test_context_is_chosen_once_per_full_evaluation(policy, monkeypatch):
    """Mistake: clustering and scores were made twice per computed step."""
    looks = []
    real = SemanticSampler.look
    monkeypatch.setattr(SemanticSampler, "look", lambda self, *qkv: looks.append(1) or real(self, *qkv))
    engine, _, _ = watched_run(policy)
    assert 0 < len(looks) <= engine.stats.decisions.count("F")


@pytest.mark.parametrize(
    ("main", "conditional", "calls"),
    [
        ((4, 5, 6), None, [("cond",), ("uncond",)]),  # diffusers: VACE blocks first, a call for each
        ((0, 3, 6), "cond", [("uncond", "cond")]),  # ComfyUI: VACE blocks between, guidance in one call
    ],
)
def test_hosts_look_at_the_same_block_of_the_same_stream(monkeypatch, main, conditional, calls):
    """By the index of a call, ComfyUI would show a VACE block without the prompt where diffusers shows a main one."""
    seen = []
    monkeypatch.setattr(SemanticSampler, "look", lambda self, query, key, value: seen.append(float(value.mean())))
    engine = Engine(PAPER, setup(main_layers=main, conditional=conditional))
    for streams in calls:

        def compute(selection, streams=streams):
            for layer in range(7):
                block = main.index(layer) if layer in main else 100
                rows = torch.tensor([block + (10.0 if stream == "cond" else 20.0) for stream in streams])
                qkv = rows[:, None, None, None].expand(-1, engine.setup.grid.size, 2, 128)
                engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, weights: q)
            return torch.zeros(len(streams), 16, T, H, W)

        engine.evaluate(0, streams, torch.zeros(len(streams), 16, T, H, W), compute)
    assert seen == [11.0]  # the middle one of three


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        (ModelShape(1536, 30, 8960, 15), 14040),  # 1.3B, 480x832, 33 frames
        (ModelShape(5120, 40, 13824, 8), 2048),  # 14B; fewer tokens make a look relatively dearer
    ],
)
def test_choosing_context_costs_less_than_a_hundredth_of_a_full_evaluation(shape, tokens):
    edit, heads = torch.arange(tokens // 5), shape.dim // 128
    sampler = SemanticSampler(torch.arange(tokens // 5, tokens), edit, "both", 0.3)
    rows = torch.randn(1, tokens, heads, 128)
    with FlopCounterMode(display=False) as counter:
        sampler.look(rows, rows, rows)
    # distances to centres are not matrix products, and are counted by hand: first picks, then five rounds
    distances = 3 * 64 * len(sampler.pool) * CLUSTERS * 6
    assert 0 < counter.get_total_flops() + distances < 0.01 * shape.flops(tokens, tokens)


class Largest(TorchDispatchMode):
    """Notes the most numbers any operation answers with."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(t.numel() for t in tree_leaves(answer) if isinstance(t, torch.Tensor)), 0)
        return answer


def test_importance_never_holds_a_matrix_of_all_heads():
    query, key = torch.randn(32, 12, 16), torch.randn(400, 12, 16)
    with Largest() as seen:
        importance(query, key)
    assert seen.numbers <= 32 * 400  # queries x keys of one head


@pytest.mark.parametrize("mode", ["both", "attention", "kmeans"])
def test_the_chosen_stand_for_the_attention_their_clusters_got(mode):
    """Ours, where the paper prunes: softmax would forget the rest. Kept for being looked at most, a token counts for
    as much as was looked at the others, not for as many as there are of them."""
    random = torch.Generator().manual_seed(0)
    classes = mask_classes()
    generative = classes.generative.nonzero().flatten()
    query, key, value = (torch.randn(1, classes.grid.size, 1, 16, generator=random) for _ in range(3))
    key[0, classes.context[::7]] *= 4  # some are looked at far more than others
    query[:] = query[0, 0]  # all queries alike, so that what they see on the whole can be told exactly
    sampler = SemanticSampler(classes.context, generative, mode, 0.2)
    sampler.look(query, key, value)
    masses = (key[0, :, 0] @ query[0, 0, 0] / 4).exp()
    kept = (masses[sampler.pick(torch.zeros(classes.grid.size))] * sampler.log_weights.exp()).sum()
    whole = masses[classes.context].sum()
    assert kept.item() == pytest.approx(whole.item(), rel=0.5 if mode == "kmeans" else 1e-3)
