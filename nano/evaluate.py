"""Measure nano on held-out clips: results.json. (nano.change makes the figure of change per step.)

    python -m nano.evaluate --real clip.mp4

For 64 clips of the held-out seeds at 96x96x17 and at 192x192x33: the VAE's PSNR; then a fill by 30 Euler steps at cfg 4
and flow shift 5, the colour and shape that nano.judge sees in it, and the PSNR against the source of what lies outside
the mask. bf16 arithmetic, noise of each clip from its own seed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import time

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import load_transformer, load_vae, sampling, training
from . import vae as nano_vae
from .clips import HELD_OUT, Clip, make_clip
from .judge import BLUR, judge

SIZES = {"96x96x17": (17, 96, 8), "192x192x33": (33, 192, 2)}  # frames, size, clips per batch
RESULTS = pathlib.Path(__file__).parent / "results.json"
STEPS, CFG = 30, 4.0
_models: tuple = ()


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """dB between uint8 videos [F, H, W, 3], over the pixels `where` bool [F, H, W]."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean(-1)
    return float(10 * np.log10(255**2 / max(error[where].mean() if where is not None else error.mean(), 1e-6)))


def reconstruct(vae, videos: list[np.ndarray], device: torch.device) -> list[np.ndarray]:
    clips = torch.stack([torch.from_numpy(v).permute(3, 0, 1, 2).float() / 127.5 - 1 for v in videos])
    return list(sampling.decode(vae, sampling.encode(vae, clips.to(device), torch.bfloat16)))


def start(device: torch.device, threads: int) -> None:
    """Load the models once per process."""
    global _models
    if threads:
        torch.set_num_threads(threads)
    _models = (load_transformer().to(device), nano_vae.channels_last(load_vae().to(device)), device)


def measure(task: tuple[int, int, list[int]]) -> list[dict]:
    """Everything measured on the clips of some seeds; task is (frames, size, seeds)."""
    frames, size, seeds = task
    transformer, vae, device = _models
    clips = [make_clip(seed, frames, size, size) for seed in seeds]
    plain = reconstruct(vae, [clip.video for clip in clips], device)
    control = sampling.control(vae, clips, device, torch.bfloat16)
    latents = sampling.sample(transformer, control, [c.prompt for c in clips], seeds, STEPS, CFG)
    return [row(seed, clip, p, fill) for seed, clip, p, fill in
            zip(seeds, clips, plain, sampling.decode(vae, latents), strict=True)]


def row(seed: int, clip: Clip, plain: np.ndarray, fill: np.ndarray) -> dict:
    out = dict(seed=seed, prompt=clip.prompt, mask=float(clip.mask.mean()), vae_psnr=psnr(plain, clip.video),
               context_psnr=psnr(fill, clip.video, ~clip.mask))
    wanted = clip.prompt.split()
    for name, video in (("source", clip.video), ("vae", plain), ("fill", fill)):
        seen, blurred = judge(video, clip), judge(video, clip, BLUR)
        out[name] = dict(colour=seen[0] == wanted[0], shape=seen[1] == wanted[1], seen=" ".join(seen).strip(),
                         shape_blurred=blurred[1] == wanted[1], seen_blurred=" ".join(blurred).strip())
    return out


def summary(rows: list[dict]) -> dict:
    def share(who: str, what: str) -> float:
        return round(float(np.mean([r[who][what] for r in rows])), 4)

    def mean(key: str) -> float:
        return round(float(np.mean([r[key] for r in rows])), 2)

    return dict(clips=len(rows), colour=share("fill", "colour"), shape=share("fill", "shape"),
                shape_blurred=share("fill", "shape_blurred"),
                context_psnr=mean("context_psnr"), vae_psnr=mean("vae_psnr"),
                judge_on_source={what: share("source", what) for what in ("colour", "shape", "shape_blurred")},
                judge_on_vae={what: share("vae", what) for what in ("colour", "shape", "shape_blurred")})


def read_real(path: pathlib.Path, frames: int = 33, size: int = 192) -> np.ndarray:
    """The first frames of a clip, cut to its middle square and scaled, uint8 [F, H, W, 3]."""
    import av

    out = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            side = min(image.shape[:2])
            top, left = ((n - side) // 2 for n in image.shape[:2])
            square = Image.fromarray(image[top : top + side, left : left + side])
            out.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
            if len(out) == frames:
                return np.stack(out)
    raise SystemExit(f"{path} has {len(out)} frames, {frames} are needed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--real", type=pathlib.Path, help="a real clip for the VAE, never trained on")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="figures of sizes not measured are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each process, 0 for all")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = training.pick_device(args.device)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results["settings"] = dict(steps=STEPS, cfg=CFG, flow_shift=5.0, scheduler="euler", arithmetic="bf16")
    if args.real:
        start(device, args.threads)
        video = read_real(args.real)
        results["real"] = dict(clip=args.real.name, vae_psnr=round(psnr(reconstruct(_models[1], [video], device)[0],
                                                                       video), 2))
        print(results["real"])
    pool = concurrent.futures.ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"), start,
                                                  (device, args.threads))
    for name in args.sizes:
        frames, size, batch = SIZES[name]
        seeds, begin = list(HELD_OUT[: args.clips]), time.monotonic()
        tasks = [(frames, size, seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
        rows: list[dict] = []
        for part in tqdm(pool.map(measure, tasks), total=len(tasks), desc=name):
            rows += part
            results[name] = {**summary(rows), "rows": rows}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, summary(rows), f"{time.monotonic() - begin:.0f} s")
    pool.shutdown()


if __name__ == "__main__":
    main()
