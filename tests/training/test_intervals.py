"""Intervals against scipy's, and against numbers worked by hand."""

import random

import pytest
from scipy.stats import binomtest

from training import intervals


@pytest.mark.parametrize(("wins", "n"), [(0, 7), (3, 7), (50, 100), (100, 100)])
def test_a_share_has_wilsons_interval(wins, n):
    found = intervals.share([1.0] * wins + [0.0] * (n - wins))
    expected = binomtest(wins, n).proportion_ci(method="wilson")
    assert (found["rate"], found["n"]) == (wins / n, n)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_points_that_say_the_same_count_once():
    """Ten comparisons of each of 12 prompts that all go the same way tell as much as 12, less one for the mean: 11."""
    points = [float(prompt % 2) for prompt in range(12) for _ in range(10)]
    clusters = [prompt for prompt in range(12) for _ in range(10)]
    assert intervals.effective_count(points, clusters) == pytest.approx(11)
    assert intervals.share(points, clusters)["low"] == pytest.approx(intervals.wilson(0.5, 11)[0])
    assert intervals.effective_count(points, list(range(120))) == pytest.approx(119)
    assert intervals.effective_count([1.0] * 30, [i // 10 for i in range(30)]) == 3, "all alike: one a cluster"


def test_a_ratio_is_as_uncertain_as_a_bootstrap_of_its_clusters_says():
    rng = random.Random(0)
    sizes = [rng.uniform(20, 200) for _ in range(300)]
    sums = [size * rng.gauss(2, 0.5) for size in sizes]
    found = intervals.ratio(sums, sizes)
    drawn = []
    for _ in range(1000):
        chosen = rng.choices(range(300), k=300)
        drawn.append(sum(sums[i] for i in chosen) / sum(sizes[i] for i in chosen))
    drawn.sort()
    assert found["mean"] == pytest.approx(sum(sums) / sum(sizes))
    assert (found["low"], found["high"]) == pytest.approx((drawn[25], drawn[975]), abs=0.015)


def test_means_and_nothing():
    found = intervals.mean([1.0, 3.0])  # deviation √2, standard error 1
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((2, 2 - 1.959964, 2 + 1.959964))
    assert intervals.mean([5.0]) == {"mean": 5.0, "low": None, "high": None, "n": 1}
    assert intervals.share([]) == {"rate": None, "low": None, "high": None, "n": 0}
    assert intervals.mean([])["mean"] is None and intervals.ratio([], [])["mean"] is None
