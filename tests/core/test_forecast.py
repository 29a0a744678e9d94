import pytest
import torch

from hetcache_core.forecast import Forecast, to_v, to_x0

ALL = torch.arange(6)


def line(evaluation, slope=1.0):
    return torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 2, 6, 2, 2) + slope * evaluation


def history(order=1, damping=None, at=(0, 1)):
    forecast = Forecast(order, damping, ALL[2:4])
    for evaluation in at:
        forecast.record(evaluation, line(evaluation).clone())
    return forecast


def test_a_line_is_forecast_exactly():
    torch.testing.assert_close(history().predict(4), line(4))
    torch.testing.assert_close(history(at=(0, 3)).predict(5), line(5))


def test_order_zero_and_one_prediction_hold():
    assert torch.equal(history(order=0).predict(4), line(1))
    assert torch.equal(history(at=(2,)).predict(4), line(2))


def curve(position):
    return line(0.5 * position**2 - position)


def bent(order=2, at=(0, 2, 3)):
    forecast = Forecast(order, 1.0, ALL[2:4])
    for position in at:
        forecast.record(position, curve(position))
    return forecast


def test_a_parabola_is_forecast_but_for_the_part_of_its_bend_held_back():
    """The truth lies beyond the line through the last two; the forecast goes most of the way, less further ahead."""
    shares = []
    for position in (4, 6, 9):
        straight = bent(order=1).predict(position)
        share = (bent().predict(position) - straight) / (curve(position) - straight)
        torch.testing.assert_close(share, torch.full_like(share, float(share.flatten()[0])))
        shares.append(float(share.flatten()[0]))
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_two_predictions_have_no_bend():
    torch.testing.assert_close(bent(at=(0, 2)).predict(5), bent(order=1, at=(0, 2)).predict(5))


def test_tokens_computed_alone_get_their_own_bend():
    forecast = bent()
    forecast.record(4, curve(4)[:, :, 2:4], ALL[2:4])
    alone, rest = bent(at=(0, 2, 3, 4)), bent()
    torch.testing.assert_close(forecast.predict(6)[:, :, 2:4], alone.predict(6)[:, :, 2:4])
    torch.testing.assert_close(forecast.predict(6)[:, :, :2], rest.predict(6)[:, :, :2])


def test_a_corrector_keeps_slope_and_bend():
    forecast = bent()
    ahead = forecast.predict(5) - forecast.predict(3)
    forecast.record(3, curve(3) + 7)
    torch.testing.assert_close(forecast.predict(5), curve(3) + 7 + ahead)


def test_fixed_damping_scales_the_slope():
    torch.testing.assert_close(history(damping=0.5).predict(3), line(2))


def test_tokens_computed_alone_get_their_own_slope():
    forecast = history()
    forecast.record(3, line(3)[:, :, 2:4] + 10, ALL[2:4])
    predicted = forecast.predict(4)
    torch.testing.assert_close(predicted[:, :, :2], line(4)[:, :, :2])
    torch.testing.assert_close(predicted[:, :, 2:4], line(3)[:, :, 2:4] + 10 + 6)
    assert forecast.computed_at.tolist() == [1, 1, 3, 3, 1, 1]


def test_damping_is_fitted_on_what_really_came():
    forecast = history()
    assert float(forecast.damping) == 1.0
    forecast.record(2, line(1.25))  # the slope said 1, a quarter of it came
    assert float(forecast.damping) == pytest.approx(0.5)
    doubtful = history()
    doubtful.record(2, line(1.5))  # half of it is enough to be believed
    assert float(doubtful.damping) == 1.0
    overshoot = history()
    overshoot.record(2, line(0))  # the truth turned back: hold rather than extrapolate
    assert float(overshoot.damping) == 0.0


def test_constant_predictions_leave_damping_alone():
    forecast = Forecast(1, None, ALL)
    for evaluation in range(3):
        forecast.record(evaluation, line(0).clone())
    assert float(forecast.damping) == 1.0
    assert torch.equal(forecast.predict(9), line(0))


def test_the_first_prediction_must_be_whole():
    with pytest.raises(ValueError, match="all tokens"):
        Forecast(1, None, ALL).record(0, line(0)[:, :, :2], ALL[:2])


def test_what_is_recorded_is_copied():
    forecast = Forecast(0, None, ALL)
    patches = line(0).clone()
    forecast.record(0, patches)
    patches.zero_()
    assert torch.equal(forecast.predict(1), line(0))


def test_bytes_are_a_latent_for_each_order():
    for order in range(3):
        assert history(order).bytes == (order + 1) * line(0).numel() * 4


def test_x0_and_v_are_inverse():
    v, x = torch.randn(2, 1, 4, 3)
    torch.testing.assert_close(to_v(to_x0(v, x, 0.6), x, 0.6), v)


def test_a_corrector_at_the_same_position_renews_the_value_and_keeps_the_slope():
    forecast = history()
    forecast.record(1, line(1) + 5)
    torch.testing.assert_close(forecast.predict(1), line(1) + 5)
    torch.testing.assert_close(forecast.predict(3), line(3) + 5)


def test_tokens_computed_twice_have_a_slope_though_the_rest_was_computed_once():
    forecast = Forecast(1, None, ALL[2:4])
    forecast.record(0, line(0).clone())
    forecast.record(1, line(1)[:, :, 2:4], ALL[2:4])
    predicted = forecast.predict(3)
    torch.testing.assert_close(predicted[:, :, 2:4], line(3)[:, :, 2:4])
    torch.testing.assert_close(predicted[:, :, :2], line(0)[:, :, :2])
