"""Adjudications: what a reviewer says that a task's ranking is, having read everybody's."""

import uuid

from django.db import models
from django.utils import timezone


class Adjudication(models.Model):
    """A ranking of a task's responses by a reviewer, who had the labelers' rankings side by side: a derived label, beside the raw
    ones and never in their place. Append-only; the newest of a task counts.

    `tiers` as in a revision: [[response uuid, …], …], best first, each response of the task exactly once.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    task = models.ForeignKey("Task", on_delete=models.PROTECT, related_name="adjudications")
    tiers = models.JSONField()
    comment = models.TextField(blank=True, help_text="Why; for reviewers and researchers")
    compared: models.ManyToManyField = models.ManyToManyField(
        "Revision", related_name="+", help_text="The rankings that were read"
    )
    reviewer = models.ForeignKey("User", on_delete=models.PROTECT, related_name="adjudications")
    key = models.UUIDField(help_text="Sent with the form, so that a repeated one is recognised")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["reviewer", "key"], name="adjudication_key_once")]

    def __str__(self) -> str:
        return f"task {self.task_id} by {self.reviewer_id}"
