"""Clips in and out, and the sentence every unusable file gets."""

import av
import numpy as np
import pytest

from demo.errors import InputError
from demo.media import check_size, fit, load_clip, read_video, write_video


def test_a_written_clip_reads_back(clip, clip_file):
    frames, rate = read_video(clip_file)
    assert frames.shape == clip.shape
    assert frames.dtype == np.uint8
    assert rate == 25
    assert np.abs(frames.astype(float) - clip).mean() < 4  # what H.264 in yuv420p loses


def test_limit_stops_decoding(clip_file):
    assert len(read_video(clip_file, limit=3)[0]) == 3


def test_fit_cuts_the_centre():
    wide = np.zeros((1, 64, 128, 3), np.uint8)
    wide[:, :, 32:96] = 200
    assert (fit(wide, 32, 32) > 190).mean() > 0.9
    assert fit(wide, 64, 128) is wide


def test_load_clip_knows_whether_the_file_goes_on(clip_file):
    part, whole = load_clip(clip_file, 32, 32, 5), load_clip(clip_file, 32, 32, 9)
    assert part.frames.shape == (5, 32, 32, 3)
    assert (part.longer, whole.longer) == (True, False)
    assert part.source_size == (64, 64)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.mp4: no such file"):
        read_video(tmp_path / "nowhere.mp4")


def test_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "letter.mp4"
    path.write_text("Dear reader, " * 200)
    with pytest.raises(InputError, match=r"letter\.mp4: cannot be decoded as a video"):
        read_video(path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.mp4: cannot be decoded"):
        read_video(path)


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(InputError, match=r"song\.wav: has no video stream, only audio"):
        read_video(path)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()  # writes the header; no frame follows
    with pytest.raises(InputError, match=r"none\.avi: (holds no frame|cannot be decoded)"):
        read_video(path)


def test_a_clip_too_short(clip_file):
    with pytest.raises(InputError, match="has 9 frames where 33 are needed; use --frames 9"):
        load_clip(clip_file, 64, 64, 33)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 96, 17), "height 100 is not a multiple of 16 .* try 96"),
        ((96, 0, 17), "width 0 is not a multiple"),
        ((96, 96, 16), "16 frames are not 4n .* try 13"),
        ((96, 96, 1), "1 frames are not 4n .* try 5"),
    ],
)
def test_sizes_the_model_cannot_take(size, message):
    with pytest.raises(InputError, match=message):
        check_size(*size)


def test_written_files_play_anywhere(clip, tmp_path):
    write_video(tmp_path / "x.mp4", clip, 29.97)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
