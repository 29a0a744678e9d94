"""Measure MixCache's impact I: how much an error in what is reused shows in the end.

    python -m benchmarks.impact --profile hetcache_core/profiles/nano.json        # of nano, on tuning clips
    python -m benchmarks.impact --profile mine.json --model path/to/Wan2.1-VACE-1.3B-diffusers --prompt "a corgi" \
        --clip my.mp4 --mask my-mask.mp4 --size 480 832 --frames 33               # of another, on an edit of yours

As in the paper, what is reused gets Gaussian noise of 1% of its standard deviation: the step's predictions, the
guidance difference, the deltas of background blocks. Ours: the noise is drawn anew at each of n evaluations of one run,
all but the first tenth and the last two, and the impact of one is the final relative error in the edit over 1% and
over the root of n; both streams get the same noise on a step, since a reused step errs in both alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.calibrate import STEPS
from benchmarks.latent import LatentEdit
from demo import models
from demo.masks import load_mask
from demo.media import load_clip
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.block_profile import sampled_weights, split_for
from hetcache_core.costs import ModelShape
from hetcache_core.stats import RunStats
from nano.clips import TUNING, make_clip

NOISE = 0.01
FIRST, LAST = STEPS // 10, STEPS - 2


class Perturbation:
    """Noise on what one granularity reuses, by forward hooks on the transformer.

    Args:
        model: the transformer. kind: ``step``, ``cfg`` or ``block``.
    """

    def __init__(self, model: torch.nn.Module, kind: str):
        self.model, self.kind = model, kind
        self.calls, self.random = 0, torch.Generator().manual_seed(0)
        self.cond = self.noise = None
        self.added: dict[int, Tensor] = {}

    def __enter__(self) -> Perturbation:
        self.hooks = ExitStack()
        self._hook(self.model, self._prediction)
        if self.kind == "block":
            for first, last in self._split().runs:
                for i in range(first, last + 1):
                    self._hook(self.model.blocks[i], self._block(first, i == last))
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def _hook(self, module: torch.nn.Module, function: Callable) -> None:
        self.hooks.callback(module.register_forward_hook(function).remove)

    def _split(self):
        config = self.model.config
        shape = ModelShape(config.num_attention_heads * config.attention_head_dim, len(self.model.blocks),
                           config.ffn_dim, len(self.model.vace_blocks))  # fmt: skip
        return split_for("auto", shape, sampled_weights([b.scale_shift_table for b in self.model.blocks]))[0]

    @property
    def _here(self) -> bool:
        return FIRST <= self.calls // 2 < LAST

    def _drawn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.random).to(like) * NOISE * like.std()

    def _prediction(self, module, args, output):
        """cond's call comes first, then uncond's."""
        prediction, conditional, here = output[0], self.calls % 2 == 0, self._here
        self.calls += 1
        if conditional:
            self.cond = prediction
            self.noise = self._drawn(prediction)
        if not here or self.kind == "block" or (self.kind == "cfg" and conditional):
            return output
        noise = self.noise if self.kind == "step" else self._drawn(prediction - self.cond)
        return (prediction + noise, *output[1:])

    def _block(self, run: int, last: bool) -> Callable:
        def perturb(module, args, output):
            self.added[run] = self.added.get(run, 0) + output - args[0]
            if not last:
                return output
            delta = self.added.pop(run)
            return output + self._drawn(delta) if self._here else output

        return perturb


class OneEdit:
    """An edit by any model, as :class:`~benchmarks.latent.LatentEdit` makes those of nano."""

    error = staticmethod(LatentEdit.error)

    def __init__(self, model: models.Model, edit: models.Edit):
        self.pipe, self._model, self._edit = model.pipe, model, edit

    def sample(self, steps: int, policy: CachePolicy | None) -> tuple[Tensor, RunStats | None]:
        """The edited latent ``[1, 16, T, H, W]`` and the run's statistics; without a policy, of the untouched model."""
        latents, stats = self._edit.sample(self._model, steps, policy, decode=False)
        return latents[None], stats


@torch.inference_mode()
def measure(edit: LatentEdit | OneEdit, kinds: tuple[str, ...]) -> list[float]:
    """Impact of each kind on one edit."""
    reference, stats = edit.sample(STEPS, CachePolicy(method="measure"))
    found = []
    for kind in kinds:
        with Perturbation(edit.pipe.transformer, kind):
            result, _ = edit.sample(STEPS, None)
        error = edit.error(result, reference, stats.classes.generative)
        found.append(error / (NOISE * (LAST - FIRST) ** 0.5))
    return found


def edits(args: argparse.Namespace) -> Iterator[tuple[str, LatentEdit | OneEdit]]:
    """Names and edits to measure on."""
    height, width = args.size[0], args.size[-1]
    if args.model:
        clip = load_clip(args.clip, height, width, args.frames)
        model = models.load_folder(args.model, args.prompt)
        yield model.name, OneEdit(model, models.Edit(clip.frames, load_mask(args.mask, clip), args.cfg, seed=0))
        return
    for seed in TUNING[: args.clips]:
        clip = make_clip(seed, args.frames, height, width, mask_fraction=(0.1, 0.25))
        yield f"clip {seed}", LatentEdit(clip, args.cfg)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--size", type=int, nargs="+", default=[192], help="height and width, or one for both")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=Path, required=True, help="the model's error profile, which is updated")
    parser.add_argument("--model", type=Path, help="a diffusers Wan-VACE folder, with --clip, --mask and --prompt")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--prompt", default="")
    args = parser.parse_args(argv)
    if args.model and not (args.clip and args.mask):
        parser.error("--model needs the edit to measure on: --clip and --mask, and a --prompt")
    torch.set_num_threads(args.threads)
    rows = []
    for name, edit in edits(args):
        rows.append(measure(edit, ("step", "cfg", "block")))
        print(f"{name}: step {rows[-1][0]:.3f}, cfg {rows[-1][1]:.3f}, block {rows[-1][2]:.3f}", flush=True)
    values = json.loads(args.profile.read_text())
    values["impact"] = [float(f"{v:.3g}") for v in np.mean(rows, axis=0)]
    args.profile.write_text(ErrorProfile(**values).to_json() + "\n")


if __name__ == "__main__":
    main()
