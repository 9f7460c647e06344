"""Priorities: how much a look at each waiting submission is worth, stored, so that the queue reads one index.

Computed when a submission is made, for all that wait on its task; a job computes what has become out of date since.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum
from django.db.models.functions import Length
from django.utils import timezone

from labeling import agreement, priorities
from labeling.models import (
    Kind,
    LabelerNumbers,
    Prompt,
    Review,
    Revision,
    Submission,
    SubmissionNumbers,
    Task,
    TaskResponse,
)
from labeling.priorities import Facts

AT_ONCE = 500


def refresh_task(*, submission: Submission, now: datetime) -> None:
    """Compute for a submission and for everything else that waits on its task, gold seats apart: they are many, and are not
    compared with each other. Needs a transaction; rows that somebody is deciding on are left to the job."""
    waiting = Submission.objects.filter(task=submission.task_id, status=Submission.Status.SUBMITTED)
    waiting = waiting.filter(Q(is_gold=False) | Q(pk=submission.pk))
    _refresh(list(waiting.select_for_update(skip_locked=True, of=("self",), no_key=True).order_by("id")), now)


@transaction.atomic
def outdate(submissions: QuerySet[Submission]) -> int:
    """Have the job compute these anew, as far as they wait: what is known of their labeler has changed. How many."""
    waiting = submissions.filter(status=Submission.Status.SUBMITTED).order_by("id")
    rows = waiting.select_for_update(skip_locked=True, of=("self",), no_key=True).values("pk")
    return Submission.objects.filter(pk__in=rows).update(prioritized_at=None)


def known_from_now(*, labelers: set[int]) -> None:
    """Their first reviews have just been made: once they are kept, what waits of them is no longer "never reviewed"."""
    new = labelers - set(_decided(labelers))
    if new:
        transaction.on_commit(lambda: outdate(Submission.objects.filter(labeler__in=new)) and None)


@transaction.atomic
def refresh_some(*, limit: int = AT_ONCE, now: datetime | None = None) -> int:
    """Compute up to `limit` of the waiting submissions that are out of date; how many were."""
    stale = Submission.objects.filter(status=Submission.Status.SUBMITTED, prioritized_at=None).order_by("id")
    rows = list(stale.select_for_update(skip_locked=True, of=("self",), no_key=True)[:limit])
    _refresh(rows, now or timezone.now())
    return len(rows)


def _refresh(rows: list[Submission], now: datetime) -> None:
    """A constant number of queries, however many rows."""
    disagreement = disagreements({row.task_id for row in rows if row.kind == Kind.RANKING})
    facts = _facts(rows, disagreement.of_submissions)
    for row in rows:
        row.review_reasons = priorities.reasons(facts[row.pk])
        row.review_priority = priorities.points(row.review_reasons)
        row.disagreement, row.prioritized_at = facts[row.pk].disagreement, now
    Submission.objects.bulk_update(
        rows, ["review_reasons", "review_priority", "disagreement", "prioritized_at"], batch_size=AT_ONCE
    )
    shares = sorted(disagreement.of_tasks.items())  # in order, so that two who do this do not wait for each other
    Task.objects.bulk_update([Task(pk=pk, disagreement=share) for pk, share in shares], ["disagreement"])


def _facts(rows: list[Submission], disagreement: dict[int, float]) -> dict[int, Facts]:
    labelers = {row.labeler_id for row in rows}
    known = set(_decided(labelers))
    gold = {pk: told for pk, *told in _gold([row.pk for row in rows])}
    reliability = dict(LabelerNumbers.objects.filter(labeler__in=labelers).values_list("labeler", "reliability"))
    read, written = _read(rows), _written(rows)
    facts = {}
    for row in rows:
        size = {"read": read[row.task_id], "written": written.get(row.pk, 0)}
        characters = size["written"] if row.kind == Kind.DEMONSTRATION else size["read"]
        facts[row.pk] = Facts(
            disagreement=disagreement.get(row.pk),
            gold_share=gold[row.pk][0] if row.pk in gold else None,
            is_gold_missed=row.pk in gold and gold[row.pk][1] is False,
            reliability=reliability.get(row.labeler_id),
            is_never_reviewed=row.labeler_id not in known,
            is_too_fast=priorities.is_too_fast(**size, seconds=row.active_seconds),
            chars_per_second=characters / row.active_seconds if row.active_seconds else None,
            model_conflict=row.model_conflict,
        )
    return facts


@dataclass(frozen=True)
class Disagreements:
    """Shares of comparisons, 0 to 1: of each submission with the others on its task, and between all rankings of a task, in the mean."""

    of_submissions: dict[int, float]
    of_tasks: dict[int, float]


def disagreements(tasks: Iterable[int]) -> Disagreements:
    """How far the rankings of these tasks differ. Left out: the rejected, those on gold seats, tasks with a single one. One query."""
    newest = Revision.objects.filter(submission__task__in=list(tasks), number=F("submission__revision_count"))
    newest = newest.filter(tiers__isnull=False, submission__is_gold=False).exclude(
        submission__status=Submission.Status.REJECTED
    )
    said = list(newest.order_by("id").values_list("submission_id", "submission__task_id", "tiers"))
    pairs = agreement.pairs_of(agreement.Rankings.of((task, tiers or []) for _pk, task, tiers in said))
    differs = 1 - pairs.agreed / np.maximum(pairs.comparisons, 1)
    shares: dict[int, list[float]] = defaultdict(list)
    between: dict[int, list[float]] = defaultdict(list)
    for first, second, share in zip(pairs.first, pairs.second, differs, strict=True):
        shares[said[first][0]].append(share)
        shares[said[second][0]].append(share)
        between[said[first][1]].append(share)
    return Disagreements(_means(shares), _means(between))


def _means(shares: dict[int, list[float]]) -> dict[int, float]:
    return {key: float(np.mean(values)) for key, values in shares.items()}


def _gold(submissions: list[int]) -> QuerySet:
    """(submission, share agreed on with gold, passed) of those that were measured by gold."""
    measured = SubmissionNumbers.objects.filter(submission__in=submissions, gold_share__isnull=False)
    return measured.values_list("submission", "gold_share", "gold_passed")


def _decided(labelers: Iterable[int]) -> QuerySet:
    """Those of the labelers who have been reviewed before."""
    reviewed = Review.objects.filter(submission__labeler__in=list(labelers))
    return reviewed.values_list("submission__labeler_id", flat=True).distinct()


def _read(rows: list[Submission]) -> dict[int, int]:
    """Task → characters that its labelers have to read: the prompt's, and the responses'. Identical responses are read once."""
    tasks = {row.task_id for row in rows}
    prompts = Prompt.objects.filter(tasks__in=tasks).values_list("tasks__id", "messages")
    read = {task: sum(len(str(each.get("content", ""))) for each in messages) for task, messages in prompts}
    texts = TaskResponse.objects.filter(task__in=tasks).annotate(size=Length("response__text"))
    for task, _digest, size in texts.values_list("task_id", "response__text_sha256", "size").distinct():
        read[task] += size
    return read


def _written(rows: list[Submission]) -> dict[int, int]:
    """Submission → characters of its newest text: corrections begin with the one before."""
    newest = Revision.objects.filter(submission__in=[row.pk for row in rows], number=F("submission__revision_count"))
    return dict(newest.filter(text__isnull=False).values_list("submission_id").annotate(size=Sum(Length("text"))))
