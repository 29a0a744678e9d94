"""Block reuse in the host's own samplers: deltas, fresh hints, neighbours in the same slots, nothing left behind."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from small import DIM, FFN, QUICK, VARIANTS, cached, load, never_batched, psnr, sample

from hetcache_core import CachePolicy, Engine
from hetcache_core.block_profile import BlockProfile
from hetcache_core.hosts import comfyui as host

SCHEDULE = "FFBBFB"
VACE = {name: v for name, v in VARIANTS.items() if name.startswith("vace")}


@pytest.fixture
def policy(tmp_path):
    def write(background, layers=4, vace_layers=2, schedule=SCHEDULE, **changes):
        profile = BlockProfile("small", DIM, layers, FFN, vace_layers, background)
        (tmp_path / "blocks.json").write_text(profile.to_json())
        return CachePolicy(schedule=schedule, block_profile=str(tmp_path / "blocks.json"), **changes)

    return write


def sizes(variant):
    weights = dict(variant.weights)
    return {"layers": weights.get("layers", 4), "vace_layers": weights.get("vace_layers", 2)}


@pytest.fixture
def engines(monkeypatch):
    """Every engine, in order."""
    seen = []

    class Watched(Engine):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self)

    monkeypatch.setattr(host, "Engine", Watched)
    return seen


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_with_no_background_blocks_the_bytes_are_the_stock_ones(variant, policy):
    result, stats = cached(variant.model, variant.scene, policy((), **sizes(variant)))
    assert stats.decisions == SCHEDULE and not stats.warnings
    assert torch.equal(result, sample(variant.model, variant.scene))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_background_blocks_are_reused_the_first_block_among_them(variant, policy):
    result, stats = cached(variant.model, variant.scene, policy((0, 1, 3), **sizes(variant)))
    assert stats.decisions == SCHEDULE and not stats.warnings
    assert 0 < stats.peak_block_bytes <= stats.planned_block_bytes
    stock = sample(variant.model, variant.scene)
    assert not torch.equal(result, stock) and psnr(result, stock) > 15


@pytest.mark.parametrize("name", ["vace, every 2nd block", "vace, three controls"])
@pytest.mark.parametrize("background", [(0,), (0, 1, 2, 3)])
def test_hints_are_fresh_where_blocks_are_reused(name, background, policy, monkeypatch):
    """The control of every evaluation that reuses blocks is another one; the output moves as the stock output does."""
    variant, moving = VACE[name], []
    forward = host._Run.forward

    def moved(self, executor, *args, **kwargs):
        if moving and self._evaluation == 1:
            kwargs = {**kwargs, "vace_context": kwargs["vace_context"].flip(-1)}
        return forward(self, executor, *args, **kwargs)

    monkeypatch.setattr(host._Run, "forward", moved)
    outcomes = {}
    for kind, chosen in (("stock", policy((), schedule="FF")), ("reused", policy(background, schedule="FB"))):
        for where in ("still", "moved"):
            moving[:] = [True] * (where == "moved")
            outcomes[kind, where], stats = cached(variant.model, variant.scene, chosen, steps=2, cfg=1.0)
            assert stats.decisions == ("FF" if kind == "stock" else "FB")
    should = outcomes["stock", "moved"] - outcomes["stock", "still"]
    followed = outcomes["reused", "moved"] - outcomes["reused", "still"]
    assert should.norm() > 1e-3 * outcomes["stock", "still"].norm()
    assert torch.nn.functional.cosine_similarity(followed.flatten(), should.flatten(), 0) > 0.5


def test_rows_of_one_call_and_separate_calls_agree(policy, monkeypatch):
    together, _ = cached(load(), QUICK, policy((0, 1, 3)))
    never_batched(monkeypatch)
    apart, stats = cached(load(), QUICK, policy((0, 1, 3)))
    assert stats.decisions == SCHEDULE and not stats.warnings
    assert psnr(apart, together) > 60  # attention rounds otherwise with other rows beside


def test_another_replacement_keeps_its_place_inside(policy):
    model, seen = load().clone(), []

    def louder(args, extra):
        seen.append(args["transformer_options"]["block_index"])
        return {"img": extra["original_block"](args)["img"] * 1.01}

    model.set_model_patch_replace(louder, "dit", "double_block", 2)
    result, stats = cached(model, QUICK, policy(()))
    assert torch.equal(result, sample(model, QUICK)) and set(seen) == {2}
    seen.clear()
    result, stats = cached(model, QUICK, policy((0, 1)))
    assert stats.decisions == SCHEDULE and len(seen) == 6  # foreground: in every evaluation, both streams at once
    seen.clear()
    cached(model, QUICK, policy((2,)))
    assert len(seen) == 3
    assert model.model_options["transformer_options"]["patches_replace"]["dit"] == {("double_block", 2): louder}


def test_blocks_are_routed_only_where_the_run_needs_it(policy, monkeypatch):
    calls, routed = [], host.routed

    def counted(engine, *args):
        calls.append(engine._evaluation)
        return routed(engine, *args)

    monkeypatch.setattr(host, "routed", counted)
    cached(load(), QUICK, CachePolicy(schedule="FFPRPF", warmup=1))
    assert not calls
    cached(load(), QUICK, policy((1,)))
    assert set(calls) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("step", [2, 3])
def test_an_interrupt_frees_the_deltas(step, policy, engines):
    def stop(number, *_):
        if number == step:
            raise comfy.model_management.InterruptProcessingException

    patched, _ = host.apply(load(), policy((0, 1)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patched, QUICK, callback=stop)
    (engine,) = engines
    assert engine.stats.peak_block_bytes > 0 and engine.blocks.bytes == 0 and not engine.routes_blocks
    result = sample(patched, QUICK)
    assert torch.equal(result, cached(load(), QUICK, policy((0, 1)))[0])


def test_profilingdit_runs_as_published_and_says_what_it_does_not_know(engines):
    result, stats = cached(load(), QUICK, CachePolicy(method="profilingdit"), steps=30)
    assert stats.decisions == stats.planned == "F" * 7 + ("B" * 5 + "F") * 3 + "B" * 5
    assert "not profiled" in stats.summary() and torch.isfinite(result).all()
    assert engines[-1].blocks.bytes == 0


def test_a_missing_profile_is_refused_by_the_node():
    with pytest.raises(ValueError, match="no block profile"):
        host.apply(load(), CachePolicy(method="profilingdit", block_profile="nowhere.json"))


# ---- profiling


def nodes():
    from pack import load as load_pack

    return load_pack()[1]


def test_where_a_run_is_left_to_the_host_the_node_says_why():
    from comfy_extras.nodes_easycache import EasyCacheNode

    patched, report = host.apply(load(), CachePolicy(method="profile"))
    sample(EasyCacheNode.execute(patched, 0.3, 0.1, 0.95, False).result[0], QUICK)
    with pytest.raises(ValueError, match=r"no blocks were measured: .*keep one of the two"):
        report.runs[-1].block_profile("small")


def test_main_blocks_are_told_from_vace_blocks_in_call_order():
    from hetcache_core.hosts.comfyui_setup import _main_layers

    model = load().model.diffusion_model
    assert _main_layers(model, 1) == (0, 2, 3, 5) and _main_layers(model, 3) == (0, 4, 5, 9)
    assert _main_layers(load(layers=3, vace_layers=0).model.diffusion_model, 1) == (0, 1, 2)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_model_can_be_profiled_and_its_output_is_exact(variant):
    patched, report = host.apply(variant.model, CachePolicy(method="profile"))
    result = sample(patched, variant.scene, steps=2)
    assert torch.equal(result, sample(variant.model, variant.scene, steps=2))
    profile = report.runs[-1].block_profile("small")
    assert len(profile.scores) == sizes(variant)["layers"] and all(0 <= score <= 1 for score in profile.scores)
    cached(variant.model, variant.scene, replace(CachePolicy(schedule="FB"), block_profile="auto"), steps=2)


def test_the_node_measures_saves_and_its_file_is_used(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    profiler, settings = nodes()["HetCacheProfileModel"], nodes()["HetCachePolicySettings"]
    with torch.inference_mode():
        latent = {"samples": QUICK.latent}
        file, picture = profiler.execute(load(), QUICK.conds()[0], latent, "my / model", 2, 0.5, 0).result
    profile = BlockProfile.load(file)
    assert (tmp_path / "hetcache" / "blocks_my_model.json").samefile(file)
    assert len(profile.background) == 2 and picture.ndim == 4 and picture.shape[-1] == 3
    method = {"method": "profilingdit", "interval": 3, "interval_min": -1, "block_profile": f" {file} "}
    (policy,) = settings.execute("custom", 3.0, 2048.0, method).result
    assert policy.interval == 3 and policy.interval_min is None
    _, stats = cached(load(), QUICK, policy, steps=10)
    assert "B" in stats.decisions and stats.note == "" and not stats.warnings
    before = settings.fingerprint_inputs(method=method, profile="auto", speed=3.0)
    assert before == settings.fingerprint_inputs(method=method, profile="auto", speed=3.0) and len(before) == 1
    (tmp_path / "hetcache" / "blocks_my_model.json").write_text(" " + profile.to_json())
    assert settings.fingerprint_inputs(method=method, profile="auto") != before
    assert settings.fingerprint_inputs(method=None, profile=None) == []  # not known: they come from other nodes
    there = [profiler.fingerprint_inputs(name="my / model", steps=2) for _ in range(2)]
    (tmp_path / "hetcache" / "blocks_my_model.json").unlink()
    gone = profiler.fingerprint_inputs(name="my / model", steps=2)
    assert there[0] == there[1] != gone  # it is measured anew rather than taken from the host's cache
    assert profiler.fingerprint_inputs(name="never measured") == profiler.fingerprint_inputs(name=None) == 0


def test_the_node_says_what_cannot_be_profiled():
    scene = replace(QUICK, kind="text")
    with pytest.raises(ValueError, match="mask"):
        nodes()["HetCacheProfileModel"].execute(
            load(vace_layers=0), scene.conds()[0], {"samples": scene.latent}, "x", 1, 0.5, 0
        )
