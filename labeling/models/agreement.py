"""Agreement as it was measured: pairs of rankings of the same task, and the figures made of them. Derived rows: made again when
labels change; see actions/agreement.py."""

from django.db import models
from django.db.models import Avg, Count, Sum
from django.db.models.functions import Greatest, Least
from django.utils.translation import gettext_lazy as _

from labeling.models.submissions import Origin


class Between(models.TextChoices):
    """Whose labels are compared."""

    ALL = "all", _("everybody")
    TRAINING = "training", _("training labelers")
    HELD_OUT = "held_out", _("held-out labelers")
    GROUPS = "between", _("training against held-out")


class AgreementPairQuerySet(models.QuerySet):
    def by_labelers(self) -> models.QuerySet:
        """One row per two labelers who have ranked the same tasks: `one` and `other` (ids, the lesser first), how many `tasks`, the
        `mean` over them of the share of comparisons agreed on, and the sums `agreed_on` and `compared`."""
        two = (models.F("first_labeler"), models.F("second_labeler"))
        rows = self.order_by().annotate(one=Least(*two), other=Greatest(*two)).values("one", "other")
        return rows.annotate(tasks=Count("id"), mean=Avg("share"), agreed_on=Sum("agreed"), compared=Sum("comparisons"))


class AgreementPair(models.Model):
    """Two rankings of one task, by people (or both by simulated labelers), compared. Counts of comparisons: see agreement.Compared."""

    batch = models.ForeignKey("Batch", on_delete=models.CASCADE, related_name="+")
    task = models.ForeignKey("Task", on_delete=models.CASCADE, related_name="agreement_pairs")
    first = models.ForeignKey("Submission", on_delete=models.CASCADE, related_name="+")
    second = models.ForeignKey("Submission", on_delete=models.CASCADE, related_name="+")
    first_labeler = models.ForeignKey("User", on_delete=models.CASCADE, related_name="+")
    second_labeler = models.ForeignKey("User", on_delete=models.CASCADE, related_name="+")
    between = models.CharField(max_length=8, choices=[choice for choice in Between.choices if choice[0] != Between.ALL])
    origin = models.CharField(max_length=9, choices=Origin.choices)
    agreed = models.PositiveSmallIntegerField()
    comparisons = models.PositiveSmallIntegerField()
    agreed_untied = models.PositiveSmallIntegerField()
    untied = models.PositiveSmallIntegerField()
    share = models.FloatField(help_text="agreed / comparisons")
    tau_b = models.FloatField(null=True, blank=True)

    objects = AgreementPairQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["first", "second"], name="agreement_pair_once")]
        indexes = [
            models.Index(fields=["batch", "share", "id"], name="agreement_pair_batch"),
            models.Index(fields=["share", "id"], name="agreement_pair_share"),
        ]

    def __str__(self) -> str:
        return f"{self.first_id} and {self.second_id}: {self.agreed} of {self.comparisons}"


class AgreementReport(models.Model):
    """When agreement was last measured in a batch (or, with no batch, in all), and over what."""

    batch = models.OneToOneField(
        "Batch", on_delete=models.CASCADE, null=True, blank=True, related_name="agreement_report"
    )
    origin = models.CharField(
        max_length=9, choices=Origin.choices, help_text="Whose labels: people's, where there are any"
    )
    submissions = models.PositiveIntegerField()
    shared_tasks = models.PositiveIntegerField(help_text="Tasks that two or more have handed in")
    newest_revision = models.BigIntegerField(default=0, help_text="The newest revision that was there")
    computed_at = models.DateTimeField()
    seconds = models.FloatField(help_text="How long it took; a costly report is made more seldom")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["batch"], nulls_distinct=False, name="agreement_report_once"),
        ]

    def __str__(self) -> str:
        return f"agreement in {self.batch or 'all batches'}"


class AgreementFigure(models.Model):
    """One figure of a report: its value with a 95 % interval. `measure`: share, share_untied, tau_b, quality, or
    flag:NAME and prompt_flag:NAME (Krippendorff's α for the last three)."""

    report = models.ForeignKey(AgreementReport, on_delete=models.CASCADE, related_name="figures")
    measure = models.CharField(max_length=120)
    between = models.CharField(max_length=8, choices=Between.choices)
    value = models.FloatField(null=True)
    low = models.FloatField(null=True)
    high = models.FloatField(null=True)
    tasks = models.PositiveIntegerField()
    count = models.PositiveIntegerField(help_text="pairs of rankings, or judgments that can be paired")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["report", "measure", "between"], name="agreement_figure_once"),
        ]

    def __str__(self) -> str:
        return f"{self.measure}, {self.between}: {self.value}"
