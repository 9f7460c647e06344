"""Priorities: how much a look at each waiting submission is worth, stored, so that the queue reads one index.

Computed when a submission is made, for all that wait on its task; a job computes what has become out of date since.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from labeling import agreement, priorities
from labeling.models import Kind, Review, Revision, Submission, Task
from labeling.priorities import Facts
from labeling.statements import Statement

AT_ONCE = 500


def give_first(*, submission: Submission, text: str | None, now: datetime) -> None:
    """Give a submission that is about to be made (unsaved, with this text) its points, so that it is written, with all its indexes, once.
    Nothing is done if others on its task are to be looked at together with it: refresh_task is to follow."""
    [(*facts, has_others)] = NEW.rows(
        task=submission.task_id,
        labeler=submission.labeler_id,
        kind=submission.kind,
        seconds=submission.active_seconds,
        written=None if text is None else len(text),
    )
    if has_others:
        return
    submission.review_reasons = priorities.reasons(Row(*facts).facts(None))
    submission.review_priority = float(priorities.points(submission.review_reasons))
    submission.prioritized_at = now


def refresh_task(*, submission: Submission, now: datetime) -> None:
    """Compute for a submission and for everything else that waits on its task, gold seats apart: they are many, and are not
    compared with each other. Needs a transaction; rows that somebody is deciding on are left to the job."""
    _refresh(OF_TASK.rows(task=submission.task_id, own=submission.pk), now)


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
    return _refresh(STALE.rows(limit=limit), now or timezone.now())


# What the points of waiting submissions are made of, but for disagreement; the rows are locked, those that somebody is deciding on left
# out. Labelers read the prompt and each distinct response; `rankings`: how many there are to differ from each other.
LOOKED_AT = """
SELECT s.id, s.task_id, s.kind, s.active_seconds, s.model_conflict, n.gold_share, n.gold_passed, m.reliability,
       EXISTS (SELECT 1 FROM labeling_submission o JOIN labeling_review v ON v.submission_id = o.id WHERE o.labeler_id = s.labeler_id),
       (SELECT coalesce(sum(length(e ->> 'content')), 0) FROM labeling_task t JOIN labeling_prompt p ON p.id = t.prompt_id
         CROSS JOIN jsonb_array_elements(p.messages) e WHERE t.id = s.task_id)
     + (SELECT coalesce(sum(length(r.text)), 0) FROM (SELECT DISTINCT ON (r.text_sha256) r.text FROM labeling_taskresponse x
         JOIN labeling_response r ON r.id = x.response_id WHERE x.task_id = s.task_id) r) AS read,
       {written} AS written,
       (SELECT count(*) FROM labeling_submission o
         WHERE s.kind = 'ranking' AND o.task_id = s.task_id AND NOT o.is_gold AND o.status <> 'rejected') AS rankings{more}
  FROM {submission} s LEFT JOIN labeling_submissionnumbers n ON n.submission_id = s.id
  LEFT JOIN labeling_labelernumbers m ON m.labeler_id = s.labeler_id
"""
WRITTEN = (
    "(SELECT length(v.text) FROM labeling_revision v WHERE v.submission_id = s.id AND v.number = s.revision_count)"
)
WAITING = " WHERE s.status = 'submitted' AND {} FOR NO KEY UPDATE OF s SKIP LOCKED"
FACTS = LOOKED_AT.format(written=WRITTEN, more="", submission="labeling_submission") + WAITING
NEW = Statement(
    "new_priority",
    LOOKED_AT.format(
        written="%(written)s",
        more=", EXISTS (SELECT 1 FROM labeling_submission o WHERE o.task_id = s.task_id)",
        submission="(SELECT 0::bigint AS id, %(task)s AS task_id, %(labeler)s AS labeler_id, %(kind)s AS kind,"
        " %(seconds)s AS active_seconds, NULL::float8 AS model_conflict)",
    ),
    task="bigint",
    labeler="bigint",
    kind="text",
    seconds="integer",
    written="integer",
)
OF_TASK = Statement(
    "priorities",
    FACTS.format("s.task_id = %(task)s AND (NOT s.is_gold OR s.id = %(own)s) ORDER BY s.id"),
    task="bigint",
    own="bigint",
)
STALE = Statement(
    "stale_priorities", FACTS.format("s.prioritized_at IS NULL ORDER BY s.id LIMIT %(limit)s"), limit="bigint"
)
STORE = Statement(
    "store_priorities",
    """
UPDATE labeling_submission s
   SET review_reasons = made.reasons, review_priority = made.points, disagreement = made.disagreement, prioritized_at = %(now)s
  FROM unnest(%(ids)s, %(reasons)s, %(points)s, %(disagreements)s) AS made (id, reasons, points, disagreement) WHERE s.id = made.id
""",
    now="timestamptz",
    ids="bigint[]",
    reasons="jsonb[]",
    points="float8[]",
    disagreements="float8[]",
)


class Row(NamedTuple):
    """A row of FACTS or, of what has no key yet, of NEW."""

    pk: int
    task: int
    kind: str
    seconds: int
    model_conflict: float | None
    gold_share: float | None
    gold_passed: bool | None
    reliability: float | None
    is_known: bool
    read: int
    written: int | None
    rankings: int

    def facts(self, disagreement: float | None) -> Facts:
        """As the points are made of them."""
        written = self.written or 0
        characters = written if self.kind == Kind.DEMONSTRATION else self.read
        return Facts(
            disagreement=disagreement,
            gold_share=self.gold_share,
            is_gold_missed=self.gold_share is not None and self.gold_passed is False,
            reliability=self.reliability,
            is_never_reviewed=not self.is_known,
            is_too_fast=priorities.is_too_fast(read=self.read, written=written, seconds=self.seconds),
            chars_per_second=characters / self.seconds if self.seconds else None,
            model_conflict=self.model_conflict,
        )


def _refresh(found: list[tuple], now: datetime) -> int:
    """A constant number of statements, however many rows; how many."""
    rows = [Row(*row) for row in found]
    if not rows:
        return 0
    compared = {row.task for row in rows if row.rankings > 1}
    disagreement = disagreements(compared) if compared else Disagreements({}, {})
    facts = {row.pk: row.facts(disagreement.of_submissions.get(row.pk)) for row in rows}
    reasons = [priorities.reasons(each) for each in facts.values()]
    STORE.rows(
        now=now,
        ids=list(facts),
        reasons=[json.dumps(each) for each in reasons],
        points=[float(priorities.points(each)) for each in reasons],
        disagreements=[each.disagreement for each in facts.values()],
    )
    shares = sorted(disagreement.of_tasks.items())  # in order, so that two who do this do not wait for each other
    Task.objects.bulk_update([Task(pk=pk, disagreement=share) for pk, share in shares], ["disagreement"])
    return len(rows)


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


def _decided(labelers: Iterable[int]) -> QuerySet:
    """Those of the labelers who have been reviewed before."""
    reviewed = Review.objects.filter(submission__labeler__in=list(labelers))
    return reviewed.values_list("submission__labeler_id", flat=True).distinct()
