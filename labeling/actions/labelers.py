"""The numbers of labelers: over all they have handed in, with intervals, and week by week."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from statistics import median

import numpy as np
from django.db import transaction
from django.db.models import Count
from django.utils import timezone

from labeling import agreement, consensus
from labeling.models import AgreementPair, Kind, LabelerNumbers, Skip, SubmissionNumbers

WEEKS = 26

ROW = ("labeler_id", "kind", "submitted_at", "agreement", "consensus_agreement", "gold_share", "gold_passed", "seconds",
       "is_too_fast", "is_pasted", "is_near_copy")  # fmt: skip


def measure_labelers() -> int:
    """Make every labeler's numbers anew from those of their submissions; how many labelers."""
    now = timezone.now()
    of: dict[int, list[dict]] = defaultdict(list)
    for row in SubmissionNumbers.objects.order_by("submission_id").values_list(*ROW).iterator(chunk_size=5000):
        of[row[0]].append(dict(zip(ROW, row, strict=True)))
    skips = dict(Skip.objects.values_list("labeler").annotate(n=Count("id")).values_list("labeler", "n"))
    labelers = sorted({*of, *skips})
    estimates = _reliabilities(labelers)
    made = [_numbers(pk, of[pk], skips.get(pk, 0), estimates.get(pk, {}), now) for pk in labelers]
    with transaction.atomic():
        LabelerNumbers.objects.all().delete()
        LabelerNumbers.objects.bulk_create(made)
    return len(made)


def _numbers(labeler_id: int, rows: list[dict], skips: int, reliability: dict, now: datetime) -> LabelerNumbers:
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in Kind.values}
    numbers = LabelerNumbers(
        labeler_id=labeler_id,
        demonstrations=counts[Kind.DEMONSTRATION],
        rankings=counts[Kind.RANKING],
        skips=skips,
        skip_rate=skips / (skips + len(rows)) if skips or rows else None,
        gold_passed=sum(bool(row["gold_passed"]) for row in rows),
        ranking_seconds=_median_seconds(rows, Kind.RANKING),
        demonstration_seconds=_median_seconds(rows, Kind.DEMONSTRATION),
        too_fast=sum(row["is_too_fast"] for row in rows),
        pasted=sum(row["is_pasted"] for row in rows),
        near_copies=sum(row["is_near_copy"] for row in rows),
        weeks=_weeks(rows, now),
        computed_at=now,
        **reliability,
    )
    for field, prefix in (("agreement", "agreement"), ("consensus_agreement", "consensus"), ("gold_share", "gold")):
        figure = agreement.mean(np.array(_given(rows, field), float))
        setattr(numbers, "consensus_agreement" if prefix == "consensus" else prefix, figure.value)
        setattr(numbers, f"{prefix}_low", figure.low)
        setattr(numbers, f"{prefix}_high", figure.high)
        setattr(numbers, f"{prefix}_count", figure.count)
    return numbers


def _given(rows: Iterable[dict], field: str) -> list[float]:
    return [row[field] for row in rows if row[field] is not None]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median_seconds(rows: Iterable[dict], kind: str) -> float | None:
    seconds = [row["seconds"] for row in rows if row["kind"] == kind and row["seconds"]]
    return median(seconds) if seconds else None


def _weeks(rows: list[dict], now: datetime) -> list[dict]:
    """What drifts, by the week (from Monday) in which work was handed in, oldest first; weeks without work are left out.

    Per week: `start`, `submissions`; the means `agreement`, `consensus_agreement`, `gold_share`, each with `_count`; the
    median `seconds` of a ranking; `signs`: submissions with a sign of text not written.
    """
    first = _monday(now) - timedelta(weeks=WEEKS - 1)
    by_week: dict[datetime, list[dict]] = defaultdict(list)
    for row in rows:
        if (monday := _monday(row["submitted_at"])) >= first:
            by_week[monday].append(row)
    return [_week(monday, by_week[monday]) for monday in sorted(by_week)]


def _monday(moment: datetime) -> datetime:
    local = timezone.localtime(moment)
    return (local - timedelta(days=local.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)


def _week(monday: datetime, rows: list[dict]) -> dict:
    week: dict = {"start": monday.date().isoformat(), "submissions": len(rows)}
    for field in ("agreement", "consensus_agreement", "gold_share"):
        values = _given(rows, field)
        week |= {field: _mean(values), f"{field}_count": len(values)}
    marked = sum(row["is_too_fast"] or row["is_pasted"] or row["is_near_copy"] for row in rows)
    return week | {"seconds": _median_seconds(rows, Kind.RANKING), "signs": marked}


def _reliabilities(labelers: list[int]) -> dict[int, dict]:
    """Reliability with its interval, as LabelerNumbers' fields; only of those who were compared with somebody or with gold."""
    number = {pk: i for i, pk in enumerate(labelers)}
    of_pair = ("task_id", "first_labeler_id", "second_labeler_id", "agreed_untied", "untied")
    rows = [
        (task, number[first], number[second], agreed, untied)
        for task, first, second, agreed, untied in AgreementPair.objects.order_by("id").values_list(*of_pair).iterator()
        if first in number and second in number
    ]
    gold = SubmissionNumbers.objects.filter(gold_untied__gt=0).order_by("submission_id")
    of_gold = ("submission__task_id", "labeler_id", "gold_agreed_untied", "gold_untied")
    rows += [(task, number[pk], len(labelers), a, n) for task, pk, a, n in gold.values_list(*of_gold)]
    if not rows:
        return {}
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    found = consensus.reliability(consensus.Comparisons(*columns), len(labelers))
    seen = {*columns[1].tolist(), *columns[2].tolist()}
    return {
        pk: {
            "reliability": float(found.value[i]),
            "reliability_low": _real(found.low[i]),
            "reliability_high": _real(found.high[i]),
        }
        for pk, i in number.items()
        if i in seen
    }


def _real(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
