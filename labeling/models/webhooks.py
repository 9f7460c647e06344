"""Webhooks: addresses that are told what happened, and each message to them."""

import secrets
import uuid
from base64 import b64encode

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Event(models.TextChoices):
    """What happened."""

    SUBMISSION_MADE = "submission.made", _("a task was handed in")
    SUBMISSION_REVISED = "submission.revised", _("a submission was corrected")
    REVIEW_MADE = "review.made", _("a reviewer decided")
    EXPORT_READY = "export.ready", _("an export is ready")
    EXPORT_FAILED = "export.failed", _("an export could not be built")
    MODEL_REGISTERED = "model.registered", _("a model was registered")
    MODEL_PROMOTED = "model.promoted", _("a policy was promoted")


TEST = "webhook.test"
"""The event of a message that an admin asks for, to try an address."""


def new_secret() -> str:
    """As the Standard Webhooks specification writes them: 32 random bytes in base64."""
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


class Webhook(models.Model):
    """An address, and what it wants to hear. The secret signs each message, so it is stored as it is, and shown once."""

    url = models.CharField(_("address"), max_length=500)
    events = ArrayField(models.CharField(max_length=30, choices=Event.choices), verbose_name=_("events"))
    secret = models.CharField(max_length=100, default=new_secret, editable=False)
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(events__contained_by=Event.values) & ~Q(events=[]), name="webhook_events"
            ),
        ]

    def __str__(self) -> str:
        return self.url


class WebhookDelivery(models.Model):
    """One message to one webhook: sent until it is taken, or for about a day."""

    class Status(models.TextChoices):
        WAITING = "waiting", _("waiting")
        DELIVERED = "delivered", _("delivered")
        FAILED = "failed", _("failed")

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=30)
    body = models.TextField(help_text="As it is sent, byte for byte")
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    answer = models.CharField(max_length=200, blank=True, help_text="What the last attempt met")
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    attempted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "webhook deliveries"
        indexes = [models.Index(fields=["webhook", "-id"], name="webhook_delivery_newest")]

    def __str__(self) -> str:
        return f"{self.event} {self.uuid}"
