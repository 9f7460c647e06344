"""Which waiting submission is most worth a look: a score in points, and its reasons. Pure: facts in, points out.

    disagreement    40 × share of comparisons on which it differs from the other rankings of its task, in the mean over them
    gold_missed     30 if its ranking is outside the tolerance of the task's gold answer
    low_reliability 30 × how far the labeler's reliability lies below 0.75, as a share of the way down to 0.5 (chance)
    never_reviewed  25 if nothing of this labeler has been decided on yet
    too_fast        35 if it was made faster than anybody reads or writes
    model_conflict  20 × how surely the reward model contradicts it, 0 to 1 (known once a model judges labels)

Points add up, so that two reasons outweigh one; among equal points the longest waiting comes first. The weights are ours: a
miss or a pace that cannot be outweighs chance disagreement (two labelers of the paper's agree on 73 % of comparisons, so
11 points are usual), and a labeler nobody has read comes before usual disagreement.
"""

from dataclasses import dataclass

from labeling.signs import READ_AT_MOST, TYPED_AT_MOST

DISAGREEMENT, GOLD_MISSED, LOW_RELIABILITY, NEVER_REVIEWED, TOO_FAST, MODEL_CONFLICT = 40, 30, 30, 25, 35, 20
USUAL_RELIABILITY, CHANCE = 0.75, 0.5


@dataclass(frozen=True)
class Facts:
    """What is known of a submission when its points are given. None: nothing to compare with, or not measured."""

    disagreement: float | None = None
    gold_share: float | None = None
    is_gold_missed: bool = False
    reliability: float | None = None
    is_never_reviewed: bool = False
    chars_per_second: float | None = None
    is_too_fast: bool = False
    model_conflict: float | None = None


def is_too_fast(*, read: int, written: int, seconds: int) -> bool:
    """True if so many characters cannot be read and written in this time. Without a time nothing is said."""
    return seconds > 0 and read / READ_AT_MOST + written / TYPED_AT_MOST > seconds


def reasons(facts: Facts) -> list[dict]:
    """[{"reason", "points", "value"}], most points first; `value` is the figure that the reason rests on, or None."""
    found = [
        ("disagreement", DISAGREEMENT * (facts.disagreement or 0), facts.disagreement),
        ("gold_missed", GOLD_MISSED * facts.is_gold_missed, facts.gold_share),
        ("low_reliability", LOW_RELIABILITY * _shortfall(facts.reliability), facts.reliability),
        ("never_reviewed", NEVER_REVIEWED * facts.is_never_reviewed, None),
        ("too_fast", TOO_FAST * facts.is_too_fast, facts.chars_per_second),
        ("model_conflict", MODEL_CONFLICT * (facts.model_conflict or 0), facts.model_conflict),
    ]
    given = [
        {"reason": name, "points": round(points, 1), "value": None if value is None else round(value, 3)}
        for name, points, value in found
        if points >= 0.05
    ]
    return sorted(given, key=lambda one: -one["points"])


def points(given: list[dict]) -> float:
    """The score: the sum of the reasons' points."""
    return round(sum(one["points"] for one in given), 1)


def _shortfall(reliability: float | None) -> float:
    if reliability is None:
        return 0.0
    return min(1.0, max(0.0, (USUAL_RELIABILITY - reliability) / (USUAL_RELIABILITY - CHANCE)))
