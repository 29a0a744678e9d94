import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the benchmarks need diffusers")

from benchmarks import calibrate, costs, impact, kinds, panel, quality, real_size, report
from benchmarks.latent import LatentEdit
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.error_model import ErrorModel
from nano.clips import TUNING, make_clip

README = Path(report.ROOT) / "README.md"


@pytest.mark.parametrize("page", report.sections(), ids=lambda path: str(path.relative_to(report.ROOT)))
def test_pages_show_the_committed_results(page):
    text = page.read_text()
    assert report.updated(text, report.sections()[page]) == text


def row(name, clip, psnr, speed=2.0):
    regions = ("mask", "ring", "outside", "all")
    return {
        "name": name, "clip": clip, "speed": speed, "predicted_speed": 2.0, "peak_context_bytes": 2**20,
        "psnr": dict.fromkeys(regions, psnr), "ssim": dict.fromkeys(regions, 0.9),
    }  # fmt: skip


def test_summary_pairs_every_speed_with_fewer_steps_clip_by_clip():
    rows = [row("full", c, math.inf, 1.0) for c in (1, 2)]
    rows += [
        row("speed-2", 1, 40.0),
        row("speed-2", 2, 46.0),
        row("fewer-steps-2", 1, 30.0),
        row("fewer-steps-2", 2, 40.0),
    ]
    summary = quality.summarise(rows)
    assert summary["speed-2"]["psnr_mask"] == 43.0
    assert summary["speed-2"]["gain_over_fewer_steps"] == 8.0
    assert summary["speed-2"]["gain_spread"] == pytest.approx(math.sqrt(8))
    assert "gain_over_fewer_steps" not in summary["fewer-steps-2"]
    table = "\n".join(
        report.quality_table({
            "settings": {"steps": 30, "cfg": 4.0, "size": 96, "frames": 17, "mask": [0.1, 0.2], "split": "tuning"},
            "machine": {"device": "a machine", "threads": 2},
            "summary": summary,
        })
    )  # fmt: skip
    assert "+8.0 ± 2.8 dB" in table and "fewer steps, time of speed 2" in table


def test_variants_are_ours_and_each_half_of_it_alone():
    policies = quality.variants(CachePolicy(), [3.0], ablations=True)
    assert set(policies) == {"speed-3", "forecast-3", "partial-3"}
    assert not policies["forecast-3"].partials and policies["partial-3"].max_reuse == 0


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


def test_costs_are_measured_against_the_ideal(monkeypatch):
    monkeypatch.setattr(costs, "GRID", (3, 16, 16))
    measured = costs.measure("nano", 0.2, CachePolicy())
    assert measured["tokens"] == 192 and measured["keys"] == 192
    ratios = ("reuse_over_full", "partial_over_full", "partial_over_ideal", "deciding_over_full")
    assert all(0 < measured[name] < math.inf for name in ratios)


def test_real_size_runs_small(tmp_path):
    out = tmp_path / "real-size.json"
    real_size.main(["--models", "tiny", "--sizes", "64x64x9", "--masks", "0.25", "--speeds", "2", "--steps", "12",
                    "--out", str(out)])  # fmt: skip
    result = json.loads(out.read_text())
    rows = {row["tier"]: row for row in result["evaluations"]}
    assert rows.keys() == real_size.TIERS.keys()
    assert all(row["decisions"] == real_size.PLAN and not row["warnings"] for row in rows.values())
    assert rows["float8"]["context_mb"] < rows["on the device"]["context_mb"]
    assert rows["weighted prune"]["context_mb"] == 0
    assert 0 < rows["weighted prune"]["ideal_partial_over_full"] < rows["on the device"]["ideal_partial_over_full"] < 1
    (run,) = result["runs"]
    assert run["decisions"].count("F") < 12 and run["predicted_speed"] > 1.5


def test_calibration_finds_the_weights_that_made_the_errors():
    made = replace(ErrorProfile.load("nano"), weight=(0.6, 0.9, 1.2, 1.5, 1.1, 0.7), staleness=0.8, spill=0.0)
    sigmas = (*made.sigmas, 0.0)
    truth, rows = ErrorModel(sigmas, made, calibrate.COSTS, calibrate.FREE), []
    for clip, loud in enumerate((1.0, 3.0)):
        for schedule in calibrate.probes(made, sigmas, 40, seed=clip):
            assert len(schedule) == 30 and set(schedule) <= set("FPR")
            rows.append({"clip": clip, "schedule": schedule, "error": loud * truth.error(schedule)})
    found, misfit = calibrate.fitted(replace(made, weight=(1.0, 1.0), staleness=0.1, spill=0.1), sigmas, rows)
    assert misfit < 0.3 and found.staleness == pytest.approx(0.8, rel=0.1) and found.spill == 0.0
    assert found.weight == pytest.approx(made.weight, rel=0.25)


def test_probing_schedules_are_the_same_every_time():
    nano = ErrorProfile.load("nano")
    first, again, other = (calibrate.probes(nano, (*nano.sigmas, 0.0), 5, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 5


def test_an_impact_is_measured_on_the_model_that_runs():
    clip = make_clip(TUNING[0], 5, 64, 64, mask_fraction=(0.2, 0.3))
    found = impact.measure(LatentEdit(clip, 4.0), ("step", "cfg", "block"))
    assert all(value > 1e-4 for value in found)


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
