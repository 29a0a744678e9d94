"""What the nodes make of what they are given: settings as people and hosts write them, and runs they have to report."""

import importlib
import json
import pathlib

import pack
import pytest
import torch
from small import QUICK, load, sample

_, NODES = pack.load()
core = importlib.import_module("custom_nodes_hetcache.hetcache_core")
host = importlib.import_module("custom_nodes_hetcache.hetcache_core.hosts.comfyui")
profile = importlib.import_module("custom_nodes_hetcache.hetcache_core.profile")
settings = importlib.import_module("custom_nodes_hetcache.nodes.policy_settings")
stats_node = importlib.import_module("custom_nodes_hetcache.nodes.stats")


def policy(method="plan", preset="custom", **fine):
    return settings.make_policy(preset, 3.0, 512.0, {"method": method}, **fine)


def test_a_number_nobody_would_mean_is_left_to_us():
    usual = policy()
    assert policy(warmup=0, refresh=0, context_share=-0.99, cooldown=-1) == usual
    assert policy("profilingdit", interval_min=0).interval_min is None
    assert policy(cooldown=0, max_reuse=0, context_share=0.0) != usual  # these zeros have a meaning


def test_a_method_the_host_dropped_is_named():
    """A later version's workflow, or a prompt without one: the host leaves out what it cannot check."""
    execute = NODES["HetCachePolicySettings"].execute
    with pytest.raises(ValueError, match=r"method is missing.*plan, hetcache"):
        execute(preset="custom", speed=3.0, memory_budget_mb=512.0)
    (found,) = execute(preset="fast", speed=3.0, memory_budget_mb=512.0).args
    assert found.speed == 4.0  # a preset has one of its own


@pytest.mark.parametrize("written", ['  "{}" ', "{}", "~/{name}"])
def test_files_are_found_as_people_write_them(tmp_path, monkeypatch, written):
    file = tmp_path / "mine.json"
    file.write_text(profile.ErrorProfile.load("nano").to_json())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    text = written.format(file, name=file.name)
    assert pathlib.Path(policy(profile=text).profile) == file
    before = settings.PolicySettings.fingerprint_inputs(profile=text)
    assert len(before) == 1
    file.write_text(file.read_text() + "\n")
    assert settings.PolicySettings.fingerprint_inputs(profile=text) != before


def test_a_cleared_file_is_auto_and_a_wrong_one_is_named(tmp_path):
    assert policy(profile=" ").profile == "auto"
    assert policy("profilingdit", block_profile="").block_profile == "auto"
    (tmp_path / "video.json").write_bytes(b"\x00\xff\xfe\xfd")
    for name in (str(tmp_path / "video.json"), str(tmp_path / "none.json")):
        with pytest.raises(ValueError, match=r"no error profile.*auto chooses one"):
            policy(profile=name)


@pytest.fixture
def report(monkeypatch):
    """Of a run in prompt ``a``; what it is given says which prompt is under way."""
    now = ["a"]
    monkeypatch.setattr(host, "running_prompt", lambda: now[0])
    patched, report = host.apply(load(), core.CachePolicy(schedule="FFPRPF", warmup=1))
    sample(patched, QUICK)
    report._prompt = "a"
    return report, now


def told(report):
    """(words, picture, numbers, what the panel is sent)"""
    out = NODES["HetCacheStats"].execute({"samples": torch.zeros(1)}, report)
    return out.args[1], out.args[2], json.loads(out.args[3]), out.ui["hetcache"][0]


def test_numbers_of_an_earlier_run_are_called_so(report, monkeypatch):
    """The host may serve a sampler's result from its cache: another seed may have been sampled since."""
    report, now = report
    words, _, _, panel = told(report)
    assert stats_node.KEPT not in words and not panel["kept"]
    now[0] = "b"
    words, _, numbers, panel = told(report)
    assert words.startswith(stats_node.KEPT) and panel["kept"] == stats_node.KEPT
    assert numbers["runs"][0]["decisions"] == "FFPRPF"
    now[0] = None  # a host that does not tell
    assert stats_node.KEPT not in told(report)[0]


def test_a_picture_that_cannot_be_drawn_stops_nothing(report, monkeypatch):
    def broken(self, frame):
        raise TypeError("no such font")

    monkeypatch.setattr(type(report[0].runs[0]), "picture", broken)
    words, picture, numbers, _ = told(report[0])
    assert "3 full, 2 partial" in words and numbers["runs"] and picture.shape[-1] == 3


def test_a_block_profile_is_found_by_the_name_it_was_given(tmp_path, monkeypatch):
    made = importlib.import_module("custom_nodes_hetcache.nodes.profile_model")
    blocks = importlib.import_module("custom_nodes_hetcache.hetcache_core.block_profile")
    monkeypatch.setattr(made.folder_paths, "get_output_directory", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="no block profile 'my model'"):
        policy("profilingdit", block_profile="my model")
    file = made.profile_file("my model")
    file.parent.mkdir()
    file.write_text(blocks.BlockProfile.load("nano").to_json())
    found = settings.make_policy("custom", 3.0, 512.0, {"method": "profilingdit", "block_profile": " my model "})
    assert found.block_profile == str(file)
    written = {"method": "profilingdit", "block_profile": "my model"}
    assert len(settings.PolicySettings.fingerprint_inputs(method=written)) == 1
    assert policy("profilingdit", block_profile="wan14b").block_profile == "wan14b"
    for name in ("auto", "wan14b", "wan"):  # a file of this installation changes no name that all of them know
        made.profile_file(name).write_text(blocks.BlockProfile.load("nano").to_json())
    assert policy("profilingdit", block_profile="auto", profile="auto") == policy("profilingdit")
    assert policy("profilingdit", block_profile="wan14b", profile="wan").profile == "wan"


@pytest.mark.parametrize("name", ["profile", "block_profile"])
def test_the_text_of_a_profile_is_not_its_name(name):
    """It is longer than any file's name may be, at which some systems fail instead of saying that there is none."""
    given = {name: json.dumps({"scores": [0.5] * 400})}
    settings.PolicySettings.fingerprint_inputs(method=given, **given)
    with pytest.raises(ValueError, match="Correct it on this node"):
        settings.make_policy("custom", 3.0, 512.0, {"method": "profilingdit"}, **given)


def test_what_never_ends_is_no_profile(tmp_path):
    """A workflow names the file; the server must not read a device for ever."""
    (tmp_path / "long.json").write_text(" " * 2_000_000)
    for name in ("/dev/zero", str(tmp_path / "long.json")):
        with pytest.raises(ValueError, match="no error profile"):
            policy(profile=name)
