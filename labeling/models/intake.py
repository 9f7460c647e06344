"""Intake: why a prompt was held back, what a person decided about it, and the keys by which its likes are found."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.prompts import Prompt


class Finding(models.Model):
    """Why a prompt is held: one row per reason. `spans`: where personal data is, [{"message", "start", "end", "kind"}]."""

    class Reason(models.TextChoices):
        PERSONAL_DATA = "personal_data", _("personal data")
        NEAR_COPY = "near_copy", _("near copy")
        SAME_BEGINNING = "same_beginning", _("same long beginning")
        AUTHOR_FULL = "author_full", _("too many by one author")
        ORGANIZATION_FULL = "organization_full", _("too many by one organization")

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="findings")
    reason = models.CharField(max_length=17, choices=Reason.choices)
    spans = models.JSONField(default=list, blank=True)
    like = models.ForeignKey(
        Prompt, on_delete=models.SET_NULL, null=True, blank=True, related_name="+", help_text="Of which it is a copy"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["prompt", "reason"], name="finding_reason_once"),
            models.CheckConstraint(
                condition=models.Q(
                    reason__in=["personal_data", "near_copy", "same_beginning", "author_full", "organization_full"]
                ),
                name="finding_reason_valid",
            ),
        ]
        indexes = [models.Index(fields=["reason", "prompt"], name="finding_reason")]

    def __str__(self) -> str:
        return f"prompt {self.prompt_id}: {self.reason}"


class IntakeDecision(models.Model):
    """A person lets a held prompt through, or refuses it. Append-only: the database refuses changes, except erasure."""

    class Verdict(models.TextChoices):
        RELEASED = "released", _("released")
        REFUSED = "refused", _("refused")

    prompt = models.ForeignKey(Prompt, on_delete=models.PROTECT, related_name="intake_decisions")
    verdict = models.CharField(max_length=8, choices=Verdict.choices)
    comment = models.TextField(blank=True)
    decided_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(verdict__in=["released", "refused"]), name="intake_verdict_valid")
        ]

    def __str__(self) -> str:
        return f"prompt {self.prompt_id}: {self.verdict}"


class LikenessKey(models.Model):
    """One of the keys of a prompt that others may turn out to be copies of: labeling/likeness.py.

    No foreign key and no number of its own: there are about a dozen of them to a prompt, and a million prompts.
    """

    pk = models.CompositePrimaryKey("key", "prompt_id")
    key = models.BigIntegerField()
    prompt_id = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.key}: prompt {self.prompt_id}"
