"""Hours: counting the time that labelers work, entering it for what they did, and the rule of what is paid."""

from datetime import datetime

from django.db import transaction
from django.db.models import Sum
from django.utils.translation import gettext as _

from labeling.errors import Forbidden
from labeling.models import Activity, Attempt, Draft, PayRule, Revision, Screening, Skip, User, WorkEntry, Writing

PAGES_KEPT = 20  # loadings of a task's page whose claims are remembered
PAUSE_SECONDS = 60  # so much of a longer pause counts as work


def count(*, draft: Draft | Writing, page: str, seconds: float, now: datetime, by: User) -> None:
    """Add to a draft (unsaved) what a page says it was worked on since its last message. `by`: the locked row of its labeler.

    `seconds`: all time worked on this loading of the page, idle time excluded; repeated or out of order it adds nothing. Whatever
    pages claim, over all tasks a labeler gets no more time than has passed: two tabs side by side do not count twice.
    """
    gained = seconds - draft.page_seconds.get(page, 0) if page else 0
    if gained <= 0:
        return
    since = max(draft.created_at, by.worked_until or draft.created_at)
    draft.active_seconds += max(0.0, min(gained, (now - since).total_seconds()))
    pages = {name: claimed for name, claimed in draft.page_seconds.items() if name != page} | {page: seconds}
    draft.page_seconds = dict(list(pages.items())[-PAGES_KEPT:])
    by.worked_until = max(now, since)
    by.save(update_fields=["worked_until"])


def sign(*, attempt: Attempt, now: datetime, by: User) -> None:
    """A sign of work on an exercise (unsaved): the time since the one before counts, of a pause a minute. `by`: their locked row.

    What was counted on other work meanwhile does not count twice.
    """
    if attempt.worked_at is not None:
        since = max(attempt.worked_at, by.worked_until or attempt.worked_at)
        attempt.active_seconds += max(0.0, min(PAUSE_SECONDS, (now - since).total_seconds()))
        by.worked_until = max(now, since)
        by.save(update_fields=["worked_until"])
    attempt.worked_at = now


def enter_revision(*, revision: Revision, activity: str, seconds: float, is_surplus: bool, by: User) -> None:
    """The entry for what was handed in. Needs the transaction that makes the revision."""
    WorkEntry.objects.create(
        labeler=by,
        activity=activity,
        is_surplus=is_surplus,
        seconds=round(seconds),
        revision=revision,
        ended_at=revision.created_at,
    )


def enter_skip(*, skip: Skip, seconds: float, by: User) -> None:
    """The entry for a task that was passed on."""
    WorkEntry.objects.create(
        labeler=by, activity=Activity.SKIP, seconds=round(seconds), skip=skip, ended_at=skip.created_at
    )


def enter(*, activity: str, seconds: float, by: User) -> None:
    """The entry for work that is neither a revision nor a skip: practice, screening, a prompt written."""
    WorkEntry.objects.create(labeler=by, activity=activity, seconds=max(0, round(seconds)))


def enter_screenings(*, user: User) -> None:
    """The entries for the tries that a person has handed in, in their order; once. Made when they are no candidate any more:
    an entry bears their name, and who decides must not know it."""
    entered = WorkEntry.objects.filter(labeler=user, activity=Activity.SCREENING).count()
    tries = Screening.objects.filter(user=user, submitted_at__isnull=False).order_by("number")
    for seconds in tries.annotate(worked=Sum("attempts__active_seconds")).values_list("worked", flat=True)[entered:]:
        enter(activity=Activity.SCREENING, seconds=seconds or 0, by=user)


@transaction.atomic
def set_rule(*, pays_skips: bool, pays_practice: bool, pays_screening: bool, by: User) -> PayRule:
    """From now on (and for every period looked at) these are paid too. The same rule again changes nothing. Raises Forbidden."""
    if not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})
    wanted = {"pays_skips": pays_skips, "pays_practice": pays_practice, "pays_screening": pays_screening}
    current = PayRule.current()
    if current.pk and all(getattr(current, name) == value for name, value in wanted.items()):
        return current
    return PayRule.objects.create(set_by=by, **wanted)
