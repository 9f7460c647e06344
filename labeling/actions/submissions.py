"""Submissions: handing work in once, correcting it until it is reviewed, keeping every revision."""

from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions import drafts, hours, priorities, webhooks
from labeling.actions.drafts import Seen
from labeling.actions.tasks import fill_seat, lock_labeler
from labeling.errors import Conflict, Forbidden, HandedInElsewhere, Invalid
from labeling.models import Activity, Draft, GoldAnswer, Look, Origin, Revision, Skip, Submission, Task, User
from labeling.statements import Statement, columns_of, insert, row_of


@transaction.atomic
def submit(
    *,
    task: Task,
    submit_key: UUID,
    answer: dict,
    problems: list[dict] | None = None,
    seen: Seen | None = None,
    active_seconds: float = 0,
    by: User,
) -> Submission:
    """Hand an answer in: the first time as a submission, later (until it is reviewed) as a new revision of it.

    `answer` has a Revision's fields: {"text"} or {"tiers", "ratings", "all_bad"}, with "prompt_flags" and "comment". Identical
    responses share a tier; naming one of them is enough. The same answer again changes nothing and returns the same submission,
    but what was returned must be changed before it is handed in again. If the seat was lost and is taken, the work is kept as
    surplus. `seen`: what the page knew that sends this (None: the asker has looked just now); a draft that this page has
    saved later than what it hands in is kept, as a correction begun. `active_seconds`: all time worked on that loading of the page.

    Raises Invalid naming every place that is wrong (`problems`: what the door found already), SavedElsewhere or
    HandedInElsewhere if another page did so since, Conflict if it can no longer be changed or others' answers were shown to them
    meanwhile, Forbidden if the task was never given to this labeler. Nothing is changed then.
    """
    user = lock_labeler(by)
    mine = {"task": task.pk, "labeler": user.pk}
    draft = row_of(Draft, row) if (row := DRAFT.row(**mine)) else None
    submission = row_of(Submission, row) if (row := SUBMISSION.row(**mine)) else None
    [(is_erased, has_skip, has_look)] = CHANGED.rows(**mine, prompt=task.prompt_id)
    if is_erased:
        raise Conflict(
            _("The prompt of task %(task)s was erased meanwhile: nothing is to be done here any more.")
            % {"task": task.uuid}
        )
    if draft is None and submission is None:
        raise Forbidden(_("Task %(task)s was not given to you.") % {"task": task.uuid})
    schema = submission.schema if submission else task.batch.schema
    cards = drafts.cards_of(task.pk, (submission or draft).shown_order)  # type: ignore[union-attr]
    fields = answers.checked(answer, kind=task.kind, cards=cards, schema=schema, problems=problems)
    if submission and _is_repeat(submission, submit_key, fields):
        return submission
    if has_look and not (submission and drafts.is_said(submission.current, fields)):
        raise Conflict(
            _("You have been shown others' answers to this task meanwhile. What you typed is kept, but not handed in.")
        )
    if draft and seen:
        seen.check(draft, submission)
        hours.count(draft=draft, page=seen.editor, seconds=active_seconds, now=timezone.now(), by=user)
    if submission is None:
        if has_skip:  # who hands a task in after all has not passed it on
            Skip.objects.filter(task=task, labeler=user).delete()
        submission = _first(task, user, draft, fields.get("text"))  # type: ignore[arg-type]
        _add_revision(submission, submit_key, fields, draft.active_seconds)  # type: ignore[union-attr]
    elif not drafts.is_said(submission.current, fields):
        _revise(submission, submit_key, fields, draft, seen)
    elif submission.status == Submission.Status.RETURNED:
        what = _("Your answer"), _("is as it was when it was returned: change it first")
        raise Invalid(" ".join(what), [answers.problem(*what)])
    if draft is not None and not (seen and draft.version > max(seen.base, seen.version)):
        if seen and seen.knowingly:
            drafts.keep_copy(draft)
        DELETE_DRAFT.rows(draft=draft.pk)
    elif draft is not None:
        draft.active_seconds = 0  # that time is entered; what follows is a correction's
        draft.save(update_fields=["active_seconds", "page_seconds"])
    return submission


MINE = {"task": "bigint", "labeler": "bigint"}
DRAFT = Statement(
    "draft",
    f"SELECT {columns_of(Draft)} FROM labeling_draft WHERE task_id = %(task)s AND labeler_id = %(labeler)s FOR UPDATE",  # noqa: S608
    **MINE,
)
SUBMISSION = Statement(
    "submission",
    f"SELECT {columns_of(Submission)} FROM labeling_submission WHERE task_id = %(task)s AND labeler_id = %(labeler)s"  # noqa: S608
    " FOR NO KEY UPDATE",
    **MINE,
)
# Whether the prompt was erased meanwhile, whether the labeler has passed the task on, or been shown others' answers to it.
CHANGED = Statement(
    "changed",
    "SELECT EXISTS (SELECT 1 FROM labeling_prompt WHERE id = %(prompt)s AND intake = 'erased'),"
    " EXISTS (SELECT 1 FROM labeling_skip WHERE task_id = %(task)s AND labeler_id = %(labeler)s),"
    " EXISTS (SELECT 1 FROM labeling_look WHERE task_id = %(task)s AND labeler_id = %(labeler)s)",
    prompt="bigint",
    **MINE,
)
DELETE_DRAFT = Statement("delete_draft", "DELETE FROM labeling_draft WHERE id = %(draft)s", draft="bigint")


def _is_repeat(submission: Submission, submit_key: UUID, fields: dict) -> bool:
    """True if this very answer arrived under this key before: a double click, or an answer that was lost on its way."""
    before = submission.revisions.filter(submit_key=submit_key).first()
    return before is not None and drafts.is_said(before, fields)


def _first(task: Task, user: User, draft: Draft, text: str | None) -> Submission:
    """The submission's row: in the labeler's seat, or surplus. Group and origin are frozen here."""
    now = timezone.now()
    slot = fill_seat(task, user, now)
    made = Submission(
        task=task,
        batch_id=task.batch_id,
        labeler=user,
        slot=slot,
        is_surplus=slot is None,
        is_gold=slot is not None and slot.is_gold,
        kind=task.kind,
        labeler_group=user.group,
        origin=Origin.SIMULATED if user.is_simulated else Origin.PERSON,
        schema_id=task.batch.schema_id,
        shown_order=draft.shown_order,
        active_seconds=round(draft.active_seconds),
        paste_chars=draft.paste_chars,
        revision_count=1,
        submitted_at=now,
        updated_at=now,
    )
    priorities.give_first(submission=made, text=text, now=now)
    return insert(made)


def _add_revision(submission: Submission, submit_key: UUID, fields: dict, seconds: float) -> None:
    number = submission.revision_count
    made = insert(Revision(submission=submission, number=number, submit_key=submit_key, **fields))
    activity = submission.kind if number == 1 else Activity.CORRECTION
    hours.enter_revision(
        revision=made, activity=activity, seconds=seconds, is_surplus=submission.is_surplus, by=submission.labeler
    )
    if number > 1 or submission.prioritized_at is None:
        priorities.refresh_task(submission=submission, now=submission.updated_at)
    webhooks.submitted(submission)


def _revise(submission: Submission, submit_key: UUID, fields: dict, draft: Draft | None, seen: Seen | None) -> None:
    """A correction: waits for review again."""
    if not submission.is_open_to_change:
        raise Conflict(
            _("This has been reviewed meanwhile and can no longer be changed. What you typed is kept in your draft.")
        )
    if why := why_closed(submission):
        raise Conflict(why)
    is_used = submission.revisions.filter(submit_key=submit_key).exists()
    if is_used or (seen and seen.revision != submission.revision_count):
        raise HandedInElsewhere(
            _("Submission %(submission)s has %(n)d revisions by now.")
            % {"submission": submission.uuid, "n": submission.revision_count}
        )
    submission.revision_count += 1
    submission.status, submission.updated_at = Submission.Status.SUBMITTED, timezone.now()
    seconds = draft.active_seconds if draft else 0
    submission.active_seconds += round(seconds)
    submission.paste_chars += draft.paste_chars if draft else 0
    submission.save(update_fields=["revision_count", "status", "updated_at", "active_seconds", "paste_chars"])
    _add_revision(submission, submit_key, fields, seconds)


def why_closed(submission: Submission) -> str:
    """Why its labeler can change it no more, in words for them; "" while they can."""
    if not submission.is_open_to_change:
        return _("This has been reviewed and can no longer be changed.")
    if Look.objects.filter(task=submission.task_id, labeler=submission.labeler_id).exists():
        return _("You have been shown others' answers to this task: yours stays as you handed it in.")
    # Asked of every submission: a query more for gold alone could be told by the time that it takes.
    is_shown = GoldAnswer.objects.filter(task=submission.task_id, released_at__isnull=False).exists()
    if submission.is_gold and is_shown:
        return _("What the team thinks is right has been shown to you: your answer stays as you handed it in.")
    return ""


@transaction.atomic
def reopen(*, submission: Submission, by: User) -> Draft:
    """A draft of a correction, begun with what was handed in last. The submission stays as it is until the draft is submitted.

    Opening it twice returns the same draft. Raises Forbidden if it is another's, Conflict if it can no longer be changed (`why_closed`).
    """
    user = lock_labeler(by)
    submission = Submission.objects.select_for_update(no_key=True).get(pk=submission.pk)
    if submission.labeler_id != user.pk:
        raise Forbidden(_("Submission %(submission)s is not yours.") % {"submission": submission.uuid})
    if why := why_closed(submission):
        raise Conflict(why)
    draft, _made = Draft.objects.get_or_create(
        task_id=submission.task_id,
        labeler=user,
        defaults={"shown_order": submission.shown_order, "content": answer_of(submission.current)},
    )
    return draft


@transaction.atomic
def discard_correction(*, submission: Submission, by: User) -> None:
    """Drop the draft of a correction; what was handed in stands, and the draft becomes a copy. Doing it twice changes nothing."""
    user = lock_labeler(by)
    draft = Draft.objects.filter(task_id=submission.task_id, labeler=user, task__submissions=submission).first()
    if draft is not None:
        drafts.keep_copy(draft)
        draft.delete()


def mark_read(*, submission: Submission, by: User) -> None:
    """The labeler has opened what reviewers said of it."""
    Submission.objects.filter(pk=submission.pk, labeler=by, has_unread_feedback=True).update(has_unread_feedback=False)


def answer_of(revision: Revision) -> dict:
    """A revision's answer, in the shape of a draft's content."""
    names = ["prompt_flags", "comment"]
    names += ["text"] if revision.text is not None else ["tiers", "ratings", "all_bad"]
    return {name: getattr(revision, name) for name in names}
