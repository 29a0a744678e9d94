"""The noise levels at which a sampler of ComfyUI will ask for a prediction, found by letting it run on four numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.samplers import KSAMPLER

if TYPE_CHECKING:
    from .comfyui_setup import Sampling

ROUNDING = 1e-5  # far less than any two steps are apart
MOST_PER_STEP = 8  # evaluations; a sampler that asks for more chooses them by what it is told


@dataclass(frozen=True)
class EvaluationSchedule:
    """Noise levels of a run's evaluations.

    Args:
        sigmas: of every evaluation and the one the run ends at, ``[n + 1]``.
        stochastic: whether the sampler adds noise on its way.
        uncond: whether the sampler has the negative prompt computed even without guidance.
    """

    sigmas: tuple[float, ...]
    stochastic: bool = False
    uncond: bool = False

    @classmethod
    def of(cls, sampling: Sampling) -> EvaluationSchedule:
        """Rehearse a sampler.

        Samplers differ in how often and where they evaluate (heun twice a step, dpm_2 in between, uni_pc once), and
        in whether they add noise. Rather than a table of names, the sampler itself runs through the schedule on a
        latent of four numbers with a model that answers zeros, twice with different noise: the levels it asks at are
        the schedule, and if it asks about different latents it is stochastic. Samplers of unknown make are taken to
        add noise and to evaluate once a step; where they evaluate otherwise they are found out.
        """
        steps = tuple(float(s) for s in sampling.sigmas)
        if type(sampling.sampler) is not KSAMPLER:
            return cls(steps, True)
        try:
            (asked, latents, uncond), (again, others, _) = (_rehearse(sampling, seed) for seed in (0, 1))
        except Exception:  # it needs more of a model than a rehearsal has
            return cls(steps, True)
        if asked != again or not asked:
            return cls(steps, True, uncond)
        return cls((*_snapped(asked, steps), steps[-1]), not torch.equal(latents, others), uncond)

    def has(self, evaluation: int, sigma: float) -> bool:
        """Whether an evaluation is at this noise level."""
        known = evaluation < len(self.sigmas) - 1
        return known and math.isclose(self.sigmas[evaluation], sigma, rel_tol=2e-3, abs_tol=1e-4)


def _snapped(asked: list[float], steps: tuple[float, ...]) -> list[float]:
    """Levels as the schedule has them: a sampler that works them out again (exp_heun_2_x0) misses by a rounding, and
    one level would look like two."""
    known, found = list(steps), []
    for level in asked:
        nearest = min(known, key=lambda other: abs(other - level))
        if not math.isclose(nearest, level, rel_tol=ROUNDING, abs_tol=ROUNDING):
            nearest = level
            known.append(level)
        found.append(nearest)
    return found


class _Stage:
    """A guider that answers every question with zeros and notes what it was asked."""

    def __init__(self, patcher: Any, limit: int):
        self.model_patcher, self.inner_model, self.conds, self.cfg = patcher, patcher.model, {}, 1.0
        self.asked: list[float] = []
        self.latents: list[torch.Tensor] = []
        self.uncond = False
        self._limit = limit

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: dict, seed: int | None = None):
        self.asked.append(float(sigma.max()))
        self.latents.append(x.clone())
        self.uncond = self.uncond or bool(model_options.get("disable_cfg1_optimization"))
        if len(self.asked) > self._limit:
            raise RuntimeError("this sampler has no fixed schedule")
        denoised = torch.zeros_like(x)
        for function in model_options.get("sampler_post_cfg_function", ()):
            denoised = function({"denoised": denoised, "cond_denoised": denoised, "uncond_denoised": denoised,
                                 "cond": [], "uncond": [], "cond_scale": 1.0, "model": self.inner_model,
                                 "sigma": sigma, "model_options": model_options, "input": x})  # fmt: skip
        return denoised


def _rehearse(sampling: Sampling, seed: int) -> tuple[list[float], torch.Tensor, bool]:
    """(levels asked at, latents asked about and the result, whether uncond was wanted without guidance)"""
    sigmas = sampling.sigmas.detach().float().cpu().clone()  # uni_pc writes to its schedule
    stage = _Stage(sampling.guider.model_patcher, MOST_PER_STEP * len(sigmas))
    noise = torch.linspace(-1, 1, 4).reshape(1, 1, 1, 2, 2)
    device = sampling.guider.model_patcher.load_device  # ddim seeds its generator as well
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices that are not restored
        extra = {"model_options": {"transformer_options": {}}, "seed": seed}
        result = sampling.sampler.sample(stage, sigmas, extra, None, noise, torch.zeros_like(noise), None, True)
    latents = torch.cat([*stage.latents, result])  # a last step to no noise forgets what came before
    return stage.asked, latents, stage.uncond
