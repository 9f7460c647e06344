"""When a batch is done, against numbers worked by hand."""

from datetime import UTC, datetime, timedelta

import pytest

from labeling.forecast import forecast

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_mean_pace_with_its_interval():
    """10, 20, 30 a day: mean 20, s/√3 = 5.7735, t(0.975; 2) = 4.3027: from 0 (−4.84) to 44.84 a day."""
    found = forecast(100, [10, 20, 30], NOW)
    assert found.pace == 20 and found.done_at == NOW + timedelta(days=5)
    assert (found.earliest - NOW) / timedelta(days=1) == pytest.approx(100 / 44.842, abs=1e-3)
    assert found.latest is None, "at the slow end nothing is done"


def test_steady_days_leave_no_doubt():
    found = forecast(40, [20, 20, 20, 20], NOW)
    assert found.earliest == found.done_at == found.latest == NOW + timedelta(days=2)


def test_a_narrow_interval_has_both_ends():
    found = forecast(1000, [95, 100, 105, 100, 98, 102, 100], NOW)
    assert found.earliest < found.done_at < found.latest < NOW + timedelta(days=11)


@pytest.mark.parametrize("per_day", [[0, 0, 0], [], [0]])
def test_not_at_this_pace(per_day):
    found = forecast(5, per_day, NOW)
    assert (found.done_at, found.earliest, found.latest) == (None, None, None)


def test_one_day_has_no_interval_and_nothing_left_is_done():
    assert forecast(10, [10], NOW).done_at == NOW + timedelta(days=1) and forecast(10, [10], NOW).earliest is None
    assert forecast(0, [0, 0], NOW).done_at == NOW
