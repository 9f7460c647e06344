"""Keys of the gateway: made, changed and ended by admins; asked about by the gateway."""

import secrets
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.actions.people import digest
from labeling.errors import Conflict, Invalid
from labeling.models import GatewayKey, User

PREFIX = "heedgw_"
MAX_DAYS = 3650


def create(
    *,
    organization: str,
    name: str,
    may_train: bool,
    requests_per_minute: int = 60,
    tokens_per_minute: int = 20_000,
    days: int = 365,
    by: User | None,
) -> tuple[GatewayKey, str]:
    """A key and its secret, which is not stored and cannot be shown again.

    Raises Invalid for an empty name, one that a living key of the organization has, or limits and days that make no sense.
    """
    organization, name = organization.strip(), name.strip()
    if not organization or not name:
        raise Invalid(_("A key needs an organization and a name."))
    if not 1 <= days <= MAX_DAYS:
        raise Invalid(_("days: expected 1 to %(n)d") % {"n": MAX_DAYS})
    _check_limits(requests_per_minute, tokens_per_minute)
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        with transaction.atomic():
            key = GatewayKey.objects.create(
                organization=organization,
                name=name,
                prefix=secret[:12],
                secret_hash=digest(secret),
                may_train=may_train,
                consent_by=by,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                expires_at=timezone.now() + timedelta(days=days),
                created_by=by,
            )
    except IntegrityError:
        said = _("%(organization)s has a key named “%(name)s” already: revoke it or choose another name.")
        raise Invalid(said % {"organization": organization, "name": name}) from None
    return key, secret


@transaction.atomic
def change(
    *,
    key: GatewayKey,
    may_train: bool | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    expires_at: datetime | None = None,
    by: User,
) -> GatewayKey:
    """Change consent, limits and end of a key; in force from the next request on. None leaves as it is. Consent taken back also
    holds for prompts that wait to be written.

    Raises Conflict for a revoked key, Invalid for limits that make no sense.
    """
    key = GatewayKey.objects.select_for_update(of=["self"]).get(pk=key.pk)
    if key.revoked_at is not None:
        raise Conflict(_("This key has been revoked: it cannot be changed any more."))
    if may_train is not None and key.may_train != may_train:
        key.may_train, key.consent_by, key.consent_at = may_train, by, timezone.now()
    key.requests_per_minute = key.requests_per_minute if requests_per_minute is None else requests_per_minute
    key.tokens_per_minute = key.tokens_per_minute if tokens_per_minute is None else tokens_per_minute
    _check_limits(key.requests_per_minute, key.tokens_per_minute)
    key.expires_at = expires_at or key.expires_at
    key.save()
    return key


def revoke(*, key: GatewayKey, by: User) -> None:
    """End a key now, for ever. Doing it twice changes nothing."""
    GatewayKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now(), revoked_by=by)


def find(secret: str) -> GatewayKey | None:
    """The key with this secret, valid or not, noting the use of a valid one at most once a minute.

    The lookup is by hash: how long it takes tells nothing about the secrets that there are.
    """
    key = GatewayKey.objects.filter(secret_hash=digest(secret)).first()
    if key is None or not key.is_valid:
        return key
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at > timedelta(minutes=1):
        GatewayKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def _check_limits(requests_per_minute: int, tokens_per_minute: int) -> None:
    for name, value in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
        if not 1 <= value <= 2_000_000_000:
            raise Invalid(_("%(name)s: expected 1 to 2,000,000,000") % {"name": name})
