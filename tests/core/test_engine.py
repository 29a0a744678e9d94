import json
import re
from dataclasses import replace

import pytest
import torch

from hetcache_core import CachePolicy, Engine, ErrorProfile, RunSetup
from hetcache_core.costs import ModelShape
from hetcache_core.packing import pack
from hetcache_core.prepare import prepare
from hetcache_core.setup import choose_tier
from hetcache_core.signals import ChangeRecorder
from hetcache_core.tiers import NO_MEMORY, MemoryTier
from hetcache_core.tokens import TokenGrid, classify

T, H, W, STEPS = 3, 16, 16, 20
SHAPE = ModelShape(dim=256, layers=4, ffn=512, vace_layers=2, text_tokens=8)
LAYERS = SHAPE.attention_layers


def mask_classes(share=0.2):
    touched = torch.zeros(T, H // 2, W // 2, dtype=torch.bool)
    touched.view(-1)[: round(share * touched.numel())] = True
    return classify(touched)


def setup(classes=None, steps=STEPS, **changes):
    sigmas = tuple(torch.linspace(1, 0, steps + 1).tolist())
    grid = TokenGrid(T, H // 2, W // 2)
    values = {"grid": grid, "sigmas": sigmas, "shape": SHAPE, "classes": classes or mask_classes(), **changes}
    return RunSetup(**values)


class Model:
    """A stand-in for a DiT: velocity is linear in the evaluation; every call also runs its self-attention layers."""

    def __init__(self, engine):
        self.engine, self.calls, self.spoil = engine, [], None
        self.slope = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(0))

    def velocity(self, evaluation):
        return self.slope * (1 + 0.1 * evaluation)

    def run(self, evaluation, streams=("cond",), sample=None):
        sample = torch.zeros(len(streams), 16, T, H, W) if sample is None else sample

        def compute(selection, stream=None):
            self.calls.append((evaluation, None if selection is None else len(selection)))
            rows = len(streams) if stream is None else 1
            output = self.velocity(evaluation).repeat(rows, 1, 1, 1, 1)
            output = output if selection is None else pack(output, selection)
            tokens = output[0, 0].numel() // 4
            if self.engine.routes_attention:
                qkv = torch.ones(rows, tokens, 2, 128)
                for layer in range(LAYERS):
                    self.engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, bias: q)
            return output if self.spoil is None else self.spoil(selection, output)

        return self.engine.evaluate(evaluation, streams, sample, compute)


def whole_run(policy=None, streams=(("cond",), ("uncond",)), steps=STEPS, spoil=None, **changes):
    engine = Engine(policy or CachePolicy(speed=3.0, profile="wan", warmup=2), setup(steps=steps, **changes))
    model = Model(engine)
    model.spoil = spoil
    outputs = [[model.run(e, s) for s in streams] for e in range(steps)]
    return engine, model, outputs


def test_all_three_decisions_happen_and_linear_predictions_come_out_exact():
    engine, model, outputs = whole_run()
    assert set(engine.stats.decisions) == {"F", "P", "R"}
    for evaluation, (cond, uncond) in enumerate(outputs):
        torch.testing.assert_close(cond, model.velocity(evaluation), rtol=1e-4, atol=1e-4)
        assert torch.equal(cond, uncond)


def test_reuse_runs_no_model_and_partials_run_a_constant_number_of_tokens():
    engine, model, _ = whole_run()
    computed = {e for e, _ in model.calls}
    assert computed == {i for i, d in enumerate(engine.stats.decisions) if d != "R"}
    assert {n for _, n in model.calls if n} == {engine.stats.selected_tokens}


@pytest.mark.parametrize("streams", [(("cond",), ("uncond",)), (("uncond",), ("cond",)), (("a", "b"),), (("only",),)])
def test_one_decision_per_evaluation_whatever_the_streams(streams):
    engine, _, _ = whole_run(streams=streams)
    reference, _, _ = whole_run()
    assert engine.stats.decisions == reference.stats.decisions


def test_everything_is_freed_at_the_end_and_on_close():
    engine, _, _ = whole_run()
    assert engine.partials.bytes == 0 and not engine._forecasts
    assert engine.stats.peak_context_bytes > 0
    engine.close()


def test_memory_held_is_what_was_planned_and_within_the_budget():
    engine, _, _ = whole_run()
    assert engine.stats.peak_context_bytes == engine.stats.planned_context_bytes
    assert engine.stats.peak_context_bytes <= engine.policy.memory_budget_mb * 2**20


@pytest.mark.parametrize(("changes", "expected"), [({}, 3.0), ({"stochastic": True}, 1.0)])
def test_partial_evaluations_see_context_where_it_has_got_to(changes, expected):
    """Keys are the number of the evaluation: two full ones show where they go, unless the sampler adds noise."""
    engine, seen = Engine(CachePolicy(schedule="FFRP"), setup(steps=4, **changes)), []

    def attend(query, key, value, weights):
        seen.append(key[:, : -query.shape[1]].unique().tolist() if key.shape != query.shape else None)
        return query

    for evaluation in range(4):

        def compute(selection, evaluation=evaluation):
            output = torch.ones(1, 16, T, H, W)
            output = output if selection is None else pack(output, selection)
            qkv = torch.full((1, output[0, 0].numel() // 4, 2, 128), float(evaluation))
            if engine.routes_attention:
                engine.self_attention(0, qkv, qkv, qkv, attend)
                for layer in range(1, LAYERS):
                    engine.self_attention(layer, qkv, qkv, qkv, lambda q, k, v, w: q)
            return output

        engine.evaluate(evaluation, ("cond",), torch.zeros(1, 16, T, H, W), compute)
    assert engine.stats.decisions == "FFRP" and seen[-1][0] == pytest.approx(expected)


@pytest.mark.parametrize("budget", [0, 0.1, 0.5, 1, 2, 64])
def test_tiers_fit_their_budget(budget):
    policy = CachePolicy(memory_budget_mb=budget)
    tier, known = choose_tier(policy, setup()), setup()
    held = tier.bytes(len(known.classes.context), SHAPE.dim, LAYERS, 2, 4)
    assert held <= budget * 2**20
    assert (tier == NO_MEMORY) == (held == 0)
    assert held > 0 or budget == 0


@pytest.mark.parametrize(
    ("frames", "mib", "expected"),
    [(9, 2048, MemoryTier(bits=6, turn_bits=2, apart_bits=2, order=1)),
     (21, 2048, MemoryTier(bits=4, apart_bits=0, order=0)),
     (21, 2560, MemoryTier(0.55, bits=6, turn_bits=2, apart_bits=2, order=1))],
)  # fmt: skip
def test_what_a_budget_means_for_a_real_model(frames, mib, expected):
    """Wan2.1-VACE 1.3B at 480x832, 33 and 81 frames, as the README has it."""
    touched = torch.zeros(frames, 30, 52, dtype=torch.bool)
    touched[:, 8:22, 15:37] = True
    known = {"shape": ModelShape(1536, 30, 8960, 15), "grid": TokenGrid(frames, 30, 52), "itemsize": 2}
    assert choose_tier(CachePolicy(memory_budget_mb=mib), setup(classify(touched), **known)) == expected


def test_a_budget_too_small_to_follow_the_context_is_named_with_one_that_would_do():
    policy = CachePolicy(speed=2.5, profile="wan", memory_budget_mb=0.5)
    note = prepare(policy, setup()).note
    enough = int(re.search(r"memory budget is too small .*: (\d+) MB would do", note)[1])
    assert choose_tier(replace(policy, memory_budget_mb=enough), setup()).follows
    for changes in ({"memory_budget_mb": enough}, {"memory_order": 0}, {"memory_share": 0.0}):
        assert "memory budget" not in prepare(replace(policy, **changes), setup()).note
    assert "memory budget" not in prepare(policy, setup(stochastic=True)).note


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (CachePolicy(method="off"), {}, "the method is off"),
        (CachePolicy(speed=1.0), {}, "exact"),
        (CachePolicy(), {"classes": mask_classes(0.0)}, "the mask is empty"),
        (CachePolicy(), {"classes": mask_classes(0.95)}, "95%|94%|96%"),
        (CachePolicy(), {"reason": "no mask here"}, "no mask here"),
        (CachePolicy(), {"steps": 1}, "fewer than two"),
    ],
)
def test_full_compute_says_why(policy, changes, reason):
    engine, model, outputs = whole_run(policy, **{"steps": 4, **changes})
    assert set(engine.stats.decisions) == {"F"}
    assert re.search(reason, engine.stats.summary())
    assert torch.equal(outputs[-1][0], model.velocity(len(outputs) - 1))


def test_x0_forecasts_are_exact_where_x0_is_constant():
    policy = CachePolicy(speed=3.0, forecast_quantity="x0", context_sampling="none")
    engine = Engine(policy, setup())
    model = Model(engine)
    clean, noise = torch.randn(2, 1, 16, T, H, W, generator=torch.Generator().manual_seed(1))
    sigmas = engine.setup.sigmas
    for evaluation in range(STEPS):
        sample = (1 - sigmas[evaluation]) * clean + sigmas[evaluation] * noise
        model.velocity = lambda _: noise - clean
        output = model.run(evaluation, ("cond",), sample)
        torch.testing.assert_close(output, noise - clean, rtol=1e-3, atol=1e-3)


def test_same_settings_same_bytes():
    first, second = whole_run()[2], whole_run()[2]
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_online_method_decides_by_change_and_higher_thresholds_are_faster():
    reuses = []
    for threshold in (0.01, 0.05, 0.2):
        policy = CachePolicy(method="hetcache", threshold=threshold, warmup=2)
        engine, _, _ = whole_run(policy)
        reuses.append(engine.stats.decisions.count("R"))
        assert engine.stats.decisions.startswith("FF")
    assert reuses == sorted(reuses) and reuses[0] < reuses[-1]


def test_stats_speak_all_three_languages():
    engine, _, _ = whole_run()
    stats = engine.stats
    values = json.loads(stats.to_json())
    assert values["decisions"] == stats.decisions and len(values["evaluations"]) == STEPS
    assert sum(e["seconds"] for e in values["evaluations"]) == pytest.approx(stats.seconds)
    assert "full" in stats.summary() and "context memory" in stats.summary()
    picture = stats.picture()
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0


def test_a_measuring_run_is_exact_and_gives_a_profile():
    engine, model, outputs = whole_run(CachePolicy(method="measure"))
    assert torch.equal(outputs[3][0], model.velocity(3))
    profile = engine.stats.profile("mine", ErrorProfile.load("wan"))
    assert len(profile.first) == STEPS - 1 and len(profile.second) == STEPS - 2
    assert profile.first[0] == pytest.approx(0.1 / 1.1, rel=1e-3) and max(profile.second) < 1e-5
    assert ErrorProfile.from_json(profile.to_json()) == profile


def test_streams_are_measured_one_by_one_whether_they_come_together_or_not():
    profiles = []
    for calls in ((("cond",), ("uncond",)), (("cond", "uncond"),), None):
        engine = Engine(CachePolicy(method="measure"), setup())
        model = Model(engine)
        for evaluation in range(STEPS):
            for streams in calls or ((("cond", "uncond"),), (("cond",), ("uncond",)))[evaluation % 2]:
                model.run(evaluation, streams)
        assert not engine.stats.warnings
        profiles.append(engine.stats.profile("mine", ErrorProfile.load("wan")))
    assert profiles[0] == profiles[1] == profiles[2]


def test_a_prompt_of_a_part_of_the_run_does_not_count_in_a_profile():
    engines = [Engine(CachePolicy(method="measure"), setup()) for _ in range(2)]
    for engine, part in zip(engines, (range(0), range(4, 9)), strict=True):
        model = Model(engine)
        for evaluation in range(STEPS):
            for stream in ("cond", "uncond", *(["passing"] if evaluation in part else [])):
                model.run(evaluation, (stream,))
        assert not engine.stats.warnings
    assert len({engine.stats.profile("mine", ErrorProfile.load("wan")) for engine in engines}) == 1


def test_measuring_keeps_no_graph_of_what_it_saw():
    recorder, rows = ChangeRecorder(torch.arange(4)), torch.randn(1, 2, 4, 2, 2, requires_grad=True)
    recorder.add(2 * rows)
    assert not any(past.requires_grad for past in recorder._past)


def test_a_profile_needs_a_measuring_run():
    with pytest.raises(ValueError, match="no changes were measured"):
        whole_run()[0].stats.profile("mine", ErrorProfile.load("wan"))


def test_without_partials_only_forecasts_remain():
    engine, _, _ = whole_run(CachePolicy(speed=2.0, warmup=2, partials=False))
    assert set(engine.stats.decisions) == {"F", "R"}


def test_a_schedule_is_followed_and_filled_up():
    engine, _, _ = whole_run(CachePolicy(schedule="FFRPR"))
    assert engine.stats.decisions == "FFRPR" + "F" * (STEPS - 5)
    assert "5 letters for 20 steps" in engine.stats.summary()


def test_without_partials_on_a_model_only_forecasts_remain_and_the_note_says_why():
    engine, _, _ = whole_run(CachePolicy(speed=2.0, warmup=2), no_partials="the model is compiled")
    assert set(engine.stats.decisions) == {"F", "R"}
    assert "the model is compiled" in engine.stats.summary()
    assert engine.stats.planned_context_bytes == 0


def test_evaluations_at_one_sigma_share_a_position():
    heun = setup(steps=4, sigmas=(1.0, 0.9, 0.9, 0.7, 0.7, 0.0))
    assert [heun.position(i) for i in range(7)] == [0, 1, 1, 2, 2, 3, 4]


def test_calls_after_the_end_are_full_and_remembered_nowhere():
    engine, model, _ = whole_run()
    late = model.run(STEPS, ("cond",))
    assert torch.equal(late, model.velocity(STEPS)) and not engine._forecasts


def test_a_lone_cold_full_evaluation_makes_speed_an_estimate():
    engine, _, _ = whole_run(CachePolicy(schedule="FPPPPP"), steps=6)
    assert engine.stats.speed_is_estimated and "estimated" in engine.stats.summary()
    for record in engine.stats.records:
        record.seconds, record.storing_seconds = engine.stats.costs.partial, 0.0
    engine.stats.records[0].seconds, engine.stats.records[0].storing_seconds = 30.5, 0.5
    assert engine.stats.speed == pytest.approx(6 / (1 + 0.5 + 5 * engine.stats.costs.partial))


def test_storing_context_is_timed_where_it_happens():
    engine, _, _ = whole_run(CachePolicy(schedule="FFPRFPRF"), steps=8)
    stored = {i: 0 < r.storing_seconds < r.seconds for i, r in enumerate(engine.stats.records)}
    assert [i for i, did in stored.items() if did] == [0, 1, 4]  # no partial one follows the last
    assert all(r.storing_seconds == 0 for r in engine.stats.records if not stored[r.index])


def test_the_outlook_is_known_before_sampling():
    stats = Engine(CachePolicy(speed=3.0, warmup=2, profile="wan"), setup()).stats
    planned = stats.planned
    assert f"{planned.count('P')} partial" in stats.outlook() and "predicted" in stats.outlook()
    assert f"{stats.planned_context_bytes / 2**20:.0f} MB" in stats.outlook()
    assert "online" in Engine(CachePolicy(method="hetcache"), setup()).stats.outlook()


@pytest.mark.parametrize("mode", ["kmeans", "attention", "both"])
@pytest.mark.parametrize("memory", [0.0, None])
def test_semantic_context_is_chosen_at_full_evaluations(mode, memory):
    policy = CachePolicy(schedule="FFPRPFPF", context_sampling=mode, context_share=0.2, memory_share=memory)
    engine, model, _ = whole_run(policy, steps=8)
    assert engine.stats.decisions == "FFPRPFPF" and not engine.stats.warnings
    context = round(0.2 * len(engine.setup.classes.context))
    assert {n for _, n in model.calls if n} == {len(engine.setup.classes.edited) + context}


@pytest.mark.parametrize("changes", [{"method": "mixcache"}, {"method": "profilingdit"}, {"partials": False}])
def test_what_is_not_remembered_is_not_said_to_be(changes):
    stats = Engine(CachePolicy(**changes), setup()).stats
    assert stats.tier == str(NO_MEMORY) and stats.planned_context_bytes == 0


def test_a_schedule_that_goes_back_to_noisier_steps_is_computed_in_full():
    levels = (1.0, 0.9, 0.8, 0.9, 0.8, 0.7, 0.0)
    stats = Engine(CachePolicy(), setup(steps=6, sigmas=levels)).stats
    assert set(stats.planned) == {"F"} and "noisier" in stats.note


def test_less_context_is_computed_only_where_the_speed_is_out_of_reach_otherwise():
    def prepared(**changes):
        return prepare(CachePolicy.preset("few-step", **changes), setup(steps=6))

    slow, fast, chosen = prepared(speed=2.0), prepared(speed=2.9), prepared(speed=2.9, context_share=0.15)
    assert slow.partials.sampler.count > fast.partials.sampler.count
    assert fast.plan.predicted_speed > chosen.plan.predicted_speed and "out of reach" in chosen.note
    assert fast.partials.sampler.count < chosen.partials.sampler.count


def test_plans_trust_context_less_where_it_is_held_shared_or_thinned():
    ways = ({}, {"memory_order": 0}, {"memory_apart_bits": 0}, {"memory_share": 0.5})
    errors = [prepare(CachePolicy(speed=2.5, profile="wan", **way), setup()).plan.predicted_error for way in ways]
    assert errors[0] < min(errors[1:])
