"""Pauses: rules that stop a labeler's new work until a person has looked, and people who pause and resume.

A rule only pauses. Nobody is dismissed by it: the labeler keeps their drafts, finishes what is open, and is resumed by a person,
with a reason. What was handed in before that decision is never held against them again by a rule.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Avg, Case, Count, F, FloatField, OuterRef, Q, Subquery, When
from django.db.models.functions import Coalesce, NullIf
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import mail
from labeling.actions.tasks import lock_labeler
from labeling.errors import Forbidden, Invalid, refuse
from labeling.models import LabelerPause, LabelerRule, Role, Skip, SubmissionNumbers, User

REASON_MAX_CHARS = 5_000


@dataclass(frozen=True)
class Found:
    """A labeler whose number is beyond a rule's threshold: the value, on so many submissions."""

    labeler: User
    rule: LabelerRule
    value: float
    count: int


def apply_rules() -> list[LabelerPause]:
    """Ask every rule about every labeler who is at work, pause whom it says, and tell the reviewers by e-mail."""
    made = []
    for rule in LabelerRule.objects.filter(ended_at=None).order_by("id"):
        made += [pause for found in beyond(rule) if (pause := _pause(found))]
    for pause in made:
        tell(pause)
    return made


def beyond(rule: LabelerRule) -> list[Found]:
    """Whom a rule would pause now: their work of its window, since they were last resumed."""
    at_work = User.objects.filter(is_active=True, is_paused=False, is_simulated=False, roles__role=Role.LABELER)
    people = {user.pk: user for user in at_work}
    compare = "value__lt" if rule.is_below else "value__gt"
    rows = _measured(rule).filter(labeler__in=people, count__gte=rule.minimum, **{compare: rule.threshold})
    return [Found(people[pk], rule, value, count) for pk, value, count in rows.values_list("labeler", "value", "count")]


def _measured(rule: LabelerRule):
    """(labeler, value, count) over the rule's window."""
    if rule.metric == LabelerRule.Metric.SKIPS:
        return _skip_rates(rule)
    of = Case(When(**{rule.metric: True}, then=1.0), default=0.0, output_field=FloatField())
    is_share = rule.metric in {"gold_share", "agreement", "consensus_agreement"}
    rows = _since(rule, SubmissionNumbers.objects.exclude(**{rule.metric: None}), "submitted_at").values("labeler")
    return rows.annotate(value=Avg(rule.metric if is_share else of), count=Count("pk")).order_by("labeler")


def _skip_rates(rule: LabelerRule):
    """By person, since who skips all that they are given has handed in nothing."""

    def counted(rows, when: str) -> Coalesce:
        found = _since(rule, rows.filter(labeler=OuterRef("pk")), when).order_by().values("labeler")
        return Coalesce(Subquery(found.annotate(n=Count("pk")).values("n"), output_field=FloatField()), 0.0)

    done, skipped = counted(SubmissionNumbers.objects, "submitted_at"), counted(Skip.objects, "created_at")
    rows = User.objects.annotate(labeler=F("pk"), skipped=skipped, count=done + F("skipped")).order_by("pk")
    return rows.annotate(value=F("skipped") / NullIf("count", 0.0))


def _since(rule: LabelerRule, rows, when: str):
    """Rows of the rule's window that came after their labeler was last resumed."""
    resumed = LabelerPause.objects.filter(labeler=OuterRef("labeler"), is_pause=False).order_by("-id").values("at")[:1]
    rows = rows.filter(**{f"{when}__gte": timezone.now() - timedelta(days=rule.window_days)})
    return rows.annotate(resumed=Subquery(resumed)).filter(Q(resumed=None) | Q(**{f"{when}__gt": F("resumed")}))


@transaction.atomic
def _pause(found: Found) -> LabelerPause | None:
    user = lock_labeler(found.labeler)
    if user.is_paused:
        return None
    user.is_paused = True
    user.save(update_fields=["is_paused"])
    return LabelerPause.objects.create(
        labeler=user, is_pause=True, rule=found.rule, value=found.value, count=found.count
    )


def tell(pause: LabelerPause) -> None:
    """Tell every reviewer of a pause, each in a message of their own. Outside of transactions."""
    for reviewer in User.objects.with_role(Role.REVIEWER, Role.ADMIN).filter(is_simulated=False):
        mail.send(
            "labelers/paused_mail.txt", _("A labeler is paused"), reviewer.email, {"pause": pause, "reviewer": reviewer}
        )


@transaction.atomic
def set_paused(*, labeler: User, is_paused: bool, reason: str, by: User) -> LabelerPause:
    """Pause or resume, with a reason that is kept. Of who is so already, another reason or another person's is kept beside the first;
    the same person's same reason again changes nothing, and answers with what stands.

    Raises Invalid without a reason, Forbidden unless by a reviewer or researcher, and for oneself.
    """
    if not by.has_role(Role.REVIEWER, Role.RESEARCHER) or by.pk == labeler.pk:
        raise Forbidden(_("%(by)s may not decide on %(labeler)s.") % {"by": by, "labeler": labeler})
    reason = reason.replace("\x00", "").strip()
    if not reason or len(reason) > REASON_MAX_CHARS:
        raise Invalid(_("Say why."), [{"place": "reason", "message": _("Say why.")}])
    user = lock_labeler(labeler)
    newest = user.pauses.last()
    if newest and (newest.is_pause, newest.reason, newest.by_id) == (is_paused, reason, by.pk):
        return newest
    user.is_paused = is_paused
    user.save(update_fields=["is_paused"])
    return LabelerPause.objects.create(labeler=user, is_pause=is_paused, reason=reason, by=by)


def make_rule(*, metric: str, threshold: float, minimum: int, window_days: int, by: User) -> LabelerRule:
    """A rule from now on. Raises Invalid naming what is wrong."""
    problems = [
        {"place": place, "message": message}
        for place, message, is_wrong in (
            ("metric", _("unknown number"), metric not in LabelerRule.Metric.values),
            ("threshold", _("a share from 0 to 1"), not 0 <= threshold <= 1),
            ("minimum", _("at least 1"), minimum < 1),
            ("window_days", _("1 to 365 days"), not 1 <= window_days <= 365),
        )
        if is_wrong
    ]
    refuse(problems, between=": ")
    return LabelerRule.objects.create(
        metric=metric, threshold=threshold, minimum=minimum, window_days=window_days, made_by=by
    )


@transaction.atomic
def end_rule(*, rule: LabelerRule, by: User) -> None:
    """The rule pauses nobody any more; whom it paused stays paused until a person decides. Twice changes nothing."""
    rule = LabelerRule.objects.select_for_update().get(pk=rule.pk)
    if rule.ended_at is None:
        rule.ended_by, rule.ended_at = by, timezone.now()
        rule.save(update_fields=["ended_by", "ended_at"])
