"""Erasures: that somebody was erased, when, why and by whom, and what had held them; nothing that tells who it was."""

import uuid

from django.db import models
from django.utils import timezone


class Erasure(models.Model):
    """One author, erased. Append-only.

    `pseudonym` is what exports call them: a copy of an export elsewhere can be searched for it. What it was made of is gone.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    pseudonym = models.CharField(max_length=20)
    reason = models.TextField(help_text="As a reference to the request: it must not name the person")
    counts = models.JSONField(default=dict, help_text="Rows that were redacted, by what they are")
    exports: models.ManyToManyField = models.ManyToManyField(
        "Export", related_name="erasures", help_text="Those that held something of the person when it was erased"
    )
    erased_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    erased_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=~models.Q(reason=""), name="erasure_has_reason")]

    def __str__(self) -> str:
        return f"{self.pseudonym}, {self.erased_at:%Y-%m-%d}"
