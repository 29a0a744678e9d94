"""Small random models of every supported kind, and runs of the host's samplers on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sample
import comfy.sd
import torch

from hetcache_core import CachePolicy
from hetcache_core.hosts import comfyui as host

DIM, FFN, TEXT = 256, 320, 4096


def state_dict(layers: int = 4, vace_layers: int = 2, channels: int = 16, inputs: int | None = None,
               image: bool = False, dim: int = DIM, seed: int = 0) -> dict[str, torch.Tensor]:  # fmt: skip
    """Random weights of a Wan model in its original key layout."""
    random, out = torch.Generator().manual_seed(seed), {}

    def put(key, *shape, std=None, bias=True, value=None):
        fan = shape[1] if len(shape) == 2 else shape[1] * 4 if len(shape) > 2 else 1
        scale = fan**-0.5 if std is None else std
        drawn = torch.randn(shape, generator=random) * scale
        out[f"{key}.weight"] = drawn if value is None else torch.full(shape, value)
        if bias:
            out[f"{key}.bias"] = torch.randn(shape[0], generator=random) * 0.02

    def block(name):
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                put(f"{name}.{kind}.{part}", dim, dim)
            for part in ("norm_q", "norm_k"):
                put(f"{name}.{kind}.{part}", dim, value=1.0, bias=False)
        if image and name.startswith("blocks"):
            for part in ("k_img", "v_img"):
                put(f"{name}.cross_attn.{part}", dim, dim)
            put(f"{name}.cross_attn.norm_k_img", dim, value=1.0, bias=False)
        put(f"{name}.norm3", dim, value=1.0)
        put(f"{name}.ffn.0", FFN, dim)
        put(f"{name}.ffn.2", dim, FFN)
        out[f"{name}.modulation"] = torch.randn(1, 6, dim, generator=random) * dim**-0.5

    put("patch_embedding", dim, inputs or channels, 1, 2, 2)
    put("text_embedding.0", dim, TEXT)
    put("text_embedding.2", dim, dim)
    put("time_embedding.0", dim, 256)
    put("time_embedding.2", dim, dim)
    put("time_projection.1", 6 * dim, dim, std=0.02)
    for i in range(layers):
        block(f"blocks.{i}")
    put("head.head", 4 * channels, dim)
    out["head.modulation"] = torch.randn(1, 2, dim, generator=random) * dim**-0.5
    if vace_layers:
        put("vace_patch_embedding", dim, 96, 1, 2, 2)
        put("vace_blocks.0.before_proj", dim, dim)
    for i in range(vace_layers):
        block(f"vace_blocks.{i}")
        put(f"vace_blocks.{i}.after_proj", dim, dim, std=0.25)
    if image:
        for part, shape in (("0", (1280,)), ("1", (1280, 1280)), ("3", (dim, 1280)), ("4", (dim,))):
            put(f"img_emb.proj.{part}", *shape, std=0.03, **({"value": 1.0} if len(shape) == 1 else {}))
    return out


@cache
def load(dtype: torch.dtype | None = None, **kwargs):
    """A ModelPatcher around random weights; the same one for the same arguments."""
    options = {"dtype": dtype} if dtype else {}
    return comfy.sd.load_diffusion_model_state_dict(state_dict(**kwargs), model_options=options)


def square(frames: int, height: int, width: int, share: float = 0.3) -> torch.Tensor:
    """Latent-size mask ``[T, H, W]`` of a box in the middle."""
    mask = torch.zeros(frames, height, width)
    a, b = int(height * (1 - share) / 2), int(width * (1 - share) / 2)
    mask[:, a : height - a, b : width - b] = 1
    return mask


@dataclass(frozen=True)
class Scene:
    """A latent with its conditions; ``kind`` is vace, text or image."""

    kind: str = "vace"
    frames: int = 2
    height: int = 12
    width: int = 12
    channels: int = 16
    batch: int = 1
    copies: int = 1
    references: int = 0
    prompts: tuple[int, ...] = (8, 8)
    noise_mask: bool = False
    first_frame_known: bool = False
    clip: bool = False
    control: int = 5

    @property
    def latent(self) -> torch.Tensor:
        return torch.zeros(self.batch, self.channels, self.frames + self.references, self.height, self.width)

    @property
    def mask(self) -> torch.Tensor:
        mask = square(self.frames, self.height, self.width)
        mask[: int(self.first_frame_known)] = 0
        return mask

    def conds(self) -> list:
        """A conditioning for every prompt."""
        random = torch.Generator().manual_seed(self.control)
        size = (self.frames, self.height, self.width)
        extra: dict = {"pooled_output": None}
        if self.kind == "vace":
            control = torch.randn(1, 32, *size, generator=random)
            cells = self.mask[None, None].expand(1, 64, -1, -1, -1)
            if self.references:
                front = torch.randn(1, 32, self.references, *size[1:], generator=random)
                front[:, 16:] = comfy.latent_formats.Wan21().process_out(torch.zeros_like(front[:, 16:]))
                control = torch.cat([front, control], 2)
                cells = torch.cat([torch.zeros_like(cells[:, :, :1]).expand(-1, -1, self.references, -1, -1), cells], 2)
            extra |= {
                "vace_frames": [control] * self.copies,
                "vace_mask": [cells] * self.copies,
                "vace_strength": [1.0, 0.5, 0.7][: self.copies],
            }
        elif self.kind == "image":
            image = torch.randn(1, 16, *size, generator=random)
            extra |= {"concat_latent_image": image, "concat_mask": self.mask[None, None]}
            if self.clip:
                seen = torch.randn(1, 257, 1280, generator=random)
                extra["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=seen)
        words = torch.Generator().manual_seed(5)
        return [[[torch.randn(1, n, TEXT, generator=words) * 0.1, dict(extra)]] for n in self.prompts]


@dataclass(frozen=True)
class Variant:
    """A kind of model with a scene for it."""

    scene: Scene
    weights: tuple = ()

    @property
    def model(self):
        return load(**dict(self.weights))


QUICK = Scene(height=8, width=8)  # where the kind of model does not matter


def _of(scene: Scene, **weights) -> Variant:
    return Variant(scene, tuple(weights.items()))


VARIANTS = {
    "vace, every 2nd block": _of(Scene()),
    "vace, every 5th block": _of(Scene(), layers=5, vace_layers=1),
    "vace, three controls": _of(Scene(copies=3)),
    "vace, reference image": _of(Scene(references=1)),
    "vace, batch of 2": _of(Scene(batch=2)),
    "vace, bfloat16": _of(Scene(), dtype=torch.bfloat16),
    "text, noise mask": _of(Scene("text", noise_mask=True), vace_layers=0),
    "image, with clip vision": _of(Scene("image", clip=True), vace_layers=0, inputs=36, image=True),
    "image, odd size": _of(Scene("image", height=11, width=13), vace_layers=0, inputs=36),
    "5B, a time for every frame": _of(
        Scene("text", channels=48, height=11, noise_mask=True, first_frame_known=True), vace_layers=0, channels=48
    ),
}


def never_batched(monkeypatch, when=lambda: True):
    """Make the host short of memory for two streams at once."""
    base = load().model
    real = type(base).memory_required

    def required(shape, *args, **kwargs):
        return 1e15 if shape[0] > 1 and when() else real(base, shape, *args, **kwargs)

    monkeypatch.setattr(base, "memory_required", required)


def sample(model, scene: Scene, steps: int = 6, cfg: float = 4.0, sampler: str = "euler", seed: int = 7, **kwargs):
    """The host's KSampler."""
    positive, negative = scene.conds()
    mask = scene.mask[None, None] if scene.noise_mask else None
    latent = kwargs.pop("latent", scene.latent)
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "simple",
            positive,
            negative,
            latent,
            seed=seed,
            noise_mask=mask,
            disable_pbar=True,
            **kwargs,
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """dB of two latents, against the range of the second."""
    error = (a - b).square().mean()
    return float(10 * torch.log10((b.max() - b.min()) ** 2 / error.clamp_min(1e-20)))


FAST = CachePolicy(schedule="FFPRPF", warmup=1)  # every kind of evaluation within six


def cached(model, scene: Scene, policy: CachePolicy = FAST, mask=None, **kwargs):
    """(samples, statistics) of a run through HetCache."""
    patched, report = host.apply(model, policy, mask)
    return sample(patched, scene, **kwargs), report.runs[-1]


def made_way(model, reason, scene: Scene = QUICK, **kwargs):
    """The run of a patched model is the host's own, and the report says why."""
    stock = sample(model, scene, **kwargs)
    result, stats = cached(model, scene, **kwargs)
    assert torch.equal(result, stock)
    assert set(stats.decisions) <= {"F"} and reason in stats.note, stats.summary()
