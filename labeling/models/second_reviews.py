"""Second reviews: a share of verdicts is given once more by another reviewer, who does not know the first."""

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.reviews import Review
from labeling.models.tasks import Slot

USUAL_PERCENT = 5


class SecondReviewRate(models.Model):
    """Which share of verdicts is sampled. The newest row counts. Append-only."""

    percent = models.PositiveSmallIntegerField(_("share of verdicts (%)"))
    set_by = models.ForeignKey("User", on_delete=models.PROTECT, related_name="+")
    set_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(percent__lte=100), name="second_review_rate_percent")]

    def __str__(self) -> str:
        return f"{self.percent} %"

    @classmethod
    def current(cls) -> int:
        """The percentage in force."""
        newest = cls.objects.order_by("-id").values_list("percent", flat=True).first()
        return USUAL_PERCENT if newest is None else newest


class SecondReviewQuerySet(models.QuerySet):
    def lookable_by(self, reviewer) -> "SecondReviewQuerySet":
        """Not of this reviewer's own first verdict, nor of their own work, nor of a task that they hold a seat on."""
        working = Slot.objects.filter(labeler=reviewer, status=Slot.Status.LEASED)
        rows = self.exclude(first_reviewer=reviewer).exclude(review__submission__labeler=reviewer)
        return rows.exclude(review__submission__task__in=working.values("task"))

    def open_to(self, reviewer) -> "SecondReviewQuerySet":
        """Waiting for a second verdict that this reviewer may give."""
        return self.filter(verdict="").lookable_by(reviewer)

    def decided(self) -> "SecondReviewQuerySet":
        return self.exclude(verdict="")

    def disagreeing(self) -> "SecondReviewQuerySet":
        return self.decided().exclude(verdict=F("first_verdict"))


class SecondReview(models.Model):
    """A verdict sampled for a second one, which is empty until it is given, and final then. It decides nothing about the submission.

    First verdict and reviewer are copies of the review's, which never change.
    """

    review = models.OneToOneField("Review", on_delete=models.PROTECT, related_name="second_review")
    first_verdict = models.CharField(max_length=8, choices=Review.Verdict.choices)
    first_reviewer = models.ForeignKey("User", on_delete=models.PROTECT, related_name="+")
    verdict = models.CharField(max_length=8, choices=Review.Verdict.choices, blank=True, default="")
    comment = models.TextField(blank=True, help_text="For reviewers and researchers")
    reviewer = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="second_reviews")
    sampled_at = models.DateTimeField(default=timezone.now, editable=False)
    decided_at = models.DateTimeField(null=True)

    objects = SecondReviewQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(verdict="", reviewer=None, decided_at=None)
                | Q(verdict__in=Review.Verdict.values, reviewer__isnull=False, decided_at__isnull=False),
                name="second_review_open_or_given",
            ),
            models.CheckConstraint(
                condition=Q(reviewer=None) | ~Q(reviewer=F("first_reviewer")), name="second_review_by_another"
            ),
        ]
        indexes = [
            models.Index(fields=["id"], name="second_review_open", condition=Q(verdict="")),
            models.Index(fields=["-decided_at"], name="second_review_decided", condition=~Q(verdict="")),
        ]

    def __str__(self) -> str:
        return f"second look at review {self.review_id}"

    @property
    def agrees(self) -> bool:
        return self.verdict == self.first_verdict
