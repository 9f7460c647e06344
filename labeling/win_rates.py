"""Which policy's responses are preferred: pairwise win rates and Bradley–Terry scores from rankings. Pure functions, no database.

A ranking of K responses is C(K,2) comparisons. A tie is half a win for each side. Comparisons between two responses of one policy
say nothing and are left out. Scores are natural logarithms of Bradley–Terry strengths, centred on 0: between two policies that are d
apart the better one is expected to win 1 / (1 + e^−d) of the comparisons. They come from the package evalica.

Intervals are 95 % percentiles of a bootstrap over prompts: whatever was said about one prompt, by whomever, is drawn as one. A
maximum exists only if the policies cannot be split in two so that one side never lost a point to the other (Ford 1957); otherwise
there are no scores, and where more than 2.5 % of the resamples have none, no interval.

Shapes: P comparisons, M policies, B resamples.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 200
CONFIDENCE = 0.95
MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class Comparisons:
    """Pairs of responses of different policies, all (P,): numbers of the two policies and of the prompt; 1 first won, 0.5 tie, 0 lost."""

    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray
    prompt: np.ndarray

    @classmethod
    def of(cls, rankings: Iterable[tuple[Hashable, Sequence[tuple[int, int]]]]) -> "Comparisons":
        """From (prompt, [(policy's number, place)]) per ranking; place 1 is best, equal places tie."""
        first, second, outcome, prompt = [], [], [], []
        numbers: dict[Hashable, int] = {}
        for key, placed in rankings:
            number = numbers.setdefault(key, len(numbers))
            for i, (one, place) in enumerate(placed):
                for other, after in placed[i + 1 :]:
                    if one != other:
                        first.append(one)
                        second.append(other)
                        outcome.append(1.0 if place < after else 0.5 if place == after else 0.0)
                        prompt.append(number)
        return cls(
            np.array(first, np.int64), np.array(second, np.int64), np.array(outcome, float), np.array(prompt, np.int64)
        )

    def __len__(self) -> int:
        return len(self.first)

    def points(self, policies: int, weights_P: np.ndarray | None = None) -> np.ndarray:
        """(M, M): how many points the row's policy won against the column's, ties as halves."""
        weights = np.ones(len(self)) if weights_P is None else weights_P
        size = policies * policies
        won = np.bincount(self.first * policies + self.second, weights * self.outcome, size)
        lost = np.bincount(self.second * policies + self.first, weights * (1 - self.outcome), size)
        return (won + lost).reshape(policies, policies)

    def ties(self, policies: int) -> np.ndarray:
        """(M, M): how many comparisons tied; symmetric."""
        tied = self.outcome == 0.5
        ends = np.bincount(self.first[tied] * policies + self.second[tied], minlength=policies**2)
        ends = ends.reshape(policies, policies)
        return ends + ends.T


@dataclass(frozen=True)
class Score:
    """One policy: its number, its score with interval, its share of points, and over how many comparisons."""

    policy: int
    score: float | None
    low: float | None
    high: float | None
    share: float | None
    count: int


def scores(comparisons: Comparisons, policies: int, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Score]:
    """Best first: by score, or by share of points where there are no scores. The same seed and rows give the same intervals."""
    points = comparisons.points(policies)
    counts = (points + points.T).sum(1)
    strengths = bradley_terry(points)
    lows, highs = _intervals(comparisons, policies, seed, resamples) if strengths is not None else (None, None)
    made = [
        Score(
            policy=i,
            score=None if strengths is None else float(strengths[i]),
            low=None if lows is None else float(lows[i]),
            high=None if highs is None else float(highs[i]),
            share=float(points[i].sum() / counts[i]) if counts[i] else None,
            count=round(counts[i]),
        )
        for i in range(policies)
    ]
    return sorted(made, key=lambda s: (s.score is None, -(s.score or 0), -(s.share or 0), s.policy))


def bradley_terry(points: np.ndarray) -> np.ndarray | None:
    """Centred log strengths (M,), or None where there is no maximum."""
    # Here, not above: evalica brings pandas and scipy.stats, seconds that every command and web process would pay.
    import evalica
    from scipy.sparse.csgraph import connected_components

    policies = len(points)
    if policies < 2 or connected_components(points > 0, directed=True, connection="strong")[0] > 1:
        return None
    xs, ys = np.nonzero(points)
    winners = [evalica.Winner.X] * len(xs)
    found = evalica.bradley_terry(
        xs.tolist(), ys.tolist(), winners, weights=points[xs, ys].tolist(), limit=MAX_ITERATIONS
    )
    strengths = np.log(found.scores.reindex(range(policies)).to_numpy())
    return strengths - strengths.mean()


def _intervals(comparisons: Comparisons, policies: int, seed: int, resamples: int):
    """(low, high), each (M,); (None, None) where too many resamples have no maximum."""
    dice = np.random.default_rng(seed)
    prompts = int(comparisons.prompt.max()) + 1
    drawn = []
    for _ in range(resamples):
        times = np.bincount(dice.integers(prompts, size=prompts), minlength=prompts)
        strengths = bradley_terry(comparisons.points(policies, times[comparisons.prompt]))
        if strengths is not None:
            drawn.append(strengths)
    tail = (1 - CONFIDENCE) / 2
    if prompts < 2 or len(drawn) < (1 - tail) * resamples:
        return None, None
    low, high = np.quantile(np.stack(drawn), [tail, 1 - tail], axis=0)
    return low, high
