"""Clips in and out: decoding, resizing and encoding, with one clear sentence for every file that cannot be used."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .errors import InputError

TILE = 16  # pixels a token covers, each way: 8 of the VAE times 2 of the patch
STRIDE = 4  # pixel frames a latent frame covers, but for the first one, which stands alone


@dataclass(frozen=True)
class Clip:
    """The part of a video that is edited."""

    name: str  # of the file
    frames: np.ndarray  # [F, H, W, 3] uint8, as the model gets it
    rate: float  # frames per second
    source_size: tuple[int, int]  # height and width in the file
    longer: bool  # whether the file goes on after these frames


def read_video(path: str | Path, limit: int | None = None) -> tuple[np.ndarray, float]:
    """Decode a video file.

    Args:
        path: a file PyAV can read.
        limit: how many frames to decode at most.

    Returns:
        Frames `[F, H, W, 3]` uint8, and frames per second.

    Raises:
        InputError: the file is missing, is no video, has no picture, or breaks off before the first frame.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a video file.")
    frames = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream, only {_kinds(container)}; give a file with pictures.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == limit:
                    break
    except av.FFmpegError as error:
        if not frames:  # a file cut off at the end is still good for the frames it has
            raise InputError(f"{path}: cannot be decoded as a video ({error.strerror}); convert it to mp4.") from error
    if not frames:
        raise InputError(f"{path}: holds no frame that can be decoded; convert it to mp4 or give another file.")
    return np.stack(frames), rate


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "nothing that can be decoded"


def write_video(path: str | Path, frames: np.ndarray, rate: float) -> None:
    """Encode frames `[F, H, W, 3]` uint8 (even H and W) as an H.264 mp4 that every browser plays."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "14", "preset": "medium"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def check_size(height: int, width: int, frames: int) -> None:
    """Refuse a size the model cannot take: sides in multiples of 16 pixels, 4n + 1 frames."""
    for name, value in (("height", height), ("width", width)):
        if value < 2 * TILE or value % TILE:
            near = max(2 * TILE, round(value / TILE) * TILE)
            raise InputError(f"{name} {value} is not a multiple of {TILE} from {2 * TILE} on; try {near}.")
    if frames < STRIDE + 1 or frames % STRIDE != 1:
        near = max(STRIDE + 1, (frames - 1) // STRIDE * STRIDE + 1)
        raise InputError(f"{frames} frames are not 4n + 1 from {STRIDE + 1} on (5, 9, 13, ...); try {near}.")


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `[F, H, W, 3]` uint8 so that it covers height x width, and cut out its centre."""
    source_height, source_width = frames.shape[1:3]
    if (source_height, source_width) == (height, width):
        return frames
    scale = max(height / source_height, width / source_width)
    box_height, box_width = height / scale, width / scale  # the part of the source that stays, in its own pixels
    top, left = (source_height - box_height) / 2, (source_width - box_width) / 2
    box = (left, top, left + box_width, top + box_height)
    resize = [Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS, box=box) for f in frames]
    return np.stack([np.asarray(image) for image in resize])


def load_clip(path: str | Path, height: int, width: int, frames: int) -> Clip:
    """Read the first `frames` frames of a clip, fitted to height x width."""
    check_size(height, width, frames)
    video, rate = read_video(path, limit=frames + 1)
    if len(video) < frames:
        usable = (len(video) - 1) // STRIDE * STRIDE + 1
        fix = f"use --frames {usable} or a longer clip" if usable > STRIDE else "give a longer clip"
        raise InputError(f"{path}: has {len(video)} frames where {frames} are needed; {fix}.")
    return Clip(Path(path).name, fit(video[:frames], height, width), rate, video.shape[1:3], len(video) > frames)
