"""Consensus: what the labelers of a task say together. A derived row; the labels themselves stay as they are."""

from django.db import models


class Consensus(models.Model):
    """A task's consensus ranking, weighted by the labelers' reliability. Made again when a label of the task changes."""

    task = models.OneToOneField("Task", on_delete=models.CASCADE, primary_key=True, related_name="consensus")
    tiers = models.JSONField(help_text="As in a revision: response UUIDs, best first; responses in one tier tie")
    rankings = models.PositiveSmallIntegerField(help_text="How many rankings it is made of")
    support = models.FloatField(help_text="Mean share of comparisons on which those rankings agree with it, 0 to 1")
    computed_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "consensus"

    def __str__(self) -> str:
        return f"consensus of {self.rankings} on task {self.task_id}"
