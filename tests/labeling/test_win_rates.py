"""Win rates and Bradley–Terry scores, against numbers worked by hand."""

import math

import numpy as np
import pytest

from labeling.win_rates import Comparisons, bradley_terry, scores


def test_a_ranking_is_all_its_pairs_and_a_tie_is_half_a_win():
    compared = Comparisons.of([("p", [(0, 1), (1, 2), (2, 2)]), ("q", [(1, 1), (0, 2)])])
    assert compared.points(3).tolist() == [[0, 1, 1], [1, 0, 0.5], [0, 0.5, 0]]
    assert compared.ties(3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_two_responses_of_one_policy_are_not_compared():
    compared = Comparisons.of([("p", [(0, 1), (0, 2), (1, 3)])])
    assert len(compared) == 2 and compared.points(2).tolist() == [[0, 2], [0, 0]]


def test_two_policies_are_the_log_of_their_odds_apart():
    strengths = bradley_terry(np.array([[0, 3.0], [1, 0]]))
    assert strengths == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-4)


def test_strengths_of_three_policies_are_found_again():
    """Points as a model with strengths 0, 1 and 2 expects them, 100 comparisons a pair."""
    expected = [[0 if i == j else 100 / (1 + math.exp(j - i)) for j in range(3)] for i in range(3)]
    assert bradley_terry(np.array(expected)) == pytest.approx([-1, 0, 1], abs=1e-3)


@pytest.mark.parametrize(
    "points",
    [[[0, 5], [0, 0]], [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], [[0]]],
    ids=["never lost", "two worlds apart", "alone"],
)
def test_no_scores_where_no_number_says_how_much_better(points):
    assert bradley_terry(np.array(points, float)) is None


def test_policies_apart_leave_the_others_their_scores():
    """0 and 1 beat each other; 2 beats 0 alone; 3 only loses to 1; 4 beats 5, and neither has met the rest; 6 met nobody."""
    rankings = [(i, [(0, 1), (1, 2)] if i % 4 else [(1, 1), (0, 2)]) for i in range(40)]
    alone = {s.policy: s for s in scores(Comparisons.of(rankings), 2)}
    aside = [(40, [(2, 1), (0, 2)]), (41, [(1, 1), (3, 2)]), (42, [(4, 1), (5, 2)])]
    found = scores(Comparisons.of(rankings + aside), 7)
    assert [s.policy for s in found[:2]] == [0, 1]
    for one in found[:2]:
        assert (one.score, one.low, one.high) == (
            alone[one.policy].score,
            alone[one.policy].low,
            alone[one.policy].high,
        )
    assert all(s.score is None and s.low is None for s in found[2:])
    assert {s.policy: s.apart for s in found} == {
        0: None, 1: None, 2: "unbeaten", 3: "winless", 4: "uncompared", 5: "uncompared", 6: "uncompared"
    }  # fmt: skip


def test_scores_come_best_first_with_their_share_and_count():
    rankings = [(i, [(0, 1), (1, 2)] if i % 4 else [(1, 1), (0, 2)]) for i in range(40)]
    first, second = scores(Comparisons.of(rankings), 2)
    assert (first.policy, first.count, first.share) == (0, 40, 0.75)
    assert first.score == pytest.approx(math.log(3) / 2, abs=1e-3) and second.score == pytest.approx(-first.score)
    assert first.low < first.score < first.high
    assert scores(Comparisons.of(rankings), 2)[0].low == first.low, "the same rows give the same interval"


def test_the_interval_draws_prompts_not_comparisons():
    """The same 400 comparisons said about 400 prompts, or ten times over about 40: the latter tell as little as 40."""
    apart = [(i, [(0, 1), (1, 2)] if i % 4 else [(1, 1), (0, 2)]) for i in range(400)]
    together = [(i // 10, [(0, 1), (1, 2)] if (i // 10) % 4 else [(1, 1), (0, 2)]) for i in range(400)]
    wide, narrow = (scores(Comparisons.of(rows), 2)[0] for rows in (together, apart))
    assert wide.score == pytest.approx(narrow.score) and wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_nothing_compared():
    assert scores(Comparisons.of([]), 0) == []
    [lonely] = scores(Comparisons.of([("p", [(0, 1)])]), 1)
    assert (lonely.score, lonely.share, lonely.count, lonely.apart) == (None, None, 0, "no_scores")
