"""The demo from end to end on a random, tiny model: what it writes, and what it says when it cannot."""

import json
from types import SimpleNamespace

import pytest

from demo import report
from demo.__main__ import main
from demo.media import read_video

SMALL = ["--size", "64", "64", "--frames", "9", "--steps", "4", "--threads", "1"]
FILES = ["full.mp4", "report.json", "side_by_side.mp4", "source.mp4", "speed-3.mp4", "stats.png"]


@pytest.fixture(scope="module")
def out(wan_vace_folder, clip_file, tmp_path_factory):
    """The folder of a whole demo."""
    out = tmp_path_factory.mktemp("out") / "demo"
    options = ["--model", wan_vace_folder, "--clip", clip_file, "--out", out, *SMALL]
    assert main([str(option) for option in options]) == 0
    return out


def test_it_writes_what_it_promises_and_nothing_else(out):
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert [file.name for file in out.parent.iterdir()] == ["demo"]


def test_the_report_has_the_promised_shape(out):
    report = json.loads((out / "report.json").read_text())
    assert list(report) == ["host", "model", "clip", "grid", "mask_fraction", "steps", "cfg", "runs"]
    assert (report["host"], report["model"], report["clip"]) == ("diffusers", "tiny-vace", "clip.mp4")
    assert (report["grid"], report["steps"], report["cfg"]) == ([3, 4, 4], 4, 4.0)
    assert 0 < report["mask_fraction"] < 1
    names = ["full", "speed-2", "speed-3", "speed-4", "fewer-steps-2", "fewer-steps-3", "fewer-steps-4"]
    assert [run["name"] for run in report["runs"]] == names
    for run in report["runs"]:
        assert list(run) == ["name", "target", "predicted_speed", "speed", "seconds", "decisions", "psnr", "ssim",
                             "peak_context_bytes"]  # fmt: skip
        assert list(run["psnr"]) == list(run["ssim"]) == ["mask", "ring", "outside", "all"]
        assert set(run["decisions"]) <= set("FPR")
        assert run["seconds"] > 0


def test_full_is_exact_and_fewer_steps_fit_the_time(out):
    full, *others = json.loads((out / "report.json").read_text())["runs"]
    assert full["decisions"] == "FFFF"
    assert (full["target"], full["speed"]) == (1.0, 1.0)
    assert full["psnr"]["all"] is None  # equal to itself
    cached, plain = others[:3], others[3:]
    for fast, fewer in zip(cached, plain, strict=True):
        steps = len(fewer["decisions"])
        assert fewer["decisions"] == "F" * steps
        assert steps == min(4, max(1, int(fast["seconds"] / (full["seconds"] / 4))))
        assert fewer["target"] == fast["target"]


def test_the_videos_show_every_panel(out):
    frames, _ = read_video(out / "side_by_side.mp4")
    assert frames.shape == (9, 2 * (64 + 20), 3 * (64 + 4), 3)
    assert read_video(out / "speed-3.mp4")[0].shape == (9, 64, 64, 3)


def test_the_shipped_clip_mask_and_model_with_one_speed(tmp_path, capsys):
    options = ["--size", "64", "64", "--frames", "5", "--steps", "3", "--threads", "1", "--speed", "1.5"]
    assert main([*options, "--out", str(tmp_path / "deep" / "er")]) == 0
    assert "speed-1.5.mp4" in capsys.readouterr().out
    report = json.loads((tmp_path / "deep" / "er" / "report.json").read_text())
    assert (report["model"], report["clip"]) == ("nano", "big_buck_bunny.mp4")
    assert [run["name"] for run in report["runs"]] == ["full", "speed-1.5", "fewer-steps-1.5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", "nowhere.mp4"], "nowhere.mp4: no such file"),
        (["--mask", "nowhere.mp4"], "nowhere.mp4: no such file"),
        (["--speed", "9"], "--speed 9"),
        (["--speed", "0.5"], "--speed 0.5"),
        (["--speed", "nan"], "--speed nan"),
        (["--speed", "2", "2"], "names a speed twice"),
        (["--steps", "1"], "--steps 1"),
        (["--cfg", "0.5"], "--cfg 0.5"),
        (["--threads", "0"], "--threads 0"),
        (["--size", "100", "96"], "height 100"),
        (["--frames", "8"], "8 frames"),
        (["--frames", "101"], "33 frames where 101 are needed"),
        (["--policy", "nowhere.json"], "--policy nowhere.json: cannot be read"),
        (["--model", "nowhere"], "--model nowhere"),
        (["--prompt", "a quick brown fox"], "--prompt: "),
    ],
)
def test_bad_options_get_one_sentence_and_leave_nothing(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_no_pipeline(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanVACEPipeline", "vae": ["diffusers", "None"]}')
    assert main(["--model", str(tmp_path)]) == 2
    assert "cannot be loaded as a WanVACEPipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"sped": 2}', "sped"), ('{"speed": 99}', "99"), ('{"speed": NaN}', "nan"), ("speed: 2", "JSON")],
)
def test_a_policy_file_that_cannot_be_used(text, message, tmp_path, capsys):
    (tmp_path / "policy.json").write_text(text)
    assert main(["--policy", str(tmp_path / "policy.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "policy.json: " in error
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["policy.json"]


def test_an_out_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_while_writing_leaves_earlier_results_alone(tmp_path):
    from demo.report import all_or_nothing

    out = tmp_path / "demo"
    out.mkdir()
    (out / "full.mp4").write_text("earlier")
    with pytest.raises(OSError, match="disk full"), all_or_nothing(out) as folder:
        (folder / "full.mp4").write_text("half")
        raise OSError("disk full")
    assert [file.name for file in tmp_path.iterdir()] == ["demo"]
    assert (out / "full.mp4").read_text() == "earlier"


def test_a_run_that_was_timed_beside_other_work_is_said_to_be():
    def run(name, speed, own):
        regions = dict.fromkeys(("mask", "ring", "outside", "all"), 40.0)
        stats = SimpleNamespace(note="", speed=own)
        return SimpleNamespace(name=name, target=2.0, predicted_speed=2.0, speed=speed, seconds=1.0, psnr=regions,
                               ssim=regions, peak_context_bytes=0, stats=stats)  # fmt: skip

    said = report.table([run("full", 1.0, 1.0), run("speed-2", 10.0, 2.1), run("speed-3", 3.2, 3.0)])
    assert "speed-2: by its own full evaluations 2.10x" in said and "speed-3: by" not in said
