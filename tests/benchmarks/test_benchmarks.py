import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the benchmarks need diffusers")

from benchmarks import (
    calibrate,
    costs,
    few_forecasts,
    forecasts,
    foretold,
    impact,
    kinds,
    panel,
    real_size,
    report,
    tiers,
)
from benchmarks.latent import LatentEdit
from benchmarks.machine import PeakMemory
from benchmarks.pareto import ABLATIONS, RIVALS, draw_all, look
from benchmarks.rivals.methods import METHODS
from benchmarks.settings import MAIN
from demo import models
from demo.media import write_video
from hetcache_core import CachePolicy, ErrorProfile, error_model
from hetcache_core.costs import Costs
from hetcache_core.error_model import ErrorModel
from nano.clips import TUNING, make_clip

README = Path(report.ROOT) / "README.md"


@pytest.mark.parametrize("page", report.sections(), ids=lambda path: str(path.relative_to(report.ROOT)))
def test_pages_show_the_committed_results(page):
    text = page.read_text()
    assert report.updated(text, report.sections()[page]) == text


def test_ways_to_forecast_are_averaged_over_clips_a_column_a_setting_and_speed():
    def row(clip, speed, db, noisy=False):
        each = dict.fromkeys(forecasts.WAYS, db)
        return {"noisy": noisy, "setting": MAIN.name, "clip": clip, "speed": speed, "db": each}

    rows = [row(0, 2.0, 40.0), row(1, 2.0, 43.0), row(0, 3.0, 30.0), row(1, 3.0, 31.0), row(0, 2.0, 9.0, noisy=True)]
    table = forecasts.table({"machine": {"device": "a machine"}, "rows": rows})
    noisy = "20% moving, 30 steps, noise at every step, 2x"
    assert table[2] == f"| | 20% moving, 30 steps, 2x | 20% moving, 30 steps, 3x | {noisy} |"
    assert table[4] == "| held | 41.5 dB | 30.5 dB | 9.0 dB |" and len(table) == 4 + len(forecasts.WAYS)


def test_tiers_are_averaged_over_clips_beside_what_real_models_need():
    best, least = (str(tier) for tier in tiers.TIERS[:8:7])
    rows = [
        {"clip": clip, "tier": tier, "bytes": 1, "db": db}
        for clip, db in ((0, 40.0), (1, 43.0)) for tier in (best, least)
    ]  # fmt: skip
    table = tiers.table({"machine": {"device": "a machine"}, "rows": rows})
    assert table[-2].startswith("| 100% of the context | 41.5 dB | 16.3 GB |") and "2 tuning clips" in table[0]
    assert table[-1].startswith(f"| {least} | 41.5 dB | 1.8 GB |")
    assert len({str(tier) for tier in tiers.TIERS}) == len(tiers.TIERS)


def test_budgets_hold_what_the_readme_says():
    by_budget = {row.split(" | ")[0]: row for row in tiers.budgets()}
    assert by_budget["| 2048"].startswith("| 2048 | 100% of the context, 6 bits")
    assert "| 34% of the context, 4 bits, held, shared |" in by_budget["| 2048"]
    assert "| 95% of the context, 6 bits" in by_budget["| 4096"] and "| 50% of the context, 6" in by_budget["| 8192"]
    assert by_budget["| 16384"].endswith("| 100% of the context, 6 bits, slopes in 2, differences in 2 |")


def foretold_rows(renewal, stale):
    """Rows whose errors follow the model with these constants, were every clip's a factor apart, and terms foretold."""
    rows, terms, sigmas = [], [], [1.0, 0.95, 0.88, 0.77, 0.56, 0.02, 0.0]
    for clip, factor in enumerate((1.0, 3.0)):
        for plan, forecast in zip(foretold.PLANS, (0.0, 0.01, 0.0, 0.02, 0.01, 0.03)):
            for share in foretold.SHARES:
                shipped = (1 - foretold.FEW_RENEWAL * share) * foretold.FEW_STALE
                error = factor * (forecast + 0.02 + (1 - renewal * share) / (1 - renewal * 0.15) * stale)
                terms.append((forecast, shipped / (1 - foretold.FEW_RENEWAL * 0.15), 0.02))
                row = {"clip": clip, "kind": "few", "plan": plan, "share": share, "error": error, "sigmas": sigmas}
                rows.append(row | {"speed": 1.5})
    return rows, np.array(terms)


def test_what_few_steps_need_is_found_in_the_errors_of_plans():
    renewal, stale, misfit, shipped = foretold.fitted(*foretold_rows(1.2, 0.4))
    assert (renewal, stale) == pytest.approx((1.2, 0.4), rel=0.01) and misfit < 0.01 < shipped
    right = foretold.fitted(*foretold_rows(foretold.FEW_RENEWAL, foretold.FEW_STALE))
    assert right[:2] == pytest.approx((foretold.FEW_RENEWAL, foretold.FEW_STALE)) and right[3] < 1e-6


def test_what_forecasts_of_few_steps_are_reckoned_at_is_what_was_measured():
    cases = [
        (clip, factor, steps, forecast, brief + stale)
        for clip, factor in enumerate((1.0, 3.0)) for steps, brief in ((6, 0.01), (8, 0.0))
        for forecast, stale in ((0.0, 0.02), (0.1, 0.01), (0.05, 0.0), (0.2, 0.03))
    ]  # fmt: skip
    rows = [
        {"clip": clip, "sampler": "euler", "steps": steps, "mask": 0.2, "error": factor * (0.3 * forecast + others)}
        for clip, factor, steps, forecast, others in cases
    ]
    best, least, shipped, whole = few_forecasts.fitted(rows, np.array([case[3:] for case in cases]))
    assert best == pytest.approx(0.3, rel=0.01) and least < 0.01 < min(shipped, whole)
    committed = report.read(report.RESULTS / "few-forecasts.json")["rows"]
    best, least, shipped, whole = few_forecasts.fitted(committed, few_forecasts.foretold(committed))
    assert shipped < least + 0.1 < whole - 2.0
    longer = few_forecasts.fitted(committed, few_forecasts.foretold(committed, error_model.AGEING))[2]
    assert shipped < longer  # context of few steps ages faster


def test_plans_that_stay_are_held_against_plans_made_anew():
    rows = foretold_rows(1.8, 0.87)[0] + [
        {"clip": clip, "kind": "planned", "profile": profile, "speed": speed, "replan": replan,
         "error": 0.01 if replan else 0.1, "planned_anew": int(replan and profile == "wan" and clip)}
        for clip in (0, 1) for profile in foretold.PROFILES for speed in MAIN.speeds for replan in (False, True)
    ]  # fmt: skip
    rows += [{"clip": 0, "kind": "watched", "what": what, "ratio": 0.5} for what in ("predictions", "context")]
    table = foretold.table({"machine": {"device": "a machine"}, "rows": rows})
    assert "| wan | 3x | 20.0 dB | 40.0 dB | 1 of 2 |" in table
    assert "| nano | 2x | 20.0 dB | 40.0 dB | 0 of 2 |" in table
    assert "missed by 0.50 times" in table[-1] and sum(line.startswith("| FP") for line in table) == 24


def test_watched_runs_are_paired_with_their_neighbours():
    def run(kind, seconds, live=()):
        return {"kind": kind, "seconds": seconds, "live": list(live), "decisions": "FRR", "evaluations": [1, 0.1, 0.1]}

    block = {"watched": (2.2, [0.01, 0.01]), "unwatched": (2.0, [0.0, 0.0])}
    rows = [run(*each) for kind, (seconds, live) in block.items()
            for each in (("off", 2.0), (kind, seconds, live), (kind, seconds, live), ("off", 2.0))]  # fmt: skip
    found = panel.summarise(rows, read=2)
    assert found["watched"]["ratio"] == pytest.approx(1.1) and found["watched"]["pairs"] == 2
    assert found["unwatched"]["ratio"] == 1.0 and found["unwatched"]["share"] == 0.0
    assert found["watched"]["share"] == pytest.approx(0.02 / 2.2) and found["event_ms"] == pytest.approx(20.0)
    assert (found["least"], found["least_ms"]) == ("R", 100.0)
    machine, settings = {"device": "a machine", "threads": 1}, {"steps": 3}
    (sentence,) = report.panel_table({"machine": machine, "settings": settings, "summary": found})
    assert "1.100 times as long" in sentence and "of 2 alternated pairs" in sentence


def test_costs_are_measured_against_the_ideal():
    measured = costs.measure("nano", (3, 16, 16), 0.2, CachePolicy())
    assert measured["tokens"] == 192 and measured["keys"] == 192
    ratios = ("reuse_over_full", "partial_over_full", "partial_over_ideal", "deciding_over_full")
    assert all(0 < measured[name] < math.inf for name in ratios) and measured["choosing_over_full"] is None
    assert measured["storing_over_full"] > 0 and measured["remembered"] < 192
    chosen = costs.measure("nano", (3, 16, 16), 0.2, costs.POLICIES["chosen by content"])
    assert chosen["choosing_over_full"] > 0 and chosen["remembered"] == 0


def test_what_evaluations_cost_beyond_their_arithmetic_is_found_in_rows_made_of_it():
    nano = ErrorProfile.load("nano")
    shape = costs.nano_shape(nano)
    truth = replace(nano, overhead=0.2, storing=(0.1, 0.5), joining=(0.05, 0.3))
    rows = []
    for tokens, selected, remembered, packed in (
        (720, 200, 600, False),
        (720, 200, 600, True),
        (1296, 300, 250, False),
        (1296, 300, 1000, True),
        (720, 300, 0, False),
    ):
        keys = 100 + remembered if remembered else selected
        made = Costs.of(
            shape, tokens, selected, keys, truth.overhead, remembered, truth.storing[packed], truth.joining[packed]
        )
        rows.append({
            "tokens": tokens, "selected": selected / tokens, "keys": keys, "remembered": remembered, "packed": packed,
            "partial_over_full": made.partial, "storing_over_full": made.storing,
        })  # fmt: skip
    found = costs.fitted(nano, shape, rows)
    assert found.overhead == pytest.approx(0.2) and found.first == nano.first
    np.testing.assert_allclose([*found.storing, *found.joining], [*truth.storing, *truth.joining], rtol=0.01)


def test_nanos_profile_foretells_the_committed_costs():
    """Reckoned as runs reckon; when the fit took prompts for longer than theirs, runs were all slower than planned."""
    nano, rows = ErrorProfile.load("nano"), json.loads((report.RESULTS / "costs.json").read_text())["rows"]
    rows = [row for row in rows if row["shape"] == "nano"]
    foretold = np.array([costs.foretold(nano, row).partial for row in rows])
    missed = np.array([row["partial_over_full"] for row in rows]) - foretold
    assert abs(missed.mean()) < 0.02 and missed.std() < 0.06
    assert foretold == pytest.approx([row["predicted_partial_over_full"] for row in rows])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak memory")
def test_peak_memory_starts_anew():
    first = PeakMemory()
    block = torch.ones(2**26)
    with_block = first.bytes
    del block
    assert PeakMemory().bytes < with_block - 2**27  # half of the block is enough to tell


def test_real_size_runs_small(tmp_path):
    out = tmp_path / "real-size.json"
    real_size.main(["--models", "tiny", "--sizes", "64x64x9", "--masks", "0.25", "--speeds", "2", "--steps", "12",
                    "--out", str(out)])  # fmt: skip
    result = json.loads(out.read_text())
    rows = {row["tier"]: row for row in result["evaluations"]}
    assert rows.keys() == real_size.TIERS.keys()
    assert all(row["decisions"] == real_size.PLAN and not row["warnings"] for row in rows.values())
    assert rows["packed"]["context_mb"] < rows["on the device"]["context_mb"]
    assert rows["weighted prune"]["context_mb"] == rows["weighted prune"]["ms_storing"] == 0
    assert 0 < rows["packed"]["ms_storing"]
    assert 0 < rows["weighted prune"]["ideal_partial_over_full"] < rows["on the device"]["ideal_partial_over_full"] < 1
    assert all(0 < row["ms_decide"] < row["ms_full"] and row["ms_select"] > 0 for row in rows.values())
    assert {name for name, row in rows.items() if row["ms_look"]} == {"weighted prune, chosen by content"}
    assert len(real_size.table(result)) == 4 + len(rows) + 3 + 1
    (run,) = result["runs"]
    assert run["decisions"].count("F") < 12 and run["predicted_speed"] > 1.5
    assert run["speed"] == pytest.approx(24e-3 * rows["packed"]["ms_stock"] / run["seconds"])


def test_real_size_measures_what_it_is_for_by_default(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(real_size, "_measure", lambda name, args, *others: seen.update({name: args}))
    real_size.main(["--out", str(tmp_path / "real-size.json")])
    assert [*seen] == ["1.3B", "14B"]
    args = seen["14B"]
    assert args.sizes == ["480x832x33", "480x832x81", "720x1280x81"] and args.masks == [0.1, 0.2]
    assert args.steps == 50 and args.speeds == [2.0, 3.0, 4.0, 6.0] and args.tiers == [*real_size.TIERS]
    assert [real_size.latent_size(size)[0] for size in args.sizes] == [9, 21, 21]
    shapes = {name: (128 * m["num_attention_heads"], m["num_layers"]) for name, m in real_size.MODELS.items()}
    assert shapes["1.3B"] == (1536, 30) and shapes["14B"] == (5120, 40)


def test_real_size_goes_on_where_it_was_and_says_what_did_not_fit(tmp_path, monkeypatch):
    out = tmp_path / "real-size.json"
    small = ["--models", "tiny", "--sizes", "64x64x9", "--masks", "0.25", "--speeds", "--out", str(out), "--tiers"]
    real_size.main([*small, "packed", "--minutes", "0"])
    assert not out.exists()
    real_size.main([*small, "packed"])
    (first,) = json.loads(out.read_text())["evaluations"]

    def full(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("hetcache_core.memory.ContextMemory.capture", full)
    real_size.main([*small, "packed", "on the device"])
    result = json.loads(out.read_text())
    assert result["evaluations"][0] == first and result["evaluations"][1]["ms_partial"] is None
    assert "none: context could not be remembered (OutOfMemoryError" in real_size.table(result)[-4]
    monkeypatch.setattr(real_size, "describe", lambda: {"device": "another"})
    with pytest.raises(SystemExit, match="of another machine"):
        real_size.main([*small, "packed"])


def test_calibration_finds_the_weights_that_made_the_errors():
    made = replace(ErrorProfile.load("nano"), weight=(0.7, 0.9, 1.2, 1.2), staleness=0.3, staleness_held=0.8)
    made, sigmas, rows = replace(made, spill=0.0), (*made.sigmas, 0.0), []
    for clip, held in enumerate((False, True, False, True)):
        truth = ErrorModel(sigmas, made, calibrate.COSTS, replace(calibrate.FREE, held=held))
        for schedule in calibrate.probes(made, sigmas, 40, seed=clip):
            assert len(schedule) == 30 and set(schedule) <= set("FPR")
            error = (1.0, 3.0)[clip // 2] * truth.error(schedule)
            rows.append({"clip": clip // 2, "held": held, "schedule": schedule, "error": error})
    unknown = replace(made, weight=(1.0, 1.0), staleness=0.1, staleness_held=0.1, spill=0.1)
    found, misfit = calibrate.fitted(unknown, sigmas, rows)
    assert misfit < 0.3 and found.spill == 0.0
    assert found.staleness == pytest.approx(0.3, rel=0.1) and found.staleness_held == pytest.approx(0.8, rel=0.1)
    assert found.weight == pytest.approx(made.weight, rel=0.25)


def test_probing_schedules_are_the_same_every_time():
    nano = ErrorProfile.load("nano")
    first, again, other = (calibrate.probes(nano, (*nano.sigmas, 0.0), 5, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 5


def test_an_impact_is_measured_on_the_model_that_runs():
    clip = make_clip(TUNING[0], 5, 64, 64, mask_fraction=(0.2, 0.3))
    found = impact.measure(LatentEdit(clip, 4.0), ("step", "cfg", "block"))
    assert all(value > 1e-4 for value in found)


def test_an_impact_can_be_measured_on_an_edit_of_ones_own(tmp_path, monkeypatch):
    """By any Wan-VACE model; here nano itself stands for the folder."""
    clip = make_clip(TUNING[0], 5, 64, 64, mask_fraction=(0.2, 0.3))
    write_video(tmp_path / "clip.mp4", clip.video, 16)
    write_video(tmp_path / "mask.mp4", np.repeat(clip.mask[..., None] * np.uint8(255), 3, -1), 16)
    monkeypatch.setattr(impact.models, "load_folder", lambda folder, prompt: models.load_nano(prompt))
    (tmp_path / "mine.json").write_text(ErrorProfile.load("wan").to_json())
    common = ["--profile", str(tmp_path / "mine.json"), "--model", str(tmp_path)]
    with pytest.raises(SystemExit):
        impact.main(common)
    edit = ["--clip", str(tmp_path / "clip.mp4"), "--mask", str(tmp_path / "mask.mp4"), "--prompt", "red circle"]
    impact.main([*common, *edit, "--size", "64", "--frames", "5"])
    found = ErrorProfile.load(str(tmp_path / "mine.json")).impact
    assert found != ErrorProfile.load("wan").impact and all(value > 1e-4 for value in found)


def test_prices_of_guidance_and_blocks_come_from_their_errors():
    edit = LatentEdit(make_clip(TUNING[0], 5, 64, 64, mask_fraction=(0.2, 0.3)), 4.0)
    names = kinds.schedules()
    assert all(
        len(schedule) == 30 and schedule.startswith("FF") and schedule.endswith("FF") for schedule in names.values()
    )
    near = {"R1": 0.01, "R3": 0.05, "R5": 0.1}
    rows = [{"name": name, "error": near.get(name, 0.05)} for name in names]
    worse = [{**row, "error": row["error"] * (2 if row["name"] == "FGR" else 1)} for row in rows]
    (guidance, blocks), (dearer, same) = kinds.prices(rows, edit), kinds.prices(worse, edit)
    assert dearer > 1.5 * guidance > 0 and same == blocks > 0


def test_no_two_methods_of_a_plot_look_alike():
    looks = [tuple(look(i).values()) for i in range(max(len(RIVALS), len(ABLATIONS) + 1))]
    assert len(set(looks)) == len(looks)


def test_a_method_looks_the_same_in_every_plot_and_ablations_have_one_of_their_own(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **kwargs: (
        drawn.setdefault(kwargs["label"], []).append((kwargs["marker"], kwargs["color"])), plot(*args, **kwargs)
    ))  # fmt: skip

    def entry(name):
        return {"name": name, "wanted": 2.0, "clips": 1, "speed": 2.0, "psnr": {"mask": 30.0}}

    names = ("ours", "easycache", "forecast", "held", "crop")
    alone = {"setting": MAIN.name, "summary": [entry("ours"), entry("crop")]}
    every = {"setting": MAIN.name, "summary": [entry(name) for name in names]}
    assert [file.name for file in draw_all(alone, tmp_path)] == [f"{MAIN.name}.png"]
    assert [file.name for file in draw_all(every, tmp_path)] == [f"{MAIN.name}.png", f"{MAIN.name}-ablations.png"]
    counts = {label: len(found) for label, found in drawn.items()}
    assert counts == {"HetCache": 3, "crop and stitch": 2, "EasyCache": 1, METHODS["forecast"].label: 2,
                      METHODS["held"].label: 1}  # fmt: skip
    assert len(set(drawn["crop and stitch"])) == 1
