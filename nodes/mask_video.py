"""A mask out of a file: one channel of its frames, one byte a pixel. And back into a small video, to look at."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import torch
import torch.nn.functional as F

from .mask_files import MaskError, Source, TooLarge
from .mask_frames import at_rate, frames_of, true_rate

COLORS = ("red", "green", "blue")
CHANNELS = ("luma", *COLORS, "alpha")
LIMIT = 2 << 30  # bytes of decoded mask, one a pixel: 1035 frames of 1920x1080. Floats take four times that
TINT, TINTED = (0.9, 0.62, 0.0), 0.55  # colour of a mask over its clip, and how much of it
PREVIEW_SIDE = 512  # pixels of a preview's longer side

Progress = Callable[[int, int], None]  # frames done, frames expected


def decode(
    source: Source,
    channel: str = "luma",
    rate: float = 0.0,
    skip: int = 0,
    cap: int = 0,
    progress: Progress | None = None,
    limit: int = LIMIT,
) -> tuple[list[np.ndarray], float]:
    """Read the frames of a mask.

    Args:
        source: what to read.
        channel: one of CHANNELS; luma is brightness (Rec. 601 weights), black 0 to white 255.
        rate: frames a second of the result: each is the file's frame nearest to its time. 0 takes every frame of the
            file once. Images are taken once each, whatever the rate.
        skip: frames of the result to leave out at its start.
        cap: frames to read at most; 0 reads all.
        progress: called after every frame.
        limit: bytes the frames may take.

    Returns:
        Frames, each `[H, W]` uint8 and upright, all of one size, and their frames per second.

    Raises:
        MaskError: a file is damaged, has no picture or no such channel; its frames are of several sizes.
        TooLarge: the frames are too many.
    """
    planes: list[np.ndarray] = []
    times: list[Fraction] = []

    def each() -> Iterator[av.VideoFrame]:
        for timed in frames.timed:
            times.append(timed.time)
            yield timed.frame

    def wanted(count: int) -> int:
        return count and min(max(count - skip, 1), cap or count)

    with frames_of(source, alpha=channel == "alpha") as frames:
        convert = rate and not frames.still
        shown = at_rate(frames, Fraction(rate).limit_denominator(100_000)) if convert else each()
        count = wanted(round(frames.duration * Fraction(rate)) if convert else frames.count)
        expected = count or wanted(round(frames.duration * frames.rate))  # good enough for a progress bar
        try:
            for frame in islice(shown, skip, skip + cap if cap else None):
                _check_memory(source.name, max(len(planes) + 1, count) * frame.width * frame.height, limit)
                planes.append(_plane(frame, channel, source.name))
                if planes[-1].shape != planes[0].shape:
                    (height, width), (first_height, first_width) = planes[-1].shape, planes[0].shape
                    raise MaskError(f"{source.name}: frame {skip + len(planes)} is {width}x{height}, the first one "
                                    f"{first_width}x{first_height}. Export all frames in one size.")  # fmt: skip
                if progress:
                    progress(len(planes), max(len(planes), expected))
        except (av.FFmpegError, EOFError) as error:
            fix = f", or set the frame cap to {len(planes)} to use what is before" if planes else ""
            place = f" after frame {skip + len(planes)}" if planes else ""
            raise MaskError(f"{source.name}: is damaged{place}. Export it again{fix}.") from error
        rate = float(rate or (frames.rate if frames.still else true_rate(times, frames.rate)))
    if not planes:
        fix = f"once {skip} are skipped. Skip fewer" if skip else "in it. Export it again"
        raise MaskError(f"{source.name}: there is no frame {fix}.")
    if channel == "alpha" and all(plane.min() == 255 for plane in planes):
        raise MaskError(f"{source.name}: its alpha channel is opaque everywhere, so it marks nothing. Choose luma or a "
                        "colour as channel, or export it with transparency.")  # fmt: skip
    return planes, rate


def write_preview(path: str, mask: torch.Tensor, rate: float, clip: torch.Tensor | None = None) -> None:
    """Write a mask `[F, H, W]` float, 0 to 1, as a small H.264 mp4 that every browser plays.

    With a clip `[N, h, w, C]` float, 0 to 1, the mask is tinted over it; of a clip too short the last frame stays.
    """
    scale = min(1.0, PREVIEW_SIDE / max(mask.shape[1:]))
    height, width = (max(2, round(side * scale / 2) * 2) for side in mask.shape[1:])  # H.264 wants even sides
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20"}
        for index, plane in enumerate(mask):
            small = F.interpolate(plane[None, None].float().cpu(), size=(height, width), mode="area")[0, 0]
            if clip is not None:
                frame = clip[min(index, len(clip) - 1), ..., :3].movedim(-1, 0)[None].float().cpu()
                frame = F.interpolate(frame, size=(height, width), mode="area")[0].movedim(0, -1)
                small = torch.lerp(frame, torch.tensor(TINT), TINTED * small[..., None])
            pixels = small.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
            kind = "gray" if clip is None else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=kind)))
        container.mux(stream.encode())


def _plane(frame: av.VideoFrame, channel: str, name: str) -> np.ndarray:
    """One channel of a frame, `[H, W]` uint8, turned upright."""
    if channel == "luma":
        plane = frame.to_ndarray(format="gray")
    elif channel in COLORS:
        plane = frame.to_ndarray(format="rgb24")[..., COLORS.index(channel)]
    elif frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components):
        # Not by way of rgba: from yuva420p FFmpeg 8 leaves its last columns unwritten at some widths.
        alpha = frame.reformat(format="gbrap").planes[3]
        plane = np.frombuffer(alpha, np.uint8).reshape(alpha.height, alpha.line_size)[:, : alpha.width]
    else:
        raise MaskError(f"{name}: has no alpha channel. Choose luma or a colour as channel, or export it with one, as "
                        "ProRes 4444 or VP9 in webm can.")  # fmt: skip
    return np.rot90(plane, k=round(frame.rotation / 90)).copy()  # a copy lets go of the decoder's buffers


def _check_memory(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"{name}: would take {size / 2**30:.1f} GB decoded, and at most {limit / 2**30:.1f} GB are "
                       "allowed. Set a frame cap, lower the frame rate, or export it smaller.")  # fmt: skip
