"""A stream's numbers, by hand."""

from __future__ import annotations

import pytest

from undrift.scoring.over_time import fall_from_best, over_time, seen_average

POINTS = [[50.0, None], [80.0, 20.0], [60.0, 40.0]]


def test_averages_are_over_the_tasks_seen_so_far():
    assert seen_average([[None, None], *POINTS]) == [None, 50.0, 50.0, 50.0]


def test_forgetting_is_the_fall_from_the_best_point_until_then():
    assert fall_from_best([[None, None], *POINTS]) == [None, 0.0, 0.0, 10.0]


def test_the_metrics():
    assert over_time(POINTS) == {"last": 50.0, "anytime": 50.0, "forgetting": 10.0}
    assert over_time([[None, 10.0]]) == {"last": None, "anytime": 10.0, "forgetting": 0.0}
    assert over_time([[None]])["anytime"] is None
    assert over_time([[90.0, 0.0], [30.0, 60.0]])["forgetting"] == pytest.approx(30)
