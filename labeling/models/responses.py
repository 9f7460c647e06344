"""Responses: text that answers a prompt, by a model or a person."""

import hashlib
import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


def text_digest(text: str) -> str:
    """Hex SHA-256 of a response's text; equal texts have equal digests."""
    return hashlib.sha256(text.encode()).hexdigest()


class Response(models.Model):
    class Origin(models.TextChoices):
        MODEL = "model", _("model")  # sampled from a model version
        PERSON = "person", _("person")  # written by a person outside Heed: an imported demonstration

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    # Prompt and model are held by the trigger response_keys (migration 0037), once for all responses of a statement: foreign keys were a
    # fifth of what an import costs. The prompt is found by response_once, which begins with it.
    prompt = models.ForeignKey(
        "Prompt", on_delete=models.PROTECT, related_name="responses", db_index=False, db_constraint=False
    )
    text = models.TextField()
    text_sha256 = models.CharField(max_length=64, editable=False)
    origin = models.CharField(max_length=6, choices=Origin.choices, default=Origin.MODEL)
    model_version = models.ForeignKey(
        "ModelVersion",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="responses",
        db_constraint=False,
    )
    sampling = models.JSONField(default=dict, blank=True, help_text="temperature, seed, max_new_tokens, …")
    finish_reason = models.CharField(max_length=10, blank=True, help_text="stop, length, or empty when unknown")
    external_id = models.CharField(
        max_length=200, help_text="What makes a repeated import or sampling run the same response", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(finish_reason__in=["", "stop", "length"]), name="response_finish_reason"
            ),
            models.CheckConstraint(
                condition=models.Q(origin="model", model_version__isnull=False)
                | models.Q(origin="person", model_version__isnull=True),
                name="response_model_or_person",
            ),
            models.UniqueConstraint(
                fields=["prompt", "model_version", "external_id"], name="response_once", nulls_distinct=False
            ),
        ]
        # Few are people's: an export asks for these alone, in this order.
        indexes = [models.Index(fields=["uuid"], condition=models.Q(origin="person"), name="response_by_person")]

    def __str__(self) -> str:
        return str(self.uuid)

    def save(self, *args, **kwargs):
        self.text_sha256 = text_digest(self.text)
        super().save(*args, **kwargs)
