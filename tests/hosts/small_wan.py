"""Small random Wan models of diffusers, and a pipeline's denoising loop on them."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from hetcache_core.hosts import diffusers as host

T, H, W = 3, 12, 12
TOKENS = T * H * W // 4
SMALL = dict(num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=64, ffn_dim=256)


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.02)
    return model.eval().requires_grad_(False)


def control(batch=1, references=0):
    control = torch.randn(batch, 96, T, H, W, generator=torch.Generator().manual_seed(3))
    control[:, 32:] = 0
    control[:, 32:, references:, 4:8, 4:8] = 1
    control[:, 16:32, :references] = 0
    return control


def noise(batch=1, size=(H, W)):
    return torch.randn(batch, 16, T, *size, generator=torch.Generator().manual_seed(1))


def prompts(batch=1):
    return torch.randn(2, batch, 5, 64, generator=torch.Generator().manual_seed(2)).unbind(0)


def sample(model, scheduler=None, steps=12, cfg=3.0, controls=None, named=True, batched=False, x=None):
    """A pipeline's denoising loop."""
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(steps)
    x = noise() if x is None else x
    texts = dict(zip(("cond", "uncond")[: 1 + (cfg != 1)], prompts(len(x)), strict=False))
    extra = {"control_hidden_states": controls} if controls is not None else {}
    for t in scheduler.timesteps:
        out = []
        if batched:
            both = {k: torch.cat([v, v]) for k, v in extra.items()}
            text = torch.cat(list(texts.values()))
            out = model(torch.cat([x, x]), t.expand(2 * len(x)), text, **both, return_dict=False)[0].chunk(2)
        else:
            for name, text in texts.items():
                if named:
                    with model.cache_context(name):
                        out.append(model(x, t.expand(len(x)), text, **extra, return_dict=False)[0])
                else:
                    out.append(model(x, t.expand(len(x)), text, **extra, return_dict=False)[0])
        v = out[0] if cfg == 1 else out[1] + cfg * (out[0] - out[1])
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


def cached(model, policy, scheduler=None, mask=None, **kwargs):
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=5.0)
    with host.apply(model, policy, mask=mask, scheduler=scheduler) as handle:
        result = sample(model, scheduler, **kwargs)
        stats = handle.stats
    return result, stats


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()
