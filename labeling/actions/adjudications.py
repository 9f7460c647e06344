"""Adjudications: settling rankings that disagree, and returning some of them in the same step."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from django.db import transaction
from django.db.models import Max, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions import drafts, looks, reviews
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Adjudication, Kind, Review, Revision, Submission, Task, User


@dataclass(frozen=True)
class SeenRanking:
    """What a reviewer had before them of one submission: its revision's number, and the id of its newest review (0: none)."""

    revision: int
    review: int


def rankings_of(task: Task) -> QuerySet[Submission]:
    """The rankings that are compared: all but the rejected and those that only measure their labeler, in order of making."""
    return Submission.objects.filter(task=task, is_gold=False).exclude(status=Submission.Status.REJECTED).order_by("id")


def check_may(*, task: Task, by: User) -> None:
    """Raise Forbidden for one who ranks, or has ranked, this task: another reviewer settles it. Who may is shown what others said."""
    if Submission.objects.filter(task=task, labeler=by).exists():
        raise Forbidden(_("You have ranked this task yourself: another reviewer adjudicates it."))
    looks.look(task=task, by=by)


@transaction.atomic
def adjudicate(
    *,
    task: Task,
    tiers: list[list[str]],
    seen: Mapping[str, SeenRanking],
    key: UUID,
    comment: str = "",
    returned: Mapping[str, str] | None = None,
    settled: int | None = None,
    by: User,
) -> Adjudication:
    """Append a reviewer's ranking of the task, and return submissions to their labelers; all of it, or nothing.

    `seen`: submission UUID → what was read of it. `returned`: submission UUID → comment to its labeler. Identical responses share
    a tier; naming one of them is enough. `settled`: the id of the newest adjudication that was read (0: there was none; None:
    whoever asks has looked just now). The same ranking, comment and returns under the same `key` again answer with the first.

    Raises Invalid for a ranking that is not whole, a return without a comment or a submission that is not of this task; Conflict
    if a ranking has come, was revised or was decided on since, if somebody has settled the task since, or if something else was
    said under this key; Forbidden for anyone but a reviewer, and for one's own task.
    """
    if not by.is_reviewer:
        raise Forbidden(_("%(by)s is not a reviewer.") % {"by": by.email})
    if task.kind != Kind.RANKING:
        raise Invalid(_("Task %(task)s asks for no ranking.") % {"task": task.uuid})
    check_may(task=task, by=by)
    returned = returned or {}
    comment = _bounded(comment)
    submissions = {str(row.uuid): row for row in rankings_of(task).select_for_update(of=("self",), no_key=True)}
    if made := Adjudication.objects.filter(reviewer=by, key=key).first():  # looked up under the locks: a double click
        if (made.task_id, made.comment) != (task.pk, comment) or not _says(made, tiers, task, returned):
            raise Conflict(_("You have settled this from the same page already. Send it again to settle it anew."))
        return made
    _check_seen(submissions, seen)
    newest_made = task.adjudications.select_related("reviewer").order_by("id").last()
    if settled is not None and newest_made and newest_made.pk != settled:
        raise Conflict(_("%(who)s has settled this since you opened it.") % {"who": newest_made.reviewer})
    if foreign := set(returned) - set(submissions):
        raise Invalid(_("Submission %s is not one of these rankings.") % min(foreign))
    cards = drafts.cards_of(task.pk, response_ids(task))
    made = Adjudication.objects.create(
        task=task, tiers=answers.checked_tiers(tiers, cards), comment=comment, reviewer=by, key=key
    )
    numbers = {row.pk: row.revision_count for row in submissions.values()}
    newest = Revision.objects.filter(submission__in=numbers).values_list("pk", "submission_id", "number")
    made.compared.set([pk for pk, submission, number in newest if numbers[submission] == number])
    for uuid, why in sorted(returned.items()):
        reviews.review(
            submission=submissions[uuid],
            revision=seen[uuid].revision,
            seen_review=seen[uuid].review,
            verdict=Review.Verdict.RETURNED,
            comment=why,
            by=by,
        )
    Task.objects.filter(pk=task.pk).update(adjudicated_at=timezone.now())
    return made


def _says(made: Adjudication, tiers: list[list[str]], task: Task, returned: Mapping[str, str]) -> bool:
    """Whether this was settled so, and these returned with it."""
    back = Review.objects.filter(
        reviewer=made.reviewer, revision__in=made.compared.all(), verdict=Review.Verdict.RETURNED
    )
    back = back.filter(created_at__gte=made.created_at).order_by(
        "-id"
    )  # the earliest of one submission is the one made here
    said = {str(uuid): comment for uuid, comment in back.values_list("submission__uuid", "comment")}
    if said != {uuid: reviews.cleaned(comment) for uuid, comment in returned.items()}:
        return False
    return made.tiers == answers.checked_tiers(tiers, drafts.cards_of(task.pk, response_ids(task)))


def response_ids(task: Task) -> list[str]:
    """The UUIDs of a task's responses, in the order of the letters under which reviewers see them: their own order, which tells nothing."""
    return sorted(str(uuid) for uuid in task.task_responses.values_list("response__uuid", flat=True))


def _bounded(comment: str) -> str:
    comment = answers.clean_text(comment).strip()
    if len(comment) > reviews.MAX_COMMENT_CHARS:
        raise Invalid(_("The comment has %(n)d characters; %(most)d at most.") % {
            "n": len(comment), "most": reviews.MAX_COMMENT_CHARS})  # fmt: skip
    return comment


def _check_seen(submissions: Mapping[str, Submission], seen: Mapping[str, SeenRanking]) -> None:
    """Everything that is there was read as it is now."""
    decided = Submission.objects.filter(pk__in=[row.pk for row in submissions.values()]).annotate(
        last=Max("reviews__id")
    )
    newest = {str(row.uuid): row.last or 0 for row in decided}
    for uuid, row in submissions.items():
        if uuid not in seen:
            raise Conflict(_("%(who)s has handed in another ranking since you opened this.") % {"who": row.labeler})
        if seen[uuid].revision != row.revision_count:
            raise Conflict(_("%(who)s has revised the ranking since you opened this.") % {"who": row.labeler})
        if seen[uuid].review != newest[uuid]:
            raise Conflict(
                _("Somebody has decided on the ranking of %(who)s since you opened this.") % {"who": row.labeler}
            )
