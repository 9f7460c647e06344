"""Imports: what came in from files, and when."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Import(models.Model):
    """One file that went in whole. A refused file leaves no trace but its error message."""

    class Kind(models.TextChoices):
        PROMPTS = "prompts", _("prompts")
        RESPONSES = "responses", _("responses")

    kind = models.CharField(max_length=9, choices=Kind.choices)
    file_name = models.CharField(max_length=255)
    file_sha256 = models.CharField(max_length=64)
    mapping = models.JSONField(default=dict, blank=True)
    counts = models.JSONField(default=dict, blank=True, help_text="rows, new and already present, per kind of row")
    checked = models.PositiveIntegerField(
        default=0, db_default=0, help_text="Of its new prompts: those that intake has looked at"
    )
    held = models.PositiveIntegerField(default=0, db_default=0, help_text="Of these: those that it held back")
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return self.file_name
