"""The pictures of a run and of a block profile: words that fit and can be read where a node shows them."""

import pytest
import torch

from hetcache_core import CachePolicy, picture
from hetcache_core.block_profile import BlockProfile
from hetcache_core.device import Stopwatch
from hetcache_core.stats import RunStats
from hetcache_core.tokens import classify

NODE = 300  # pixels of a node's width


def run(evaluations: int, width: int = 6, height: int = 4) -> RunStats:
    mask = torch.zeros(3, height, width, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    classes = classify(mask, 0, 0, 0)
    stats = RunStats(CachePolicy(), classes.grid, classes)
    for index in range(evaluations):
        watch = Stopwatch(torch.device("cpu"))
        stats.add(index, 1 - index / evaluations, "FPRBG"[index % 5], "planned", 10, watch, 1 << 20, 1 << 20)
    return stats


def luminance(colour) -> float:
    channels = [v / 255 for v in colour]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722)))


def test_words_are_as_large_on_a_node_as_its_own():
    shrunk = NODE / picture.WIDTH
    assert picture.TEXT * shrunk >= 11 and picture.SMALL * shrunk >= 9


@pytest.mark.parametrize("name", picture.ON_PAPER)
def test_bars_stand_out_from_the_paper(name):
    assert (luminance(picture.PAPER) + 0.05) / (luminance(picture.ON_PAPER[name]) + 0.05) >= 3


@pytest.mark.parametrize("evaluations", [1, 6, 50, 500])
def test_runs_of_any_length_are_drawn(evaluations):
    drawn = picture.draw(run(evaluations))
    assert drawn.shape[1:] == (picture.WIDTH, 3) and drawn.std() > 0
    assert (drawn[:, -picture.EDGE // 2 :] == picture.PAPER).all()  # nothing runs into the edge


@pytest.mark.parametrize("size", [(6, 4), (4, 6), (200, 120)])
def test_clips_of_any_shape_are_drawn(size):
    assert picture.draw(run(4, *size)).shape[1] == picture.WIDTH


def test_a_long_note_is_wrapped_not_cut():
    stats = run(6)
    short = len(picture.draw(stats))
    stats.note = " ".join(["a reason that takes many words"] * 8)
    assert len(picture.draw(stats)) >= short + 4 * picture.LINE
    lines = picture._wrapped([stats.note, "", "x" * 200])
    assert " ".join(lines[:-2]) == stats.note and lines[-2:] == ["", "x" * 200]
    assert all(picture.font(picture.TEXT).getlength(line) <= picture.ROOM for line in lines[:-1])


def test_blocks_are_numbered_as_far_as_there_is_room():
    drawn = picture.draw_scores(BlockProfile.load("nano"))
    assert drawn.shape[1] == picture.WIDTH and drawn.std() > 0
    assert picture._every(6, 200, 64) == 1 and picture._every(40, 30, 64) == 5 and picture._every(40, 13, 64) == 5
