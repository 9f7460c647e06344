"""Applications: writing, sending, withdrawing them; and where an applicant stands."""

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.actions import hours
from labeling.actions.tasks import lock_labeler
from labeling.answers import bounded
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Application, Decision, Exercise, Purpose, Role, Screening, ScreeningRules, User

DEFAULT_TERMS = settings.BASE_DIR / "labeling" / "defaults" / "terms.md"
MAX_HOURS = 80


def rules_in_force() -> ScreeningRules:
    """The newest rules of screening; the ones that Heed ships where nobody has set any."""
    newest = ScreeningRules.objects.order_by("-version").first()
    if newest is None:
        terms = DEFAULT_TERMS.read_text(encoding="utf-8")
        newest = ScreeningRules.objects.get_or_create(version=1, defaults={"terms": terms})[0]
    return newest


@dataclass(frozen=True)
class Standing:
    """Where an applicant stands. `step`: what is next."""

    application: Application | None
    screening: Screening | None
    decision: Decision | None
    rules: ScreeningRules
    has_items: bool
    tries: int

    @property
    def is_decided(self) -> bool:
        """True if the newest decision ends the application."""
        return bool(self.decision and self.decision.verdict != Decision.Verdict.RETAKE)

    @property
    def retake(self) -> Decision | None:
        """The decision that asks for another try, until that try is begun."""
        asks = self.decision and self.decision.verdict == Decision.Verdict.RETAKE
        return self.decision if asks and self.screening and self.decision.screening_id == self.screening.pk else None  # type: ignore[union-attr]

    @property
    def retake_from(self) -> datetime | None:
        return self.retake.retake_from if self.retake else None

    @property
    def step(self) -> str:
        """apply; wait (a person decides without a screening); screen; cool (a retake may not begin yet); decide; decided."""
        if self.is_decided:
            return "decided"
        if self.application is None or self.application.status != Application.Status.SUBMITTED:
            return "apply"
        if self.retake:
            return "cool" if self.retake.retake_from > timezone.now() else "screen"
        if self.screening is None:
            return "screen" if self.has_items else "wait"
        return "decide" if self.screening.submitted_at else "screen"


def standing(user: User) -> Standing:
    """Where this person stands, in five queries."""
    screenings = list(Screening.objects.filter(user=user).select_related("rules").order_by("-number"))
    return Standing(
        application=Application.objects.filter(user=user).first(),
        screening=screenings[0] if screenings else None,
        decision=Decision.objects.filter(user=user).order_by("-id").first(),
        rules=rules_in_force(),
        has_items=Exercise.objects.live(Purpose.SCREENING).exists(),
        tries=len(screenings),
    )


@transaction.atomic
def save(
    *, name: str, why: str, languages: str, hours_per_week: int | None, availability: str = "", consents: bool = False,
    send: bool, by: User,
) -> Application:  # fmt: skip
    """Keep what an applicant says; with `send`, hand it in. One that was sent stays sent.

    Raises Forbidden unless they apply, Conflict once it is decided, Invalid (`errors` by field) if it is sent with
    something missing, or something is too long.
    """
    user = lock_labeler(by)
    if not user.has_role(Role.APPLICANT):
        raise Forbidden(_("%(user)s is no applicant.") % {"user": user})
    if standing(user).is_decided:
        raise Conflict(_("Your application has been decided and can no longer be changed."))
    application = Application.objects.filter(user=user).first() or Application(user=user)
    was_sent = application.status == Application.Status.SUBMITTED
    user.name = bounded(name.strip(), 150, _("Name"), "name")
    user.statement = bounded(why, 5000, _("Why you would like to label"), "why")
    application.languages = bounded(languages.strip(), 500, _("Languages"), "languages")
    application.availability = bounded(availability, 500, _("When"), "availability")
    application.hours_per_week = hours_per_week
    now = timezone.now()
    if send or was_sent:
        _check_whole(user, application, consents or bool(application.consented_at))
        application.status, application.submitted_at = Application.Status.SUBMITTED, application.submitted_at or now
    if consents and application.consented_at is None:
        application.consented_at, application.rules = now, rules_in_force()
    application.updated_at = now
    application.save()
    user.save(update_fields=["name", "statement"])
    return application


def _check_whole(user: User, application: Application, consents: bool) -> None:
    hours = application.hours_per_week
    missing = {
        "name": _("Say how you would like to be called.") if not user.name else "",
        "why": _("Say in a few words why you would like to label.") if not user.statement.strip() else "",
        "languages": _("Name the languages that you read and write well.") if not application.languages else "",
        "hours_per_week": _("Say how many hours a week you have: 1 to %(n)d.") % {"n": MAX_HOURS}
        if hours is None or not 1 <= hours <= MAX_HOURS
        else "",
        "consents": _("The application can be sent once you consent to the terms.") if not consents else "",
    }
    errors = [{"place": field, "field": field, "message": message} for field, message in missing.items() if message]
    if errors:
        raise Invalid(" ".join(error["message"] for error in errors), errors)


@transaction.atomic
def withdraw(*, by: User) -> None:
    """Take the application back; what was written stays, and it can be sent again. Twice changes nothing. Raises Conflict once decided."""
    user = lock_labeler(by)
    if standing(user).is_decided:
        raise Conflict(_("Your application has been decided and can no longer be withdrawn."))
    changed = Application.objects.filter(user=user, status=Application.Status.SUBMITTED).update(
        status=Application.Status.WITHDRAWN, updated_at=timezone.now()
    )
    if changed:
        hours.enter_screenings(user=user)
