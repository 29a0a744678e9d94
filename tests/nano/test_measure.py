"""The judge, the batched sampler against the stock pipeline, and the change profile."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline
from PIL import Image

import nano
from nano import change, dit, sampling
from nano import vae as nano_vae
from nano.clips import TUNING, make_clip
from nano.judge import judge


def test_judge_sees_what_a_clip_was_made_of():
    for seed in TUNING[:6]:
        clip = make_clip(seed, 5, 96, 96, mask_fraction=(0.1, 0.5))
        assert " ".join(judge(clip.video, clip)) == clip.prompt


def test_judge_sees_nothing_in_grey():
    clip = make_clip(TUNING[0], 5, 64, 64)
    assert judge(np.where(clip.mask[..., None], np.uint8(128), clip.video), clip) == ("", "")


@torch.no_grad()
def test_sampler_is_the_pipelines():
    torch.manual_seed(0)
    vae = nano_vae.build(base_dim=4).eval()
    model = dit.build(num_attention_heads=1, num_layers=2, vace_layers=[0, 1], ffn_dim=32).eval()
    clip, seed = make_clip(TUNING[1], 5, 32, 48), 5
    got = sampling.sample(model, sampling.control(vae, [clip], torch.device("cpu")), [clip.prompt], [seed], steps=3,
                          dtype=None)
    # Images have no exact mid-grey, hence the loose tolerance below.
    kept = [Image.fromarray(f) for f in np.where(clip.mask[..., None], np.uint8(128), clip.video)]
    mask = [Image.fromarray(f).convert("RGB") for f in clip.mask.astype(np.uint8) * 255]
    pipe = WanVACEPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(shift=nano.FLOW_SHIFT), model)
    pipe.set_progress_bar_config(disable=True)
    want = pipe(video=kept, mask=mask, height=32, width=48, num_frames=5, num_inference_steps=3,
                guidance_scale=4.0, prompt_embeds=nano.encode(clip.prompt),
                negative_prompt_embeds=nano.encode(""), generator=torch.Generator().manual_seed(seed),
                output_type="latent").frames
    assert torch.allclose(got, want, atol=1e-2 * float(want.abs().max()))


def test_change_profile():
    base, where = torch.ones(1, 16, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    out = change.profile([base, 2 * base, 3 * base, 5 * base], where)
    assert np.isnan(out["first"][0]) and np.isnan(out["second"][1])
    assert out["first"][1:] == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert out["second"][2:] == pytest.approx([0, 1 / 5])
