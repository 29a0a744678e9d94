"""`python -m demo`: edit the masked region of a clip in full and cached, and say what was gained and what it cost."""

import argparse
import sys
import time
from pathlib import Path

from demo.errors import InputError
from demo.masks import check_mask, load_mask, moving_mask
from demo.media import load_clip

CLIP = Path(__file__).parent / "assets" / "big_buck_bunny.mp4"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m demo", description=__doc__.split(": ", 1)[1])
    add = options.add_argument
    add("--clip", type=Path, default=CLIP, help="a video file (default: an excerpt of Big Buck Bunny)")
    add("--mask", type=Path, help="a video as long and large as the clip, white where to edit (default: a moving blob)")
    add("--prompt", default="red circle", help="what to put there; for nano, colour and shape (default: %(default)s)")
    add("--negative", default="", help="what to keep away, with --model only")
    add("--model", type=Path, help="a diffusers Wan-VACE folder on disk (default: the nano model of this repository)")
    add("--speed", type=float, nargs="+", default=[2, 3, 4], metavar="X", help="speed-ups to aim for (default: 2 3 4)")
    add("--policy", type=Path, help="a JSON file with all other settings of the cache (default: the balanced preset)")
    add("--steps", type=int, default=30, help="denoising steps (default: %(default)s)")
    add("--cfg", type=float, default=4.0, help="guidance scale, 1 for none (default: %(default)s)")
    add("--size", type=int, nargs=2, default=[192, 192], metavar=("H", "W"), help="height and width (default: 192 192)")
    add("--frames", type=int, default=33, help="frames to edit, 4n + 1 (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--out", type=Path, default=Path("out/demo"), help="folder to write to (default: %(default)s)")
    return options


def check_options(args: argparse.Namespace) -> None:
    """Refuse numbers no run can be made with."""
    for speed in args.speed:
        if not 1 < speed <= 8:
            raise InputError(f"--speed {speed:g}: is not above 1 and up to 8; the full run is always made.")
    if len(set(args.speed)) < len(args.speed):
        raise InputError("--speed: names a speed twice; name each once.")
    if args.steps < 2:
        raise InputError(f"--steps {args.steps}: is less than 2, so nothing can be cached; 30 is usual.")
    if not 1 <= args.cfg <= 100:
        raise InputError(f"--cfg {args.cfg:g}: is not from 1 (no guidance) to 100; 4 is usual.")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: is less than 1; leave it out to use all cores.")


def run(args: argparse.Namespace) -> None:
    begin = time.perf_counter()
    check_options(args)
    clip = load_clip(args.clip, *args.size, args.frames)
    shape = clip.frames.shape[:3]
    mask = load_mask(args.mask, clip) if args.mask else check_mask(moving_mask(*shape), shape)
    # torch and diffusers take seconds to load: only now that the input is known to be good.
    import torch

    from demo import models, report, runs

    report.check_out(args.out)
    policy = runs.load_policy(args.policy)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = models.load_folder(args.model, args.prompt, args.negative) if args.model else models.load_nano(args.prompt)
    height, width = args.size
    print(f"'{args.prompt}' into {clip.name}: {args.frames} frames of {width} x {height}, {mask.mean():.0%} masked")
    print(f"{model.name}, {args.steps} steps, cfg {args.cfg:g}, {torch.get_num_threads()} threads", flush=True)
    edit = models.Edit(clip.frames, mask, args.cfg, args.seed)
    made = runs.make_runs(model, edit, args.steps, args.speed, policy)
    numbers = report.report(made, model.name, clip.name, args.steps, args.cfg)
    files = report.write_all(args.out, clip, mask, made, numbers)
    print(f"\n{report.table(made)}\n\nIn {args.out}: {', '.join(files)}. {time.perf_counter() - begin:.0f} s in all.")


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
