"""Measure which of nano's blocks look at the edit: the shipped block profile.

    python -m benchmarks.block_profile --out hetcache_core/profiles/blocks_nano.json

Scores are means over tuning clips, each edited in a few steps computed in full.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.latent import LatentEdit
from hetcache_core import CachePolicy
from hetcache_core.block_profile import BlockProfile
from nano.clips import TUNING, make_clip


def measure(clips: int, steps: int, frames: int, side: int, share: float) -> BlockProfile:
    """Average the scores of some clips' runs."""
    profiles = []
    for seed in TUNING[:clips]:
        clip = make_clip(seed, frames, side, side, mask_fraction=(0.1, 0.3))
        _, stats = LatentEdit(clip, 4.0).sample(steps, CachePolicy(method="profile"))
        profiles.append(stats.block_profile("nano"))
        print(seed, [f"{score:.3f}" for score in profiles[-1].scores], flush=True)
    scores = [float(f"{v:.4g}") for v in np.mean([p.scores for p in profiles], axis=0)]
    source = f"python -m benchmarks.block_profile: {clips} tuning clips, {steps} steps, {side}x{side}x{frames}"
    weights = tuple(float(f"{v:.6g}") for v in profiles[0].weights)
    return BlockProfile.of_scores(
        stats.block_scores.setup.shape, scores, share=share, name="nano", weights=weights, source=source
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--share", type=float, default=0.7)
    args = parser.parse_args()
    profile = measure(args.clips, args.steps, args.frames, args.side, args.share)
    print(f"background {profile.background}")
    if args.out:
        args.out.write_text(profile.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
