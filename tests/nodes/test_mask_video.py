"""Decoding: every container and channel, times, and files that cannot be used."""

import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from nodes.mask_files import MaskError, find
from nodes.mask_frames import check
from nodes.mask_video import decode, write_preview

LUMA = {
    "mp4": ("a.mp4", "libx264", "yuv420p", {}),
    "mkv, 10 bit": ("a.mkv", "libx264", "yuv422p10le", {}),
    "mov": ("a.mov", "libx264", "yuvj420p", {}),
    "webm": ("a.webm", "libvpx-vp9", "yuv420p", {"cpu-used": 8, "crf": 10}),
    "av1": ("a.mp4", "libsvtav1", "yuv420p", {"preset": 12, "crf": 10}),
    "gif": ("a.gif", "gif", "gray", {}),
    "apng": ("a.apng", "apng", "gray", {}),
    "apng named png": ("a.png", "apng", "rgb24", {"f": "apng"}),
    "lossless grey": ("a.mkv", "ffv1", "gray", {}),
}
ALPHA = {
    "webm vp9": ("a.webm", "libvpx-vp9", "yuva420p", {"cpu-used": 8, "crf": 10}),
    "webm vp8": ("a.webm", "libvpx", "yuva420p", {"cpu-used": 8, "auto-alt-ref": 0, "crf": 10}),
    "ProRes 4444": ("a.mov", "prores_ks", "yuva444p10le", {"profile": 4}),
    "animation mov": ("a.mov", "qtrle", "argb", {}),
    "png mov": ("a.mov", "png", "rgba", {}),
    "apng": ("a.apng", "apng", "rgba", {}),
}


def read(path, *args, **kwargs):
    frames, rate = decode(find(str(path), path.parent), *args, **kwargs)
    return np.stack(frames), rate


def same(frames, mask) -> bool:
    """Whether these are the mask's frames, but for compression: one pixel in 200 may fall on the other side."""
    return frames.shape == mask.shape and ((frames >= 128) != (mask >= 128)).mean(axis=(1, 2)).max() < 0.005


@pytest.mark.parametrize("kind", LUMA)
def test_luma(kind, square, encode, tmp_path):
    name, codec, pix_fmt, options = LUMA[kind]
    if name.endswith(".png"):
        encode(tmp_path / "a.apng", square, codec, pix_fmt).rename(tmp_path / name)
    else:
        encode(tmp_path / name, square, codec, pix_fmt, **options)
    frames, rate = read(tmp_path / name)
    assert same(frames, square)
    assert frames.dtype == np.uint8 and frames.max() >= 250 and frames.min() <= 5  # full range, whatever the file's
    assert rate == pytest.approx(16, abs=0.7)  # a gif counts in hundredths of a second


@pytest.mark.parametrize("kind", ALPHA)
def test_alpha(kind, square, colour, encode, tmp_path):
    name, codec, pix_fmt, options = ALPHA[kind]
    frames, _ = read(encode(tmp_path / name, colour(square, 3), codec, pix_fmt, **options), "alpha")
    assert same(frames, square)


def test_alpha_of_gif_and_of_indexed_png(square, tmp_path):
    images = [Image.fromarray((frame < 128).astype(np.uint8), mode="P") for frame in square]
    for image in images:
        image.putpalette([255, 0, 0, 0, 0, 255])
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], transparency=1, disposal=2, duration=60)
    assert same(read(tmp_path / "a.gif", "alpha")[0], square)
    images[0].save(tmp_path / "a.png", transparency=1)
    assert same(read(tmp_path / "a.png", "alpha")[0], square[:1])


@pytest.mark.parametrize("channel", ["red", "green", "blue"])
def test_colours(channel, square, colour, encode, tmp_path):
    index = ("red", "green", "blue").index(channel)
    path = encode(tmp_path / "a.mp4", colour(square, index), "libx264", "yuv444p", crf=0)
    assert same(read(path, channel)[0], square)
    assert read(path, ("green", "blue", "red")[index])[0].max() < 128


@pytest.mark.parametrize("width", [33, 36, 50, 58, 67])
def test_no_column_is_lost_at_odd_widths(width, colour, encode, tmp_path):
    white = np.full((2, 34, width), 255, np.uint8)
    white[:, :8] = 0
    for channel, picture in (("luma", white), ("red", colour(white, 0)), ("alpha", colour(white, 3))):
        pix_fmt = "yuva420p" if channel == "alpha" else "yuv420p"
        path = encode(tmp_path / f"{channel}.webm", picture, "libvpx", pix_fmt, **{"cpu-used": 8, "auto-alt-ref": 0})
        assert read(path, channel)[0][:, 16:].min() >= 128, channel


def test_rotation_turns_the_picture_upright(square, encode, tmp_path):
    plain, _ = read(encode(tmp_path / "a.mp4", square))
    for rotation in (90, 180, -90):
        frames, _ = read(encode(tmp_path / "r.mp4", square, rotation=rotation))
        np.testing.assert_array_equal(frames, np.rot90(plain, rotation // 90, axes=(1, 2)))


def test_photo_orientation(square, tmp_path):
    image = Image.fromarray(square[0])
    image.getexif()[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a.jpg", exif=image.getexif())
    assert same(read(tmp_path / "a.jpg")[0], np.rot90(square[:1], -1, axes=(1, 2)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rates(suffix, square, encode, tmp_path):
    path = encode(tmp_path / f"a.{suffix}", square, rate=24)  # 6 frames, a quarter of a second
    twice = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for rate, expected in ((24, range(6)), (12, (0, 2, 4)), (48, twice), (16, (0, 1, 3, 4))):
        frames, got = read(path, rate=rate)
        assert same(frames, square[list(expected)]), rate
        assert got == rate


def test_variable_frame_rate(square, encode, tmp_path):
    times = [0, 100, 500, 520, 700, 900]
    path = encode(tmp_path / "a.mkv", square, rate=1000, times=times, **{"x264-params": "bframes=0"})
    frames, rate = read(path)
    assert same(frames, square)  # without a rate every frame counts once
    assert rate == pytest.approx(5 / 0.9)  # measured: the file says 1000
    frames, _ = read(path, rate=10)  # at 0, .1, ... .8 seconds; .3 is a tie, .6 is nearer to .52 than to .7
    assert same(frames, square[[0, 1, 1, 1, 2, 2, 3, 4, 4]])


def test_skip_and_cap(square, encode, tmp_path):
    path = encode(tmp_path / "a.mp4", square)
    assert same(read(path, skip=2)[0], square[2:])
    assert same(read(path, skip=1, cap=3)[0], square[1:4])
    assert same(read(path, rate=8, skip=1, cap=1)[0], square[2:3])  # skip counts after the rate
    with pytest.raises(MaskError, match=r"a\.mp4.*6 are skipped"):
        read(path, skip=6)


def test_sequence_and_still(square, tmp_path):
    for index, frame in enumerate(square):
        Image.fromarray(frame).save(tmp_path / f"m_{index + 8}.png")  # m_10 after m_9
    frames, rate = read(tmp_path)
    np.testing.assert_array_equal(frames, square)
    assert rate == 16
    frames, rate = read(tmp_path, rate=60, skip=1, cap=4)  # taken one by one, whatever the rate
    np.testing.assert_array_equal(frames, square[1:5])
    assert rate == 60
    np.testing.assert_array_equal(read(tmp_path / "m_9.png", rate=60)[0], square[1:2])


@pytest.mark.parametrize("alpha", [False, True])
def test_an_animated_webp(alpha, square, colour, tmp_path):
    """FFmpeg reads none of its frames."""
    images = [Image.fromarray(frame) for frame in (colour(square, 3) if alpha else colour(square, 0))]
    path = tmp_path / "a.webp"
    durations = [100, 100, 100, 200, 100, 100]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    channel = "alpha" if alpha else "red"
    frames, rate = read(path, channel)
    assert same(frames, square) and rate == pytest.approx(60 / 7, rel=0.2)
    assert same(read(path, channel, rate=10)[0], square[[0, 1, 2, 3, 3, 4, 5]])
    assert same(read(path, channel, skip=1, cap=2)[0], square[1:3])
    if not alpha:
        with pytest.raises(MaskError, match="Choose luma"):
            read(path, "alpha")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(MaskError, match=r"a\.webp.*damaged"):
        read(path, channel)
    images[0].save(path, lossless=True)
    assert same(read(path, channel)[0], square[:1])


def test_deep_images(square, tmp_path):
    Image.fromarray(square[0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], square[:1])


def test_progress(square, encode, tmp_path):
    calls = []
    read(encode(tmp_path / "a.mkv", square), progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == [1, 2, 3, 4, 5, 6] and calls[-1] == (6, 6)


def test_what_is_no_mask(square, colour, encode, tmp_path):
    opaque = encode(tmp_path / "opaque.mov", colour(np.full_like(square, 255), 3), "png", "rgba")
    with pytest.raises(MaskError, match=r"opaque\.mov.*opaque everywhere.*luma"):
        read(opaque, "alpha")
    with pytest.raises(MaskError, match=r"plain\.mp4.*no alpha.*ProRes 4444"):
        read(encode(tmp_path / "plain.mp4", square), "alpha")
    with pytest.raises(MaskError, match=r"plain\.webm.*no alpha"):
        read(encode(tmp_path / "plain.webm", square, "libvpx-vp9", **{"cpu-used": 8}), "alpha")


def test_broken_files(square, encode, tmp_path):
    for name, content in {"text.mp4": b"hello " * 99, "cut.png": None}.items():
        if content is None:
            Image.fromarray(square[0]).save(tmp_path / "whole.png")
            content = (tmp_path / "whole.png").read_bytes()[:60]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MaskError, match=name.replace(".", r"\.") + ".*xport it"):
            read(tmp_path / name)
    with wave.open(str(tmp_path / "song.wav"), "wb") as song:
        song.setnchannels(1), song.setsampwidth(2), song.setframerate(8000), song.writeframes(bytes(8000))
    with pytest.raises(MaskError, match=r"song\.wav.*only audio"):
        check(find("song.wav", tmp_path))
    for name, problem in {"header.mp4": "has no picture", "header.mkv": "cannot be opened"}.items():
        with av.open(str(tmp_path / name), "w") as container:
            container.add_stream("libx264", rate=16)
            container.start_encoding()
        with pytest.raises(MaskError, match=f"{name}: {problem}"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_cut_off_files_are_refused_but_what_is_left_can_be_had(suffix, encode, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64), np.uint8)
    codec, options = ("libvpx-vp9", {"cpu-used": 8}) if suffix == "webm" else ("libx264", {"x264-params": "bframes=0"})
    whole = encode(tmp_path / "whole.mp4" if suffix == "mp4" else tmp_path / f"whole.{suffix}", noise, codec, **options)
    data = bytearray(whole.read_bytes())
    if suffix == "mp4":  # its index is at the end, so cut the pictures out of the middle
        data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    else:
        del data[len(data) * 6 // 10 :]
    (tmp_path / f"cut.{suffix}").write_bytes(data)
    with pytest.raises(MaskError, match=rf"cut\.{suffix}: is damaged after frame (\d+).*frame cap to \1") as error:
        read(tmp_path / f"cut.{suffix}")
    left = int(str(error.value).split("frame cap to ")[1].split()[0])
    assert 4 < left < 20 and len(read(tmp_path / f"cut.{suffix}", cap=left)[0]) == left


def test_broken_image_of_a_sequence(square, tmp_path):
    for index in range(3):
        Image.fromarray(square[index]).save(tmp_path / f"m{index}.png")
    whole = (tmp_path / "m1.png").read_bytes()
    for content in (b"", whole[:20], whole[:50], b"no image"):
        (tmp_path / "m1.png").write_bytes(content)
        with pytest.raises(MaskError, match=r"^m1\.png: .*xport it"):
            read(tmp_path)


def test_sizes_must_agree(square, tmp_path):
    Image.fromarray(square[0]).save(tmp_path / "m0.png")
    Image.fromarray(square[0][:40]).save(tmp_path / "m1.png")
    with pytest.raises(MaskError, match="frame 2 is 64x40, the first one 64x48"):
        read(tmp_path)


def test_huge_files_are_refused_before_they_are_decoded(square, encode, tmp_path):
    path = encode(tmp_path / "a.mp4", square)
    calls = []
    with pytest.raises(MaskError, match=r"a\.mp4.*frame cap"):
        read(path, limit=square.nbytes - 1, progress=lambda *call: calls.append(call))
    assert not calls
    assert len(read(path, cap=3, limit=square.nbytes // 2)[0]) == 3


def test_preview_is_a_small_film_of_the_mask(square, tmp_path):
    mask = torch.from_numpy(square).float().repeat_interleave(20, 1).repeat_interleave(20, 2)[:, :, :1277] / 255
    write_preview(str(tmp_path / "p.mp4"), mask, 12.5)
    frames, rate = read(tmp_path / "p.mp4")
    assert frames.shape == (6, 384, 512) and rate == 12.5
    assert same(frames[:, 4::8, 4::8], square)


def test_preview_over_a_clip_is_the_clip_with_the_mask_in_colour(square, tmp_path):
    mask = torch.from_numpy(square).float() / 255
    clip = torch.full((4, 48, 64, 3), 0.5)  # shorter than the mask
    write_preview(str(tmp_path / "p.mp4"), mask, 16, clip)
    red, _ = read(tmp_path / "p.mp4", "red")
    blue, _ = read(tmp_path / "p.mp4", "blue")
    inside, outside = square[:, 4:-4:8, 4:-4:8] > 0, square[:, 4:-4:8, 4:-4:8] == 0
    red, blue = (plane[:, 4:-4:8, 4:-4:8].astype(int) for plane in (red, blue))
    assert (red - blue)[inside].min() > 60 and abs(red - blue)[outside].max() < 30
    assert abs(red[outside] - 128).max() < 20


STOPS_EARLY = """
import logging, sys
from pathlib import Path
import av
from nodes.mask_files import MaskError, find
from nodes.mask_video import decode
logging.basicConfig(stream=sys.stdout)
av.logging.set_level(av.logging.DEBUG)
for _ in range(50):
    try:
        decode(find(sys.argv[1], Path()), "alpha")
    except MaskError:
        continue
    raise AssertionError("it has no alpha channel")
"""


def test_a_file_left_in_the_middle_hangs_nothing(square, encode, tmp_path):
    """Its decoder's threads log, for which they need the lock that whoever frees the decoder holds."""
    encode(tmp_path / "a.mp4", square, "libx264", "yuv420p")
    run = [sys.executable, "-c", STOPS_EARLY, tmp_path / "a.mp4"]
    subprocess.run(run, cwd=Path(__file__).parents[2], check=True, timeout=60, stdout=subprocess.DEVNULL)
