"""When a batch will be done at the pace of the last days. Pure functions on counts per day."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from scipy.special import stdtrit

CONFIDENCE = 0.95
FAR_DAYS = 3650  # later than this is "not at this pace"


@dataclass(frozen=True)
class Forecast:
    """`pace`: seats a day in the mean over `days` days. `done_at` with its earliest and latest moment: None where there is no telling."""

    remaining: int
    days: int
    pace: float
    done_at: datetime | None
    earliest: datetime | None = None
    latest: datetime | None = None


def forecast(remaining: int, per_day: Sequence[int], now: datetime) -> Forecast:
    """The remaining seats at the mean of these days' counts.

    The interval takes the days as independent draws: mean ± t·s/√n (95 %), a pace below nothing being none; it needs two days. It
    knows nothing of holidays, of labelers coming or going, or of work that a review sends back.
    """
    days = len(per_day)
    pace = sum(per_day) / days if days else 0.0
    if not remaining:
        return Forecast(0, days, pace, now, now, now)
    if days < 2 or not pace:
        return Forecast(remaining, days, pace, _after(remaining, pace, now))
    spread = math.sqrt(sum((count - pace) ** 2 for count in per_day) / (days - 1) / days)
    reach = spread * float(stdtrit(days - 1, (1 + CONFIDENCE) / 2))
    slow, fast = max(0.0, pace - reach), pace + reach
    ends = (_after(remaining, each, now) for each in (pace, fast, slow))
    return Forecast(remaining, days, pace, *ends)


def _after(remaining: int, pace: float, now: datetime) -> datetime | None:
    days = remaining / pace if pace else math.inf
    return now + timedelta(days=days) if days < FAR_DAYS else None
