"""Other nodes on the same model: those HetCache works beside, and those it makes way for, with the reason."""

import logging
import threading
from dataclasses import replace
from functools import partial

import comfy.context_windows as windows
import comfy.hooks
import comfy_extras.nodes_easycache as easycache
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from small import FAST, QUICK, VARIANTS, Scene, cached, load, made_way, psnr, sample

from hetcache_core import CachePolicy
from hetcache_core.hosts import comfyui as host

EXACT = CachePolicy(speed=1.0)


# ---- works beside


def low_rank(model, strength):
    key = "diffusion_model.blocks.1.ffn.0.weight"
    shape = model.model.state_dict()[key].shape
    random = torch.Generator().manual_seed(3)
    patch = torch.randn(shape[0], 4, generator=random), torch.randn(4, shape[1], generator=random)
    return {key: ("diff", (0.05 * strength * patch[0] @ patch[1],))}


def adapted(model, strength=1.0):
    model = model.clone()
    assert model.add_patches(low_rank(model, strength))
    return model


def test_a_lora_before_and_after_the_node_is_the_same():
    stock = sample(adapted(load()), QUICK)
    for policy in (EXACT, FAST):
        before = sample(host.apply(adapted(load()), policy)[0], QUICK)
        after = sample(adapted(host.apply(load(), policy)[0]), QUICK)
        assert torch.equal(before, after)
        assert torch.equal(before, stock) if policy is EXACT else psnr(before, stock) > 20
    assert not torch.equal(cached(load(), QUICK)[0], after)


def test_a_replaced_self_attention_sees_whole_frames_and_an_own_cross_attention_is_no_matter():
    """As KJNodes' Enhance-A-Video does the one, and its NAG the other."""
    seen = set()

    def replaced(part):
        model = load().clone()
        own = model.get_model_object(f"diffusion_model.blocks.0.{part}.forward")

        def forward(x, *args, **kwargs):
            seen.add(x.shape[1])
            return own(x, *args, **kwargs)

        model.add_object_patch(f"diffusion_model.blocks.0.{part}.forward", forward)
        return model

    _, stats = cached(replaced("self_attn"), QUICK)
    assert len(seen) == 1 and "P" not in stats.decisions and "may need the whole clip" in stats.summary()
    _, stats = cached(replaced("cross_attn"), QUICK)
    assert stats.decisions == FAST.schedule, stats.summary()
    assert cached(load(), QUICK)[1].decisions == FAST.schedule  # the host took its patches off again


def with_override(override):
    model = load().clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def test_a_foreign_attention_override_keeps_its_place():
    asked = set()

    def override(function, q, k, v, *args, **kwargs):
        asked.add((q.shape[1], k.shape[1]))
        return 0.5 * function(q, k, v, *args, **kwargs)

    stock = sample(with_override(override), QUICK)
    assert torch.equal(cached(with_override(override), QUICK, EXACT)[0], stock)
    asked.clear()
    result, stats = cached(with_override(override), QUICK)
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    assert psnr(result, stock) > 20
    full, part, words = stats.records[0].tokens, stats.records[2].tokens, QUICK.prompts[0]
    assert asked == {(full, full), (full, words), (part, full), (part, words)}


def test_a_partial_evaluation_that_another_node_objects_to_is_computed_in_full():
    def override(function, q, k, v, *args, **kwargs):
        if k.shape[1] > q.shape[1]:
            raise RuntimeError("only square attention")
        return function(q, k, v, *args, **kwargs)

    result, stats = cached(with_override(override), QUICK)
    assert stats.decisions == "FFFRFF"
    assert stats.warnings == ["a partial evaluation failed (RuntimeError: only square attention)"]
    assert psnr(result, sample(load(), QUICK)) > 20


@pytest.mark.parametrize("kind", ["attn1_patch", "attn2_patch", "double_block"])
def test_block_patches_that_may_need_the_whole_clip_get_it(kind):
    model = load().clone()
    answer = {"attn1_patch": lambda args: args["x"], "attn2_patch": lambda args: args["x"], "double_block": dict}[kind]
    model.set_model_patch(answer, kind)
    stock = sample(model, QUICK)
    result, stats = cached(model, QUICK)
    assert stats.decisions == "FFFRFF" and "patches the model's blocks" in stats.note and not stats.warnings
    assert psnr(result, stock) > 20


def test_a_node_that_changes_the_attention_calls_ends_partial_evaluations():
    def twice(args, extra):
        once = extra["original_block"](args)["img"]
        return extra["original_block"]({**args, "img": once})

    model = load().clone()
    model.set_model_patch_replace(twice, "dit", "double_block", 1)
    stock = sample(model, QUICK)
    assert torch.equal(cached(model, QUICK, EXACT)[0], stock)
    result, stats = cached(model, QUICK)
    assert psnr(result, stock) > 20 and "P" not in stats.decisions and stats.warnings


def attending_twice(model, late=False):
    """Every block's cross-attention also reads another prompt, as normalised attention guidance does."""
    model, other = model.clone(), torch.randn(1, 8, 256, generator=torch.Generator().manual_seed(9)) * 0.1
    seen = []

    def guided(own, x, context, **kwargs):
        seen.append(x.shape[1])
        if late and len(seen) < 20:  # for a part of the run
            return own(x, context, **kwargs)
        return own(x, context, **kwargs) * 1.3 - 0.3 * own(x, other.expand(len(x), -1, -1), **kwargs)

    for i, block in enumerate(model.get_model_object("diffusion_model").blocks):
        model.add_object_patch(
            f"diffusion_model.blocks.{i}.cross_attn.forward", partial(guided, block.cross_attn.forward)
        )
    return model, seen


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("memory", [2048.0, 0.0])
def test_more_cross_attention_does_not_hide_the_self_attention(late, memory):
    policy = replace(FAST, memory_budget_mb=memory)
    result, stats = cached(attending_twice(load(), late)[0], QUICK, policy)
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    plain, _ = cached(load(), QUICK, policy)
    model, seen = attending_twice(load(), late)
    stock = sample(model, QUICK)
    assert len(set(seen)) == 1 and not torch.equal(result, plain)
    assert psnr(result, stock) > 20


def test_attention_to_something_unknown_ends_partial_evaluations():
    """Met inside a partial evaluation, that one is computed in full too."""
    model = load().clone()
    for i, block in enumerate(model.get_model_object("diffusion_model").blocks):
        def longer(x, context, own=block.cross_attn.forward, **kwargs):
            return own(x, torch.cat([context, context[:, :3]], 1), **kwargs)

        model.add_object_patch(f"diffusion_model.blocks.{i}.cross_attn.forward", longer)
    stock = sample(model, QUICK)
    for memory in (2048.0, 0.0):
        result, stats = cached(model, QUICK, replace(FAST, memory_budget_mb=memory))
        assert "P" not in stats.decisions and "changes the model's attention calls" in stats.warnings[0]
        assert psnr(result, stock) > 20


def test_a_replaced_block_runs_in_partial_evaluations_too():
    model, tokens = load().clone(), []

    def dim(args, extra):
        tokens.append(args["img"].shape[1])
        return {"img": extra["original_block"](args)["img"] * 0.9}

    model.set_model_patch_replace(dim, "dit", "double_block", 1)
    stock = sample(model, QUICK)
    assert torch.equal(cached(model, QUICK, EXACT)[0], stock)
    result, stats = cached(model, QUICK)
    assert stats.decisions == FAST.schedule and not stats.warnings, stats.summary()
    assert psnr(result, stock) > 20 and {r.tokens for r in stats.records} - {0} == set(tokens)


# ---- makes way


def test_a_batch_that_another_node_cuts_up():
    """Both prompts are named and the rows of one are there: nothing may be told apart by order then."""
    model = load().clone()

    def halved(apply_model, args):
        rows = args["input"].shape[0] // 2 or 1
        halves = [slice(0, rows), slice(rows, None)] if args["input"].shape[0] > 1 else [slice(None)]

        def some(value, part):
            if isinstance(value, dict):
                whole = "transformer_options"
                return {key: inner if key == whole else some(inner, part) for key, inner in value.items()}
            batched = isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == args["input"].shape[0]
            return value[part] if batched else value

        return torch.cat([
            apply_model(args["input"][part], args["timestep"][part], **some(args["c"], part)) for part in halves
        ])

    stock = sample(model, QUICK)
    model.set_model_unet_function_wrapper(halved)
    result, stats = cached(model, QUICK)
    assert psnr(result, stock) > 60 and set(stats.decisions) == {"F"}, stats.summary()


@pytest.mark.parametrize("node", [easycache.EasyCacheNode, easycache.LazyCacheNode])
def test_the_hosts_own_caches(node):
    def both(model):
        return node.execute(model, 0.3, 0.1, 0.95, False).result[0]

    made_way(both(load()), "keep one of the two")
    patched, report = host.apply(load(), FAST)
    assert torch.equal(sample(both(patched), QUICK), sample(both(load()), QUICK))
    assert "keep one of the two" in report.runs[-1].note


def test_a_replaced_forward():
    model = load().clone()
    inner = model.model.diffusion_model.forward_orig
    model.add_object_patch("diffusion_model.forward_orig", lambda *args, **kwargs: inner(*args, **kwargs) * 0.9)
    made_way(model, "another node replaced the model's forward")
    assert cached(load(), QUICK)[1].decisions == FAST.schedule  # without that node


def test_a_forward_replaced_in_the_middle(monkeypatch):
    patched, report = host.apply(load(), FAST)
    inner = load().model.diffusion_model

    def swap(step, *_):
        if step == 1:
            monkeypatch.setattr(inner, "forward_orig", partial(type(inner).forward_orig, inner))

    sample(patched, QUICK, callback=swap)
    assert report.runs[-1].decisions == "FFFFFF"
    assert report.runs[-1].warnings == ["another node replaced the model's forward; remove that node, or this one"]


def test_context_windows():
    model = load().clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=2, context_overlap=1, dim=2,
    )  # fmt: skip
    made_way(model, "context windows", scene=replace(QUICK, frames=4))


def test_lora_hooks_with_keyframes():
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    hooks.hooks[0].weights, hooks.hooks[0].need_weight_init = low_rank(load(), 1.0), False
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.2, 0.0), (1.0, 0.3)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(keyframes)

    class Hooked(Scene):
        def conds(self):
            positive, negative = super().conds()
            return [comfy.hooks.set_hooks_for_conditioning(positive, hooks), negative]

    scene = Hooked(height=8, width=8)
    assert not torch.equal(sample(load(), scene), sample(load(), QUICK))
    made_way(load(), "LoRA hooks", scene=scene)


@pytest.mark.skipif(not hasattr(ModelPatcher, "deepclone_multigpu"), reason="this host does not split work over GPUs")
def test_work_split_over_several_devices():
    small = {"layers": 1, "vace_layers": 0, "dim": 128}
    model, other = load(**small).clone(), load(**small, seed=0).clone()
    other.is_multigpu_base_clone, other.load_device = True, torch.device("cpu", 0)
    model.set_additional_models("multigpu", [other])
    threads = set()

    def listen(executor, *args, **kwargs):
        threads.add(threading.current_thread())
        return executor(*args, **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, listen)
    made_way(model, "several GPUs", Scene("text", height=4, width=4, noise_mask=True))
    assert threading.current_thread() not in threads


# ---- untouched


def one_line(caplog):
    lines = [r.message for r in caplog.records if r.name == "hetcache" and r.levelno >= logging.WARNING]
    assert len(lines) == 1
    return lines[0]


def test_an_unknown_wan_passes_through(monkeypatch, caplog):
    stock = sample(load(), QUICK)
    inner = load().model.diffusion_model
    monkeypatch.setattr(inner, "__class__", type("OtherWanModel", (type(inner),), {}))
    patched, report = host.apply(load(), FAST)
    assert "it is a OtherWanModel" in one_line(caplog) and "it is a OtherWanModel" in report.untouched
    assert torch.equal(sample(patched, QUICK), stock) and not report.runs


def test_a_model_that_is_no_wan_passes_through(caplog):
    other = torch.nn.Module()
    other.diffusion_model = torch.nn.Linear(2, 2)
    model = ModelPatcher(other, torch.device("cpu"), torch.device("cpu"))
    patched, report = host.apply(model, FAST)
    assert "it is a Linear" in one_line(caplog)
    assert patched.is_clone(model) and not patched.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(host.KEY)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_known_kind_is_touched(variant):
    assert not host.apply(variant.model, FAST)[1].untouched
