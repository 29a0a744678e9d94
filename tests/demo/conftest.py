"""A random, tiny Wan-VACE pipeline on disk, and clips to feed it."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    """Nine frames of a moving gradient: `[9, 64, 64, 3]` uint8."""
    t, y, x = np.meshgrid(np.arange(9), np.arange(64), np.arange(64), indexing="ij")
    return np.stack([3 * x + 5 * t, 2 * y + 40, 128 + 60 * np.sin((x + y) / 9 + t)], -1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clip_file(clip, tmp_path_factory):
    from demo.media import write_video

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, clip, 25)
    return path


@pytest.fixture(scope="session")
def wan_vace_folder(tmp_path_factory):
    """A diffusers folder as users have one, a thousand times smaller: text encoder and tokenizer included."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanVACEPipeline, WanVACETransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "circle": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("models") / "tiny-vace"
    WanVACEPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ),
        vae=AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=WanVACETransformer3DModel(
            num_attention_heads=1,
            attention_head_dim=128,
            text_dim=32,
            ffn_dim=64,
            num_layers=2,
            vace_layers=[0, 1],
            vace_in_channels=96,
        ),
    ).save_pretrained(folder)
    return folder
