"""The model run on a part of its tokens says of them what it says when it runs on all."""

import pytest
import torch
from small import VARIANTS, cached

from hetcache_core import CachePolicy, Engine
from hetcache_core.hosts import comfyui as host
from hetcache_core.packing import from_patches, to_patches, unpack

EXACT = {name: v for name, v in VARIANTS.items() if "bfloat16" not in name}


class Oracle(Engine):
    """Answers everything in full, and asks the same input again in other ways."""

    def evaluate(self, evaluation, streams, sample, compute):
        def latent(patches):
            return from_patches(patches, *sample.shape[-3:])[..., :height, :width]

        self.streams = streams
        output, every = compute(None), torch.arange(self.setup.grid.size)
        full, (height, width) = to_patches(output), size
        seen = {
            "in order": off(latent(unpack(compute(every))), latent(full)),
            "reversed": off(latent(unpack(compute(every.flip(0))).flip(2)), latent(full)),
        }
        self.partials.mode = "capture"
        seen["while remembering"] = compute(None).equal(output)
        self.partials.mode, chosen = "join", self.setup.classes.edited
        self.partials.memory.select(chosen)
        seen["with the rest remembered"] = off(unpack(compute(chosen)), full[:, :, chosen])
        self.partials.mode = "idle"
        seen["without the rest"] = off(unpack(compute(chosen)), full[:, :, chosen])
        answers.append(seen)
        return output


def off(a, b):
    return float((a - b).norm() / b.norm())


answers: list[dict] = []
size: list[int] = []  # of the latent, before it is padded to whole patches


@pytest.mark.parametrize("variant", EXACT.values(), ids=EXACT)
def test_a_part_of_the_tokens_with_the_rest_remembered_equals_the_whole(variant, monkeypatch):
    monkeypatch.setattr(host, "Engine", Oracle)
    answers.clear()
    size[:] = variant.scene.height, variant.scene.width
    cached(variant.model, variant.scene, CachePolicy(schedule="FP"), steps=2)
    assert len(answers) == 2
    rounding = 1e-6 if variant.scene.first_frame_known else 0.0  # a time for every token is a larger matrix product
    for seen in answers:
        assert seen["in order"] <= rounding and seen["while remembering"]
        assert seen["reversed"] < 1e-6
        assert seen["with the rest remembered"] < 1e-5
        assert seen["without the rest"] > 1e-4
