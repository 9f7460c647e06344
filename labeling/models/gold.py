"""Gold answers: what a ranking should be, known beforehand, to see how well labelers rank."""

from django.db import models
from django.utils import timezone


class GoldAnswer(models.Model):
    """The known answer to a ranking task. While it is in use, the task is mixed into labelers' work at its batch's gold rate.

    Never edited: a change withdraws it and makes a new one. Released: labelers who did the task are shown it with its
    explanation, and the task is mixed in no more. Withdrawn: it was wrong; nobody is measured by it any more.
    """

    task = models.ForeignKey("Task", on_delete=models.PROTECT, related_name="gold_answers")
    tiers = models.JSONField(help_text="As in a revision: response UUIDs, best first")
    explanation = models.TextField(help_text="Why this is right; shown to labelers once it is released")
    tolerance = models.FloatField(default=0.25, help_text="Share of comparisons that may differ and still pass, 0 to 1")
    adopted_from = models.ForeignKey("Submission", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    made_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    made_at = models.DateTimeField(default=timezone.now, editable=False)
    released_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    released_at = models.DateTimeField(null=True, blank=True)
    withdrawn_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["task"], condition=models.Q(withdrawn_at=None), name="gold_answer_one_per_task"
            ),
            models.CheckConstraint(
                condition=models.Q(tolerance__gte=0, tolerance__lte=1), name="gold_answer_tolerance"
            ),
            models.CheckConstraint(condition=~models.Q(explanation=""), name="gold_answer_explained"),
        ]

    def __str__(self) -> str:
        return f"gold answer to task {self.task_id}"

    @property
    def is_mixed_in(self) -> bool:
        """In use, and not yet shown to anybody."""
        return self.withdrawn_at is None and self.released_at is None
