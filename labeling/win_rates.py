"""Which policy's responses are preferred: pairwise win rates and Bradley–Terry scores from rankings. Pure functions, no database.

A ranking of K responses is C(K,2) comparisons. A tie is half a win for each side. Comparisons between two responses of one policy
say nothing and are left out. Scores are natural logarithms of Bradley–Terry strengths, centred on 0: between two policies that are d
apart the better one is expected to win 1 / (1 + e^−d) of the comparisons. They come from the package evalica.

Intervals are 95 % percentiles of a bootstrap over prompts: whatever was said about one prompt, by whomever, is drawn as one. A
maximum exists only among policies that cannot be split in two so that one side never lost a point to the other (Ford 1957). So
scores are those of one such world of policies, that with the most comparisons within it; the other policies have none, and an
`Apart` that says why. Where more than 2.5 % of the resamples have no maximum in that world, there is no interval.

Shapes: P comparisons, M policies, B resamples.
"""

import enum
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


class Apart(enum.StrEnum):
    """How a policy without a score stands to those that have one."""

    UNBEATEN = "unbeaten"  # no chain of lost points leads from it to them
    WINLESS = "winless"  # no chain of won points does
    UNCOMPARED = "uncompared"  # neither does
    NO_SCORES = "no_scores"  # there is none with a score


@dataclass(frozen=True)
class Score:
    """One policy: its number, its score with interval, its share of points, and over how many comparisons; why it has no score."""

    policy: int
    score: float | None
    low: float | None
    high: float | None
    share: float | None
    count: int
    apart: Apart | None


def scores(comparisons: Comparisons, policies: int, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Score]:
    """Best first: by score, then by share of points those that have none. The same seed and rows give the same intervals."""
    points = comparisons.points(policies)
    counts = (points + points.T).sum(1)
    world = largest_world(points)
    strengths = bradley_terry(points[np.ix_(world, world)])
    lows, highs = _intervals(comparisons, policies, world, seed, resamples)
    place = {int(policy): i for i, policy in enumerate(world)} if strengths is not None else {}
    apart = _apart(points, world) if place else [Apart.NO_SCORES] * policies

    def value(of: np.ndarray | None, policy: int) -> float | None:
        return float(of[place[policy]]) if of is not None and policy in place else None

    made = [
        Score(
            policy=i,
            score=value(strengths, i),
            low=value(lows, i),
            high=value(highs, i),
            share=float(points[i].sum() / counts[i]) if counts[i] else None,
            count=round(counts[i]),
            apart=None if i in place else apart[i],
        )
        for i in range(policies)
    ]
    return sorted(made, key=lambda s: (s.score is None, -(s.score or 0), -(s.share or 0), s.policy))


def largest_world(points: np.ndarray) -> np.ndarray:
    """The numbers of the policies, in order, that can be scored together: of the strongly connected parts of "won a point against",
    the one with the most comparisons within it, then with the most policies, then with the lowest number."""
    from scipy.sparse.csgraph import connected_components

    count, part_of = connected_components(points > 0, directed=True, connection="strong")
    parts = [np.flatnonzero(part_of == part) for part in range(count)]
    within = [(points[np.ix_(part, part)].sum(), len(part), -int(part[0])) for part in parts]
    return parts[within.index(max(within))] if parts else np.empty(0, np.int64)


def _apart(points: np.ndarray, world: np.ndarray) -> list[Apart]:
    """For each policy outside the world how it stands to it. None is reached both ways, or it would be within."""
    from scipy.sparse.csgraph import breadth_first_order

    beaten, beating = (set(breadth_first_order(won, world[0])[0].tolist()) for won in (points > 0, points.T > 0))
    return [
        Apart.WINLESS if i in beaten else Apart.UNBEATEN if i in beating else Apart.UNCOMPARED
        for i in range(len(points))
    ]


def bradley_terry(points: np.ndarray) -> np.ndarray | None:
    """Centred log strengths (M,), or None where there is no maximum, or nothing to be stronger than."""
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


def _intervals(comparisons: Comparisons, policies: int, world: np.ndarray, seed: int, resamples: int):
    """(low, high), each of the policies in the world; (None, None) where too many resamples have no maximum there."""
    if len(world) < 2:
        return None, None
    within = np.isin(comparisons.first, world) & np.isin(comparisons.second, world)
    numbers, prompt_of = np.unique(comparisons.prompt[within], return_inverse=True)
    ours = Comparisons(
        comparisons.first[within], comparisons.second[within], comparisons.outcome[within], prompt_of.reshape(-1)
    )
    dice, prompts = np.random.default_rng(seed), len(numbers)
    drawn = []
    for _ in range(resamples):
        times = np.bincount(dice.integers(prompts, size=prompts), minlength=prompts)
        strengths = bradley_terry(ours.points(policies, times[ours.prompt])[np.ix_(world, world)])
        if strengths is not None:
            drawn.append(strengths)
    tail = (1 - CONFIDENCE) / 2
    if prompts < 2 or len(drawn) < (1 - tail) * resamples:
        return None, None
    low, high = np.quantile(np.stack(drawn), [tail, 1 - tail], axis=0)
    return low, high
