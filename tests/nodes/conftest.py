"""Small mask files of every kind, made where the tests run."""

from fractions import Fraction

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def square() -> np.ndarray:
    """A white square moving over black in 6 frames: `[6, 48, 64]` uint8."""
    frames = np.zeros((6, 48, 64), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 8 + 6 * index : 24 + 6 * index] = 255
    return frames


@pytest.fixture(scope="session")
def colour():
    """Makes frames `[F, H, W, 3]` of a mask in one channel (0 to 2), or `[F, H, W, 4]` with it as alpha (3)."""

    def make(mask: np.ndarray, channel: int) -> np.ndarray:
        frames = np.full((*mask.shape, 4 if channel == 3 else 3), 90 if channel == 3 else 0, np.uint8)
        frames[..., channel] = mask
        return frames

    return make


@pytest.fixture(scope="session")
def encode():
    """Writes frames `[F, H, W]`, `[F, H, W, 3]` or `[F, H, W, 4]` uint8 to a file; `times` are in 1/1000 seconds."""

    def write(path, frames, codec="libx264", pix_fmt="yuv420p", rate=16, times=None, rotation=0, **options):
        source = {2: "gray", 3: "rgb24", 4: "rgba"}[2 if frames.ndim == 3 else frames.shape[-1]]
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
            if rotation and not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotation metadata")
            if rotation:
                stream.set_display_rotation(rotation)
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for index, array in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=source)
                if times is not None:
                    frame.pts, frame.time_base = times[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
