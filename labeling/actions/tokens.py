"""API tokens: making, finding and revoking them."""

import hashlib
import secrets
from datetime import timedelta

from django.utils import timezone

from labeling.errors import Invalid
from labeling.models import ApiToken, User
from labeling.statements import Statement, columns_of, row_of

PREFIX = "heed_"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(*, user: User, name: str, scopes: list[str], days: int = 365) -> tuple[ApiToken, str]:
    """A token and its secret, shown once. Raises Invalid for an unknown scope, none at all, or a name in use."""
    if unknown := set(scopes) - set(ApiToken.Scope.values):
        raise Invalid(f"Unknown scope: {', '.join(sorted(unknown))}")
    if not scopes:
        raise Invalid("A token needs at least one scope.")
    if ApiToken.objects.filter(user=user, name=name, revoked_at=None).exists():
        raise Invalid(f"{user.email} has a token named {name!r} already: revoke it or choose another name.")
    secret = PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        user=user,
        name=name,
        prefix=secret[:12],
        secret_hash=_digest(secret),
        scopes=sorted(set(scopes)),
        expires_at=timezone.now() + timedelta(days=days),
    )
    return token, secret


def find(secret: str) -> ApiToken | None:
    """The valid token with this secret, its person's roles with it: one query. Its use is noted at most once a minute."""
    row = FOUND.row(digest=_digest(secret))
    if row is None:
        return None
    *values, roles = row
    length = len(ApiToken._meta.concrete_fields)
    token = row_of(ApiToken, values[:length])
    token.user = row_of(User, values[length:])
    if not token.is_valid:
        return None
    token.user.role_names = frozenset(roles)
    now = timezone.now()
    if token.last_used_at is None or now - token.last_used_at > timedelta(minutes=1):
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)
    return token


FOUND = Statement(
    "token",
    f"""
SELECT {columns_of(ApiToken, "t")}, {columns_of(User, "u")}, ARRAY(SELECT r.role FROM labeling_userrole r WHERE r.user_id = u.id)
  FROM labeling_apitoken t JOIN labeling_user u ON u.id = t.user_id WHERE t.secret_hash = %(digest)s
""",  # noqa: S608
    digest="text",
)


def revoke(*, token: ApiToken, by: User) -> None:
    """End a token now. Doing it twice changes nothing."""
    ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now())
