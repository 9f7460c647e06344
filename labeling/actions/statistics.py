"""Statistics: asking for a figure over a scope of labels, and computing it in a job.

A scope is {"batch": id or null, "group": "" for all, "simulated": whether labels of simulated labelers count}; that of an evaluation
{"batch": id, "origin": person, simulated or both}. Rejected work counts for throughput alone, and so does work on gold seats.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date, timedelta

import numpy as np
from django.db.models import Count, F, Max, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from labeling import agreement, win_rates
from labeling.actions import evaluation_figures
from labeling.models import Group, Kind, Origin, Review, Revision, Statistic, Submission, TaskResponse

RECENT_DAYS = 28  # of a labeler's own line
WEEKS = 26  # that agreement is shown over
SEEN_DAYS = 14  # a statistic that nobody has looked at for so long is not refreshed
AT_ONCE = 5000


def ask(*, kind: str, batch_id: int | None = None, group: str = "", simulated: bool = False) -> Statistic:
    """The statistic of this scope, made empty if nobody has asked before. A job computes it (jobs.refresh_statistics)."""
    return ask_of(kind=kind, scope={"batch": batch_id, "group": group, "simulated": simulated})


def ask_of(*, kind: str, scope: dict) -> Statistic:
    """As `ask`, over a scope as it is stored."""
    found, made = Statistic.objects.get_or_create(kind=kind, scope=scope)
    if not made and found.looked_at < timezone.now() - timedelta(days=1):
        Statistic.objects.filter(pk=found.pk).update(looked_at=timezone.now())
    return found


def outdated() -> list[Statistic]:
    """What is to be computed: looked at of late, and older than the newest labels. Never computed ones first, then the oldest."""
    since = timezone.now() - timedelta(days=SEEN_DAYS)
    rows = Statistic.objects.filter(looked_at__gte=since).exclude(mark=newest_mark()).defer("content")
    return list(rows.order_by(F("computed_at").asc(nulls_first=True), "id"))


def newest_mark() -> str:
    """What tells that labels have come, or been decided on, since."""
    revision = Revision.objects.aggregate(last=Max("pk"))["last"] or 0
    review = Review.objects.aggregate(last=Max("pk"))["last"] or 0
    return f"{revision}.{review}.{timezone.localdate()}"


def refresh(*, statistic: Statistic) -> Statistic:
    """Compute it over the labels as they are now. Doing it twice gives the same figures."""
    began, now, mark = time.perf_counter(), timezone.now(), newest_mark()
    content = COMPUTED[statistic.kind](labels(statistic.scope))
    took = round(time.perf_counter() - began, 2)
    Statistic.objects.filter(pk=statistic.pk).update(content=content, mark=mark, seconds=took, computed_at=now)
    statistic.refresh_from_db()
    return statistic


def labels(scope: dict) -> QuerySet[Submission]:
    """The submissions of a scope. AI labels are in none."""
    origin = scope.get("origin") or ("both" if scope["simulated"] else Origin.PERSON)
    rows = Submission.objects.filter(origin__in=[Origin.PERSON, Origin.SIMULATED] if origin == "both" else [origin])
    if scope["batch"]:
        rows = rows.filter(batch_id=scope["batch"])
    return rows.filter(labeler_group=scope["group"]) if scope.get("group") else rows


# Throughput ----------------------------------------------------------------------------------------------------


def throughput(rows: QuerySet[Submission]) -> dict:
    """{"first": day, "days": {kind: [submissions per day]}, "labelers": [{id, kinds, seconds, last, recent per day}]}.

    Days in the installation's time zone, from the first submission to today.
    """
    today = timezone.localdate()
    of_day = defaultdict(lambda: defaultdict(int))  # type: ignore[var-annotated]
    per_day = rows.annotate(day=TruncDate("submitted_at")).values_list("day", "kind").annotate(n=Count("id")).order_by()
    for day, kind, n in per_day:
        of_day[kind][day] = n
    first = min((day for days in of_day.values() for day in days), default=today)
    span = [first + timedelta(days=i) for i in range((today - first).days + 1)]
    return {
        "first": first.isoformat(),
        "days": {kind: [of_day[kind][day] for day in span] for kind in Kind.values},
        "labelers": _labelers(rows, today),
    }


def _labelers(rows: QuerySet[Submission], today: date) -> list[dict]:
    """Busiest first."""
    counted = rows.values("labeler").order_by().annotate(
        **{kind: Count("id", filter=Q(kind=kind)) for kind in Kind.values},
        seconds=Sum("active_seconds"), last=Max("submitted_at"), n=Count("id"),
    )  # fmt: skip
    since = today - timedelta(days=RECENT_DAYS - 1)
    recent: dict[int, list[int]] = defaultdict(lambda: [0] * RECENT_DAYS)
    days = rows.annotate(day=TruncDate("submitted_at")).filter(day__gte=since)
    for labeler, day, n in days.values_list("labeler", "day").annotate(n=Count("id")).order_by():
        if 0 <= (day - since).days < RECENT_DAYS:
            recent[labeler][(day - since).days] = n
    return [
        {
            "id": row["labeler"],
            **{kind: row[kind] for kind in Kind.values},  # type: ignore[literal-required]
            "seconds": row["seconds"] or 0,
            "last": timezone.localdate(row["last"]).isoformat(),
            "recent": recent[row["labeler"]],
        }
        for row in sorted(counted, key=lambda row: (-row["n"], row["labeler"]))
    ]


# Rankings ------------------------------------------------------------------------------------------------------


def _rankings(rows: QuerySet[Submission], *extra: str) -> Iterator[tuple]:
    """(task, newest revision's tiers, *extra) of the rankings that were not rejected, gold left out."""
    newest = Revision.objects.filter(submission=OuterRef("pk"), number=OuterRef("revision_count"))
    kept = rows.filter(kind=Kind.RANKING, is_gold=False).exclude(status=Submission.Status.REJECTED)
    tiers = kept.annotate(tiers=Subquery(newest.values("tiers")[:1])).order_by("pk")
    yield from tiers.values_list("task_id", "tiers", *extra).iterator(chunk_size=AT_ONCE)


def policies(rows: QuerySet[Submission]) -> dict:
    """Win rates and scores: {"models": ids best first, "scores", "points", "ties", "rankings", "prompts", "by_people"}.

    Matrices are in the order of `models`: row against column. Responses that people wrote are no policy's, and left out.
    """
    model_of = _models(rows)
    numbers = {model: i for i, model in enumerate(sorted({m for m in model_of.values() if m}))}
    counts = {"rankings": 0, "by_people": 0}

    def placed() -> Iterator[tuple[int, list[tuple[int, int]]]]:
        for _task, tiers, prompt in _rankings(rows, "task__prompt_id"):
            counts["rankings"] += 1
            named = [(model_of.get(name), place) for place, tier in enumerate(tiers, start=1) for name in tier]
            counts["by_people"] += sum(model is None for model, _place in named)
            yield prompt, [(numbers[model], place) for model, place in named if model]

    compared = win_rates.Comparisons.of(placed())
    ranked = win_rates.scores(compared, len(numbers))
    order = [one.policy for one in ranked]
    models = list(numbers)
    points, ties = compared.points(len(models)), compared.ties(len(models))
    return counts | {
        "models": [models[i] for i in order],
        "scores": [
            {"score": s.score, "low": s.low, "high": s.high, "share": s.share, "count": s.count, "apart": s.apart}
            for s in ranked
        ],
        "points": [[float(points[i, j]) for j in order] for i in order],
        "ties": [[int(ties[i, j]) for j in order] for i in order],
        "comparisons": len(compared),
        "prompts": len(set(compared.prompt.tolist())),
    }


def _models(rows: QuerySet[Submission]) -> dict[str, int | None]:
    """Model version of every response that these rankings are over, by the response's UUID."""
    tasks = rows.filter(kind=Kind.RANKING).values("task_id")
    found = TaskResponse.objects.filter(task__in=tasks).values_list("response__uuid", "response__model_version_id")
    return {str(name): model for name, model in found.iterator(chunk_size=AT_ONCE)}


def agreement_over_time(rows: QuerySet[Submission]) -> dict:
    """Share of comparisons agreed on, by the week of the later of two rankings: all, in each group, and between them.

    {"weeks": [Monday], "all" | "training" | "held_out" | "between": [{value, low, high, tasks, pairs} per week]}.
    """
    since = timezone.now() - timedelta(weeks=WEEKS)
    of_rows = list(_rankings(rows, "labeler_group", "submitted_at"))
    rankings = agreement.Rankings.of((task, tiers) for task, tiers, _group, _at in of_rows)
    pairs = agreement.pairs_of(rankings)
    at = np.array([moment.timestamp() for *_rest, moment in of_rows])
    held = np.array([group == Group.HELD_OUT for *_rest, group, _at in of_rows], bool)
    later = np.maximum(at[pairs.first], at[pairs.second]) if len(pairs) else np.empty(0)
    both, none = (held[pairs.first] & held[pairs.second], ~held[pairs.first] & ~held[pairs.second])
    which = {"all": both | True, "training": none, "held_out": both, "between": ~both & ~none}
    weeks = _weeks(max(since.timestamp(), later.min()) if len(later) else time.time())
    out: dict = {"weeks": [week.isoformat() for week, _begin, _end in weeks]}
    for name, chosen in which.items():
        figures = [agreement.share_agreed(pairs.where(chosen & (later >= a) & (later < b))) for _week, a, b in weeks]
        out[name] = [
            {"value": f.value, "low": f.low, "high": f.high, "tasks": f.tasks, "pairs": f.count} for f in figures
        ]
    return out


def _weeks(since: float) -> list[tuple[date, float, float]]:
    """(Monday, its first second, the next Monday's) from the week of a moment to this one, in the installation's time zone."""
    now = timezone.localtime()
    monday = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=now.weekday())
    weeks: list[tuple[date, float, float]] = []
    while True:
        begin = monday - timedelta(weeks=len(weeks))
        weeks.append((begin.date(), begin.timestamp(), (begin + timedelta(weeks=1)).timestamp()))
        if begin.timestamp() <= since:
            return weeks[::-1]


COMPUTED: dict[str, Callable[[QuerySet[Submission]], dict]] = {
    Statistic.Kind.THROUGHPUT: throughput,
    Statistic.Kind.POLICIES: policies,
    Statistic.Kind.AGREEMENT: agreement_over_time,
    Statistic.Kind.EVALUATION: evaluation_figures.figures,
}
