"""What is known of labels and labelers in numbers. Derived rows, made again by actions/labelers.py; each number leads to rows."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class SubmissionNumbersQuerySet(models.QuerySet):
    def worth_a_look(self) -> "SubmissionNumbersQuerySet":
        """Numbers that ask for a person: gold missed, a sign of text not written, or less than half agreed on with others."""
        signs = Q(is_too_fast=True) | Q(is_pasted=True) | Q(is_near_copy=True)
        return self.filter(signs | Q(gold_passed=False) | Q(agreement__lt=0.5))


class SubmissionNumbers(models.Model):
    """The numbers of one submission: `submission.numbers`. Empty where there is nothing to compare with.

    Shares are shares of comparisons, 0 to 1, ties counted (see agreement.Compared). Labeler, batch and time are copies, so
    that a table of all labelers reads one table.
    """

    submission = models.OneToOneField("Submission", on_delete=models.CASCADE, primary_key=True, related_name="numbers")
    labeler = models.ForeignKey("User", on_delete=models.CASCADE, related_name="submission_numbers")
    batch = models.ForeignKey("Batch", on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=13)
    submitted_at = models.DateTimeField()
    revision = models.PositiveIntegerField(help_text="The revision that was measured")
    is_rejected = models.BooleanField(help_text="Whether it stood rejected then: such a ranking is in no consensus")
    others = models.PositiveSmallIntegerField(default=0, help_text="Rankings by others that it was compared with")
    agreement = models.FloatField(null=True, help_text="Share agreed on with others, in the mean over them")
    tau_b = models.FloatField(null=True, help_text="Kendall's tau-b with others, in the mean over them")
    consensus_agreement = models.FloatField(null=True, help_text="Share agreed on with the consensus of the others")
    gold_share = models.FloatField(null=True, help_text="Share agreed on with the gold answer")
    gold_passed = models.BooleanField(null=True, help_text="Within the gold answer's tolerance")
    gold_agreed_untied = models.PositiveSmallIntegerField(default=0)
    gold_untied = models.PositiveSmallIntegerField(default=0, help_text="Comparisons that neither it nor gold ties")
    seconds = models.PositiveIntegerField(default=0, help_text="Active seconds")
    characters = models.PositiveIntegerField(default=0, help_text="Written, or for a ranking: to be read")
    speed = models.FloatField(null=True, help_text="Characters per active second")
    is_too_fast = models.BooleanField(default=False)
    paste_chars = models.PositiveIntegerField(default=0, help_text="Characters pasted into the answer")
    is_pasted = models.BooleanField(default=False)
    near_copy = models.FloatField(null=True, help_text="Likeness to the nearest response or prompt, 0 to 1")
    near_copy_of = models.CharField(max_length=60, blank=True, help_text="prompt, or the response's UUID")
    is_near_copy = models.BooleanField(default=False)

    objects = SubmissionNumbersQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "submission numbers"
        indexes = [
            models.Index(fields=["labeler", "-submitted_at"], name="numbers_labeler"),
            models.Index(fields=["agreement"], name="numbers_agreement", condition=Q(agreement__isnull=False)),
            models.Index(fields=["labeler"], name="numbers_gold", condition=Q(gold_share__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"numbers of submission {self.submission_id}"

    @property
    def disagreement(self) -> float | None:
        """1 − agreement: the more, the more a second look is worth."""
        return None if self.agreement is None else 1 - self.agreement


class LabelerNumbers(models.Model):
    """The numbers of one labeler over all their work: `labeler.numbers`. Each value with its 95 % interval where it has one."""

    labeler = models.OneToOneField("User", on_delete=models.CASCADE, primary_key=True, related_name="numbers")
    demonstrations = models.PositiveIntegerField(default=0)
    rankings = models.PositiveIntegerField(default=0)
    skips = models.PositiveIntegerField(default=0)
    skip_rate = models.FloatField(null=True, help_text="skips / (skips + submissions)")
    reliability = models.FloatField(null=True, help_text="Estimated share of comparisons ordered rightly: consensus.py")
    reliability_low = models.FloatField(null=True)
    reliability_high = models.FloatField(null=True)
    agreement = models.FloatField(null=True, help_text="Share agreed on with others, mean over submissions")
    agreement_low = models.FloatField(null=True)
    agreement_high = models.FloatField(null=True)
    agreement_count = models.PositiveIntegerField(default=0)
    consensus_agreement = models.FloatField(null=True)
    consensus_low = models.FloatField(null=True)
    consensus_high = models.FloatField(null=True)
    consensus_count = models.PositiveIntegerField(default=0)
    gold = models.FloatField(null=True, help_text="Share agreed on with gold answers, mean over submissions")
    gold_low = models.FloatField(null=True)
    gold_high = models.FloatField(null=True)
    gold_count = models.PositiveIntegerField(default=0)
    gold_passed = models.PositiveIntegerField(default=0)
    ranking_seconds = models.FloatField(null=True, help_text="Median active seconds of a ranking")
    demonstration_seconds = models.FloatField(null=True)
    too_fast = models.PositiveIntegerField(default=0)
    pasted = models.PositiveIntegerField(default=0)
    near_copies = models.PositiveIntegerField(default=0)
    weeks = models.JSONField(default=list, help_text="Per week: what drifts; see actions/labelers.py")
    computed_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "labeler numbers"

    def __str__(self) -> str:
        return f"numbers of {self.labeler}"

    @property
    def handed_in(self) -> int:
        """Submissions of either kind."""
        return self.demonstrations + self.rankings


class LabelerRule(models.Model):
    """When a labeler is paused for a person to look: a number of theirs beyond a threshold. A change ends it and makes a new one."""

    class Metric(models.TextChoices):
        GOLD = "gold_share", _("agreement with gold answers")
        GOLD_PASSED = "gold_passed", _("gold tasks passed")
        AGREEMENT = "agreement", _("agreement with others")
        CONSENSUS = "consensus_agreement", _("agreement with the consensus of the others")
        SKIPS = "skip_rate", _("tasks skipped")
        FAST = "is_too_fast", _("submissions made impossibly fast")
        PASTED = "is_pasted", _("texts mostly pasted")
        COPIES = "is_near_copy", _("texts that are near-copies")

    BELOW = frozenset({Metric.GOLD, Metric.GOLD_PASSED, Metric.AGREEMENT, Metric.CONSENSUS})
    """Metrics of which too little is bad; of the others too much."""

    metric = models.CharField(_("number"), max_length=20, choices=Metric.choices)
    threshold = models.FloatField(_("threshold"), help_text=_("a share, 0 to 1"))
    minimum = models.PositiveIntegerField(_("at least so many"), help_text=_("submissions that it is measured on"))
    window_days = models.PositiveIntegerField(_("over the last days"), default=14)
    made_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    made_at = models.DateTimeField(default=timezone.now, editable=False)
    ended_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(threshold__gte=0, threshold__lte=1), name="labeler_rule_threshold"),
            models.CheckConstraint(condition=Q(minimum__gte=1, window_days__gte=1), name="labeler_rule_counts"),
        ]

    def __str__(self) -> str:
        sign = "<" if self.is_below else ">"
        return f"{self.get_metric_display()} {sign} {self.threshold:.0%}"

    @property
    def is_below(self) -> bool:
        """True if a number under the threshold pauses; else one over it."""
        return self.metric in self.BELOW


class LabelerPause(models.Model):
    """A labeler was paused, by a rule or a person, or resumed, by a person with a reason. Append-only; the newest holds."""

    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="pauses")
    is_pause = models.BooleanField()
    rule = models.ForeignKey(LabelerRule, on_delete=models.PROTECT, null=True, blank=True, related_name="pauses")
    value = models.FloatField(null=True, blank=True, help_text="What the rule saw")
    count = models.PositiveIntegerField(null=True, blank=True, help_text="On how many submissions")
    reason = models.TextField(blank=True)
    by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(is_pause=True, rule__isnull=False, by=None)
                | (Q(rule=None, by__isnull=False) & ~Q(reason="")),
                name="labeler_pause_by_rule_or_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.labeler} {'paused' if self.is_pause else 'resumed'}"
