"""Screening in four parts (InstructGPT B.1): dealing a try's items, handing it in, grading blind, deciding.

What decides is a person, on results without a name. The cutoffs stand beside the figures and settle nothing by themselves.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import Avg, Count, F, Q, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import exercise_answers
from labeling.actions import exercises, hours, people
from labeling.actions.applications import rules_in_force, standing
from labeling.actions.tasks import lock_labeler
from labeling.answers import bounded, clean_text
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import (
    Application,
    Attempt,
    Decision,
    Exercise,
    Grade,
    Group,
    Part,
    Purpose,
    Role,
    Screening,
    ScreeningRules,
    User,
)

ABILITIES = ("yes", "partly", "no", "unsaid")
COMMENT_MAX_CHARS = 5000


# A try ---------------------------------------------------------------------------------------------------------


@transaction.atomic
def begin(*, by: User) -> Screening:
    """The applicant's open try; a new one where one may begin, its items dealt. Raises Conflict where none may begin now."""
    user = lock_labeler(by)
    if not user.has_role(Role.APPLICANT):
        raise Forbidden(_("%(user)s is no applicant.") % {"user": user})
    where = standing(user)
    if where.step != "screen":
        raise Conflict(_("There is no screening for you to begin now."))
    if where.screening and where.screening.submitted_at is None:
        return where.screening
    made = Screening.objects.create(user=user, number=where.tries + 1, rules=where.rules)
    counts = {
        Part.FLAGGING: where.rules.flagging_items,
        Part.RANKING: where.rules.ranking_items,
        Part.DEMONSTRATION: where.rules.demonstration_items,
    }
    position = 0
    for part, count in counts.items():
        for exercise in _deal(user, part, count):
            position += 1
            exercises.begin(exercise=exercise, user=user, screening=made, position=position)
    return made


def _deal(user: User, part: str, count: int) -> list[Exercise]:
    """Items of a part at random; those that this person has met before only where there are no others."""
    items = list(Exercise.objects.live(Purpose.SCREENING).filter(part=part))
    met = set(Attempt.objects.filter(user=user, exercise__part=part).values_list("exercise", flat=True))
    random.shuffle(items)
    return sorted(items, key=lambda item: item.pk in met)[:count]


def open_try(user: User) -> Screening | None:
    """The try that the applicant is working on, while they apply."""
    if standing(user).step != "screen":
        return None
    return Screening.objects.filter(user=user, submitted_at=None).select_related("rules").first()


@transaction.atomic
def save_self_assessment(*, screening: Screening, groups: dict, topics: dict, comment: str, by: User) -> Screening:
    """Keep part four: for each group and topic yes, partly, no, unsaid (rather not say), or nothing yet. Raises Conflict once handed in."""
    user = lock_labeler(by)
    locked = Screening.objects.select_for_update().get(pk=screening.pk, user=by)
    said = {
        "groups": {name: groups[name] for name in locked.rules.groups if groups.get(name) in ABILITIES},
        "topics": {name: topics[name] for name in locked.rules.topics if topics.get(name) in ABILITIES},
        "comment": clean_text(comment),
    }
    if locked.submitted_at is not None:
        if locked.self_assessment == said:
            return locked
        raise Conflict(_("This was handed in already and can no longer be changed."))
    locked.self_assessment = said
    hours.sign(work=locked, now=timezone.now(), by=user)
    locked.save(update_fields=["self_assessment", "active_seconds", "worked_at"])
    return locked


def self_missing(screening: Screening) -> list[str]:
    """Groups and topics without an answer."""
    said = screening.self_assessment
    missing = [name for name in screening.rules.groups if name not in said.get("groups", {})]
    return missing + [name for name in screening.rules.topics if name not in said.get("topics", {})]


@dataclass
class PartState:
    """How far an applicant is with a part: items in order, and which are complete."""

    part: str
    label: str
    attempts: list[Attempt] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(self.complete)

    @property
    def total(self) -> int:
        return len(self.attempts)

    @property
    def next_attempt(self) -> Attempt | None:
        """The first that is not complete, else the first."""
        return next(
            (a for a, ok in zip(self.attempts, self.complete, strict=True) if not ok),
            self.attempts[0] if self.attempts else None,
        )


def parts_of(screening: Screening) -> list[PartState]:
    """The parts with items, in order."""
    states = {part: PartState(part, str(part.label)) for part in Part}
    for attempt in screening.attempts.select_related("exercise__schema").order_by("position"):
        state = states[Part(attempt.exercise.part)]
        state.attempts.append(attempt)
        state.complete.append(not exercise_answers.problems(attempt.content, attempt.exercise, attempt.shown_order))
    return [state for state in states.values() if state.attempts]


@transaction.atomic
def hand_in(*, screening: Screening, by: User) -> Screening:
    """All four parts at once, for good: answers are fixed and compared. Twice changes nothing. Raises Invalid naming what is missing."""
    lock_labeler(by)
    locked = Screening.objects.select_for_update(of=["self"]).select_related("rules").get(pk=screening.pk, user=by)
    if locked.submitted_at is not None:
        return locked
    missing = [
        _("%(part)s: %(n)d of %(all)d are done.") % {"part": state.label.capitalize(), "n": state.done, "all": state.total}
        for state in parts_of(locked) if state.done < state.total
    ]  # fmt: skip
    if self_missing(locked):
        missing.append(_("About you: not everything is answered."))
    if missing:
        raise Invalid(" ".join(missing))
    for attempt in locked.attempts.select_for_update(of=["self"]).select_related("exercise__schema"):
        exercises.hand_in(attempt)
    locked.submitted_at = timezone.now()
    locked.save(update_fields=["submitted_at"])
    return locked


# Figures -------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What researchers see of a candidate beside the cutoffs. Shares 0 to 1, grade 1 to 7; None until it is known."""

    flagging: float | None = None
    ranking: float | None = None
    demonstration: float | None = None
    grades: int = 0
    grades_wanted: int = 0

    @property
    def is_graded(self) -> bool:
        return self.grades >= self.grades_wanted


def figures_of(screenings: Iterable[Screening]) -> dict[int, Figures]:
    """Figures by screening, in two queries. The average grade stays unknown until all grades are in: graders judge blind."""
    rules = {each.pk: each.rules for each in screenings}
    found = {pk: Figures() for pk in rules}
    sums = Attempt.objects.filter(screening__in=found).values_list("screening", "exercise__part")
    for pk, part, agreed, compared, n in sums.annotate(a=Sum("agreed"), c=Sum("compared"), n=Count("id")):
        if part == Part.DEMONSTRATION:
            found[pk].grades_wanted = n * rules[pk].graders
        elif compared:
            setattr(found[pk], part, agreed / compared)
    averages: dict[int, list[float]] = defaultdict(list)
    rows = Grade.objects.filter(attempt__screening__in=found).values_list("attempt__screening", "attempt")
    for pk, _attempt, average, n in rows.annotate(average=Avg("grade"), n=Count("id")).order_by():
        averages[pk].append(average)
        found[pk].grades += n
    for pk, each in averages.items():
        if found[pk].is_graded:
            found[pk].demonstration = sum(each) / len(each)
    return found


# Grading -------------------------------------------------------------------------------------------------------


def to_grade(by: User):
    """Demonstrations that this researcher may grade: handed in, undecided, with a free seat, not theirs and not graded by them."""
    rows = Attempt.objects.filter(
        exercise__part=Part.DEMONSTRATION,
        screening__submitted_at__isnull=False,
        screening__decisions=None,
        screening__user__application__status=Application.Status.SUBMITTED,
    )
    rows = rows.exclude(user=by).exclude(pk__in=Grade.objects.filter(grader=by).values("attempt"))
    rows = rows.annotate(n=Count("grades")).filter(n__lt=F("screening__rules__graders"))
    return rows.select_related("exercise__schema", "screening__rules").order_by("screening__submitted_at", "position")


@transaction.atomic
def grade(*, attempt: Attempt, grade: int, comment: str = "", by: User) -> Grade:
    """A researcher's grade, 1 to 7, for good. The same again changes nothing.

    Raises Forbidden (no researcher, or their own text), Invalid, Conflict (graded otherwise by them before, or by enough others).
    """
    if not by.is_researcher or attempt.user_id == by.pk:
        raise Forbidden(_("%(by)s may not grade this.") % {"by": by})
    if grade not in exercise_answers.QUALITY:
        raise Invalid(_("Choose a grade from 1 to 7."))
    comment = bounded(comment, COMMENT_MAX_CHARS, _("Comment"), "comment")
    locked = (
        Attempt.objects.select_for_update(of=["self"])
        .select_related("screening__rules", "exercise__schema")
        .get(pk=attempt.pk)
    )
    screening = locked.screening
    if screening is None or screening.submitted_at is None or locked.exercise.part != Part.DEMONSTRATION:
        raise Conflict(_("This is not there to be graded."))
    given = {each.grader_id: each for each in locked.grades.all()}
    if mine := given.get(by.pk):
        if (mine.grade, mine.comment) == (grade, comment):
            return mine
        raise Conflict(_("You have graded this already; a grade stays as it was given."))
    if len(given) >= screening.rules.graders:
        raise Conflict(_("Enough researchers have graded this meanwhile. Yours is not needed any more."))
    return Grade.objects.create(attempt=locked, seat=len(given) + 1, grader=by, grade=grade, comment=comment)


# Deciding ------------------------------------------------------------------------------------------------------


@transaction.atomic
def decide(
    *,
    screening: Screening,
    verdict: str,
    group: str = "",
    reason: str,
    message: str = "",
    although_ungraded: bool = False,
    seen: int = 0,
    by: User,
) -> Decision:
    """A person's decision on a candidate, kept with who, when and why. `seen`: the newest decision that they saw (0: none).

    Accepting makes them a labeler in a group. A retake may begin after the cool-down of the rules in force. Raises Forbidden, Invalid (no
    reason, no group, no try left, grades missing and not `although_ungraded`: none can be given once it is decided),
    Conflict (somebody decided meanwhile, or they withdrew).
    """
    if not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})
    user = lock_labeler(screening.user)
    if user.pk == by.pk:
        raise Forbidden(_("Nobody decides about themselves."))
    newest = Decision.objects.filter(user=user).order_by("-id").first()
    reason, message = clean_text(reason).strip(), clean_text(message).strip()
    said = (screening.pk, verdict, group if verdict == Decision.Verdict.ACCEPTED else "", reason, message, by.pk)
    if newest and said == (
        newest.screening_id,
        newest.verdict,
        newest.group,
        newest.reason,
        newest.message,
        newest.decided_by_id,
    ):
        return newest
    _check_decision(screening, user, newest, seen)
    rules = rules_in_force()
    _check_verdict(verdict, group, reason, Screening.objects.filter(user=user).count(), rules)
    figures = figures_of([screening])[screening.pk]
    if not (figures.is_graded or although_ungraded or screening.decisions.exists()):
        counts = {"n": figures.grades, "all": figures.grades_wanted}
        missing = _("Only %(n)d of %(all)d grades are in. Tick that you decide all the same, or wait for them.")
        raise Invalid(missing % counts)
    if verdict == Decision.Verdict.ACCEPTED:
        return people.accept_applicant(
            user=user, group=group, reason=reason, message=message, screening=screening, by=by
        )
    if verdict == Decision.Verdict.DECLINED:
        hours.enter_screenings(user=user)
    cooldown = rules.cooldown_days if verdict == Decision.Verdict.RETAKE else 0
    return Decision.objects.create(
        user=user, screening=screening, verdict=verdict, reason=reason, message=message, cooldown_days=cooldown, decided_by=by
    )  # fmt: skip


def _check_decision(screening: Screening, user: User, newest: Decision | None, seen: int) -> None:
    if newest and newest.pk != seen:
        said = _("%(who)s has decided already: %(verdict)s.")
        raise Conflict(said % {"who": newest.decided_by, "verdict": newest.get_verdict_display()})
    if newest and newest.verdict == Decision.Verdict.ACCEPTED:
        raise Conflict(_("They are a labeler already; see People."))
    if screening.submitted_at is None or Screening.objects.filter(user=user, number__gt=screening.number).exists():
        raise Conflict(_("This try is not the one to decide on."))
    if not Application.objects.filter(user=user, status=Application.Status.SUBMITTED).exists():
        raise Conflict(_("The candidate has withdrawn."))


def _check_verdict(verdict: str, group: str, reason: str, tries: int, rules: ScreeningRules) -> None:
    if verdict not in Decision.Verdict.values:
        raise Invalid(_("Choose what you decide."))
    if not reason:
        raise Invalid(_("Give a reason: it is kept with the decision."))
    if verdict == Decision.Verdict.ACCEPTED and group not in Group.values:
        raise Invalid(_("Choose the group that they label in."))
    if verdict == Decision.Verdict.RETAKE and tries >= rules.max_tries:
        raise Invalid(_("They have had all %(n)d tries that the rules allow.") % {"n": rules.max_tries})


@transaction.atomic
def set_rules(*, by: User, **fields) -> ScreeningRules:
    """New rules, in force from now on; tries that were begun keep theirs. The same again changes nothing. Raises Forbidden, Invalid."""
    if not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})
    rules_in_force()
    newest = ScreeningRules.objects.select_for_update().order_by("-version")[0]
    if all(getattr(newest, name) == value for name, value in fields.items()):
        return newest
    kept = {
        f.name: getattr(newest, f.name)
        for f in ScreeningRules._meta.fields
        if f.name not in ("id", "version", "changed_at")
    }
    return ScreeningRules.objects.create(**(kept | fields | {"version": newest.version + 1, "changed_by": by}))


def candidates():
    """Tries as researchers list them: by people who still apply, or who were decided on."""
    applies = Q(user__application__status=Application.Status.SUBMITTED) | Q(decisions__isnull=False)
    return Screening.objects.filter(applies).distinct()
