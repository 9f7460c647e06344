"""People: inviting, admitting, accepting applications."""

import hashlib
import secrets
from collections.abc import Iterable

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import languages
from labeling.actions import hours
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Batch, Decision, Invitation, Role, Screening, User, UserRole

SESSION_KEY = "invitation"
SKILL_MAX_CHARS = 50


def digest(secret: str) -> str:
    """What is stored of a secret: hex SHA-256. Secrets are random and long, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


@transaction.atomic
def invite(*, email: str, role: str, group: str, by: User) -> tuple[Invitation, str]:
    """An invitation and its secret, which is not stored and cannot be shown again. An open one for them ends by it.

    Raises Invalid if they have an account.
    """
    if User.objects.filter(email__iexact=email).exists():
        raise Invalid(_("%(email)s already has an account: give the role there instead.") % {"email": email})
    Invitation.objects.filter(email__iexact=email, accepted_at=None, expires_at__gt=timezone.now()).update(
        expires_at=timezone.now()
    )
    secret = secrets.token_urlsafe(32)
    invitation = Invitation.objects.create(
        email=email.lower(), role=role, group=group, invited_by=by, secret_hash=digest(secret)
    )
    return invitation, secret


def open_invitation(request) -> Invitation | None:
    """The invitation whose link this browser followed, while it is still open."""
    secret = request.session.get(SESSION_KEY, "") if hasattr(request, "session") else ""
    invitation = Invitation.objects.filter(secret_hash=digest(secret)).first() if secret else None
    return invitation if invitation and invitation.is_open else None


@transaction.atomic
def admit(*, user: User, request) -> None:
    """Give a new account its roles: those of its invitation, or applicant. An invitation serves once."""
    invitation = open_invitation(request)
    if invitation is None:
        user.grant(Role.APPLICANT)
        return
    invitation = Invitation.objects.select_for_update().get(pk=invitation.pk)
    if not invitation.is_open:
        raise Conflict(_("This invitation has been used already."))
    invitation.accepted_by, invitation.accepted_at = user, timezone.now()
    invitation.save(update_fields=["accepted_by", "accepted_at"])
    user.group = invitation.group
    user.save(update_fields=["group"])
    user.grant(invitation.role, by=invitation.invited_by)
    request.session.pop(SESSION_KEY, None)


@transaction.atomic
def accept_applicant(
    *, user: User, group: str, reason: str = "", message: str = "", screening: Screening | None = None, by: User
) -> Decision:
    """An applicant becomes a labeler in a group, and the decision is kept. Doing it twice changes nothing.

    Raises Conflict if they neither apply nor were accepted.
    """
    user = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if not UserRole.objects.filter(user=user, role=Role.APPLICANT).exists():
        accepted = Decision.objects.filter(user=user, verdict=Decision.Verdict.ACCEPTED).last()
        if accepted is None:
            raise Conflict(_("%(user)s is no applicant.") % {"user": user})
        return accepted
    user.group = group
    user.save(update_fields=["group"])
    user.withdraw(Role.APPLICANT)
    user.grant(Role.LABELER, by=by)
    hours.enter_screenings(user=user)
    return Decision.objects.create(
        user=user, screening=screening, verdict=Decision.Verdict.ACCEPTED, group=group,
        reason=reason or _("Accepted without a screening."), message=message, decided_by=by,
    )  # fmt: skip


def withdraw_invitation(*, invitation: Invitation, by: User) -> None:
    """Its link opens nothing any more. Doing it twice, or after it was accepted, changes nothing."""
    Invitation.objects.filter(pk=invitation.pk, accepted_at=None, expires_at__gt=timezone.now()).update(
        expires_at=timezone.now()
    )


@transaction.atomic
def set_active(*, user: User, is_active: bool, by: User) -> None:
    """Let a person log in, or not any more (at once); their labels stay, their leases go back.

    Raises Invalid for oneself and for the last admin.
    """
    if not is_active and user.pk == by.pk:
        raise Invalid(_("You cannot lock yourself out: ask another admin."))
    if not is_active and _is_last_admin(user):
        raise Invalid(_("%(user)s is the last admin: name another one first.") % {"user": user.email})
    user.is_active = is_active
    user.save(update_fields=["is_active"])
    if not is_active:
        user.slots.filter(status="leased").give_back()


def _is_last_admin(user: User) -> bool:
    """True if no other active person is an admin. Admins are locked, so that two cannot step down at once."""
    admins = UserRole.objects.select_for_update(of=["self"]).filter(role=Role.ADMIN, user__is_active=True)
    holders = set(admins.values_list("user_id", flat=True))
    return holders == {user.pk}


@transaction.atomic
def set_roles(*, user: User, roles: set[str], group: str, by: User) -> None:
    """Replace a person's roles. Raises Invalid for an unknown role and when the last admin would go."""
    if unknown := roles - set(Role.values):
        raise Invalid(_("Unknown role: %(roles)s") % {"roles": ", ".join(sorted(unknown))})
    if Role.ADMIN not in roles and _is_last_admin(user):
        raise Invalid(_("%(user)s is the last admin: name another one first.") % {"user": user.email})
    user.group = group
    user.save(update_fields=["group"])
    if Role.APPLICANT not in roles:  # a candidate no more
        hours.enter_screenings(user=User.objects.select_for_update(no_key=True).get(pk=user.pk))
    for role in Role.values:
        if role in roles:
            user.grant(role, by=by)
        else:
            user.withdraw(role)


# What tasks they may be given -------------------------------------------------------------------------------------------------


def skill_names(given: Iterable[str]) -> tuple[str, ...]:
    """Skills as they are kept: small letters, single spaces, each once, in order. Raises Invalid for one too long or with a comma."""
    names = sorted({" ".join(each.lower().split()) for each in given} - {""})
    if wrong := next((name for name in names if len(name) > SKILL_MAX_CHARS or "," in name or "\x00" in name), None):
        message = _("a skill's name has at most %(n)d characters, and no comma: %(name)r")
        message %= {"n": SKILL_MAX_CHARS, "name": wrong[:100]}
        raise Invalid(message, [{"place": "skills", "message": message}])
    return tuple(names)


def known_skills() -> list[str]:
    """Every skill that somebody has or an open batch asks for."""
    had = User.objects.exclude(skills=[]).values_list("skills", flat=True)
    asked = Batch.objects.exclude(skills=[]).exclude(status=Batch.Status.CLOSED).values_list("skills", flat=True)
    return sorted({name for names in (*had, *asked) for name in names})


def set_languages(*, user: User, codes: Iterable[str], by: User) -> None:
    """The languages that somebody reads and writes well, as they say themselves or an admin does. Raises Invalid, Forbidden."""
    if by.pk != user.pk and not by.is_admin:
        raise Forbidden(_("%(by)s is not an admin.") % {"by": by})
    wanted = set(codes)
    if unknown := wanted - set(languages.CODES):
        message = _("unknown language: %(codes)s") % {"codes": ", ".join(sorted(unknown))[:100]}
        raise Invalid(message, [{"place": "languages", "message": message}])
    User.objects.filter(pk=user.pk).update(languages=sorted(wanted))


def set_skills(*, user: User, skills: Iterable[str], by: User) -> None:
    """What an admin has found that somebody can do. Raises Invalid, Forbidden."""
    if not by.is_admin:
        raise Forbidden(_("%(by)s is not an admin.") % {"by": by})
    User.objects.filter(pk=user.pk).update(skills=list(skill_names(skills)))
