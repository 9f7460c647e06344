"""Keys of the gateway: which organization asks, how much, and whether its prompts may train models; use of it per day."""

import math
from dataclasses import dataclass
from datetime import date

from django.db import connection, models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class GatewayKey(models.Model):
    """A program's key to the gateway, for an organization. The secret is shown once; its SHA-256 is stored."""

    organization = models.CharField(_("organization"), max_length=100)
    name = models.CharField(_("name"), max_length=100)
    prefix = models.CharField(max_length=12, editable=False)
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    may_train = models.BooleanField(_("prompts may train models"), default=False)
    consent_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    consent_at = models.DateTimeField(
        default=timezone.now, editable=False, help_text=_("When consent was given or refused last")
    )
    requests_per_minute = models.PositiveIntegerField(_("requests a minute"), default=60)
    tokens_per_minute = models.PositiveIntegerField(_("tokens a minute"), default=20_000)
    expires_at = models.DateTimeField(_("expires"))
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "name"], condition=Q(revoked_at__isnull=True), name="gateway_key_name_once"
            ),
            models.CheckConstraint(
                condition=Q(requests_per_minute__gt=0, tokens_per_minute__gt=0), name="gateway_key_limits_positive"
            ),
            models.CheckConstraint(condition=~Q(organization="") & ~Q(name=""), name="gateway_key_named"),
            models.CheckConstraint(
                condition=Q(revoked_at__isnull=False) | Q(revoked_by__isnull=True), name="gateway_key_revoked_when"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization}: {self.name} ({self.prefix}…)"

    @property
    def is_valid(self) -> bool:
        """True while it opens the gateway."""
        return self.revoked_at is None and self.expires_at > timezone.now()

    @property
    def bucket(self) -> str:
        """The name of its rate bucket."""
        return f"key:{self.pk}"


@dataclass(frozen=True)
class Amounts:
    """What one request used; what is added to a day's use."""

    requests: int = 0
    errors: int = 0
    limited: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    captured: int = 0
    held_back: int = 0


class GatewayUsageQuerySet(models.QuerySet["GatewayUsage"]):
    def add(self, *, key_id: int | None, day: date, amounts: Amounts) -> None:
        """Add to the use of a key (None: the playground) on a day, in one statement, so that no count is lost."""
        fields = list(Amounts.__dataclass_fields__)
        sums = ", ".join(f"{name} = {self.model._meta.db_table}.{name} + EXCLUDED.{name}" for name in fields)
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {self.model._meta.db_table} (key_id, day, {', '.join(fields)}) "  # noqa: S608 names of ours
                f"VALUES (%s, %s, {', '.join(['%s'] * len(fields))}) ON CONFLICT (key_id, day) DO UPDATE SET {sums}",
                [key_id, day, *(getattr(amounts, name) for name in fields)],
            )


class GatewayUsage(models.Model):
    """What a key used on a day (in the installation's time zone). Without a key: the playground, all people together."""

    key = models.ForeignKey(GatewayKey, on_delete=models.CASCADE, null=True, related_name="usage")
    day = models.DateField()
    requests = models.PositiveBigIntegerField(default=0, help_text=_("let in; those that failed included"))
    errors = models.PositiveBigIntegerField(default=0, help_text=_("let in, and not answered in full"))
    limited = models.PositiveBigIntegerField(default=0, help_text=_("refused by the rate limit"))
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    captured = models.PositiveBigIntegerField(default=0, help_text=_("prompts kept for labeling"))
    held_back = models.PositiveBigIntegerField(
        default=0, help_text=_("prompts that might have been kept: too long, here already, too many of one author")
    )
    objects = GatewayUsageQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key", "day"], nulls_distinct=False, name="gateway_usage_once_a_day")
        ]
        indexes = [models.Index(fields=["day"], name="gateway_usage_day")]
        verbose_name_plural = "gateway usage"

    def __str__(self) -> str:
        return f"{self.key_id or 'playground'} on {self.day}"


class RateBucketQuerySet(models.QuerySet["RateBucket"]):
    def take(self, name: str, *, requests_per_minute: int, tokens_per_minute: int) -> int:
        """Let one request in: 0, or how many seconds to wait.

        A bucket holds a minute's worth of requests and tokens and refills steadily. A request takes 1 of the former; its
        tokens are charged when they are known (`charge`), so a request is let in while any are left, and what it takes
        too much is paid off before the next. One statement on one row by the database's clock: the limit holds across
        any number of gateway processes.
        """
        row: dict[str, str | int] = {"name": name, "requests": requests_per_minute, "tokens": tokens_per_minute}
        with connection.cursor() as cursor:
            cursor.execute(TAKE, row)
            if cursor.fetchone():
                return 0
            cursor.execute(WAIT, row)
            found = cursor.fetchone()
        return max(1, math.ceil(found[0])) if found else 1

    def charge(self, name: str, tokens: int) -> None:
        """Take tokens that were used."""
        self.filter(name=name).update(tokens_left=F("tokens_left") - tokens)


# What is in the bucket now: what was there, and a minute's worth for each minute since, a minute's worth at most.
REQUESTS, TOKENS = (
    f"LEAST(%({name})s, b.{name}_left + %({name})s * EXTRACT(EPOCH FROM clock_timestamp() - b.filled_at)::float8 / 60)"
    for name in ("requests", "tokens")
)
TAKE = f"""
INSERT INTO labeling_ratebucket AS b (name, requests_left, tokens_left, filled_at)
VALUES (%(name)s, %(requests)s - 1, %(tokens)s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET requests_left = {REQUESTS} - 1, tokens_left = {TOKENS}, filled_at = clock_timestamp()
WHERE {REQUESTS} >= 1 AND {TOKENS} > 0
RETURNING 1
"""  # noqa: S608 parts of ours
WAIT = f"""
SELECT 60 * GREATEST((1 - {REQUESTS}) / %(requests)s, (1 - {TOKENS}) / %(tokens)s)
FROM labeling_ratebucket b WHERE name = %(name)s
"""  # noqa: S608 parts of ours


class RateBucket(models.Model):
    """How much a key, or a person in the playground, may ask for now. Changed by single statements of its QuerySet alone."""

    name = models.CharField(max_length=40, primary_key=True)
    requests_left = models.FloatField()
    tokens_left = models.FloatField()
    filled_at = models.DateTimeField()
    objects = RateBucketQuerySet.as_manager()

    def __str__(self) -> str:
        return self.name
