"""What goes wrong in a run costs it no more than it must."""

from types import SimpleNamespace

import pytest
import torch

from hetcache_core import CachePolicy, Engine
from hetcache_core.device import out_of_memory
from hetcache_core.partial import Partials
from tests.core.test_engine import STEPS, Model, setup, whole_run


def poisoned(selection, output):
    return output if selection is None else output * float("nan")


def failing(selection, output):
    if selection is not None:
        raise RuntimeError("size of tensor a must match")
    return output


def unforeseen(selection, output):
    if selection is not None:
        raise KeyError("a layer was skipped")
    return output


def hungry(selection, output):
    if selection is not None:
        raise torch.OutOfMemoryError("out of memory")
    return output


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(poisoned, "not finite"), (failing, "must match"), (hungry, "out of memory"), (unforeseen, "KeyError")],
)
def test_a_failing_partial_falls_back_to_full_and_says_so(spoil, reason):
    engine, model, outputs = whole_run(spoil=spoil)
    assert "P" not in engine.stats.decisions
    assert reason in engine.stats.summary()
    assert len(engine.stats.warnings) == 1
    tried = [e for e, tokens in model.calls if tokens]
    assert len(tried) == 1  # the other stream of the evaluation does not try again
    for evaluation, (cond, _) in enumerate(outputs):
        torch.testing.assert_close(cond, model.velocity(evaluation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["FFFRPRFRPRPF", "FFFRHRFRPRPF"])
def test_a_partial_given_up_by_one_of_its_layers_is_computed_in_full(schedule):
    """Its other layers saw the selection alone, so what comes of it is finite and wrong."""

    def run(streams):
        engine = Engine(CachePolicy(schedule=schedule), setup(steps=12, conditional="cond"))
        model = Model(engine)

        def spoil(selection, output):
            if selection is None:
                return output
            engine.give_up_partials("another node changes the model's attention calls")
            return output * 1.01

        model.spoil = spoil
        return engine, model, [[model.run(e, s) for s in streams] for e in range(12)]

    for streams in ((("cond",), ("uncond",)), (("cond", "uncond"),)):
        engine, model, outputs = run(streams)
        for output in outputs[4]:
            assert torch.equal(output[:1], model.velocity(4))
        assert "P" not in engine.stats.decisions and "H" not in engine.stats.decisions
        assert engine.stats.warnings == ["another node changes the model's attention calls"]


def test_an_accelerator_that_says_it_is_out_of_memory_is_believed():
    assert out_of_memory(torch.OutOfMemoryError()) and not out_of_memory(RuntimeError("out of memory of all kinds"))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))  # page-locked memory, too
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."))
    if hasattr(torch, "AcceleratorError"):
        assert out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
        assert not out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))


def test_an_error_of_the_model_itself_is_not_swallowed():
    def broken(selection, output):
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="the model is broken"):
        whole_run(spoil=broken)


def test_what_only_our_routing_breaks_costs_no_more_than_the_partials():
    """As a graph compiled whole does, which takes no function from outside."""
    engine = Engine(CachePolicy(speed=3.0, profile="wan", warmup=2), setup())
    model = Model(engine)

    def spoil(selection, output):
        if engine.wants_attention:
            raise KeyError("no such graph")
        return output

    model.spoil = spoil
    outputs = [model.run(evaluation, ("cond",)) for evaluation in range(STEPS)]
    assert "P" not in engine.stats.decisions and "no such graph" in engine.stats.summary()
    assert len(engine.stats.warnings) == 1 and torch.equal(outputs[0], model.velocity(0))


@pytest.mark.parametrize("seen", [{"capture": 0, "join": 0}, {"capture": 4, "join": 0}, {"capture": 4, "join": 3}])
def test_a_partial_whose_layers_did_not_come_by_is_computed_in_full(seen):
    """As where blocks compiled earlier do not look whether anybody listens."""
    engine = Engine(CachePolicy(schedule="FFPFPF"), setup(steps=6))
    model = Model(engine)

    def spoil(selection, output):
        engine.saw_layers(seen["capture" if selection is None else "join"])
        return output

    model.spoil = spoil
    for evaluation in range(6):
        assert torch.equal(model.run(evaluation, ("cond",)), model.velocity(evaluation))
    assert engine.stats.decisions == "FFFFFF" and engine.stats.warnings[0].startswith("not all attention layers")


class Stop(Exception):
    pass


def test_an_interrupt_of_the_host_is_no_failure():
    def interrupted(selection, output):
        if selection is not None:
            raise Stop
        return output

    with pytest.raises(Stop):
        whole_run(spoil=interrupted, interrupts=(Stop,))


def test_context_that_cannot_be_remembered_costs_nothing_but_the_partials(monkeypatch):
    def full_disk(*args):
        raise RuntimeError("no pinned memory left")

    monkeypatch.setattr("hetcache_core.memory.ContextMemory.capture", full_disk)
    engine, model, outputs = whole_run()
    assert "P" not in engine.stats.decisions and "no pinned memory left" in engine.stats.summary()
    torch.testing.assert_close(outputs[-1][0], model.velocity(STEPS - 1))


def test_a_layer_that_sees_a_part_of_the_tokens_is_found_out_before_any_index_is_used():
    """An index outside a tensor ends a CUDA process; on a CPU it is one more exception."""
    unused = SimpleNamespace(count=0)  # neither the memory nor the sampler is asked
    partials = Partials(torch.arange(4), unused, 0, unused, tokens=10)
    with pytest.raises(ValueError, match="sees 5 of 10 tokens"):
        partials.capture(0, ("cond",), "cond", *torch.zeros(3, 1, 5, 2, 8))


def test_out_of_memory_while_remembering_is_computed_again_without():
    failed = []

    def tight(selection, output):
        if selection is None and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return output

    engine, _, _ = whole_run(CachePolicy(speed=2.0, warmup=1, max_reuse=0, profile="wan"), spoil=tight)
    assert failed and "out of memory while remembering" in engine.stats.summary()


@pytest.mark.parametrize(("method", "schedule"), [("predict", "FFRRFF"), ("record", "FFFFFF")])
def test_a_forecast_that_cannot_be_kept_or_made_costs_no_answer(method, schedule, monkeypatch):
    """As on a card filled to its last megabyte: the model's own answer is there, or can be had."""

    def full(*args):
        raise torch.OutOfMemoryError("out of memory")

    engine = Engine(CachePolicy(schedule=schedule), setup(steps=6))
    model = Model(engine)
    monkeypatch.setattr(f"hetcache_core.forecasts.Forecasts.{method}", full)
    for evaluation in range(6):
        assert torch.equal(model.run(evaluation, ("cond",)), model.velocity(evaluation))
    assert engine.stats.decisions == "FFFFFF" and "out of memory" in engine.stats.warnings[0]
