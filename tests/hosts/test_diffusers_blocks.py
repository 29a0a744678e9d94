"""Block reuse on diffusers' Wan models."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusers host needs diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel, WanVACETransformer3DModel

from hetcache_core import CachePolicy
from hetcache_core.block_profile import BlockProfile
from hetcache_core.hosts import diffusers as host
from tests.hosts.small_wan import SMALL, cached, control, noise, prompts, randomised, relative, sample

WIDTH = SMALL["num_attention_heads"] * SMALL["attention_head_dim"]
EVERY = tuple(range(4))


@pytest.fixture(scope="module")
def vace():
    return randomised(WanVACETransformer3DModel(**SMALL, num_layers=4, vace_layers=[0, 2], vace_in_channels=96))


@pytest.fixture
def policy(tmp_path):
    def write(background, schedule="FFBBFBBBFBBB", layers=4, vace_layers=2, **changes):
        profile = BlockProfile("small", WIDTH, layers, SMALL["ffn_dim"], vace_layers, background)
        path = tmp_path / "blocks.json"
        path.write_text(profile.to_json())
        return CachePolicy(schedule=schedule, block_profile=str(path), **changes)

    return write


def test_with_no_background_blocks_the_bytes_are_the_stock_ones(vace, policy):
    result, stats = cached(vace, policy(()), controls=control())
    assert stats.decisions == "FFBBFBBBFBBB" and not stats.warnings
    assert torch.equal(result, sample(vace, controls=control()))


@pytest.mark.parametrize("background", [(0,), (1, 2), (0, 1, 3), EVERY])
@pytest.mark.parametrize("batched", [False, True])
def test_background_blocks_are_reused(vace, policy, background, batched):
    calls, counted = [0] * 4, []
    for i, block in enumerate(vace.blocks):
        counted.append(block.attn1.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1)))
    result, stats = cached(vace, policy(background), controls=control(), batched=batched, named=not batched)
    for handle in counted:
        handle.remove()
    assert stats.decisions == "FFBBFBBBFBBB" and not stats.warnings
    streams = 1 if batched else 2
    assert calls == [streams * (4 if i in background else 12) for i in range(4)]
    stock = sample(vace, controls=control(), batched=batched, named=not batched)
    assert 0 < relative(result, stock) < 0.5


def test_rows_of_one_call_and_separate_calls_agree(vace, policy):
    together, _ = cached(vace, policy((0, 1, 3)), controls=control(), batched=True, named=False)
    apart, _ = cached(vace, policy((0, 1, 3)), controls=control())
    assert relative(together, apart) < 1e-5


@pytest.mark.parametrize("background", [(0,), (0, 1), EVERY])
def test_hints_are_fresh_where_blocks_are_reused(vace, policy, background):
    """The control moves between the full evaluation and the one that reuses blocks; the output follows. Where no main
    block is computed the hints alone can make the difference."""
    moved = control()
    moved[:, :32] = control()[:, :32].flip(-1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(2)

    def second(control_then):
        answers = []
        with host.apply(vace, policy(background, "FB"), scheduler=scheduler, streams=1) as handle:
            for t, c in zip(scheduler.timesteps, (control(), control_then), strict=True):
                with vace.cache_context("cond"):
                    answers.append(vace(noise(), t[None], prompts()[0], None, c, return_dict=False)[0])
            assert handle.stats.decisions == "FB"
        return answers[1]

    stock = [vace(noise(), scheduler.timesteps[1:], prompts()[0], None, c, return_dict=False)[0]
             for c in (control(), moved)]  # fmt: skip
    followed, should = second(moved) - second(control()), stock[1] - stock[0]
    cosine = torch.nn.functional.cosine_similarity(followed.flatten(), should.flatten(), 0)
    assert relative(*stock) > 1e-3 and cosine > 0.5, (relative(*stock), cosine)


def test_it_works_without_a_vace_branch(policy):
    plain = randomised(WanTransformer3DModel(**SMALL, num_layers=3))
    mask = torch.zeros(9, 96, 96)
    mask[:, 32:64, 32:64] = 1
    result, stats = cached(plain, policy((0, 2), layers=3, vace_layers=0), mask=mask)
    assert stats.decisions == "FFBBFBBBFBBB" and not stats.warnings
    assert 0 < relative(result, sample(plain)) < 0.5


def test_profilingdit_runs_as_published(vace):
    result, stats = cached(vace, CachePolicy(method="profilingdit"), controls=control(), steps=30)
    assert stats.decisions == stats.planned == "F" * 7 + ("B" * 5 + "F") * 3 + "B" * 5
    assert "not profiled" in stats.summary() and torch.isfinite(result).all()


# ---- life


def test_blocks_are_hooked_only_during_a_run_that_needs_it_and_no_trace_is_left(vace, policy):
    before = [dict(block.__dict__) for block in vace.blocks]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(12)
    handle = host.apply(vace, policy((0, 1), "FB"), scheduler=scheduler)
    with vace.cache_context("cond"):
        vace(noise(), scheduler.timesteps[:1], prompts()[0], None, control())
    engine = handle._hook._engine
    assert engine.blocks.bytes > 0 and all("_diffusers_hook" in block.__dict__ for block in vace.blocks)
    handle.remove()
    assert engine.blocks.bytes == 0
    assert [set(block.__dict__) for block in vace.blocks] == [set(b) for b in before]
    cached(vace, policy((0, 1)), controls=control())
    assert [set(block.__dict__) for block in vace.blocks] == [set(b) for b in before]
    with host.apply(vace, CachePolicy(schedule="FFRR"), scheduler=scheduler):
        with vace.cache_context("cond"):
            vace(noise(), scheduler.timesteps[:1], prompts()[0], None, control())
        assert not any("_diffusers_hook" in block.__dict__ for block in vace.blocks)


def test_an_interrupt_frees_the_deltas_and_the_blocks(vace, policy):
    class Stop(BaseException):
        pass

    def stop(module, *args):
        if handle._hook._engine.blocks.mode == "apply":
            raise Stop

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    hook = vace.blocks[2].register_forward_pre_hook(stop)
    with host.apply(vace, policy((0, 1)), scheduler=scheduler) as handle:
        try:
            with pytest.raises(Stop):
                sample(vace, scheduler, controls=control())
        finally:
            hook.remove()
        assert handle._hook._engine is None and not any("_diffusers_hook" in b.__dict__ for b in vace.blocks)
        result = sample(vace, scheduler, controls=control())
        assert handle.stats.decisions == "FFBBFBBBFBBB" and torch.isfinite(result).all()


def test_a_block_that_fails_where_blocks_are_reused_leaves_a_full_run(vace, policy):
    def fail(module, *args):
        if handle._hook._engine is not None and handle._hook._engine.blocks.mode == "apply":
            raise RuntimeError("this block wants its neighbours")

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    hook = vace.blocks[2].register_forward_pre_hook(fail)
    with host.apply(vace, policy((0, 1)), scheduler=scheduler) as handle:
        result = sample(vace, scheduler, controls=control())
        hook.remove()
        assert set(handle.stats.decisions) == {"F"} and "wants its neighbours" in handle.stats.summary()
    assert torch.equal(result, sample(vace, controls=control()))


def test_a_profile_of_another_model_means_full_with_the_reason(vace, policy):
    result, stats = cached(vace, policy((0, 1), layers=5), controls=control())
    assert set(stats.decisions) == {"F"} and "belongs to another model" in stats.summary()
    assert torch.equal(result, sample(vace, controls=control()))


def test_a_missing_profile_is_refused_when_applied(vace):
    with pytest.raises(ValueError, match="no block profile 'nowhere"):
        host.apply(vace, CachePolicy(method="profilingdit", block_profile="nowhere.json"))


def test_tokens_spread_over_devices_allow_only_reuse(vace, monkeypatch):
    """Context parallelism: indices of the whole clip would lie outside a device's part, which CUDA does not survive."""
    from hetcache_core.hosts.diffusers_blocks import why_no_blocks
    from hetcache_core.hosts.diffusers_setup import _no_partials

    assert not _no_partials(vace) and not why_no_blocks(vace)
    for block in vace.blocks:
        monkeypatch.setattr(block.attn1.processor, "_parallel_config", object())
    assert "a part of the tokens" in _no_partials(vace) and "a part of the tokens" in why_no_blocks(vace)


def test_group_offloading_forbids_leaving_blocks_out(vace, policy):
    from diffusers.hooks import HookRegistry, ModelHook

    HookRegistry.check_if_exists_or_initialize(vace.blocks[1]).register_hook(ModelHook(), "group_offloading")
    try:
        _, stats = cached(vace, policy((0, 1)), controls=control())
        assert set(stats.decisions) == {"F"} and "offloaded in groups" in stats.summary()
    finally:
        vace.blocks[1]._diffusers_hook.remove_hook("group_offloading", recurse=False)
        del vace.blocks[1]._diffusers_hook, vace.blocks[1].forward


# ---- profiling


def test_a_model_is_profiled_by_a_run_that_stays_exact(vace, tmp_path):
    scheduler, results = FlowMatchEulerDiscreteScheduler(shift=5.0), []
    profile = host.profile_blocks(
        vace, lambda: results.append(sample(vace, scheduler, steps=2, controls=control())), "small",
        scheduler=scheduler, share=0.5,
    )  # fmt: skip
    assert torch.equal(results[0], sample(vace, steps=2, controls=control()))
    assert len(profile.scores) == 4 and len(profile.background) == 2 and len(profile.weights) == 4
    (tmp_path / "mine.json").write_text(profile.to_json())
    policy = CachePolicy(method="profilingdit", interval=2, block_profile=str(tmp_path / "mine.json"))
    _, stats = cached(vace, policy, controls=control(), steps=8)
    assert "B" in stats.decisions and not stats.note and not stats.warnings
    other = randomised(WanVACETransformer3DModel(**SMALL, num_layers=4, vace_layers=[0, 2], vace_in_channels=96))
    torch.nn.init.normal_(other.blocks[0].scale_shift_table, generator=torch.Generator().manual_seed(9))
    assert "other weights" in cached(other, policy, controls=control(), steps=8)[1].note


def test_scores_are_those_of_the_main_blocks(vace):
    """diffusers calls all VACE blocks first."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(vace, CachePolicy(method="profile"), scheduler=scheduler) as handle:
        sample(vace, scheduler, steps=1, controls=control(), cfg=1)
        scores = handle.stats.block_scores
        assert scores.setup.main_layers == (2, 3, 4, 5) and scores._seen == [1, 1, 1, 1]


def test_what_cannot_be_profiled_says_why():
    plain = randomised(WanTransformer3DModel(**SMALL, num_layers=2))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with pytest.raises(ValueError, match="there is no mask"):
        host.profile_blocks(plain, lambda: sample(plain, scheduler, steps=1), "plain", scheduler=scheduler)
