"""Consensus and reliability as pure functions, against worked examples and labelers whose errors are known."""

import numpy as np
import pytest

from labeling.consensus import Comparisons, consensus, reliability, weight_of


@pytest.mark.parametrize(
    ("rankings", "expected"),
    [
        (["a,b,c"], "a,b,c"),
        (["ab,c"], "ab,c"),
        (["a,b,c", "c,b,a"], "abc"),  # opposite rankings tie
        (["a,b,c,d", "d,c,b,a"], "abcd"),
        (["a,b,c", "b,a,c"], "ab,c"),  # opposite in a part, one in the rest
        (["a,b,c", "b,c,a"], "b,a,c"),  # both put b before c; a is first once and last once: between
        (["a,b,c", "a,b,c", "c,b,a"], "a,b,c"),
        (["ab,c", "ab,c", "a,b,c"], "a,b,c"),  # one of three sees a difference and nobody denies it: margin 1/3
        (["a,b", "b,a", "ab"], "ab"),
        (["a,b,c", "b,c,a", "c,a,b"], "abc"),  # a circle
        (["a,b", "a,b", "a,b", "b,a", "b,a"], "a,b"),  # 3 : 2
        (["a,b"] * 4 + ["b,a"] * 3, "ab"),  # 4 : 3 is no majority
    ],
)
def test_by_hand(rankings, expected):
    found = consensus([[list(tier) for tier in ranking.split(",")] for ranking in rankings])
    assert ",".join("".join(tier) for tier in found) == expected


@pytest.mark.parametrize("weights", [[0.98, 0.51], [0.2, 0.9], [0.75, 0.7501]])
def test_no_weights_ever_decide_between_two_opposite_rankings(weights):
    assert consensus([[["a"], ["b"]], [["b"], ["a"]]], weights) == [["a", "b"]]


def test_nearly_equal_weights_leave_two_against_two_a_tie_and_clear_ones_do_not():
    rankings = [[["a"], ["b"]]] * 2 + [[["b"], ["a"]]] * 2
    assert consensus(rankings, [0.76, 0.77, 0.75, 0.75]) == [["a", "b"]]
    assert consensus(rankings, [0.9, 0.9, 0.55, 0.6]) == [["a"], ["b"]]


def test_a_reliable_labeler_outweighs_two_who_guess():
    rankings = [[["a"], ["b"]], [["b"], ["a"]], [["b"], ["a"]]]
    assert consensus(rankings) == [["b"], ["a"]]
    assert consensus(rankings, [0.95, 0.55, 0.55]) == [["a"], ["b"]]
    assert consensus(rankings, [0.4, 0.3, 0.5]) == [["b"], ["a"]], "where nobody beats chance, all count the same"


def test_what_all_order_one_way_is_so_ordered():
    dice = np.random.default_rng(5)
    for _try in range(300):
        places = dice.integers(1, 5, size=(dice.integers(1, 6), 6))
        rankings = [
            [[r for r, p in zip("abcdef", row, strict=True) if p == place] for place in sorted(set(row))]
            for row in places
        ]
        found = consensus(rankings, list(dice.uniform(0.55, 0.95, len(rankings))))
        place_of = {response: place for place, tier in enumerate(found) for response in tier}
        assert sorted(place_of) == list("abcdef")
        for i, better in enumerate("abcdef"):
            for j, worse in enumerate("abcdef"):
                if (places[:, i] < places[:, j]).all():
                    assert place_of[better] < place_of[worse], (rankings, found)


def test_refusals_and_weights():
    with pytest.raises(ValueError, match="no ranking"):
        consensus([])
    with pytest.raises(ValueError, match="same responses"):
        consensus([[["a"], ["b"]], [["a"], ["c"]]])
    assert weight_of(0.5) == weight_of(0.1) == 0
    assert weight_of(0.75) == pytest.approx(np.log(3))


def simulated(truth: list[float], tasks: int, comparisons: int, gold_tasks: int = 0, seed: int = 0) -> Comparisons:
    """Three labelers on each task, each right on a comparison with their own chance, independently."""
    dice, count, found = np.random.default_rng(seed), len(truth), []
    for task in range(tasks):
        chosen = dice.choice(count, 3, replace=False)
        right = dice.random((3, comparisons)) < np.array(truth)[chosen, None]
        for i in range(3):
            for j in range(i + 1, 3):
                found.append((task, chosen[i], chosen[j], (right[i] == right[j]).sum(), comparisons))
    for task in range(gold_tasks):
        for labeler in range(count):
            found.append((tasks + task, labeler, count, (dice.random(comparisons) < truth[labeler]).sum(), comparisons))
    return Comparisons(*(np.array(column) for column in zip(*found, strict=True)))


TRUTH = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.55]


def test_reliability_is_found_from_overlap_alone():
    found = reliability(simulated(TRUTH, tasks=3000, comparisons=6), len(TRUTH))
    assert np.argsort(-found.value).tolist() == list(range(len(TRUTH)))
    assert np.abs(found.value - TRUTH).max() < 0.03
    held = sum(low <= truth <= high for low, truth, high in zip(found.low, TRUTH, found.high, strict=True))
    assert held >= 7


def test_gold_makes_it_surer_and_tells_two_who_only_agree_with_each_other():
    few = reliability(simulated(TRUTH, tasks=60, comparisons=6), len(TRUTH))
    with_gold = reliability(simulated(TRUTH, tasks=60, comparisons=6, gold_tasks=40), len(TRUTH))
    assert (with_gold.high - with_gold.low).mean() < 0.7 * (few.high - few.low).mean()
    # 0 and 1 always agree with each other, and both fail gold.
    rows = [(t, 0, 1, 6, 6) for t in range(30)] + [(30 + t, labeler, 2, 1, 6) for t in range(30) for labeler in (0, 1)]
    found = reliability(Comparisons(*(np.array(column) for column in zip(*rows, strict=True))), 2)
    assert (found.value < 0.5).all()


def test_who_was_compared_with_nobody_has_the_usual_one():
    rows = Comparisons(*(np.array([value]) for value in (1, 0, 1, 5, 6)))
    found = reliability(rows, 3)
    assert found.value[2] == pytest.approx(0.75)
    assert np.isnan(found.low).all(), "one task has no interval"
