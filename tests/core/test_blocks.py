import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hetcache_core import CachePolicy, Engine, ErrorProfile
from hetcache_core.block_profile import BlockProfile, split_for, stretched
from hetcache_core.blocks import BlockCache, BlockSplit, delta_bytes, fitting
from hetcache_core.costs import Costs, ModelShape
from hetcache_core.methods.profilingdit import timeline
from tests.core.test_engine import SHAPE, STEPS, H, T, W, setup

TOKENS, DIM = T * H * W // 4, SHAPE.dim


@pytest.mark.parametrize(
    ("background", "runs"),
    [
        ((), ()),
        ((0,), ((0, 0),)),
        ((0, 1, 3), ((0, 1), (3, 3))),
        ((2, 3, 4, 6, 8, 9), ((2, 4), (6, 6), (8, 9))),
        (tuple(range(10)), ((0, 9),)),
    ],
)
def test_runs_are_maximal(background, runs):
    assert BlockSplit(10, background).runs == runs


def test_the_published_list_makes_five_deltas_of_28_blocks():
    split = BlockProfile.load("wan14b").split
    assert len(split.background) == 28 and split.runs == ((0, 0), (2, 7), (10, 20), (25, 32), (37, 38))


@pytest.mark.parametrize("background", [(10,), (-1,), (2, 1), (1, 1), (1.0,)])
def test_impossible_splits_are_refused(background):
    with pytest.raises(ValueError, match="from 0 to 9"):
        BlockSplit(10, background)


def test_the_longest_runs_are_kept_where_memory_is_short():
    split = BlockSplit(12, (0, 2, 3, 4, 6, 7, 9))
    assert split.longest(1).background == (2, 3, 4)
    assert split.longest(2).background == (2, 3, 4, 6, 7)
    assert split.longest(3).background == (0, 2, 3, 4, 6, 7)
    one = delta_bytes(BlockSplit(12, (0,)), 10, 8, 2, 4)
    assert fitting(split, 4 * one, 10, 8, 2, 4) == (split, "")
    kept, note = fitting(split, 2.5 * one, 10, 8, 2, 4)
    assert kept == split.longest(2) and "5 of 7" in note
    kept, note = fitting(split, 0, 10, 8, 2, 4)
    assert kept.background == () and "no block can be reused" in note


# ---- deltas


def blocks(shift=0.0):
    """Eight blocks that each add something of their own."""
    return [lambda x, i=i: x + torch.sin(x + i + shift) for i in range(8)]


def forward(cache, streams, x, hints, layers, host=True):
    """A host's forward: blocks through the cache, hints added to what comes out of them."""
    for i, layer in enumerate(layers):
        if cache.mode == "apply":
            x = cache.apply(i, streams, x, layer)
        else:
            y = layer(x)
            if cache.mode == "capture":
                cache.capture(i, streams, x, y)
            x = y
        x = x + hints[i]
    return x


@pytest.mark.parametrize("background", [(0,), (0, 1, 2), (1, 2, 5), (3, 7), tuple(range(8))])
def test_nothing_changes_where_nothing_changed(background):
    cache, x, hints = BlockCache(BlockSplit(8, background)), torch.randn(2, 5, 4), torch.randn(8, 1, 1, 4)
    cache.begin(("a", "b"))
    captured = forward(cache, ("a", "b"), x, hints, blocks())
    assert torch.equal(captured, forward(BlockCache(BlockSplit(8)), ("a", "b"), x, hints, blocks()))
    assert cache.has(("a", "b")) and cache.bytes == 2 * len(cache.split.runs) * 5 * 4 * 4
    cache.mode = "apply"
    torch.testing.assert_close(forward(cache, ("a", "b"), x, hints, blocks()), captured)


def test_hints_are_never_part_of_a_delta():
    cache, x = BlockCache(BlockSplit(8, (0, 1, 2, 3, 4, 5, 6, 7))), torch.randn(1, 5, 4)
    cache.begin(("a",))
    without = forward(cache, ("a",), x, torch.zeros(8, 1, 1, 4), blocks())
    cache.mode = "apply"
    hints = torch.randn(8, 1, 1, 4)
    torch.testing.assert_close(forward(cache, ("a",), x, hints, blocks()), without + hints.sum(0))


def test_streams_together_or_apart_keep_the_same_bytes():
    x, y, hints = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(8, 1, 1, 4)
    together, apart = (BlockCache(BlockSplit(8, (0, 1, 4))) for _ in range(2))
    together.begin(("a", "b"))
    forward(together, ("a", "b"), x, hints, blocks())
    for stream, rows in zip("ab", x.chunk(2), strict=True):
        apart.begin((stream,))
        forward(apart, (stream,), rows, hints, blocks())
    together.mode = apart.mode = "apply"
    one = forward(together, ("a", "b"), y, hints, blocks())
    two = torch.cat([forward(apart, (s,), rows, hints, blocks()) for s, rows in zip("ab", y.chunk(2), strict=True)])
    assert torch.equal(one, two)
    assert torch.equal(forward(together, ("b", "a"), y, hints, blocks())[:1],
                       forward(together, ("b",), y[:1], hints, blocks()))  # fmt: skip


def test_a_first_block_passes_on_a_copy():
    """ComfyUI adds hints in place, and reads the first block's input again for the next control."""
    cache, x = BlockCache(BlockSplit(3, (0, 1))), torch.randn(1, 5, 4)
    cache.begin(("a",))
    forward(cache, ("a",), x, torch.zeros(3, 1, 1, 4), blocks()[:3])
    cache.mode, before = "apply", x.clone()
    out = cache.apply(0, ("a",), x, None)
    out += 1
    assert torch.equal(x, before)


def test_a_skipped_block_or_one_stream_too_many_leaves_no_usable_deltas():
    cache, x = BlockCache(BlockSplit(3, (0, 1)), streams=1), torch.randn(1, 5, 4)
    cache.begin(("a",))
    cache.capture(1, ("a",), x, x)
    assert not cache.has(("a",))
    cache.begin(("a",))
    cache.capture(0, ("a",), x, x)
    assert not cache.has(("a",))
    cache.capture(1, ("a",), x, x)
    assert cache.has(("a",))
    cache.begin(("b",))
    cache.capture(0, ("b",), x, x)
    assert not cache.has(("b",)) and cache.has(("a",))
    cache.close()
    assert cache.bytes == 0 and not cache.has(("a",)) and cache.mode == "idle"


# ---- in the engine


class Model:
    """A stand-in for a DiT whose blocks are real: a latent becomes tokens, blocks add to them, tokens a latent."""

    def __init__(self, engine, spoil=None):
        self.engine, self.spoil, self.computed = engine, spoil, []
        self.table = torch.randn(SHAPE.layers, DIM, generator=torch.Generator().manual_seed(0))

    def velocity(self, x, drift):
        hidden = x.flatten(2).transpose(1, 2)[:, :TOKENS].repeat(1, 1, DIM // 16)
        for i in range(SHAPE.layers):

            def compute(h, i=i):
                self.computed.append(i)
                if self.spoil and self.engine.routes_blocks:
                    self.spoil(self.engine.blocks.mode)
                return h + 0.1 * torch.sin(h + self.table[i] + drift)

            hidden = self.engine.block(i, hidden, compute) if self.engine.routes_blocks else compute(hidden)
        return x + 0.1 * hidden.mean((1, 2)).view(-1, 1, 1, 1, 1)

    def run(self, evaluation, streams, sample):
        drift = 0.01 * evaluation
        return self.engine.evaluate(evaluation, streams, sample, lambda selection: self.velocity(sample, drift))


def whole_run(policy, streams=(("cond",), ("uncond",)), spoil=None, steps=STEPS, **changes):
    engine = Engine(policy, setup(steps=steps, **changes))
    model = Model(engine, spoil)
    sample = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(1))
    outputs = [[model.run(e, s, sample.repeat(len(s), 1, 1, 1, 1)) for s in streams] for e in range(steps)]
    return engine, model, outputs


@pytest.fixture
def profile(tmp_path):
    def write(background, **changes):
        values = dict(name="mine", dim=SHAPE.dim, layers=SHAPE.layers, ffn=SHAPE.ffn, vace_layers=SHAPE.vace_layers)
        path = tmp_path / "blocks.json"
        path.write_text(BlockProfile(**{**values, "background": background, **changes}).to_json())
        return str(path)

    return write


def test_background_blocks_are_not_computed_between_full_evaluations(profile):
    policy = CachePolicy(schedule="FFBBFB", block_profile=profile((0, 1, 3)))
    engine, model, outputs = whole_run(policy, streams=(("cond",),), steps=6)
    assert engine.stats.decisions == "FFBBFB" and not engine.stats.warnings
    assert model.computed == [0, 1, 2, 3] * 2 + [2, 2] + [0, 1, 2, 3, 2]
    assert engine.stats.peak_block_bytes == 2 * TOKENS * DIM * 4 and engine.blocks.bytes == 0
    assert engine.stats.planned_block_bytes == 2 * engine.stats.peak_block_bytes  # for two streams
    exact = whole_run(CachePolicy(speed=1.0), streams=(("cond",),), steps=6)[2]
    for i, (mine, full) in enumerate(zip(outputs, exact, strict=True)):
        assert torch.equal(mine[0], full[0]) == (i in (0, 1, 4))
        torch.testing.assert_close(mine[0], full[0], rtol=0.01, atol=0.01)


def test_with_no_background_blocks_every_byte_is_the_stock_one(profile):
    policy = CachePolicy(method="profilingdit", block_profile=profile(()))
    engine, _, outputs = whole_run(policy, steps=30)
    assert "B" in engine.stats.decisions and "no background blocks" in engine.stats.summary()
    exact = whole_run(CachePolicy(speed=1.0), steps=30)[2]
    assert all(torch.equal(a, b) for x, y in zip(outputs, exact, strict=True) for a, b in zip(x, y, strict=True))


def test_streams_in_one_call_or_two_make_the_same_bytes(profile):
    policy = CachePolicy(schedule="FFBBFB", block_profile=profile((0, 1, 3)))
    together = whole_run(policy, streams=(("cond", "uncond"),), steps=6)[2]
    apart = whole_run(policy, steps=6)[2]
    assert all(
        torch.equal(a[0][:1], b[0]) and torch.equal(a[0][1:], b[1]) for a, b in zip(together, apart, strict=True)
    )


def test_too_little_memory_reuses_fewer_blocks_or_none_and_says_so(profile):
    named = profile((0, 1, 3))
    one = 2 * TOKENS * DIM * 4 / 2**20  # a delta of both streams
    engine, _, _ = whole_run(CachePolicy(schedule="FB", block_profile=named, memory_budget_mb=1.5 * one), steps=2)
    assert engine.blocks.split.background == (0, 1) and engine.stats.decisions == "FB"
    assert "2 of 3 background blocks" in engine.stats.summary()
    assert engine.stats.peak_block_bytes <= engine.policy.memory_budget_mb * 2**20
    engine, _, _ = whole_run(CachePolicy(schedule="FB", block_profile=named, memory_budget_mb=0.5 * one), steps=2)
    assert engine.stats.decisions == "FF" and "no block can be reused" in engine.stats.summary()
    assert engine.stats.predicted_speed == 1.0


def test_deltas_and_context_share_the_budget(profile):
    both = CachePolicy(schedule="FPFB", block_profile=profile((0, 1, 3)), memory_budget_mb=1.0)
    parts = Engine(both, setup())
    assert parts.stats.planned_block_bytes > 0 and parts.stats.planned_context_bytes > 0
    assert parts.stats.planned_block_bytes + parts.stats.planned_context_bytes <= 2**20


def test_a_plan_reuses_blocks_only_where_the_error_profile_says_they_pay(profile, tmp_path):
    named = profile((0, 1, 3))
    plans = {}
    for price in (None, 0.0001, 100.0):
        file = tmp_path / "errors.json"
        file.write_text(replace(ErrorProfile.load("wan"), blocks=price).to_json())
        policy = CachePolicy(speed=1.5, block_profile=named, profile=str(file), partials=False)
        plans[price] = Engine(policy, setup())
    assert "B" in plans[0.0001].stats.planned and plans[0.0001].blocks
    assert "B" not in plans[None].stats.planned and "B" not in plans[100.0].stats.planned
    # what is not reused takes nothing of the budget
    assert plans[100.0].blocks is None and plans[100.0].stats.planned_block_bytes == 0


def raising(error, on):
    def spoil(mode):
        if mode == on:
            raise error

    return spoil


@pytest.mark.parametrize(
    ("error", "on", "reason"),
    [
        (RuntimeError("size mismatch"), "apply", "size mismatch"),
        (torch.OutOfMemoryError("no room"), "apply", "out of memory on an evaluation with reused blocks"),
        (torch.OutOfMemoryError("no room"), "capture", "out of memory while remembering"),
    ],
)
def test_trouble_with_blocks_falls_back_to_full_and_says_so_once(profile, error, on, reason):
    policy = CachePolicy(schedule="FFBBFB", block_profile=profile((1, 2)))
    engine, _, outputs = whole_run(policy, spoil=raising(error, on), steps=6)
    assert set(engine.stats.decisions) == {"F"} and len(engine.stats.warnings) == 1
    assert reason in engine.stats.summary()
    exact = whole_run(CachePolicy(speed=1.0), steps=6)[2]
    assert all(torch.equal(a, b) for x, y in zip(outputs, exact, strict=True) for a, b in zip(x, y, strict=True))


def test_a_model_whose_blocks_cannot_be_left_out_is_computed_in_full(profile):
    policy = CachePolicy(schedule="FB", block_profile=profile((1,)))
    engine, _, _ = whole_run(policy, steps=2, no_blocks="the model is compiled")
    assert engine.stats.decisions == "FF" and "the model is compiled" in engine.stats.summary()
    assert not engine.wants_blocks


def test_reports_know_the_letter(profile):
    engine, _, _ = whole_run(CachePolicy(schedule="FFBB", block_profile=profile((1,))), steps=4)
    values = json.loads(engine.stats.to_json())
    assert values["decisions"] == "FFBB" and values["seconds_blocks"] > 0 and values["peak_block_bytes"] > 0
    assert "2 blocks" in engine.stats.summary() and "block deltas" in engine.stats.summary()
    assert engine.stats.picture().std() > 0


# ---- costs, splits and schedules


def test_a_block_costs_its_share_and_the_vace_branch_is_always_paid():
    shape = ModelShape(5120, 40, 13824, 8)
    costs = Costs.of(shape, 32760, 100, 100, background=28)
    assert costs.blocks == pytest.approx(1 - 28 / 48 * (1 - 0.01), abs=0.01)
    decisions = timeline(50)
    predicted = 50 / sum(1 if d == "F" else costs.blocks for d in decisions)
    assert predicted == pytest.approx(1.72, abs=0.02)  # the arithmetic of ProfilingDiT on VACE
    alone = Costs.of(ModelShape(5120, 40, 13824), 32760, 100, 100, background=28).blocks
    assert alone == pytest.approx(0.3)
    # without a VACE branch: 2.01 in the paper, measured
    assert 50 / sum(1 if d == "F" else alone for d in decisions) == pytest.approx(2.01, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "tokens", "steps", "speed"),
    [
        (ModelShape(1536, 30, 8960, 15), 32760, 50, 1.47),
        (ModelShape(256, 6, 768, 3), 720, 50, 1.46),
        (ModelShape(256, 6, 768, 3), 720, 30, 1.41),
    ],
    ids=["1.3B", "nano", "nano, 30 steps"],
)
def test_beside_larger_vace_branches_the_papers_schedule_saves_less(shape, tokens, steps, speed):
    """Whatever the quality: no setting of its own reaches twice the speed there."""
    split, _ = split_for("auto", shape, ())
    costs = Costs.of(shape, tokens, 100, 100, background=len(split.background))
    predicted = steps / sum(1 if d == "F" else costs.blocks for d in timeline(steps))
    assert predicted == pytest.approx(speed, abs=0.01)


def test_the_papers_schedule_comes_out():
    decisions = timeline(50)
    assert [i for i, d in enumerate(decisions) if d == "F"] == [*range(6), *range(6, 50, 6)]
    assert timeline(30).count("F") == 10 and timeline(30).startswith("F" * 7 + "B" * 5 + "F")


def test_shorter_and_longer_runs_keep_deltas_for_the_same_part_of_the_schedule():
    assert [i for i, d in enumerate(timeline(15)) if d == "F"] == [0, 1, 2, 3, 6, 9, 12]
    assert [i for i, d in enumerate(timeline(100)) if d == "F"] == [*range(12), *range(12, 100, 12)]
    assert set(timeline(4)) <= {"F", "B"} and timeline(1) == "F"


def test_intervals_can_shrink_and_the_ends_can_be_full():
    full = [i for i, d in enumerate(timeline(50, 12, 2)) if d == "F"]
    gaps = [b - a for a, b in pairwise(full[6:])]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] >= 8 and gaps[-1] <= 3
    assert timeline(50, warmup=10, cooldown=3).startswith("F" * 11 + "B")
    assert timeline(50, cooldown=3).endswith("BFFF")
    assert timeline(50, interval=1) == "F" * 50


def test_splits_come_from_the_shape_a_file_or_in_proportion(profile):
    split, note = split_for("auto", ModelShape(5120, 40, 13824, 8))
    assert len(split.background) == 28 and not note
    split, note = split_for("auto", ModelShape(1536, 30, 8960, 15))
    assert split.blocks == 30 and 19 <= len(split.background) <= 23 and "not profiled" in note
    assert stretched(split, 30) == split
    assert split_for(profile((1, 2)), SHAPE) == (BlockSplit(4, (1, 2)), "")
    with pytest.raises(ValueError, match="belongs to another model: 4 blocks of width 256"):
        split_for(profile((1, 2)), ModelShape(1536, 30, 8960, 15))
    with pytest.raises(ValueError, match="neither shipped"):
        split_for("nowhere.json", SHAPE)


def test_other_weights_of_the_same_shape_are_noted(profile):
    named = profile((1,), weights=(0.5, -0.2, 0.1, 0.3))
    assert split_for(named, SHAPE, (0.5, -0.2, 0.1, 0.3))[1] == ""
    assert split_for(named, SHAPE, (0.51, -0.19, 0.1, 0.3))[1] == ""  # float8
    assert "other weights" in split_for(named, SHAPE, (0.5, 0.2, 0.1, 0.3))[1]
