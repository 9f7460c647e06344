"""Agreement against numbers worked out by hand, then against scipy and the published examples of Krippendorff's α."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from labeling import agreement
from labeling.agreement import Rankings, compare, krippendorff_alpha, mean_tau_b, pairs_of, share_agreed

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), page 8: four observers, twelve units, 0 is missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]
JUDGMENTS = [(unit, value) for row in OBSERVERS for unit, value in enumerate(row) if value]


def test_ties_count_as_agreement_only_where_both_tie():
    # ab: better / tie; ac: better / better; bc: tie / better
    compared = compare([["a"], ["b", "c"]], [["a", "b"], ["c"]])
    assert (compared.agreed, compared.comparisons, compared.share) == (1, 3, 1 / 3)
    assert (compared.agreed_untied, compared.untied, compared.share_untied) == (1, 1, 1.0)
    assert compared.tau_b == 0.5  # (1 concordant − 0) / √(2 · 2)


@pytest.mark.parametrize(
    ("first", "second", "share", "share_untied", "tau_b"),
    [
        ([["a"], ["b"], ["c"], ["d"]], [["a"], ["b"], ["c"], ["d"]], 1, 1, 1),
        ([["a"], ["b"], ["c"], ["d"]], [["d"], ["c"], ["b"], ["a"]], 0, 0, -1),
        ([["a"], ["b"], ["c"], ["d"]], [["b"], ["a"], ["c"], ["d"]], 5 / 6, 5 / 6, 4 / 6),
        ([["a", "b"], ["c", "d"]], [["b", "a"], ["d", "c"]], 1, 1, 1),
        ([["a", "b"], ["c", "d"]], [["a"], ["b"], ["c"], ["d"]], 4 / 6, 1, 4 / (4 * 6) ** 0.5),
        ([["a", "b", "c"]], [["c", "b", "a"]], 1, None, None),
        ([["a", "b"]], [["a"], ["b"]], 0, None, None),
        ([["a"]], [["a"]], None, None, None),
    ],
)
def test_by_hand(first, second, share, share_untied, tau_b):
    for compared in (compare(first, second), compare(second, first)):
        assert compared.share == share and compared.share_untied == share_untied
        assert compared.tau_b == (pytest.approx(tau_b) if tau_b is not None else None)


@pytest.mark.parametrize("other", [[["a"]], [["a"], ["b"], ["c"]], [["a"], ["a"]], [["a"], ["x"]]])
def test_rankings_of_different_responses_are_refused(other):
    with pytest.raises(ValueError, match="not over the same responses"):
        compare([["a"], ["b"]], other)


def random_tiers(dice, responses: str) -> list[list[str]]:
    places = dice.integers(1, len(responses) + 1, size=len(responses))
    return [[r for r, p in zip(responses, places, strict=True) if p == place] for place in sorted(set(places))]


def test_tau_b_is_scipys_for_any_k_at_once():
    dice = np.random.default_rng(3)
    rows = [(task, random_tiers(dice, "abcdefghijkl"[: 2 + task % 11])) for task in range(200) for _labeler in range(2)]
    pairs = pairs_of(Rankings.of(rows))
    assert len(pairs) == 200
    for row in range(len(pairs)):
        first, second = rows[pairs.first[row]][1], rows[pairs.second[row]][1]
        places = [{r: place for place, tier in enumerate(tiers) for r in tier} for tiers in (first, second)]
        expected = kendalltau([places[0][r] for r in sorted(places[0])], [places[1][r] for r in sorted(places[1])])
        if np.isnan(expected.statistic):
            assert np.isnan(pairs.tau_b[row])
        else:
            assert pairs.tau_b[row] == pytest.approx(expected.statistic)
        assert pairs.of_one(row) == compare(first, second)


def test_each_task_counts_once_and_each_pair_of_its_labelers():
    a_first, b_first, tied = [["a"], ["b"]], [["b"], ["a"]], [["a", "b"]]
    # task 1: one of three pairs agrees; task 2: the only pair agrees; task 3: a tie against an order
    rows = [(1, a_first), (2, b_first), (1, a_first), (3, tied), (2, b_first), (1, b_first), (3, a_first), (4, tied)]
    pairs = pairs_of(Rankings.of(rows))
    together = sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert together == [(0, 2), (0, 5), (1, 4), (2, 5), (3, 6)]
    shared = share_agreed(pairs)
    assert shared.value == pytest.approx((1 / 3 + 1 + 0) / 3) and (shared.tasks, shared.count) == (3, 5)
    untied = share_agreed(pairs, ties=False)
    assert untied.value == pytest.approx((1 / 3 + 1) / 2) and (untied.tasks, untied.count) == (2, 4)
    tau = mean_tau_b(pairs)
    assert tau.value == pytest.approx(((1 - 1 - 1) / 3 + 1) / 2) and (tau.tasks, tau.count) == (2, 4)


def test_references():
    rows = [(1, [["a"], ["b"]]), (1, [["a"], ["b"]]), (1, [["b"], ["a"]])]
    pairs = agreement.pairs_with(Rankings.of(rows), {2: 0, 1: 0})
    assert pairs.first.tolist() == [1, 2] and pairs.agreed.tolist() == [1, 0]


def test_nothing_is_a_figure_without_a_value():
    empty = pairs_of(Rankings.of([]))
    assert share_agreed(empty) == mean_tau_b(empty) == agreement.Figure(None, None, None, 0, 0)
    alone = pairs_of(Rankings.of([(1, [["a"], ["b"]]), (2, [["a"], ["b"]])]))
    assert share_agreed(alone).value is None
    one_task = pairs_of(Rankings.of([(1, [["a"], ["b"]]), (1, [["a"], ["b"]])]))
    assert share_agreed(one_task) == agreement.Figure(1.0, None, None, 1, 1)


def test_interval_is_the_one_of_theory_and_the_same_for_the_same_seed():
    values = np.array([1.0] * 280 + [0.0] * 120)
    found = agreement.mean(values, seed=1)
    standard_error = (0.7 * 0.3 / 400) ** 0.5
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - 1.96 * standard_error, abs=0.006)
    assert found.high == pytest.approx(0.7 + 1.96 * standard_error, abs=0.006)
    assert found == agreement.mean(values, seed=1) != agreement.mean(values, seed=2)


def test_interval_holds_the_truth_about_95_times_in_100():
    dice = np.random.default_rng(8)
    figures = [agreement.mean((dice.random(60) < 0.75).astype(float), seed=i) for i in range(300)]
    held = sum(found.low <= 0.75 <= found.high for found in figures)
    assert 0.90 <= held / len(figures) <= 0.985


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_the_published_example(level, published):
    units, values = zip(*JUDGMENTS, strict=True)
    found = krippendorff_alpha(units, units, values, level=level)
    assert round(found.value, 3) == published
    assert found.low < found.value < found.high
    assert (found.tasks, found.count) == (11, 40)  # the last unit was judged once


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_resampled_alpha_is_the_librarys(level):
    """Of tasks that are all alike, any drawing holds the same rows: the interval must close on the library's value."""
    units, values = zip(*JUDGMENTS, strict=True)
    tasks = [task for task in range(5) for _unit in units]
    of_all = [task * 12 + unit for task in range(5) for unit in units]
    found = krippendorff_alpha(tasks, of_all, list(values) * 5, level=level)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)
    assert found.tasks == 5


def test_alpha_by_hand():
    # two judges, four units: yy, yy, nn, yn → o = [[4, 1], [1, 2]], n = 8: α = 1 − 7 · 2 / (2 · 5 · 3)
    found = krippendorff_alpha(
        [1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 1, 1, 0, 0, 1, 0], level="nominal"
    )
    assert found.value == pytest.approx(1 - 14 / 30)


def test_alpha_is_not_defined_where_all_say_the_same_or_judge_alone():
    assert krippendorff_alpha([1, 1], [1, 1], [4, 4], level="ordinal").value is None
    assert krippendorff_alpha([1, 2], [1, 2], [4, 5], level="ordinal") == agreement.Figure(None, None, None, 0, 0)
    assert krippendorff_alpha([], [], [], level="nominal").value is None
