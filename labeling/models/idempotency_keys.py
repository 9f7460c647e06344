"""Idempotency keys: what a repeated request of the API was answered the first time."""

from http import HTTPStatus

from django.db import models
from django.utils import timezone


class IdempotencyKeys(models.QuerySet):
    def forget_answers(self) -> int:
        """Take away what was answered; that it was done stays, so that a repeat does nothing twice. How many."""
        return self.exclude(status=None).update(status=IdempotencyKey.ERASED, body=None)


class IdempotencyKey(models.Model):
    """A key that a program sent with a request, and the answer to it. Kept for a day; made with what the request made."""

    ERASED = HTTPStatus.GONE
    """The status of an answer that an erasure took away; no request is ever answered so."""

    user = models.ForeignKey("User", on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    request_sha256 = models.CharField(max_length=64, help_text="Of method, address and body")
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)

    objects = IdempotencyKeys.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="idempotency_key_once")]

    def __str__(self) -> str:
        return self.key
