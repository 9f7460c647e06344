"""Tasks: giving seats to labelers, keeping them while they work, and never losing what they type.

Everything one labeler does is done in order: each action locks the labeler's row first (NO KEY, so that nothing that merely
refers to them waits), then the draft, then the slot. Different labelers meet only at slots, and there they skip each other.
"""

from datetime import datetime
from typing import Literal

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions import gold, hours, lines
from labeling.actions.preparation import check_prepared
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Draft, Look, Skip, Slot, Submission, Task, User
from labeling.statements import Statement, columns_of, row_of

RETURN_AT_ONCE = 20  # expired leases given back in passing; bounded, so that a claim never pays for a whole night's

Seat = Literal["held", "lost", "submitted", "skipped"]


def lock_labeler(labeler: User) -> User:
    """The labeler's row, fresh and locked until the transaction ends."""
    return row_of(User, LABELER.rows(labeler=labeler.pk)[0])


LABELER = Statement(
    "labeler",
    f"SELECT {columns_of(User)} FROM labeling_user WHERE id = %(labeler)s FOR NO KEY UPDATE",  # noqa: S608
    labeler="bigint",
)


# Claiming ------------------------------------------------------------------------------------------------------


@transaction.atomic
def claim_next(*, kind: str = "", batch_id: int | None = None, by: User) -> Slot | None:
    """The labeler's next seat, leased, with its draft made; None if nothing is left for them.

    First the seat they hold already (its lease may have run out), then one they lost while it is still free, then the best
    open one: highest priority, oldest batch, seats given back, lowest seat, oldest. `kind` and `batch_id` narrow the choice. Raises
    Forbidden unless they are a labeler, NotPrepared if new work would be given and something comes before it (instructions, practice).
    """
    if not by.is_labeler:
        raise Forbidden(_("%(by)s is not a labeler.") % {"by": by})
    user, now = lock_labeler(by), timezone.now()
    wanted = Q(kind=kind) if kind else Q()
    wanted &= Q(batch_id=batch_id) if batch_id else Q()
    passed: list[lines.Line] = []
    [at_hand] = AT_HAND.rows(labeler=user.pk, kind=kind, batch=batch_id, now=now, put_back=False)
    held, has_expired, has_begun = at_hand
    slot = _held(held, user) if held else None
    if slot is None and has_expired:
        return_expired(now=now)
    if slot is None and (held or has_expired or has_begun):
        slot = _left_behind(user, wanted, now)
    if slot is None and not user.is_paused:  # who is paused may finish what they have begun
        slot, has_gold, passed = lines.first_open(user, kind=kind, batch_id=batch_id)
        if slot is not None:
            check_prepared(slot=slot, by=user)
            slot = (has_gold and gold.instead_of(slot, user=user, now=now)) or slot
    slot = slot or _left_behind(user, wanted, now, put_back=True)
    if slot is not None:
        if slot.leased_at != now:  # a gold seat has just been made for them
            _lease(slot, user, now)
        _make_draft(slot.task_id, user, now)
    for line in passed:
        line.remember()
    return slot


# Of a labeler's newest drafts those that they neither handed in nor passed on nor hold a seat for, and whose task has one for them.
BEGUN = """
SELECT d.task_id, t.is_gold
  FROM (SELECT task_id, saved_at, content FROM labeling_draft WHERE labeler_id = %(labeler)s ORDER BY saved_at DESC LIMIT 100) d
  JOIN labeling_task t ON t.id = d.task_id
 WHERE (d.content @> '{"put_back": true}') = %(put_back)s
   AND NOT EXISTS (SELECT 1 FROM labeling_submission o WHERE o.task_id = d.task_id AND o.labeler_id = %(labeler)s OFFSET 0)
   AND NOT EXISTS (SELECT 1 FROM labeling_skip o WHERE o.task_id = d.task_id AND o.labeler_id = %(labeler)s OFFSET 0)
   AND NOT EXISTS (SELECT 1 FROM labeling_slot o WHERE o.task_id = d.task_id AND o.labeler_id = %(labeler)s OFFSET 0)
   AND NOT EXISTS (SELECT 1 FROM labeling_look o WHERE o.task_id = d.task_id AND o.labeler_id = %(labeler)s OFFSET 0)
   AND (t.is_gold OR EXISTS (SELECT 1 FROM labeling_slot o WHERE o.task_id = d.task_id AND o.status = 'open' OFFSET 0))
 ORDER BY d.saved_at DESC
"""

# Before any new task is looked for: the seat that still bears the labeler's name, run out or not; whether anybody's lease ran out;
# whether they have begun a task that has a seat for them.
AT_HAND = Statement(
    "at_hand",
    f"""
SELECT (SELECT s.id FROM labeling_slot s WHERE s.labeler_id = %(labeler)s AND s.status = 'leased'
           AND (%(kind)s = '' OR s.kind = %(kind)s) AND (%(batch)s IS NULL OR s.batch_id = %(batch)s)
         ORDER BY s.leased_at DESC LIMIT 1),
       EXISTS (SELECT 1 FROM labeling_slot WHERE status = 'leased' AND lease_expires_at < %(now)s),
       EXISTS ({BEGUN})
""",  # noqa: S608
    labeler="bigint",
    kind="text",
    batch="bigint",
    now="timestamptz",
    put_back="boolean",
)
HELD = Statement(
    "held",
    f"SELECT {columns_of(Slot)} FROM labeling_slot WHERE id = %(slot)s AND labeler_id = %(labeler)s AND status = 'leased'"  # noqa: S608
    " FOR UPDATE",
    slot="bigint",
    labeler="bigint",
)


def _held(pk: int, user: User) -> Slot | None:
    """The seat, locked, if it is still theirs."""
    held = HELD.row(slot=pk, labeler=user.pk)
    return row_of(Slot, held) if held else None


def _left_behind(user: User, wanted: Q, now: datetime, *, put_back: bool = False) -> Slot | None:
    """A free seat on a task where the labeler has a draft: lost by time, or (last resort) put back by themselves."""
    with connection.cursor() as cursor:
        cursor.execute(BEGUN, {"labeler": user.pk, "put_back": put_back})
        begun = cursor.fetchall()
    for task_id, is_gold in begun:
        if is_gold and (slot := gold.seat_again(task_id, wanted=wanted, user=user, now=now)):
            return slot
        free = Slot.objects.claimable_by(user).filter(wanted, task_id=task_id).order_by("seat")
        if slot := free.select_for_update(skip_locked=True, of=("self",)).first():
            return slot
    return None


def _lease(slot: Slot, user: User, now: datetime) -> None:
    """Take or renew a locked seat; a renewal keeps the time when it was first taken."""
    leased_at = slot.leased_at if slot.labeler_id == user.pk else None
    slot.lease(user, now)
    slot.leased_at = leased_at or slot.leased_at
    LEASE.rows(slot=slot.pk, labeler=user.pk, leased_at=slot.leased_at, until=slot.lease_expires_at)


LEASE = Statement(
    "lease",
    "UPDATE labeling_slot SET status = 'leased', labeler_id = %(labeler)s, leased_at = %(leased_at)s, lease_expires_at = %(until)s"
    " WHERE id = %(slot)s",
    slot="bigint",
    labeler="bigint",
    leased_at="timestamptz",
    until="timestamptz",
)

# The responses are shuffled once for each labeler.
MAKE_DRAFT = Statement(
    "make_draft",
    """
INSERT INTO labeling_draft (task_id, labeler_id, content, shown_order, version, active_seconds, page_seconds, created_at, saved_at)
SELECT %(task)s, %(labeler)s, '{}', coalesce(jsonb_agg(r.uuid ORDER BY random()), '[]'), 0, 0, '{}', %(now)s, %(now)s
  FROM labeling_taskresponse o JOIN labeling_response r ON r.id = o.response_id WHERE o.task_id = %(task)s
HAVING NOT EXISTS (SELECT 1 FROM labeling_draft d WHERE d.task_id = %(task)s AND d.labeler_id = %(labeler)s)
""",
    task="bigint",
    labeler="bigint",
    now="timestamptz",
)


def _make_draft(task_id: int, user: User, now: datetime) -> None:
    """The worksheet. An existing one stays as it is."""
    MAKE_DRAFT.rows(task=task_id, labeler=user.pk, now=now)


@transaction.atomic
def return_expired(*, limit: int = RETURN_AT_ONCE, task: Task | None = None, now: datetime | None = None) -> int:
    """Give back up to `limit` seats whose lease ran out (of one task, if given); how many. Drafts stay."""
    expired = Slot.objects.expired(now)
    if task is not None:
        expired = expired.filter(task=task)
    ids = list(
        expired.select_for_update(skip_locked=True).order_by("lease_expires_at").values_list("id", flat=True)[:limit]
    )
    return Slot.objects.filter(id__in=ids).give_back() if ids else 0


# Working -------------------------------------------------------------------------------------------------------


def take_seat(task: Task, user: User, now: datetime) -> Slot | None:
    """The labeler's seat on the task, locked: theirs, or a free one if they lost it. None if others have all, or if
    they have been shown others' answers since. Needs a transaction."""
    mine = Slot.objects.select_for_update().filter(task=task, labeler=user).first()
    if mine is None and not Look.objects.filter(task=task, labeler=user).exists():
        return_expired(task=task, now=now)
        free = Slot.objects.filter(task=task, status=Slot.Status.OPEN).order_by("seat")
        mine = free.select_for_update(skip_locked=True).first() or gold.seat_again(task, user=user, now=now)
    if mine is not None and mine.status != Slot.Status.SUBMITTED:
        _lease(mine, user, now)
    return mine


def fill_seat(task: Task, user: User, now: datetime) -> Slot | None:
    """take_seat, for what is handed in now: the seat is submitted, and locked. None if others have all."""
    if filled := FILL.row(task=task.pk, labeler=user.pk, now=now):
        return row_of(Slot, filled)
    mine = take_seat(task, user, now)
    if mine is not None:
        mine.status, mine.lease_expires_at, mine.submitted_at = Slot.Status.SUBMITTED, None, now
        mine.save(update_fields=["status", "lease_expires_at", "submitted_at"])
    return mine


FILL = Statement(
    "fill_seat",
    "UPDATE labeling_slot SET status = 'submitted', lease_expires_at = NULL, submitted_at = %(now)s WHERE task_id = %(task)s"  # noqa: S608
    " AND labeler_id = %(labeler)s AND status = 'leased' RETURNING " + columns_of(Slot),
    task="bigint",
    labeler="bigint",
    now="timestamptz",
)


@transaction.atomic
def renew(*, task: Task, page: str = "", active_seconds: float = 0, by: User) -> Seat:
    """Keep the seat for another lease: a sign of work. "lost": another labeler has it; "skipped": it was passed on, from
    another page. What is typed is kept all the same. `active_seconds`: all time worked on this loading (`page`) of the task's page.

    Raises Forbidden unless the task was given to this labeler.
    """
    user = lock_labeler(by)
    draft = _draft(task, user)
    draft.content.pop("put_back", None)
    hours.count(draft=draft, page=page, seconds=active_seconds, now=timezone.now(), by=user)
    draft.save(update_fields=["content", "active_seconds", "page_seconds"])
    return keep_seat(task, user)


def _draft(task: Task, user: User) -> Draft:
    draft = Draft.objects.select_for_update().filter(task=task, labeler=user).first()
    if draft is None:
        raise Forbidden(_("Task %(task)s is not open before you.") % {"task": task.uuid})
    return draft


def keep_seat(task: Task, user: User) -> Seat:
    """Renew the lease where there is one to renew. Needs a transaction with the labeler's row locked."""
    if Submission.objects.filter(task=task, labeler=user).exists():
        return "submitted"
    if Skip.objects.filter(task=task, labeler=user).exists():
        return "skipped"
    return "held" if take_seat(task, user, timezone.now()) else "lost"


@transaction.atomic
def release(*, task: Task, by: User) -> None:
    """Put the task back: the seat goes to others, the draft stays if there is anything in it. Doing it twice changes nothing."""
    user = lock_labeler(by)
    draft = Draft.objects.select_for_update().filter(task=task, labeler=user).first()
    if draft is not None:
        draft.content["put_back"] = True
        draft.save(update_fields=["content"])
    _free(task, user)


def _free(task: Task, user: User) -> None:
    slot = Slot.objects.select_for_update().filter(task=task, labeler=user, status=Slot.Status.LEASED).first()
    if slot is not None and slot.is_gold:
        slot.delete()
    elif slot is not None:
        slot.free()
        slot.save()


@transaction.atomic
def skip(
    *,
    task: Task,
    reason: str,
    comment: str = "",
    prompt_flags: dict | None = None,
    page: str = "",
    active_seconds: float = 0,
    by: User,
) -> Skip:
    """Pass the task on for good, with a reason; it is not given to this labeler again. Doing it twice changes nothing.

    Raises Invalid for an unknown reason, "other" without a comment or a comment too long, Conflict after a submission, Forbidden if it was
    never theirs.
    """
    if reason not in Skip.Reason.values:
        raise Invalid(_("Choose a reason for skipping."), [answers.problem(_("Reason"), _("is missing"), "reason")])
    if reason == Skip.Reason.OTHER and not comment.strip():
        raise Invalid(
            _("Say in a few words why you skip."), [answers.problem(_("Comment"), _("is empty"), "skip_comment")]
        )
    comment = answers.bounded(comment, answers.COMMENT_MAX_CHARS, _("Comment"), "skip_comment")
    user = lock_labeler(by)
    if existing := Skip.objects.filter(task=task, labeler=user).first():
        return existing
    if Submission.objects.filter(task=task, labeler=user).exists():
        raise Conflict(
            _("Task %(task)s is submitted already; it can be corrected from the history.") % {"task": task.uuid}
        )
    draft = _draft(task, user)
    hours.count(draft=draft, page=page, seconds=active_seconds, now=timezone.now(), by=user)
    draft.save(update_fields=["active_seconds", "page_seconds"])
    _free(task, user)
    made = Skip.objects.create(task=task, labeler=user, reason=reason, comment=comment, prompt_flags=prompt_flags or {})
    hours.enter_skip(skip=made, seconds=draft.active_seconds, by=user)
    return made


def lease_seconds() -> int:
    """How long a seat is kept without a sign of work."""
    return settings.LEASE_MINUTES * 60
