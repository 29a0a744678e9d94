"""The rivals' rules on hand-made signals, and their hooks on small models."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the benchmarks need diffusers")

from diffusers import WanVACETransformer3DModel

from benchmarks.rivals import crop, methods
from benchmarks.rivals.calibrate import Recorder, calibrated
from benchmarks.rivals.hooks import Cache, ForwardCache, StackCache, timed
from benchmarks.rivals.packaged import CacheDiT, FirstBlockOfDiffusers
from benchmarks.rivals.rules import EasyCache, FirstBlock, MagCache, TeaCache, nearest, shifted
from benchmarks.settings import Setting, Source
from tests.hosts.small_wan import SMALL, control, noise, prompts, randomised, relative, sample

STEPS = 12


@pytest.fixture(scope="module")
def model():
    return randomised(WanVACETransformer3DModel(**SMALL, num_layers=4, vace_layers=[0, 2]))


def run(model, cache, controls=None, steps=STEPS):
    with cache.attached(model), timed(model, cache) as stats:
        return sample(model, steps=steps, controls=control() if controls is None else controls), stats


# ---- rules


def test_teacache_adds_up_the_polynomial_of_the_change_and_starts_again_when_it_computes():
    rule = TeaCache(0.25, coefficients=(2.0, 0.0), evaluations=10, keep=2)  # 2 x
    signals = [torch.full((4,), 1.05**i) for i in range(8)]  # each 5% above the last: 0.1 an evaluation
    assert "".join("FR"[rule.skip(i, "cond", s)] for i, s in enumerate(signals)) == "FFRRFRRF"


def test_teacache_keeps_streams_apart():
    rule = TeaCache(0.15, (2.0, 0.0), 10, keep=1)
    rule.skip(0, "cond", torch.ones(2)), rule.skip(0, "uncond", torch.ones(2))
    assert not rule.skip(1, "cond", torch.full((2,), 2.0))
    assert rule.skip(1, "uncond", torch.full((2,), 1.01))


def test_magcache_skips_while_the_drift_is_small_and_never_longer_than_k():
    def decisions(threshold, longest, ratio):
        rule = MagCache(threshold, longest, 0.2, {"cond": [ratio] * 10}, 10)
        return "".join("FR"[rule.skip(i, "cond")] for i in range(10))

    assert decisions(1.0, 2, 1.0) == "FFRRFRRFRR"
    # ratio 0.9: errors 0.1, then 0.1 + 0.19 = 0.29, then + 0.271
    assert decisions(0.3, 9, 0.9) == "FFRRFRRFRR"
    assert decisions(0.2, 9, 0.9) == "FFRFRFRFRF"
    assert decisions(0.09, 9, 0.9) == "FFFFFFFFFF"


def test_magcache_takes_a_curve_of_another_length_from_the_nearest():
    assert nearest([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert nearest([1, 2], 4) == [1, 1, 2, 2]


def test_first_block_compares_with_the_last_one_computed():
    rule = FirstBlock(0.1)
    values = (1.0, 1.06, 1.09, 1.12, 1.2)  # the fourth is 12% from the first
    assert [rule.skip(i, 0, torch.full((3,), v)) for i, v in enumerate(values)] == [False, True, True, False, True]


def easycache(threshold, outputs, sigmas, **kwargs):
    """Decisions and results over a row of evaluations with two streams; inputs rise by 1."""
    rule, said, results = EasyCache(threshold, **{"start": 0.9, "end": 0.1, **kwargs}), "", []
    for i, (value, sigma) in enumerate(zip(outputs, sigmas, strict=True)):
        rule.begin_evaluation()
        computed = []
        for stream, factor in (("cond", 1), ("uncond", 2)):
            x = torch.full((1, 1, 1, 8, 8), float(i))
            made = torch.full_like(x, float(value * factor))
            answer = rule(stream, x, sigma, lambda made=made, computed=computed: computed.append(1) or made)
            results.append(answer.mean().item())
        assert len(computed) in (0, 2)  # the first stream decides for both
        said += "F" if computed else "R"
    return said, results


def test_easycache_adds_up_the_rate_of_change_from_the_first_stream():
    # From evaluation 1 on: output changes by 1 an input of 1, so k = 1, and |output| is 11 after evaluation 1.
    sigmas = [0.95, 0.8, 0.7, 0.6, 0.5, 0.4, 0.05]
    said, results = easycache(0.2, [10, 11, 12, 13, 14, 15, 16], sigmas)
    assert said[0] == "F" and said[-1] == "F"  # before the start and after the end
    said, results = easycache(0.3, [10, 11, 12, 13, 14, 15, 16], [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert said == "FFRRFRR"  # 1/11, then 3/11 (from 1 to 3), then 6/11 >= 0.3
    assert results[4] == 2 + (11 - 1) and results[5] == 2 + (22 - 1)  # input plus the last difference


def test_sigmas_of_percents():
    assert shifted(0.0, 5.0) == 1 and shifted(1.0, 5.0) == 0
    assert shifted(0.5, 3.0) == pytest.approx(0.75)


# ---- hooks


@pytest.mark.parametrize("cache", [
    lambda: ForwardCache(EasyCache(0.0, 0.9, 0.1)),
    lambda: StackCache(TeaCache(-1e9, (1.0, 0.0), STEPS)),
    lambda: StackCache(MagCache(0.0, 3, 0.2, {0: [1.0] * STEPS, 1: [1.0] * STEPS}, STEPS)),
    lambda: StackCache(FirstBlock(-1.0)),
    Recorder,
])  # fmt: skip
def test_a_rival_that_never_skips_changes_no_byte_and_leaves_no_trace(model, cache):
    before = sample(model, steps=STEPS, controls=control())
    made, stats = run(model, cache())
    assert torch.equal(made, before)
    assert stats.decisions == "F" * STEPS and stats.speed == 1.0
    assert torch.equal(sample(model, steps=STEPS, controls=control()), before)


def ratios():
    return {0: [1.0] * STEPS, 1: [1.0] * STEPS}


@pytest.mark.parametrize("rule", [
    lambda: TeaCache(1e9, (1.0, 0.0), STEPS, keep=3),
    lambda: MagCache(1.0, 2, 0.25, ratios(), STEPS),
    lambda: FirstBlock(0.2),
])  # fmt: skip
def test_skipping_computes_no_block_and_costs_little(model, rule):
    full = sample(model, steps=STEPS, controls=control())
    cache, ran = StackCache(rule()), []
    handles = [b.attn1.register_forward_hook(lambda *_: ran.append(1)) for b in model.vace_blocks]
    made, stats = run(model, cache)
    for handle in handles:
        handle.remove()
    skipped = stats.decisions.count("R")
    assert skipped > 2
    assert len(ran) == 2 * 2 * (STEPS - skipped)  # two VACE blocks, two streams, and none on a skipped evaluation
    assert 0 < relative(made, full) < 1
    assert cache.bytes > 0 and stats.peak_forecast_bytes == cache.bytes
    assert stats.speed > 1


def test_a_skipped_stack_on_the_same_input_gives_the_same_prediction(model):
    """The residual holds the hints once: the same input and time again give the same, up to rounding."""

    class Second:
        probes, skips = False, (False, True)

        def skip(self, evaluation, stream, signal):
            return self.skips[evaluation]

    class SecondProbed(Second):
        probes = True

    call = (noise(), torch.tensor([500.0]), prompts()[0])
    for rule in (Second(), SecondProbed()):
        cache = StackCache(rule)
        with torch.inference_mode(), cache.attached(model):
            outs = []
            for _ in range(2):
                cache.place.timestep = None  # a new evaluation each
                outs.append(model(*call, control_hidden_states=control(), return_dict=False)[0])
        assert relative(outs[1], outs[0]) < 1e-5


def test_diffusers_own_first_block_cache_adds_the_hints_twice(model):
    """Why ours is the one compared with: at the same input its skipped evaluation is another prediction."""
    x, text = noise(), prompts()[0]
    cache = FirstBlockOfDiffusers(1e9)
    outs = []
    with torch.inference_mode(), cache.attached(model), model.cache_context("cond"):
        for _ in range(2):
            outs.append(model(x, torch.tensor([500.0]), text, control_hidden_states=control(), return_dict=False)[0])
    assert relative(outs[1], outs[0]) > 0.05
    with torch.inference_mode():
        stock = model(x, torch.tensor([500.0]), text, control_hidden_states=control(), return_dict=False)[0]
    assert torch.equal(stock, outs[0])  # and nothing stays behind


def test_easycache_on_a_model_skips_both_streams(model):
    made, stats = run(model, ForwardCache(EasyCache(0.5, 0.98, 0.02)))
    assert "R" in stats.decisions and stats.decisions[0] == "F"
    assert torch.isfinite(made).all()


def test_calibration_finds_the_curves(model):
    recorder = Recorder()
    run(model, recorder)
    found = calibrated([recorder, recorder])
    assert [len(stream) for stream in found["magcache"]] == [STEPS, STEPS]
    assert found["magcache"][0][0] == 1.0 and found["magcache"][0] != found["magcache"][1]
    assert len(recorder.embedding) == len(recorder.output) == 2 * (STEPS - 1)
    assert len(found["teacache"]) == 5


def test_timing_sees_an_untouched_model(model):
    _, stats = run(model, Cache(), steps=3)
    assert stats.decisions == "FFF" and stats.seconds > 0


def test_cache_dit_runs_on_vace_and_leaves_no_trace():
    pytest.importorskip("cache_dit", reason="cache-dit, the extra 'rivals', is not installed")
    from benchmarks.latent import LatentEdit

    video = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((5, 64, 64), bool)
    mask[:, 16:48, 16:48] = True
    edit = LatentEdit(Source(video, mask, "red circle", 1), 4.0)
    before, _ = edit.sample(8, None)
    cache = CacheDiT(edit.pipe, 10.0, 8)
    with cache.attached(edit.pipe.transformer), timed(edit.pipe.transformer, cache) as stats:
        edit.sample(8, None)
    assert "R" in stats.decisions
    assert torch.equal(edit.sample(8, None)[0], before)


# ---- crop and stitch


def masked(rows, columns):
    mask = np.zeros((3, 96, 96), bool)
    mask[1, rows, columns] = True
    return mask


def test_the_box_lies_on_the_grid_of_tokens_and_holds_the_mask():
    assert crop.box(masked(slice(40, 50), slice(33, 70)), 0) == (slice(32, 64), slice(32, 80))
    assert crop.box(masked(slice(40, 50), slice(33, 70)), 16) == (slice(16, 80), slice(16, 96))
    assert crop.box(masked(slice(0, 96), slice(0, 96)), 32) == (slice(0, 96), slice(0, 96))
    assert crop.box(masked(slice(90, 96), slice(0, 4)), 0) == (slice(64, 96), slice(0, 32))


def test_stitching_changes_masked_pixels_only():
    mask = masked(slice(40, 50), slice(33, 70))
    source = Source(np.full((3, 96, 96, 3), 51, np.uint8), mask, "red circle", 0)
    rows, columns = crop.box(mask, 0)
    part = crop.cropped(source, rows, columns)
    assert part.video.shape == (3, 32, 48, 3) and part.mask.sum() == mask.sum()
    video = crop.stitched(source, np.ones(part.video.shape, np.float32), rows, columns)
    assert (video[mask] == 1).all() and np.allclose(video[~mask], 0.2)


def test_the_crops_noise_is_its_part_of_the_whole():
    whole = crop.noise((5, 96, 96), slice(0, 96), slice(0, 96), 7)
    assert whole.shape == (1, 16, 2, 12, 12)
    assert torch.equal(crop.noise((5, 96, 96), slice(32, 64), slice(16, 64), 7), whole[..., 4:8, 2:8])


@pytest.mark.parametrize(("budget", "steps"), [(5.5, 6), (11.0, 3), (300.0, 1)])
def test_a_crop_takes_as_many_steps_as_fit_by_arithmetic(monkeypatch, budget, steps):
    """Of a clip of 36 tokens a frame, six of them in the box: a sixth, and a little more for reading the prompt."""

    class Edit:
        def __init__(self, source, *args):
            self.shape = source.video.shape

        def sample(self, count, policy):
            return None, SimpleNamespace(seconds=5.0 * count)

        def decode(self, latents):
            return np.zeros(self.shape, np.float32)

    rows, columns = crop.box(masked(slice(40, 50), slice(33, 70)), 0)
    assert 1 / 6 < crop.share((5, 96, 96), rows, columns) < 0.18 < crop.share((5, 96, 96), slice(0, 96), columns)
    assert crop.share((5, 96, 96), slice(0, 96), slice(0, 96)) == 1.0
    monkeypatch.setattr(methods, "LatentEdit", Edit)
    mask = np.broadcast_to(masked(slice(40, 50), slice(33, 70))[1], (5, 96, 96))
    source = Source(np.zeros((5, 96, 96, 3), np.uint8), mask, "red circle", 0)
    case = SimpleNamespace(source=source, setting=Setting(steps=6, moving=False), full_seconds=60.0)
    assert methods.METHODS["crop"](case, budget, {"padding": 0}).stats.seconds == 5.0 * steps
