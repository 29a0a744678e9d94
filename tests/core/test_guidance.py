"""Guidance reuse: one stream computed, the others derived from it."""

from functools import partial

import pytest
import torch

from hetcache_core import CachePolicy, Engine
from hetcache_core.costs import Costs
from hetcache_core.forecast import Forecast
from hetcache_core.guidance import Guidance
from hetcache_core.packing import pack
from tests.core.test_engine import LAYERS, SHAPE, H, T, W, mask_classes, setup

STEPS = 10
POLICY = partial(CachePolicy, warmup=2, context_share=0.2)
RANDOM = torch.Generator().manual_seed(0)
SHARED, APART = torch.randn(2, 1, 16, T, H, W, generator=RANDOM)
SHIFTS = {"cond": 0.0, "uncond": 0.3, "third": -0.2}


def velocity(stream, evaluation, bend=0.0):
    """Streams move together, by more than a line foretells; what tells them apart moves along a line."""
    return SHARED * (1 + 0.1 * evaluation + bend * evaluation**2) + APART * SHIFTS[stream] * (1 + 0.1 * evaluation)


def sampled(schedule, calls=(("cond", "uncond"),), bend=0.02, spoil=None, policy=POLICY, orders=None, **changes):
    """(engine, rows the model computed in each evaluation, outputs by stream) of a run."""
    engine = Engine(policy(schedule=schedule), setup(steps=len(schedule), **changes))
    rows, outputs = [[] for _ in schedule], []
    for evaluation in range(len(schedule)):
        seen = {}
        for streams in (orders or {}).get(evaluation, calls):

            def compute(selection, stream=None, streams=streams, evaluation=evaluation):
                chosen = streams if stream is None else streams[stream : stream + 1]
                rows[evaluation] += chosen
                output = torch.cat([velocity(s, evaluation, bend) for s in chosen])
                output = output if selection is None else pack(output, selection)
                if engine.routes_attention:
                    qkv = torch.ones(len(chosen), output[0, 0].numel() // 4, 2, 128)
                    for layer in range(LAYERS):
                        engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, bias: q)
                return spoil(stream, output) if spoil else output

            sample = torch.zeros(len(streams), 16, T, H, W)
            seen |= dict(zip(streams, engine.evaluate(evaluation, streams, sample, compute).split(1), strict=True))
        outputs.append(seen)
    return engine, rows, outputs


CALLS = {
    "batched": [("cond", "uncond")],
    "batched, uncond first": [("uncond", "cond")],
    "apart": [("cond",), ("uncond",)],
    "apart, uncond first": [("uncond",), ("cond",)],
    "three apart": [("uncond",), ("third",), ("cond",)],
    "three, two of them batched": [("third",), ("cond", "uncond")],
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("quantity", "near"), [("v", 1e-3), ("x0", 0.2)])  # sigma bends the differences of x0
def test_one_stream_is_computed_and_the_others_follow_it_where_no_forecast_could(calls, quantity, near):
    policy = partial(POLICY, forecast_quantity=quantity)
    engine, rows, outputs = sampled("FFFGGFGRGF", calls, policy=policy)
    streams = {s for call in calls for s in call}
    assert engine.stats.decisions == "FFFGGFGRGF" and not engine.stats.warnings
    for evaluation, decision in enumerate(engine.stats.decisions):
        assert len(rows[evaluation]) == {"F": len(streams), "G": 1, "R": 0}[decision]
        for stream in streams if decision == "G" else ():
            exact = velocity(stream, evaluation, 0.02)
            assert (outputs[evaluation][stream] - exact).norm() < near * exact.norm()
        if decision == "R":
            assert (outputs[evaluation]["uncond"] - velocity("uncond", evaluation, 0.02)).abs().max() > 1e-2


def test_the_conditional_stream_is_the_anchor_where_the_host_tells_and_it_is_in_the_call():
    _, rows, _ = sampled("FFG", [("uncond", "cond")], conditional="cond")
    assert rows[2] == ["cond"]
    _, rows, _ = sampled("FFG", [("uncond",), ("cond",)], conditional="cond")
    assert rows[2] == ["uncond"]


def test_an_order_that_flips_changes_the_anchor_and_nothing_else():
    apart, flipped = [("cond",), ("uncond",)], [("uncond",), ("cond",)]
    _, rows, outputs = sampled("FFFGGF", apart, orders={1: flipped, 4: flipped, 5: [("cond", "uncond")]})
    assert rows[3] == ["cond"] and rows[4] == ["uncond"]
    for evaluation in (3, 4):
        for stream, output in outputs[evaluation].items():
            torch.testing.assert_close(output, velocity(stream, evaluation, 0.02), rtol=1e-3, atol=1e-3)


def test_streams_that_are_equal_stay_equal():
    engine = Guidance(lambda: Forecast(1, None, torch.arange(4)))
    rows = torch.randn(1, 16, 8, 2, 2, generator=RANDOM)
    for position in range(3):
        engine.begin()
        engine.record(position, "cond", rows * position, None)
        engine.record(position, "uncond", rows * position, None)
    engine.begin()
    engine.record(3, "cond", rows, None)
    assert torch.equal(engine.derive(3, "uncond")[0], rows)


def test_right_after_a_full_evaluation_an_unchanged_input_gives_the_same_stream_again():
    rows, other = torch.randn(2, 1, 16, 8, 2, 2, generator=RANDOM)
    kept = Guidance(lambda: Forecast(0, None, torch.arange(4)))
    kept.record(0, "cond", rows, None)
    kept.record(0, "uncond", other, None)
    kept.begin()
    kept.record(1, "cond", rows, None)
    torch.testing.assert_close(kept.derive(1, "uncond")[0], other, rtol=0, atol=4e-7)  # one rounding each way


def test_partial_evaluations_renew_the_differences_of_their_tokens():
    engine, _, outputs = sampled("FFPPGF", [("cond",), ("uncond",)])
    assert engine.stats.decisions == "FFPPGF"
    edited = engine.setup.classes.edited
    for stream, output in outputs[4].items():
        torch.testing.assert_close(pack(output, edited), pack(velocity(stream, 4, 0.02), edited), rtol=1e-3, atol=1e-3)


def test_without_guidance_there_is_none_to_reuse_and_the_report_says_so():
    engine, rows, outputs = sampled("FFGGFF", [("cond",)])
    assert engine.stats.decisions == "FFFFFF" and all(r == ["cond"] for r in rows)
    assert "there is one stream, so no guidance to reuse" in engine.stats.summary()
    assert torch.equal(outputs[2]["cond"], velocity("cond", 2, 0.02))


def test_a_stream_that_joins_is_computed_in_full_first():
    late = [("cond",), ("uncond",), ("third",)]
    orders = dict.fromkeys(range(3, 6), late)
    engine, rows, outputs = sampled("FFGGFG", [("cond",), ("uncond",)], orders=orders)
    assert rows[3] == ["cond", "third"] and rows[5] == ["cond"]
    assert torch.equal(outputs[3]["third"], velocity("third", 3, 0.02))
    assert "a stream not seen before" in {r.reason for r in engine.stats.records}


def broken(stream, output):
    if stream is not None:
        raise RuntimeError("a patch wants two rows")
    return output


def poisoned(stream, output):
    return output if stream is None else output * float("nan")


@pytest.mark.parametrize(("spoil", "reason"), [(broken, "a patch wants two rows"), (poisoned, "not finite")])
@pytest.mark.parametrize("calls", [[("cond", "uncond")], [("cond",), ("uncond",)]])
def test_where_one_stream_alone_fails_all_are_computed_from_then_on(spoil, reason, calls):
    engine, _, outputs = sampled("FFGGRGF", calls, spoil=spoil)
    assert engine.stats.decisions == "FFFFRFF"
    assert len(engine.stats.warnings) == 1 and reason in engine.stats.summary()
    for evaluation in (2, 3, 5, 6):
        for stream, output in outputs[evaluation].items():
            assert torch.equal(output, velocity(stream, evaluation, 0.02))


def test_what_is_kept_is_counted_and_freed():
    plain, guided = (sampled(s, [("cond",), ("uncond",)])[0] for s in ("FFFF", "FFGF"))
    latent = 16 * T * H * W * 4
    assert plain.stats.peak_forecast_bytes == 6 * latent  # two streams: a prediction, its slope and its bend
    # one difference, as much again; and both streams' predictions while the evaluation lasts
    assert 9 * latent <= guided.stats.peak_forecast_bytes <= 11 * latent
    assert not guided._forecasts and guided._forecasts.bytes == 0


def test_same_settings_same_bytes():
    (_, _, a), (_, _, b) = (sampled("FFFGPGRF", [("cond",), ("uncond",)]) for _ in range(2))
    assert all(torch.equal(x[s], y[s]) for x, y in zip(a, b, strict=True) for s in x)


def test_it_costs_one_stream_of_all():
    engine = Engine(POLICY(schedule="FFGGGG"), setup(steps=6))
    assert engine.stats.costs.guidance == pytest.approx(0.5, abs=0.01)
    assert engine.stats.predicted_speed == pytest.approx(6 / 4, rel=0.01)
    assert "4 guidance" in engine.stats.outlook()
    assert Costs.of(SHAPE, 100, 10, 10, streams=1).guidance == 1.0


def test_the_picture_shows_it():
    engine, _, _ = sampled("FFGRGF", classes=mask_classes())
    assert engine.stats.picture().std() > 0 and "2 guidance" in engine.stats.summary()


# ---- half evaluations: a selection of tokens, and one stream


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_a_half_evaluation_computes_one_streams_selection_and_the_others_edit_follows(calls):
    streams = {s for call in calls for s in call}
    engine, rows, outputs = sampled("FFFHPHRHF", calls, streams=len(streams))
    assert engine.stats.decisions == "FFFHPHRHF" and not engine.stats.warnings
    edited = engine.setup.classes.edited
    for evaluation, decision in enumerate(engine.stats.decisions):
        assert len(rows[evaluation]) == {"F": len(streams), "P": len(streams), "H": 1, "R": 0}[decision]
        for stream, output in outputs[evaluation].items() if decision == "H" else ():
            exact = velocity(stream, evaluation, 0.02)
            torch.testing.assert_close(pack(output, edited), pack(exact, edited), rtol=1e-3, atol=2e-3)


def test_a_half_evaluation_needs_guidance_and_context_and_goes_on_in_full_without():
    engine, rows, _ = sampled("FFHHFF", [("cond",)])
    assert engine.stats.decisions == "FFFFFF" and "no guidance to reuse" in engine.stats.summary()
    engine, _, outputs = sampled("FFHHF", [("cond",), ("uncond",)], no_partials="the model is not one that can")
    assert engine.stats.decisions == "FFFFF" and "the model is not one that can" in engine.stats.summary()
    with pytest.raises(ValueError, match="P or H"):
        CachePolicy(schedule="FFHH", partials=False)


@pytest.mark.parametrize("calls", [[("cond", "uncond")], [("cond",), ("uncond",)]])
def test_where_a_half_evaluation_fails_no_more_are_tried_and_partials_go_on(calls):
    engine, _, outputs = sampled("FFHHPF", calls, spoil=broken)
    assert engine.stats.decisions == "FFFFPF" and "a patch wants two rows" in engine.stats.summary()
    for stream, output in outputs[2].items():
        assert torch.equal(output, velocity(stream, 2, 0.02))


def test_a_half_evaluation_costs_half_a_partial_one():
    engine = Engine(POLICY(schedule="FFHHHH"), setup(steps=6))
    assert engine.stats.costs.half == pytest.approx(engine.stats.costs.partial / 2, rel=0.02)
    assert "4 half" in engine.stats.outlook()
