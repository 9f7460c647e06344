"""Looks: who was shown others' answers to a task, so that it is never given to them, nor changed by them, afterwards."""

from collections.abc import Iterable

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from labeling.actions.tasks import lock_labeler
from labeling.errors import Forbidden
from labeling.models import Look, Slot, Task, User


def held_by(user: User) -> QuerySet[Slot, int]:
    """Tasks that this person is working on: what others say of them is not shown to them."""
    return Slot.objects.filter(labeler=user, status=Slot.Status.LEASED).values_list("task_id", flat=True)


@transaction.atomic
def look(*, task: Task, by: User) -> None:
    """Write down that this person is shown others' answers to the task, in answer to the request at hand. Twice changes nothing.

    Raises Forbidden while they hold a seat on it. Whatever role they have: it may be a labeler's tomorrow.
    """
    user = lock_labeler(by)  # a claim locks it too: nobody is given the task between check and row
    if held_by(user).filter(task=task).exists():
        raise Forbidden(
            _("You are working on this task yourself: hand it in or release it before you read others' answers.")
        )
    _write([task.pk], user)


@transaction.atomic
def look_many(*, tasks: Iterable[int], by: User) -> set[int]:
    """`look` at a list of tasks. Returns those of them that may be shown: all but those that they hold a seat on."""
    user, ids = lock_labeler(by), set(tasks)
    ids -= set(held_by(user).filter(task__in=ids))
    _write(sorted(ids), user)
    return ids


def _write(tasks: list[int], user: User) -> None:
    Look.objects.bulk_create([Look(task_id=pk, labeler=user) for pk in tasks], ignore_conflicts=True)
