"""Statistics: figures over many labels, computed by a job and kept, so that no page waits for them."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Statistic(models.Model):
    """One figure over a scope of labels: {"batch": id or null, "group": "" | training | held_out, "simulated": bool}; that of an
    evaluation: {"batch": id, "origin": person | simulated | both}.

    `content` is null until it is computed first. `mark` tells the labels that it was computed over: while the newest revision and
    review are still those, it is not computed again. Refreshed as long as somebody looks at it.
    """

    class Kind(models.TextChoices):
        THROUGHPUT = "throughput", _("throughput")
        POLICIES = "policies", _("policies")
        AGREEMENT = "agreement", _("agreement")
        EVALUATION = "evaluation", _("evaluation")

    kind = models.CharField(max_length=10, choices=Kind.choices)
    scope = models.JSONField()
    content = models.JSONField(null=True, blank=True)
    mark = models.CharField(max_length=60, blank=True)
    seconds = models.FloatField(null=True, blank=True, help_text="How long the last computation took")
    computed_at = models.DateTimeField(null=True, blank=True)
    looked_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "scope"], name="statistic_once"),
            models.CheckConstraint(
                condition=models.Q(kind__in=["throughput", "policies", "agreement", "evaluation"]),
                name="statistic_kind_valid",
            ),
            models.CheckConstraint(
                condition=models.Q(content__isnull=True, computed_at__isnull=True)
                | models.Q(content__isnull=False, computed_at__isnull=False),
                name="statistic_content_with_time",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.scope}"
