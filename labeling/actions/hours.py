"""Hours: counting the time that labelers work, entering it for what they did, and the rule of what is paid."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.errors import Forbidden
from labeling.models import (
    Activity,
    Application,
    Attempt,
    Decision,
    Draft,
    PayRule,
    Revision,
    Screening,
    Skip,
    User,
    WorkEntry,
    Writing,
)
from labeling.statements import insert

PAGES_KEPT = 20  # loadings of a task's page whose claims are remembered
PAUSE_SECONDS = 60  # so much of a longer pause counts as work
LAPSED_DAYS = 30  # who has not begun a retake so long after they might is entered as one who will not


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


def sign(*, work: Attempt | Screening, now: datetime, by: User) -> None:
    """A sign of work on an exercise, or on a self-assessment (unsaved): the time since the one before counts, of a pause a minute.
    `by`: their locked row. What was counted on other work meanwhile does not count twice.
    """
    if work.worked_at is not None:
        since = max(work.worked_at, by.worked_until or work.worked_at)
        work.active_seconds += max(0.0, min(PAUSE_SECONDS, (now - since).total_seconds()))
        by.worked_until = max(now, since)
        by.save(update_fields=["worked_until"])
    work.worked_at = now


def enter_revision(*, revision: Revision, activity: str, seconds: float, is_surplus: bool, by: User) -> None:
    """The entry for what was handed in. Needs the transaction that makes the revision."""
    entry = WorkEntry(
        labeler=by,
        activity=activity,
        is_surplus=is_surplus,
        seconds=round(seconds),
        revision=revision,
        ended_at=revision.created_at,
    )
    insert(entry)


def enter_skip(*, skip: Skip, seconds: float, by: User) -> None:
    """The entry for a task that was passed on."""
    WorkEntry.objects.create(
        labeler=by, activity=Activity.SKIP, seconds=round(seconds), skip=skip, ended_at=skip.created_at
    )


def enter_practice(*, attempt: Attempt) -> None:
    """The entry for a practice exercise that was handed in."""
    seconds = round(attempt.active_seconds)
    WorkEntry.objects.create(labeler=attempt.user, activity=Activity.PRACTICE, seconds=seconds, attempt=attempt)


def enter_writing(*, writing: Writing) -> None:
    """The entry for a prompt that was written, however many prompts its pairs make."""
    seconds = round(writing.active_seconds)
    WorkEntry.objects.create(labeler=writing.labeler, activity=Activity.PROMPT, seconds=seconds, writing=writing)


def enter_screenings(*, user: User) -> None:
    """Entries for what a person has worked on their tries, handed in or not: what was not entered before. `user`: their locked row.

    Made when they are no candidate any more: an entry bears their name, and who decides must not know it.
    """
    tries = Screening.objects.filter(user=user).annotate(items=Sum("attempts__active_seconds")).order_by("number")
    entered = dict(
        WorkEntry.objects.filter(screening__user=user).values_list("screening").annotate(Sum("seconds")).order_by()
    )
    for each in tries:
        due = round((each.items or 0) + each.active_seconds) - entered.get(each.pk, 0)
        if due > 0 or (each.submitted_at and each.pk not in entered):
            WorkEntry.objects.create(labeler=user, activity=Activity.SCREENING, seconds=max(due, 0), screening=each)


def nameless() -> list[int]:
    """People with hours of an earlier try who are candidates again: whoever decides on them must not read their name beside it.

    They were asked to try again, and may yet or are at it; or they have withdrawn and applied anew.
    """
    later = Decision.objects.filter(user=OuterRef("user"), pk__gt=OuterRef("pk"))
    newer = Screening.objects.filter(user=OuterRef("user"), number__gt=OuterRef("screening__number"))
    asked = Decision.objects.filter(~Exists(later), verdict=Decision.Verdict.RETAKE).annotate(is_back=Exists(newer))
    lapsed = timezone.now() - timedelta(days=LAPSED_DAYS)
    anew = Application.objects.filter(status=Application.Status.SUBMITTED, user__decisions=None)
    anew = anew.filter(Exists(WorkEntry.objects.filter(labeler=OuterRef("user"), screening__isnull=False)))
    found = [each.user_id for each in asked if each.is_back or each.retake_from >= lapsed]
    return found + list(anew.values_list("user_id", flat=True))


def enter_lapsed_retakes() -> int:
    """Enter the tries of those who were asked to try again and have not come back; how many people."""
    newest = ~Exists(Screening.objects.filter(user=OuterRef("user"), number__gt=OuterRef("number")))
    asked = Screening.objects.filter(newest, decisions__verdict=Decision.Verdict.RETAKE, work_entries=None)
    last = Decision.objects.filter(screening__in=asked).select_related("user").order_by("user", "-id").distinct("user")
    lapsed = timezone.now() - timedelta(days=LAPSED_DAYS)
    found = [each for each in last if each.verdict == Decision.Verdict.RETAKE and each.retake_from < lapsed]
    for each in found:
        with transaction.atomic():
            enter_screenings(user=User.objects.select_for_update(no_key=True).get(pk=each.user_id))
    return len(found)


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
