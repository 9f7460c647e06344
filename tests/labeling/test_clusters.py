"""Means and shares over clusters, against numbers worked by hand, an independent bootstrap, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from labeling.clusters import mean, share


def test_a_share_worked_by_hand():
    """Won, won, lost, won on four prompts: R = 3/4, V = 4/3 · (3·(1/4)² + (3/4)²)/16 = 1/16, so R(1−R)/V = 3 effective judgments.
    t(3) = 3.18245, t² = 10.1280; middle (3/4 + 10.128/6) / (1 + 10.128/3) = 0.55713;
    half 3.18245·√(0.1875/3 + 10.128/36) / 4.376 = 0.42643."""
    found = share(np.array([1, 1, 0, 1.0]), np.arange(4))
    assert (found.value, found.count, found.clusters) == (0.75, 4, 4)
    assert (found.low, found.high) == pytest.approx((0.13070, 0.98357), abs=1e-4)


def test_a_mean_worked_by_hand():
    """5 and 7 on one prompt, 3 on another: R = 5; V = 2 · ((12−10)² + (3−5)²) / 9 = 16/9; t(1) = 12.7062; so 5 ± 12.7062·4/3."""
    found = mean(np.array([5, np.nan, 7, 3.0]), np.array([0, 0, 0, 1]))
    assert (found.value, found.count, found.clusters) == (5, 3, 2)
    assert (found.low, found.high) == pytest.approx((5 - 16.9416, 5 + 16.9416), abs=1e-3)
    assert mean(np.array([5, 7, 3.0]), np.array([0, 0, 1]), least=1, most=7).high == 7


def test_labelers_who_say_the_same_add_nothing():
    once = share(np.array([1, 0, 1, 1, 0, 1.0]), np.arange(6))
    thrice = share(np.repeat([1, 0, 1, 1, 0, 1.0], 3), np.repeat(np.arange(6), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert thrice.count == 18


def test_the_other_way_round_is_the_mirror():
    values, of = np.array([1, 0.5, 0, 1, 1, 0.5, 1.0]), np.array([0, 0, 1, 2, 2, 3, 4])
    one, other = share(values, of), share(1 - values, of)
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low))


@pytest.mark.parametrize(("outcome", "low", "high"), [(1.0, 0.6, 1), (0.0, 0, 0.4), (0.5, 0.2, 0.8)])
def test_all_alike_is_not_certain(outcome, low, high):
    """Ten prompts all won (lost, tied): each counts as one judgment."""
    found = share(np.full(10, outcome), np.arange(10))
    assert found.value == outcome
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08)


def test_what_cannot_be_said():
    assert share(np.array([np.nan]), np.array([0])).value is None
    alone = share(np.array([1.0, 0.0]), np.array([3, 3]))
    assert (alone.value, alone.low, alone.high, alone.clusters) == (0.5, None, None, 1)


def clustered(dice: np.random.Generator, prompts: int, truth: float) -> tuple[np.ndarray, np.ndarray]:
    """One to three labelers on each prompt, who lean together: outcomes 0, ½ and 1 with this mean."""
    lean = np.clip(dice.beta(4 * truth, 4 * (1 - truth), prompts), 0.01, 0.99)
    of = np.repeat(np.arange(prompts), dice.integers(1, 4, prompts))
    return dice.binomial(2, lean[of]) / 2, of


def test_intervals_are_those_of_an_independent_bootstrap():
    """scipy's percentile bootstrap, which draws prompts."""
    values, of = clustered(np.random.default_rng(1), 400, 0.6)
    sums, counts = np.bincount(of, values), np.bincount(of)
    drawn = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True, n_resamples=3000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    for found in (share(values, of), mean(values, of)):
        assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.006)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """19 in 20, within what 1,500 tries can tell; as if labelers were independent they would hold it far less often."""
    dice, truth = np.random.default_rng(3), 0.8
    held = naive = 0
    for _ in range(1500):
        values, of = clustered(dice, 25, truth)
        found, alone = share(values, of), share(values, np.arange(len(values)))
        held += found.low <= truth <= found.high
        naive += alone.low <= truth <= alone.high
    assert 0.93 <= held / 1500 <= 0.975, held / 1500
    assert naive / 1500 < held / 1500 - 0.03, naive / 1500
