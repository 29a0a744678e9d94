import json
from dataclasses import replace

import numpy as np
import pytest

from hetcache_core.costs import ModelShape
from hetcache_core.profile import ErrorProfile
from tests.core.test_plan import NANO, WAN, euler, sigmas


def test_with_few_steps_renewing_context_takes_off_less():
    usual, none, more = (NANO.renewing(share, few=True).staleness for share in (0.15, 0.0, 0.3))
    assert usual == pytest.approx(NANO.staleness) and 1.3 < none / usual < 1.4 and 0.6 < more / usual < 0.7
    assert NANO.renewing(0.0).staleness > none


@pytest.mark.parametrize("bad", [{"storing": (0.1,)}, {"joining": (0.1, -1.0)}, {"storing": (0.1, float("nan"))}])
def test_shares_of_storing_and_joining_are_two(bad):
    with pytest.raises(ValueError, match="two finite values"):
        replace(WAN, **bad)


def test_profiles_of_before_say_nothing_of_storing():
    values = {k: v for k, v in json.loads(WAN.to_json()).items() if k not in ("storing", "joining")}
    assert ErrorProfile.from_json(json.dumps(values)).storing == (0.0, 0.0)


def test_profiles_load_by_name_and_file_and_say_what_is_wrong(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(WAN.to_json())
    assert ErrorProfile.load(str(path)) == WAN
    with pytest.raises(ValueError, match="nor a file"):
        ErrorProfile.load("no-such-model")
    values = json.loads(WAN.to_json())
    with pytest.raises(ValueError, match="second"):
        ErrorProfile(**{**values, "second": [1.0, float("nan")]})
    for name, value in (("cooldown", 2.5), ("warmup", 10), ("sigmas", [14.6, 0.5])):
        with pytest.raises(ValueError, match=name):
            ErrorProfile(**{**values, name: value})
    assert ErrorProfile(**{**values, "cooldown": 2.0}).cooldown == 2
    path.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="not an error profile"):
        ErrorProfile.load(str(path))


def test_profile_differences_scale_with_the_steps_of_a_schedule():
    twice, same = ([*np.asarray(WAN.sigmas)[::k], 0.0] for k in (2, 1))
    np.testing.assert_allclose(WAN.at("first", same)[10], WAN.first[4], rtol=0.1)
    assert WAN.at("first", twice)[5] == pytest.approx(2 * WAN.at("first", same)[10], rel=1e-6)
    assert WAN.at("second", twice)[5] == pytest.approx(4 * WAN.at("second", same)[10], rel=1e-6)
    assert WAN.at("weight", twice)[5] == pytest.approx(2 * WAN.at("weight", same)[10], rel=1e-6)


def test_an_evaluation_weighs_as_much_as_the_step_taken_by_it():
    steps, weights = NANO.steps(euler(6)), NANO.at("weight", euler(6))
    assert steps[-1] < 0.1 * steps[:-1].min() and weights[-1] < 0.2 * weights[:-1].min()
    np.testing.assert_allclose(NANO.steps(sigmas(6)).sum(), NANO.steps(sigmas(30)).sum())
    np.testing.assert_allclose(NANO.steps(sigmas(6)), NANO.steps(sigmas(6)).mean(), rtol=0.02)


def test_schedules_beyond_the_measured_one_go_on_as_it_began_and_ended():
    part = replace(WAN, sigmas=WAN.sigmas[10:40], model=None)
    np.testing.assert_allclose(part.steps((*WAN.sigmas, 0.0))[10:39], 1.0)
    assert (part.steps((*WAN.sigmas, 0.0)) > 0).all() and len(part.at("first", (*WAN.sigmas, 0.0))) == 50


def test_profiles_are_placed_by_sigma_also_on_a_part_of_a_schedule():
    whole = [*WAN.sigmas, 0.0]
    np.testing.assert_allclose(WAN.at("second", whole[20:]), WAN.at("second", whole)[20:])


def test_evaluations_at_one_sigma_get_the_same_values():
    values = WAN.at("second", [*np.repeat(np.asarray(WAN.sigmas)[10:20], 2), 0.0])
    assert np.isfinite(values).all() and np.array_equal(values[::2], values[1::2])


def test_the_first_of_two_evaluations_at_a_level_corrects_the_step_that_led_there():
    levels = euler(5)
    heun = [levels[0], *np.repeat(levels[1:-1], 2), 0.0]
    long, brief = NANO.steps(levels)[:-1], NANO.steps(levels)[-1]
    np.testing.assert_allclose(NANO.steps(heun), [*np.repeat(long, 2), brief])
    np.testing.assert_allclose(NANO.steps(heun[:-1]), np.repeat(long, 2))  # a run that stops before, as of an expert


def test_a_measured_profile_keeps_what_a_step_weighs():
    schedule = euler(12)
    mine = NANO.measured("mine", schedule[:-1], first=(0.1,) * 11, second=(0.1,) * 10)
    np.testing.assert_allclose(mine.at("weight", schedule) / 12, NANO.at("weight", schedule) / 30)
    assert mine.name == "mine" and mine.model is None and mine.first == (0.1,) * 11


def test_models_find_their_profile():
    assert ErrorProfile.for_model(ModelShape(256, 6, 768, 3)).name == "nano"
    assert ErrorProfile.for_model(ModelShape(1536, 30, 8960, 15)).name == "wan"
