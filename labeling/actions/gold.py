"""Gold: tasks whose right answer is known, mixed into labelers' work at the rate that their batch sets.

A gold task has no open seats. A claim that has found its seat may be given one on a gold task of the same batch instead, made
for this labeler alone; the seat found stays for others. So the claim reads the index that it always reads, gold takes no seat
from the overlap of any task, and nobody gets gold but in the midst of other work. A gold seat that is put back, skipped or run
out of its lease goes; the draft stays, and its labeler is given the task again just as one that was lost or put back.
"""

import random
from datetime import datetime

from django.db import transaction
from django.db.models import Count, Exists, F, Max, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.actions import numbers
from labeling.errors import Conflict, Invalid
from labeling.models import (
    Draft,
    GoldAnswer,
    Kind,
    Look,
    Role,
    Skip,
    Slot,
    Submission,
    Task,
    TaskResponse,
    User,
    UserRole,
)
from labeling.models.batches import is_for

DICE = random.SystemRandom()  # no sequence that anybody could guess on from


# For labelers, who never hear of it ---------------------------------------------------------------------------------------


def open_to(user: User) -> QuerySet[Task]:
    """Gold tasks that may be given to this labeler: in active batches for them, not a prompt of their own, nothing of theirs on
    it. None for who may open the console's page of gold."""
    mine = {"task_id": OuterRef("pk"), "labeler": user}
    return (
        Task.objects.filter(is_for(user, "batch__"), is_gold=True, batch__status="active")
        .exclude(prompt__author__user=user)
        .filter(~Exists(Submission.objects.filter(**mine)), ~Exists(Skip.objects.filter(**mine)))
        .filter(~Exists(Slot.objects.filter(**mine)), ~Exists(Look.objects.filter(**mine)))
        .filter(~Exists(UserRole.objects.filter(user=user, role__in=[Role.REVIEWER, Role.RESEARCHER, Role.ADMIN])))
    )


def left_for(user: User) -> dict[int, tuple[int, int]]:
    """Batch → (gold tasks that this labeler may yet be given, those of them begun before). A page that counts what is left counts
    them with the rest: or a count that stays when a task is taken would tell which task is gold."""
    begun = Exists(Draft.objects.filter(task_id=OuterRef("pk"), labeler=user))
    rows = open_to(user).filter(batch__gold_percent__gt=0).annotate(is_begun=begun).values("batch").order_by("batch")
    counted = rows.annotate(n=Count("pk"), begun=Count("pk", filter=Q(is_begun=True)))
    return {row["batch"]: (row["n"], row["begun"]) for row in counted}


def instead_of(found: Slot, *, user: User, now: datetime) -> Slot | None:
    """Now and then, at the batch's rate, a leased seat on one of its gold tasks; None: the seat found it is.

    Whichever it is costs the same queries, so that no time tells: a gold task and its next seat are looked up before the dice
    are thrown, then one statement leases. Needs a transaction with the labeler's row locked.
    """
    untouched = ~Exists(Draft.objects.filter(task_id=OuterRef("pk"), labeler=user))
    candidates = open_to(user).filter(untouched, batch_id=found.batch_id, batch__gold_percent__gt=0)
    chosen = candidates.annotate(percent=F("batch__gold_percent")).order_by("?")
    task = chosen.select_for_update(of=("self",), no_key=True, skip_locked=True).first()
    if task is None:
        return None
    seat = _next_seat(task)
    return _seat(task, seat, user, now) if DICE.random() * 100 < task.percent else None


def seat_again(task: Task | int, *, wanted: Q | None = None, user: User, now: datetime) -> Slot | None:
    """A seat on a gold task that this labeler has begun and whose seat has gone; None if it is not gold (any more) or not theirs."""
    pk = task if isinstance(task, int) else task.pk
    begun = Exists(Draft.objects.filter(task_id=OuterRef("pk"), labeler=user))
    found = open_to(user).filter(wanted or Q(), begun, pk=pk).select_for_update(of=("self",), no_key=True).first()
    return _seat(found, _next_seat(found), user, now) if found else None


def _next_seat(task: Task) -> int:
    """The number of the next seat; the task's row is locked."""
    return (Slot.objects.filter(task=task).aggregate(last=Max("seat"))["last"] or 0) + 1


def _seat(task: Task, seat: int, user: User, now: datetime) -> Slot:
    slot = Slot(task_id=task.pk, seat=seat, batch_id=task.batch_id, kind=task.kind, is_gold=True)
    slot.lease(user, now)
    slot.save(force_insert=True)
    return slot


# For researchers --------------------------------------------------------------------------------------------------------------


@transaction.atomic
def make(
    *,
    task: Task,
    tiers: list[list[str]],
    explanation: str,
    tolerance: float = 0.25,
    adopted_from: Submission | None = None,
    by: User | None,
) -> GoldAnswer:
    """Give a ranking task a gold answer, and mix it in from now on. Its open seats go; who holds one may finish.

    `tolerance`: the share of comparisons that may differ and still pass. Raises Invalid naming what is wrong, Conflict if it has one.
    """
    task = Task.objects.select_for_update(no_key=True).select_related("batch").get(pk=task.pk)
    _check(task, tiers, explanation, tolerance)
    if GoldAnswer.objects.filter(task=task, withdrawn_at=None).exists():
        raise Conflict(_("This task has a gold answer already: withdraw it first."))
    made = GoldAnswer.objects.create(
        task=task,
        tiers=[sorted(tier) for tier in tiers if tier],
        explanation=explanation.strip(),
        tolerance=tolerance,
        adopted_from=adopted_from,
        made_by=by,
    )
    Slot.objects.filter(task=task, status=Slot.Status.OPEN).delete()
    task.is_gold = True
    task.save(update_fields=["is_gold"])
    numbers.forget(task_id=task.pk)
    return made


def _check(task: Task, tiers: list[list[str]], explanation: str, tolerance: float) -> None:
    problems = []
    if task.kind != Kind.RANKING:
        problems.append(("task", _("only a ranking can have a gold answer")))
    rows = TaskResponse.objects.filter(task=task).values_list("response__uuid", "response__text_sha256")
    digest_of = {str(uuid): digest for uuid, digest in rows}
    place_of = {uuid: place for place, tier in enumerate(tiers) for uuid in tier}
    if sorted(uuid for tier in tiers for uuid in tier) != sorted(digest_of):
        problems.append(("tiers", _("every response has one place")))
    elif len({(digest, place_of[uuid]) for uuid, digest in digest_of.items()}) > len(set(digest_of.values())):
        problems.append(("tiers", _("identical responses share a place")))
    elif len(place_of.values()) and len(set(place_of.values())) == 1:
        problems.append(("tiers", _("a gold answer must order something")))
    if not explanation.strip():
        problems.append(("explanation", _("say why this is right")))
    if not 0 <= tolerance <= 1:
        problems.append(("tolerance", _("a share from 0 to 1")))
    if problems:
        raise Invalid(
            "; ".join(message for _place, message in problems), [{"place": p, "message": m} for p, m in problems]
        )


@transaction.atomic
def withdraw(*, gold: GoldAnswer, by: User) -> None:
    """It was wrong: nobody is measured by it any more, and the task's seats are open again. Twice changes nothing."""
    gold, task = _locked(gold)
    if gold.withdrawn_at:
        return
    gold.withdrawn_by, gold.withdrawn_at = by, timezone.now()
    gold.save(update_fields=["withdrawn_by", "withdrawn_at"])
    if gold.released_at is None:
        _open_seats(task)
    _end(task)
    numbers.forget(task_id=task.pk)


@transaction.atomic
def release(*, gold: GoldAnswer, by: User) -> None:
    """Show the answer and its explanation to the labelers who did the task, and mix it in no more. Twice changes nothing."""
    gold, task = _locked(gold)
    if gold.withdrawn_at:
        raise Conflict(_("This gold answer was withdrawn."))
    if gold.released_at is None:
        gold.released_by, gold.released_at = by, timezone.now()
        gold.save(update_fields=["released_by", "released_at"])
        _end(task)


def _locked(gold: GoldAnswer) -> tuple[GoldAnswer, Task]:
    task = Task.objects.select_for_update(no_key=True).select_related("batch").get(pk=gold.task_id)
    return GoldAnswer.objects.select_for_update().get(pk=gold.pk), task


def _end(task: Task) -> None:
    task.is_gold = False
    task.save(update_fields=["is_gold"])


def _open_seats(task: Task) -> None:
    """As many as its overlap still asks for."""
    slots = Slot.objects.filter(task=task)
    missing, first = task.batch.overlap - slots.filter(is_gold=False).count(), _next_seat(task)
    Slot.objects.bulk_create(
        Slot(task=task, seat=first + i, batch_id=task.batch_id, kind=task.kind) for i in range(missing)
    )
