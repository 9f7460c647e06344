"""Tasks: giving seats to labelers, keeping them while they work, and never losing what they type.

Everything one labeler does is done in order: each action locks the labeler's row first (NO KEY, so that nothing that merely
refers to them waits), then the draft, then the slot. Different labelers meet only at slots, and there they skip each other.
"""

import random
from datetime import datetime
from typing import Literal

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions import gold, hours
from labeling.actions.preparation import check_prepared
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Draft, Kind, Skip, Slot, Submission, Task, TaskResponse, User
from labeling.models.tasks import SlotQuerySet

RETURN_AT_ONCE = 20  # expired leases given back in passing; bounded, so that a claim never pays for a whole night's

BEST_FIRST = ("-priority", "seat", "id")

Seat = Literal["held", "lost", "submitted", "skipped"]


def lock_labeler(labeler: User) -> User:
    """The labeler's row, fresh and locked until the transaction ends."""
    return User.objects.select_for_update(no_key=True).get(pk=labeler.pk)


# Claiming ------------------------------------------------------------------------------------------------------


@transaction.atomic
def claim_next(*, kind: str = "", batch_id: int | None = None, by: User) -> Slot | None:
    """The labeler's next seat, leased, with its draft made; None if nothing is left for them.

    First the seat they hold already (its lease may have run out), then one they lost while it is still free, then the best
    open one: highest priority, lowest seat, oldest. `kind` and `batch_id` narrow the choice. Raises Forbidden unless they are a labeler,
    NotPrepared if new work would be given and something comes before it (instructions, practice).
    """
    if not by.is_labeler:
        raise Forbidden(_("%(by)s is not a labeler.") % {"by": by})
    user, now = lock_labeler(by), timezone.now()
    wanted = Q(kind=kind) if kind else Q()
    wanted &= Q(batch_id=batch_id) if batch_id else Q()
    slot = _held(user, wanted)
    if slot is None:
        return_expired(now=now)
        slot = _left_behind(user, wanted, now)
    if slot is None and (slot := _new_work(user, wanted, kind)):
        check_prepared(kind=slot.kind, by=user)
        slot = gold.instead_of(slot, user=user, now=now) or slot
    slot = slot or _left_behind(user, wanted, now, put_back=True)
    if slot is None:
        return None
    if slot.leased_at != now:  # a gold seat has just been made for them
        _lease(slot, user, now)
    _make_draft(slot.task_id, user)
    return slot


def _held(user: User, wanted: Q) -> Slot | None:
    """A seat that still bears the labeler's name, run out or not."""
    held = Slot.objects.filter(wanted, labeler=user, status=Slot.Status.LEASED)
    return held.select_for_update().order_by("-leased_at").first()


def _left_behind(user: User, wanted: Q, now: datetime, *, put_back: bool = False) -> Slot | None:
    """A free seat on a task where the labeler has a draft: lost by time, or (last resort) put back by themselves."""
    drafts = Draft.objects.filter(labeler=user).order_by("-saved_at").values_list("task_id", "content", "task__is_gold")
    for task_id, content, is_gold in drafts[:100]:
        if bool(content.get("put_back")) != put_back:
            continue
        if is_gold and (slot := gold.seat_again(task_id, wanted=wanted, user=user, now=now)):
            return slot
        free = Slot.objects.claimable_by(user).filter(wanted, task_id=task_id).order_by("seat")
        if slot := free.select_for_update(skip_locked=True, of=("self",)).first():
            return slot
    return None


def _new_work(user: User, wanted: Q, kind: str) -> Slot | None:
    """The best open seat; none for a labeler who is paused: they may finish what they have begun."""
    return None if user.is_paused else _best_open(user, wanted, kind)


def _best_open(user: User, wanted: Q, kind: str) -> Slot | None:
    """The best open seat: the index is walked in order for each kind and group, and their best rows are compared."""
    put_back = list(Draft.objects.filter(labeler=user, content__put_back=True).values_list("task_id", flat=True))
    open_slots = Slot.objects.claimable_by(user).filter(wanted).order_by(*BEST_FIRST)
    if put_back:
        open_slots = open_slots.exclude(task_id__in=put_back)
    walks = [(head, open_slots.filter(kind=head["kind"], group=head["group"])) for head in _heads(user, kind)]
    if len(walks) > 1:
        walks = _in_order(walks)
    for _head, walk in walks:
        if slot := walk.select_for_update(skip_locked=True, of=("self",)).first():
            return slot
    return None


def _heads(user: User, kind: str) -> list[dict]:
    """The first open seat of each kind and group, whether this labeler may take it or not: no later one comes before it."""
    firsts = [
        Slot.objects.filter(status=Slot.Status.OPEN, kind=each_kind, group=group)
        .order_by(*BEST_FIRST)
        .values("id", "priority", "seat", "kind", "group")[:1]
        for each_kind in ([kind] if kind else Kind.values)
        for group in ("", user.group)
    ]
    return sorted((dict(row) for row in firsts[0].union(*firsts[1:], all=True)), key=_rank)


def _rank(row: dict) -> tuple[int, int, int]:
    return -row["priority"], row["seat"], row["id"]


def _in_order(walks: list[tuple[dict, SlotQuerySet]]) -> list[tuple[dict, SlotQuerySet]]:
    """The walks by the first seat that may really be taken; walks that cannot hold the best one are not looked into."""
    found: list[tuple[dict, SlotQuerySet]] = []
    rest = list(walks)
    while rest and not (found and _rank(found[0][0]) <= _rank(rest[0][0])):
        _head, walk = rest.pop(0)
        if row := walk.values("id", "priority", "seat").first():
            found = sorted([*found, (row, walk)], key=lambda pair: _rank(pair[0]))
    return found + rest


def _lease(slot: Slot, user: User, now: datetime) -> None:
    """Take or renew a locked seat; a renewal keeps the time when it was first taken."""
    leased_at = slot.leased_at if slot.labeler_id == user.pk else None
    slot.lease(user, now)
    slot.leased_at = leased_at or slot.leased_at
    slot.save(update_fields=["status", "labeler", "leased_at", "lease_expires_at"])


def _make_draft(task_id: int, user: User) -> None:
    """The worksheet, with the responses shuffled once for this labeler. An existing one stays as it is."""
    if Draft.objects.filter(task_id=task_id, labeler=user).exists():
        return
    shown_order = [
        str(u) for u in TaskResponse.objects.filter(task_id=task_id).values_list("response__uuid", flat=True)
    ]
    random.shuffle(shown_order)
    Draft.objects.create(task_id=task_id, labeler=user, shown_order=shown_order)


@transaction.atomic
def return_expired(*, limit: int = RETURN_AT_ONCE, task: Task | None = None, now: datetime | None = None) -> int:
    """Give back up to `limit` seats whose lease ran out (of one task, if given); how many. Drafts stay."""
    expired = Slot.objects.expired(now)
    if task is not None:
        expired = expired.filter(task=task)
    ids = list(
        expired.select_for_update(skip_locked=True).order_by("lease_expires_at").values_list("id", flat=True)[:limit]
    )
    if not ids:
        return 0
    gone, _by_model = Slot.objects.filter(id__in=ids, is_gold=True).delete()
    return gone + Slot.objects.filter(id__in=ids).update(
        status=Slot.Status.OPEN, labeler=None, leased_at=None, lease_expires_at=None
    )


# Working -------------------------------------------------------------------------------------------------------


def take_seat(task: Task, user: User, now: datetime) -> Slot | None:
    """The labeler's seat on the task, locked: theirs, or a free one if they lost it. None if others have all. Needs a transaction."""
    mine = Slot.objects.select_for_update().filter(task=task, labeler=user).first()
    if mine is None:
        return_expired(task=task, now=now)
        free = Slot.objects.filter(task=task, status=Slot.Status.OPEN).order_by("seat")
        mine = free.select_for_update(skip_locked=True).first() or gold.seat_again(task, user=user, now=now)
    if mine is not None and mine.status != Slot.Status.SUBMITTED:
        _lease(mine, user, now)
    return mine


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
