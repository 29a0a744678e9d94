import json
from types import SimpleNamespace

import numpy as np
import torch

from hetcache_core import CachePolicy, Engine, RunSetup
from hetcache_core.costs import ModelShape
from hetcache_core.plan import Plan
from hetcache_core.progress import COMPUTED, FORECAST, GENERATIVE, MARGIN, REMEMBERED, snapshot, token_map
from hetcache_core.stats import RunStats
from hetcache_core.tiers import NO_MEMORY
from hetcache_core.tokens import TokenGrid, classify

GRID = TokenGrid(2, 3, 4)


class Watch:
    """The time of a call, on a device that may not be done with it."""

    def __init__(self, seconds: float, finished: bool = True):
        self._seconds, self.finished = seconds, finished

    def stop(self) -> None:
        """It runs no clock."""

    @property
    def seconds(self) -> float:
        assert self.finished, "someone waited for the device"
        return self._seconds


def classes(margin: int = 0):
    touched = torch.zeros(GRID.shape, dtype=torch.bool)
    touched[:, 1, 1] = True
    return classify(touched, margin)


def a_run(watches: str) -> RunStats:
    """A run of FRPR so far, in which `x` marks calls the device still works on."""
    stats = RunStats(CachePolicy(speed=2.0), GRID, classes())
    stats.begin(Plan("FRPR", 2.0, 0.1), NO_MEMORY, 5, "")
    for i, (letter, watch) in enumerate(zip("FRPR", watches)):
        stats.add(i, 1 - i / 4, letter, "planned", 5, Watch({"F": 1.0, "P": 0.5, "R": 0.0}[letter], watch != "x"), 7, 1)
    return stats


def test_a_snapshot_leaves_out_what_the_device_still_works_on():
    stats = a_run("--xx")
    told = snapshot(stats, 4)
    assert told["decisions"] == "FR" and told["seconds"] == [1.0, 0.0] and stats.count == 4
    assert snapshot(stats, 4)["decisions"] == "FR"  # asking changes nothing
    for *_, watch in stats._watches:
        watch.finished = True
    assert snapshot(stats, 4)["decisions"] == "FRPR" and stats.seconds == 1.5


def test_speed_is_against_full_evaluations_that_store_nothing():
    """Or dear ways to remember would look fast."""
    stats = RunStats(CachePolicy(speed=2.0), GRID, classes())
    stats.begin(Plan("FFPPF", 2.0, 0.1), NO_MEMORY, 5, "")
    for i, letter in enumerate("FFPPF"):
        storing = [Watch(0.25), Watch(0.25)] if i < 2 else []
        took = {"F": 1.0, "P": 0.25}[letter] + sum(watch.seconds for watch in storing)
        stats.add(i, 1 - i / 5, letter, "planned", 5, Watch(took), 7, 1, storing=storing)
    assert stats.seconds == 4.5 and stats.seconds_of("F") == 1.0
    assert stats.speed == 5 / 4.5 and stats.records[1].storing_seconds == 0.5


def test_a_snapshot_with_waiting_is_the_whole_truth():
    stats = a_run("----")
    told = json.loads(json.dumps(snapshot(stats, 4, wait=True)))
    assert told["decisions"] == stats.decisions and told["speed"] == stats.speed
    assert told["saved_seconds"] == round(stats.seconds * (stats.speed - 1), 3)
    assert (told["total"], told["planned"], told["target"], told["predicted"]) == (4, "FRPR", 2.0, 2.0)


def test_before_the_first_evaluation_nothing_is_made_up():
    told = snapshot(a_run(""), 4)
    assert told["speed"] is None and told["saved_seconds"] == 0 and told["decisions"] == "" and told["seconds"] == []


def test_methods_without_a_target_have_none():
    stats = RunStats(CachePolicy(method="hetcache"), GRID, classes())
    stats.begin(None, NO_MEMORY, 5, "")
    assert snapshot(stats, 4)["target"] is snapshot(stats, 4)["predicted"] is None


def test_the_map_names_every_token_by_its_dearest_use():
    stats = a_run("----")
    stats.classes = classes(margin=1)
    context = stats.classes.context
    stats.remembered = context[:3]
    stats.last_selection = torch.cat([stats.classes.edited, context[2:4]]).sort().values
    uses = token_map(stats)
    assert uses.shape == GRID.shape and uses.dtype == np.uint8
    assert (uses[:, 1, 1] == GENERATIVE).all() and uses[0, 0, 0] == MARGIN
    assert list(uses.reshape(-1)[context[:5]]) == [REMEMBERED, REMEMBERED, COMPUTED, COMPUTED, FORECAST]
    assert token_map(SimpleNamespace(classes=None)) is None


def test_a_run_leaves_its_map_behind():
    touched = torch.zeros(3, 8, 8, dtype=torch.bool)
    touched[:, :3, :3] = True
    sigmas = tuple(torch.linspace(1, 0, 21).tolist())
    setup = RunSetup(TokenGrid(3, 8, 8), sigmas, ModelShape(256, 4, 512), classify(touched))
    engine = Engine(CachePolicy(speed=3.0, profile="wan"), setup)
    assert "P" in engine.stats.planned
    uses = token_map(engine.stats)
    assert set(np.unique(uses)) == {REMEMBERED, GENERATIVE}
