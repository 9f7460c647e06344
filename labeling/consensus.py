"""Consensus of several rankings, and how reliable their labelers are. Pure functions, no database.

Consensus is a weighted Borda count on majorities. For each two responses the margin is the weighted votes for one less those
for the other, as a share of all weight; a margin under BAND is no majority and counts as none. A response's score is its mean
margin over the others; equal scores tie, and so do near ones (under BAND) without a majority between them. What all rankings
order one way is so ordered; rankings that are opposite leave no majority, and tie. A vote weighs the log-odds of its labeler's
reliability, which is best for independent voters (Nitzan and Paroush 1982); where only two ranked, both weigh the same, so that
no small difference of weights ever decides between two opposite rankings.

Reliability is the share of comparisons that a labeler orders rightly (those they tie are left out). If p and r are two
labelers' reliabilities and their errors are independent, they agree on a share pr + (1−p)(1−r) of comparisons: with q = 2p − 1,
2·share − 1 = q_p·q_r. The q that fit all pairs best, in least squares over comparisons, are found by turns; a gold answer is a
labeler whose q is 1. Comparisons that are hard for everybody make people look somewhat more reliable than they are: the order
of labelers is sounder than the value, and gold is sounder than both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labeling.agreement import CONFIDENCE, Tiers

BAND = 0.15  # of 3:2 the margin is 0.2, of 4:3 0.14
USUAL_RELIABILITY = 0.75  # of somebody about whom nothing is known; InstructGPT's labelers agreed on 73 to 77 %
PRIOR_COMPARISONS = 10  # so much does the usual count beside what was seen
MOST = 0.98  # nobody is taken to be always right, or always wrong
ROUNDS = 60
RESAMPLES = 100


# Consensus -------------------------------------------------------------------------------------------------------------


def weight_of(reliability: float) -> float:
    """A vote's weight, 0 or more: the log-odds of the labeler's reliability; 0 for one who does no better than chance."""
    p = min(max(reliability, 0.5), MOST)
    return float(np.log(p / (1 - p)))


def consensus(rankings: Sequence[Tiers], reliabilities: Sequence[float] | None = None) -> list[list[str]]:
    """The consensus of rankings of the same responses: tiers, best first; within a tier in the order of ids.

    `reliabilities`: one per ranking, 0 to 1; equal if not given. Raises ValueError if there is no ranking, or if they are not
    over the same responses.
    """
    if not rankings:
        raise ValueError("There is no ranking to make a consensus of.")
    responses = sorted(response for tier in rankings[0] for response in tier)
    places = []
    for tiers in rankings:
        place_of = {response: place for place, tier in enumerate(tiers) for response in tier}
        if sorted(response for tier in tiers for response in tier) != responses:
            raise ValueError("The rankings are not over the same responses.")
        places.append([place_of[response] for response in responses])
    weights = (
        [weight_of(each) for each in reliabilities] if reliabilities and len(rankings) > 2 else [1.0] * len(rankings)
    )
    margins = _margins(np.array(places), np.array(weights if sum(weights) > 0 else [1.0] * len(rankings)))
    return [[responses[i] for i in sorted(tier)] for tier in _tiers(margins)]


def _margins(places_MK: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """(K, K): votes for the row's response over the column's, −1 to 1; 0 where there is no majority."""
    signs_MKK = np.sign(places_MK[:, None, :] - places_MK[:, :, None])
    margins = np.einsum("m,mij->ij", weights_M / weights_M.sum(), signs_MKK)
    return np.where(np.abs(margins) < BAND, 0.0, margins)


def _tiers(margins_KK: np.ndarray) -> list[list[int]]:
    """Responses by score; one joins the tier above if it ties with everyone in it."""
    count = len(margins_KK)
    scores = margins_KK.sum(1) / max(1, count - 1)

    def tie(one: int, other: int) -> bool:
        apart = abs(scores[one] - scores[other])
        return apart < 1e-9 or (apart < BAND and margins_KK[one, other] == 0)

    tiers: list[list[int]] = []
    for each in sorted(range(count), key=lambda i: (-round(scores[i], 9), i)):
        if tiers and all(tie(each, other) for other in tiers[-1]):
            tiers[-1].append(each)
        else:
            tiers.append([each])
    return tiers


# Reliability -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparisons:
    """What is known of labelers 0 … L−1, in rows: on a task, `first` and `second` agreed on so many of the comparisons that
    neither ties. A row with a gold answer has L as its second."""

    task: np.ndarray
    first: np.ndarray
    second: np.ndarray
    agreed_untied: np.ndarray
    untied: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """Estimates, 0 to 1, per labeler, with 95 % intervals (bootstrap over tasks). All (L,)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def reliability(rows: Comparisons, labelers: int, *, seed: int = 0) -> Reliability:
    """Every labeler's reliability from overlaps and gold. Who was compared with nobody has the usual one, and no narrow interval."""
    pair, pair_of = np.unique(rows.first * (labelers + 1) + rows.second, return_inverse=True)
    first, second = np.divmod(pair, labelers + 1)
    _codes, task_of = np.unique(rows.task, return_inverse=True)
    tasks = int(task_of.max(initial=-1)) + 1
    excess = 2.0 * rows.agreed_untied - rows.untied

    def fitted(times_T: np.ndarray | None) -> np.ndarray:
        times = 1.0 if times_T is None else times_T[task_of]
        y = np.bincount(pair_of, excess * times, len(pair))
        n = np.bincount(pair_of, rows.untied * times, len(pair))
        return (1 + _fit(first, second, y, n, labelers)) / 2

    dice = np.random.default_rng(seed)
    drawn = [
        fitted(np.bincount(dice.integers(tasks, size=tasks), minlength=tasks))
        for _ in range(RESAMPLES if tasks > 1 else 0)
    ]
    value = fitted(None)
    if not drawn:
        return Reliability(value, np.full(labelers, np.nan), np.full(labelers, np.nan))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Reliability(value, low, high)


def _fit(first: np.ndarray, second: np.ndarray, y: np.ndarray, n: np.ndarray, labelers: int) -> np.ndarray:
    """q (L,) that minimises Σ n (y/n − q_first·q_second)², with the usual q counted for PRIOR_COMPARISONS."""
    usual = 2 * USUAL_RELIABILITY - 1
    q = np.append(np.full(labelers, usual), 1.0)
    for _round in range(ROUNDS):
        top = np.bincount(first, y * q[second], labelers + 1) + np.bincount(second, y * q[first], labelers + 1)
        bottom = np.bincount(first, n * q[second] ** 2, labelers + 1) + np.bincount(
            second, n * q[first] ** 2, labelers + 1
        )
        found = (top + PRIOR_COMPARISONS * usual) / (bottom + PRIOR_COMPARISONS)
        q[:-1] = (q[:-1] + np.clip(found[:-1], 1 - 2 * MOST, 2 * MOST - 1)) / 2  # half a step: whole ones may swing
    return q[:-1]
