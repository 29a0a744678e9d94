"""Write trained weights in the original Wan key names, which diffusers' `from_single_file` and ComfyUI both load.

    python -m nano.export

The names are diffusers' own conversion inverted: a model with numbered weights is converted to find which key becomes
which. Storage is fp16: weights are small numbers for which its ten mantissa bits beat bf16's seven.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from . import dit, training
from . import vae as nano_vae

WEIGHTS = pathlib.Path(__file__).parent / "weights"
DIT_FILE, VAE_FILE = "nano_vace.safetensors", "nano_vae.safetensors"

# diffusers name -> original name; one pass each, longest first. The norms swap names: diffusers numbers them by order.
DIT_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".norm2.": ".norm3.",
    ".ffn.net.0.proj.": ".ffn.0.",
    ".ffn.net.2.": ".ffn.2.",
    ".scale_shift_table": ".modulation",
    ".proj_in.": ".before_proj.",
    ".proj_out.": ".after_proj.",
}


def dit_key(key: str) -> str:
    """Original name of a diffusers transformer key."""
    if key == "scale_shift_table":
        return "head.modulation"
    if key.startswith("proj_out."):
        return key.replace("proj_out.", "head.head.")
    for name, original in DIT_NAMES.items():
        key = key.replace(name, original)
    return key


def _residual(prefix: str, part: str) -> str:
    """Original name of a part of a residual block, for instance ('decoder.middle.0', 'conv1.weight')."""
    layer, kind = part.split(".")
    if layer == "conv_shortcut":
        return f"{prefix}.shortcut.{kind}"
    return f"{prefix}.residual.{ {'norm1': 0, 'conv1': 2, 'norm2': 3, 'conv2': 6}[layer] }.{kind}"


def vae_key(key: str) -> str:
    """Original name of a diffusers Wan VAE key (two residual blocks a level)."""
    parts = key.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return key.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    side, module, rest = parts[0], parts[1], parts[2:]
    if module == "conv_in":
        return f"{side}.conv1.{rest[0]}"
    if module in ("norm_out", "conv_out"):
        return f"{side}.head.{0 if module == 'norm_out' else 2}.{rest[0]}"
    if module == "mid_block":
        if rest[0] == "attentions":
            return f"{side}.middle.1." + ".".join(rest[2:])
        return _residual(f"{side}.middle.{2 * int(rest[1])}", ".".join(rest[2:]))
    if module == "down_blocks":
        prefix, part = f"{side}.downsamples.{rest[0]}", ".".join(rest[1:])
    else:  # up_blocks: three residual blocks and an upsampler a level, numbered through
        slot = 4 * int(rest[0]) + (int(rest[2]) if rest[1] == "resnets" else 3)
        prefix, part = f"{side}.upsamples.{slot}", ".".join(rest[3:])
    return f"{prefix}.{part}" if part.startswith(("resample", "time_conv")) else _residual(prefix, part)


def to_original(state: dict[str, Tensor], rename: Callable[[str], str],
                convert: Callable[[dict], dict]) -> dict[str, Tensor]:
    """State under original names, fp16; raises if diffusers' own conversion would not give the state back."""
    original = {rename(key): value.half().contiguous() for key, value in state.items()}
    back = convert(dict(original))
    if back.keys() != state.keys() or any(back[key].shape != state[key].shape for key in state):
        wrong = sorted(back.keys() ^ state.keys())
        raise ValueError(f"names do not survive diffusers' conversion: {wrong[:6]}")
    return original


def write_config(folder: pathlib.Path, config: dict) -> None:
    """The config.json that `from_single_file(config=folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    public = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    (folder / "config.json").write_text(json.dumps(public, indent=2, sort_keys=True) + "\n")


def write(folder: pathlib.Path, file: str, model, state: dict[str, Tensor], rename: Callable[[str], str],
          convert: Callable[[dict], dict]) -> int:
    """Write one model's weights and config; returns the size in bytes."""
    original = to_original(state, rename, convert)
    write_config(folder / pathlib.Path(file).stem, {"_class_name": type(model).__name__, **model.config})
    part = folder / (file + ".part")
    save_file(original, part, metadata={"format": "pt"})
    part.replace(folder / file)
    return (folder / file).stat().st_size


def write_dit(model, state: dict[str, Tensor], folder: pathlib.Path = WEIGHTS) -> int:
    return write(folder, DIT_FILE, model, state, dit_key, convert_wan_transformer_to_diffusers)


def write_vae(model, folder: pathlib.Path = WEIGHTS) -> int:
    return write(folder, VAE_FILE, model, model.state_dict(), vae_key, convert_wan_vae_to_diffusers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".nano-work"))
    parser.add_argument("--out", type=pathlib.Path, default=WEIGHTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    state = training.load(args.work / "vae.pt")
    if state:
        vae = nano_vae.build()
        vae.load_state_dict(state["vae"])
        print(f"{VAE_FILE}: {write_vae(vae, args.out) / 1e6:.1f} MB")
    state = training.load(args.work / "dit.pt")
    if state:
        model = dit.build()
        model.load_state_dict(state["average"])
        print(f"{DIT_FILE}: {write_dit(model, model.state_dict(), args.out) / 1e6:.1f} MB, step {state['step']}, "
              f"{state['clips']} clips, {state['seconds'] / 60:.0f} min")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
