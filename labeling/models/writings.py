"""Prompts that labelers write: their work on one, and the use cases to write for."""

import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.prompts import Prompt


class UseCase(models.Model):
    """What people want a model for; user-based prompts are written for one. The first are InstructGPT's Table 1."""

    name = models.CharField(_("name"), max_length=50, unique=True)
    description = models.CharField(_("description"), max_length=500, blank=True)
    is_open = models.BooleanField(_("open for writing"), default=True)
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Writing(models.Model):
    """A labeler's work on a prompt: a draft until it is handed in, then what they wrote. Never deleted.

    `content`: {"text", "use_case", "instruction", "query-1", "response-1", …} as typed, and the `editor` that saved it. The prompts
    made of it carry its UUID in their metadata.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="writings")
    kind = models.CharField(max_length=10, choices=Prompt.Kind.choices)
    content = models.JSONField(default=dict, blank=True)
    version = models.PositiveIntegerField(default=0, help_text="Rises with every save")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    saved_at = models.DateTimeField(default=timezone.now)
    active_seconds = models.FloatField(default=0, help_text="Time worked, idle time excluded")
    page_seconds = models.JSONField(default=dict, blank=True, help_text="Loading of the page → seconds it has claimed")
    submitted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind__in=["plain", "few_shot", "user_based"]), name="writing_kind_valid"
            ),
        ]
        indexes = [models.Index(fields=["labeler", "-saved_at"], name="writing_labeler")]

    def __str__(self) -> str:
        return str(self.uuid)

    @property
    def preview(self) -> str:
        """The first 80 characters, for lists."""
        flat = " ".join((self.content.get("text") or self.content.get("instruction") or "").split())
        return flat if len(flat) <= 80 else flat[:79] + "…"
