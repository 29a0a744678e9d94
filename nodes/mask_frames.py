"""Frames and their times, out of any file or sequence of images PyAV can decode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from .mask_files import MaskError, Source

STILL_RATE = Fraction(16)  # frames a second of images, which have no rate of their own: that of Wan's clips
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these drop the alpha channel


class Timed(NamedTuple):
    """A decoded frame and when it is shown, in seconds."""

    time: Fraction
    length: Fraction
    frame: av.VideoFrame


@dataclass(frozen=True)
class Frames:
    """What an opened source gives."""

    timed: Iterator[Timed]  # in order; raises FFmpegError or EOFError where the file is damaged
    rate: Fraction  # frames per second, as the file says; nonsense in some files of variable rate
    count: int = 0  # how many frames there are, 0 where the file does not say
    duration: Fraction = Fraction(0)  # seconds, 0 where the file does not say
    tick: Fraction = Fraction(0)  # seconds to which the times are rounded
    still: bool = False  # whether these are images, whose times mean nothing


@contextmanager
def frames_of(source: Source, alpha: bool = False):
    """Open a source and give its Frames; `alpha` picks decoders that keep that channel.

    Raises:
        MaskError: a file cannot be opened or has no picture.
    """
    if source.sequence:
        yield Frames(_images(source, alpha), STILL_RATE, len(source.files), still=True)
        return
    with _opened(source.files[0], source.name) as (container, stream):
        if container.format.name == "webp_pipe" and (moving := _moving(source.files[0])):
            yield moving
            return
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            yield Frames(_images(source, alpha), STILL_RATE, 1, still=True)
            return
        rate = Fraction(stream.average_rate or stream.guessed_rate or STILL_RATE)
        if stream.duration:
            duration = stream.duration * stream.time_base
        else:  # that of the whole file tells only where nothing else in it can be longer
            duration = Fraction(container.duration or 0, av.time_base) if len(container.streams) == 1 else Fraction(0)
        timed = _timed(_decoded(container, stream, alpha), stream.time_base, rate, duration)
        yield Frames(timed, rate, stream.frames, duration, stream.time_base)


def check(source: Source) -> None:
    """Raise MaskError where the first file cannot be opened or has no picture. Decodes no frame."""
    with _opened(source.files[0], source.name):
        pass


def at_rate(frames: Frames, rate: Fraction) -> Iterator[av.VideoFrame]:
    """For every 1/rate seconds from the first frame on, the frame nearest in time; of two as near, the earlier."""
    start = shown = None
    index = 0
    for timed in frames.timed:
        start = timed.time if start is None else start
        while shown and index / rate <= (shown.time + timed.time + frames.tick) / 2 - start:
            yield shown.frame
            index += 1
        shown = timed
    if shown:
        for _ in range(index, max(1, round((shown.time + shown.length - start) * rate))):
            yield shown.frame


def true_rate(times: list[Fraction], stated: Fraction) -> Fraction:
    """The frames per second at these times; the rate the file states, unless it is clearly another."""
    if len(times) < 2 or times[-1] <= times[0]:
        return stated
    measured = (len(times) - 1) / (times[-1] - times[0])
    return stated if abs(measured - stated) < stated / 20 else measured


@contextmanager
def _opened(file: Path, name: str):
    """The container of a file and its pictures; the cover art of a song is none."""
    try:
        container = av.open(str(file))
    except (av.FFmpegError, OSError) as error:
        raise MaskError(f"{name}: cannot be opened as a video or an image ({error.strerror}). It may be damaged or "
                        "incomplete: export it as mp4, webm, mov or png, and load that.") from error  # fmt: skip
    with container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            kinds = " and ".join(sorted({stream.type for stream in container.streams if stream.type != "video"}))
            raise MaskError(f"{name}: has no picture, only {kinds or 'a header'}. Choose a video or an image.")
        if streams[0].codec_context is None:
            raise MaskError(f"{name}: is in a format that cannot be decoded here. Export it as mp4, webm or mov.")
        try:
            yield container, streams[0]
        finally:
            rest(streams[0].codec_context)


def rest(decoder: av.CodecContext) -> None:
    """Let a decoder's threads come to rest before it is freed in the middle of a file. Where PyAV logs, as in ComfyUI,
    they take Python's lock to do so; freeing holds the lock and waits for them, for ever."""
    if decoder.is_open:
        decoder.flush_buffers()  # waits without the lock


def _moving(file: Path) -> Frames | None:
    """An animated webp, of which FFmpeg reads nothing; None where it is a still image."""
    try:
        with Image.open(file) as image:
            count = getattr(image, "n_frames", 1)
            image.load()
            rate = 1 / _length(image)
    except OSError:
        return None
    return Frames(_animated(file), rate, count, tick=Fraction(1, 1000)) if count > 1 else None


def _animated(file: Path) -> Iterator[Timed]:
    time = Fraction(0)
    with Image.open(file) as image:
        for index in range(image.n_frames):
            image.seek(index)
            mode = "RGBA" if "A" in image.getbands() else "RGB"
            try:
                pixels = np.array(image.convert(mode))
            except OSError as error:
                raise EOFError from error
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if mode == "RGBA" else "rgb24")
            yield Timed(time, _length(image), frame)
            time += _length(image)


def _length(image: Image.Image) -> Fraction:
    """Seconds that the frame just loaded is shown."""
    return Fraction(image.info.get("duration") or 1000 / STILL_RATE) / 1000


def _images(source: Source, alpha: bool) -> Iterator[Timed]:
    for index, file in enumerate(source.files):
        with _opened(file, file.name) as (container, stream):
            try:
                frame = next(_decoded(container, stream, alpha))
            except (av.FFmpegError, StopIteration) as error:
                raise MaskError(f"{file.name}: is damaged. Export it again.") from error
            yield Timed(index / STILL_RATE, 1 / STILL_RATE, frame)


def _decoded(container, stream, alpha: bool) -> Iterator[av.VideoFrame]:
    decoder = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name) if alpha else None
    if decoder is None:
        stream.thread_type = "AUTO"
        yield from container.decode(stream)
    else:
        context = av.CodecContext.create(decoder, "r")
        try:
            for packet in container.demux(stream):
                yield from context.decode(packet)
        finally:
            rest(context)


def _timed(frames: Iterator[av.VideoFrame], base: Fraction, rate: Fraction, duration: Fraction) -> Iterator[Timed]:
    """Frames with their times, counted on at `rate` where a frame has none."""
    start = end = None
    for frame in frames:
        time = frame.pts * base if frame.pts is not None else (end or Fraction(0))
        start = time if start is None else start
        length = (getattr(frame, "duration", None) or 0) * base or 1 / rate  # PyAV before 15 does not tell it
        end = time + length
        yield Timed(time, length, frame)
    # A file cut off in the middle may end without an error, and what is missing would be filled in by repetition.
    if start is not None and end - start < duration * Fraction(9, 10) - Fraction(1, 4):
        raise EOFError
