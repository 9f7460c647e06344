"""Reviews: deciding on submissions."""

from collections.abc import Mapping
from uuid import UUID

from django.db import transaction
from django.db.models import Max, Prefetch, Q, QuerySet
from django.utils.translation import gettext as _

from labeling.actions import priorities, second_reviews, webhooks
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Review, Slot, Submission, Task, User

MAX_COMMENT_CHARS = 10_000
MOST_WORTH_FIRST = ("-review_priority", "updated_at", "id")


@transaction.atomic
def review(
    *, submission: Submission, revision: int, verdict: str, comment: str = "", seen_review: int = 0, by: User
) -> Review:
    """Append a verdict on the current revision and set the submission's status by it.

    `revision` and `seen_review` (id of the newest review, 0 for none) say what the reviewer was looking at. The same
    verdict sent again by the same reviewer answers with the first. A rejected submission keeps its seat's label and
    opens another seat on the task, so that the batch still gets its overlap.

    Raises Conflict when the labeler has revised or another reviewer has decided since, Forbidden for one's own
    submission, Invalid for an unknown verdict or a return without a comment.
    """
    comment = cleaned(comment)
    _check(verdict, comment)
    _check_reviewer(by)
    # NO KEY: measuring holds the task and makes rows that refer to the submission; either would wait for the other.
    submission = Submission.objects.select_for_update(no_key=True).get(pk=submission.pk)
    if submission.labeler_id == by.pk:
        raise Forbidden(_("This submission is your own: another reviewer decides on it."))
    current = submission.current
    newest = submission.reviews.order_by("-id").first()
    if newest and _is_repeated(newest, current.pk, verdict, comment, by):
        return newest
    _check_seen(submission, current.number, revision, newest, seen_review)
    priorities.known_from_now(labelers={submission.labeler_id})
    made = Review.objects.create(submission=submission, revision=current, verdict=verdict, comment=comment, reviewer=by)
    second_reviews.sample(made=[made])
    submission.status = verdict
    submission.has_unread_feedback = verdict != Review.Verdict.ACCEPTED or bool(comment)
    submission.save(update_fields=["status", "has_unread_feedback"])
    _balance_seats(submission.task)
    webhooks.reviewed([made])
    return made


def cleaned(comment: str) -> str:
    """A comment as it is kept."""
    return comment.strip().replace("\r\n", "\n")


@transaction.atomic
def accept_many(*, seen: Mapping[str, int] | Mapping[UUID, int], by: User) -> int:
    """Accept the waiting submissions with these UUIDs whose current revision is the one seen; returns how many.

    Passed over: those decided or revised since, and the reviewer's own. As many queries however many there are.
    `why_passed_over` tells them.
    """
    _check_reviewer(by)
    revision_of = {str(uuid): revision for uuid, revision in seen.items()}
    waiting = Submission.objects.select_for_update(of=["self"], no_key=True).filter(
        uuid__in=revision_of, status=Submission.Status.SUBMITTED
    )
    rows = {s.pk: s for s in waiting.exclude(labeler=by).order_by("id") if s.revision_count == revision_of[str(s.uuid)]}
    priorities.known_from_now(labelers={row.labeler_id for row in rows.values()})
    revisions = Submission.objects.filter(pk__in=rows).annotate(newest=Max("revisions__id")).values_list("pk", "newest")
    made = Review.objects.bulk_create(
        Review(submission_id=pk, revision_id=newest, verdict=Review.Verdict.ACCEPTED, reviewer=by)
        for pk, newest in revisions.order_by("pk")
    )
    second_reviews.sample(made=made)
    webhooks.reviewed(made)
    return Submission.objects.filter(pk__in=rows).update(status=Submission.Status.ACCEPTED)


def why_passed_over(*, seen: Mapping[str, int], by: User) -> list[tuple[Submission, str]]:
    """Of the submissions that `accept_many` was asked for: those it did not accept, and why, in words."""
    rows = Submission.objects.filter(uuid__in=seen).select_related("labeler").order_by("id")
    newest = Prefetch("reviews", Review.objects.select_related("reviewer", "revision").order_by("id"))
    reasons = ((row, _why_passed_over(row, seen[str(row.uuid)], by)) for row in rows.prefetch_related(newest))
    return [(row, reason) for row, reason in reasons if reason]


def _why_passed_over(submission: Submission, seen: int, by: User) -> str:
    if submission.labeler_id == by.pk:
        return _("it is your own")
    last = list(submission.reviews.all())[-1:]
    if submission.revision_count != seen:
        said = _("revised since: you saw revision %(seen)d, now it is %(now)d")
        return said % {"seen": seen, "now": submission.revision_count}
    if last and (last[0].reviewer_id, last[0].verdict) != (by.pk, Review.Verdict.ACCEPTED):
        return _("%(who)s has decided: %(verdict)s") % {
            "who": last[0].reviewer,
            "verdict": last[0].get_verdict_display(),
        }
    return ""


def _check(verdict: str, comment: str) -> None:
    if verdict not in Review.Verdict.values:
        raise Invalid(_("Choose a verdict."))
    if verdict == Review.Verdict.RETURNED and not comment:
        raise Invalid(_("A comment is needed: it tells the labeler what to change."))
    if "\x00" in comment:
        raise Invalid(_("The comment holds a NUL character, which cannot be stored."))
    if len(comment) > MAX_COMMENT_CHARS:
        raise Invalid(
            _("The comment has %(n)d characters; %(most)d at most.") % {"n": len(comment), "most": MAX_COMMENT_CHARS}
        )


def _check_reviewer(by: User) -> None:
    if not by.is_reviewer:
        raise Forbidden(_("%(by)s is not a reviewer.") % {"by": by.email})


def _is_repeated(newest: Review, revision_id: int, verdict: str, comment: str, by: User) -> bool:
    said = (newest.revision_id, newest.verdict, newest.comment, newest.reviewer_id)
    return said == (revision_id, verdict, comment, by.pk)


def _check_seen(submission: Submission, current: int, seen: int, newest: Review | None, seen_review: int) -> None:
    if current != seen:
        raise Conflict(
            _("%(who)s has revised this since you opened it: you saw revision %(seen)s, now it is %(current)s.")
            % {"who": submission.labeler, "seen": seen, "current": current}
        )
    if newest and newest.pk != seen_review:
        raise Conflict(
            _("%(who)s has decided on this since you opened it: %(verdict)s.")
            % {"who": newest.reviewer, "verdict": newest.verdict}
        )


def _balance_seats(task: Task) -> None:
    """As many seats as the overlap asks for besides those whose work was rejected; spare ones go only while they are open."""
    # NO KEY, because a submit on this task holds a key share of it while it holds its seat.
    if Task.objects.select_for_update(no_key=True).get(pk=task.pk).is_gold:
        return
    slots = Slot.objects.filter(task=task, is_gold=False)
    rejected = Submission.objects.filter(
        task=task, is_surplus=False, is_gold=False, status=Submission.Status.REJECTED
    ).count()
    missing = task.batch.overlap + rejected - slots.count()
    if missing > 0:
        last = Slot.objects.filter(task=task).aggregate(last=Max("seat"))["last"] or 0
        Slot.objects.bulk_create(
            Slot(task=task, seat=last + i, batch_id=task.batch_id, kind=task.kind) for i in range(1, missing + 1)
        )
    elif missing < 0:
        spare = slots.filter(status=Slot.Status.OPEN, seat__gt=task.batch.overlap).order_by("-seat")
        spare = spare.select_for_update(skip_locked=True)[:-missing]
        Slot.objects.filter(pk__in=[slot.pk for slot in spare]).delete()


def next_waiting(*, after: Submission | None, among: QuerySet[Submission], by: User) -> Submission | None:
    """The next submission to decide on: where a look is worth most, then the longest waiting. It begins behind `after` and starts
    over at the end. Never one's own.
    """
    waiting = among.filter(status=Submission.Status.SUBMITTED).exclude(labeler=by).order_by(*MOST_WORTH_FIRST)
    if after is None:
        return waiting.first()
    later = Q(updated_at__gt=after.updated_at) | Q(updated_at=after.updated_at, id__gt=after.pk)
    behind = Q(review_priority__lt=after.review_priority) | Q(review_priority=after.review_priority) & later
    behind &= Q(review_priority__lte=after.review_priority)  # says nothing new, but to the index where to begin
    return waiting.filter(behind).first() or waiting.exclude(pk=after.pk).first()
