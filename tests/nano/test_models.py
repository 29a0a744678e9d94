"""The unchunked VAE, the DiT's damping and control, and the way through original key names, all on random weights."""

import numpy as np
import pytest
import torch

import nano
from nano import dit, encoder, export, latents
from nano import vae as nano_vae
from nano.attention import TrainingAttention
from nano.clips import make_clip

SMALL_VAE = dict(base_dim=4)
SMALL_DIT = dict(num_attention_heads=1, num_layers=2, vace_layers=[0, 1], ffn_dim=32)


def random_vae(**overrides):
    torch.manual_seed(0)
    vae = nano_vae.build(**overrides).eval()
    for block in vae.modules():  # build() starts residual branches at zero; give them something to compare
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight, std=0.05)
    return vae


def random_dit(**overrides):
    torch.manual_seed(0)
    return dit.build(**{**SMALL_DIT, **overrides}).eval()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_unchunked_vae_equals_chunked(frames):
    vae, video = random_vae(**SMALL_VAE), torch.rand(2, 3, frames, 32, 48) * 2 - 1
    want = vae.encode(video).latent_dist
    mean, logvar = nano_vae.encode(vae, video)
    assert torch.allclose(mean, want.mean, atol=1e-5) and torch.allclose(logvar, want.logvar, atol=1e-4)
    assert torch.allclose(nano_vae.decode(vae, mean).clamp(-1, 1), vae.decode(want.mean).sample, atol=5e-5)


@torch.no_grad()
def test_folded_statistics():
    vae, video = random_vae(**SMALL_VAE), torch.rand(1, 3, 5, 64, 64) * 2 - 1
    mean, _ = nano_vae.encode(vae, video)
    before = nano_vae.decode(vae, mean)
    nano_vae.fold_statistics(vae, mean.mean((0, 2, 3, 4)), mean.std((0, 2, 3, 4)))
    folded, _ = nano_vae.encode(vae, video)
    want_mean, want_std = nano_vae.latent_statistics(vae)
    normal = (folded - want_mean) / want_std
    assert normal.mean((0, 2, 3, 4)).abs().max() < 1e-3 and (normal.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
    assert torch.allclose(nano_vae.decode(vae, folded), before, atol=1e-3)


@torch.no_grad()
def test_control_is_the_pipelines():
    """Control latents and mask channels equal those of diffusers' own preparation."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline

    vae, model = random_vae(**SMALL_VAE), random_dit()
    pipe = WanVACEPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(), model)
    clip = make_clip(3, 9, 48, 48, moving=True)
    video, mask = latents.to_video(clip.video), torch.from_numpy(clip.mask)[None]
    kept = video * ~mask[:, None]
    pixels = mask[:, None].expand(-1, 3, -1, -1, -1).float()
    want = torch.cat([pipe.prepare_video_latents(kept, pixels, [[]], None, torch.device("cpu")),
                      pipe.prepare_masks(pixels, [[]])], dim=1)
    mean, std = nano_vae.latent_statistics(vae)
    got = [(nano_vae.encode(vae, v)[0] - mean) / std for v in (kept, torch.zeros_like(kept))]
    assert torch.allclose(torch.cat([*got, dit.mask_channels(mask)], dim=1), want, atol=1e-4)
    packed = latents.pack_bits(dit.mask_channels(mask))
    assert torch.equal(latents.unpack_bits(packed), dit.mask_channels(mask))


def test_damping_is_in_the_plain_state():
    torch.manual_seed(0)
    damped = dit.build(damped=True, **SMALL_DIT).eval()
    plain = dit.build(**SMALL_DIT).eval()
    plain.load_state_dict(dit.plain_state(damped))
    weight = plain.condition_embedder.time_embedder.linear_1.weight
    assert weight[:, 0].abs().max() < 0.01 * weight[:, 127].abs().max(), "the fastest column is damped"
    x, control = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 96, 2, 4, 4)
    with torch.no_grad():
        a, b = (m(x, torch.tensor([300.0]), torch.zeros(1, 8, 4096), control_hidden_states=control).sample
                for m in (damped, plain))
    assert torch.equal(a, b)


def test_round_trip_through_original_names(tmp_path):
    """export -> from_single_file gives the weights back (fp16 rounding apart), from a local config, in fp32."""
    vae, model = random_vae(), random_dit(num_layers=6, vace_layers=[0, 2, 4])
    size = export.write_vae(vae, tmp_path) + export.write_dit(model, model.state_dict(), tmp_path)
    assert size < 32e6 and not list(tmp_path.glob("*.part"))
    for original, loaded in ((vae, nano.load_vae(tmp_path)), (model, nano.load_transformer(tmp_path))):
        state, back = original.state_dict(), loaded.state_dict()
        assert state.keys() == back.keys() and not loaded.training
        for key, value in state.items():
            assert back[key].dtype == torch.float32 and torch.equal(back[key], value.half().float()), key


def test_original_names(tmp_path):
    """The keys by which ComfyUI detects the models."""
    model = random_dit(num_layers=6, vace_layers=[0, 2, 4])
    names = {export.dit_key(key) for key in model.state_dict()}
    for name in ("head.modulation", "head.head.weight", "blocks.5.ffn.0.weight", "blocks.0.norm3.weight",
                 "blocks.0.self_attn.norm_q.weight", "blocks.0.cross_attn.o.bias", "vace_patch_embedding.weight",
                 "vace_blocks.0.before_proj.weight", "vace_blocks.2.after_proj.bias", "blocks.3.modulation",
                 "time_projection.1.weight", "text_embedding.2.bias", "patch_embedding.weight"):
        assert name in names
    names = {export.vae_key(key) for key in random_vae().state_dict()}
    for name in ("decoder.middle.0.residual.0.gamma", "decoder.head.0.gamma", "conv1.weight", "conv2.bias",
                 "encoder.downsamples.3.shortcut.weight", "encoder.downsamples.5.time_conv.weight",
                 "decoder.upsamples.3.resample.1.weight", "decoder.upsamples.14.residual.6.bias",
                 "decoder.middle.1.to_qkv.weight"):
        assert name in names


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nano\.export"):
        nano.load_vae(tmp_path)


@torch.no_grad()
def test_training_attention_equals_the_stock_processor():
    model, size = random_dit(), (1, 2, 4, 6)
    x, control, text = torch.randn(1, 16, *size[1:]), torch.randn(1, 96, *size[1:]), torch.randn(1, 8, 4096)
    want = model(x, torch.tensor([500.0]), text, control_hidden_states=control).sample
    model.set_attn_processor(TrainingAttention())
    got = model(x, torch.tensor([500.0]), text, control_hidden_states=control).sample
    assert torch.allclose(got, want, atol=1e-5 * want.abs().max())


@torch.no_grad()
def test_solved_encoder():
    """The convolutions compute the linear code, and the fast encoder the same, first frame included."""
    blocks = np.random.default_rng(0).random((1000, 4, 8, 8, 3)) * 2 - 1
    blocks += np.random.default_rng(1).standard_normal((1000, 1, 1, 1, 3))
    code = encoder.fit(blocks)
    vae = nano_vae.build()
    encoder.write(vae, code)
    video = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    mean, logvar = nano_vae.encode(vae, video)
    fast = encoder.FastEncoder(code)(video)
    assert mean.shape == fast.shape == (2, 16, 3, 4, 6) and (logvar == encoder.LOG_VARIANCE).all()
    assert (mean - fast).abs().max() < 0.02 * fast.abs().max()
    still = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 5, -1, -1)
    latents = encoder.FastEncoder(code)(still)
    assert torch.allclose(latents[:, :, 0], latents[:, :, 1], atol=1e-4), "a still clip has one latent frame repeated"
