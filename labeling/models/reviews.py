"""Reviews: verdicts on submissions."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class ReviewQuerySet(models.QuerySet):
    def feedback(self) -> "ReviewQuerySet":
        """What says more than "accepted": returned, rejected, or with a comment."""
        return self.exclude(verdict=Review.Verdict.ACCEPTED, comment="")


class Review(models.Model):
    """One reviewer's verdict on one revision. Append-only; the newest decides the submission's status."""

    class Verdict(models.TextChoices):
        ACCEPTED = "accepted", _("accept")
        RETURNED = "returned", _("return with a comment")
        REJECTED = "rejected", _("reject")

    submission = models.ForeignKey("Submission", on_delete=models.PROTECT, related_name="reviews")
    revision = models.ForeignKey("Revision", on_delete=models.PROTECT, related_name="reviews")
    verdict = models.CharField(max_length=8, choices=Verdict.choices)
    comment = models.TextField(blank=True)
    reviewer = models.ForeignKey("User", on_delete=models.PROTECT, related_name="reviews")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ReviewQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(verdict__in=["accepted", "returned", "rejected"]), name="review_verdict"
            ),
            models.CheckConstraint(
                condition=~models.Q(verdict="returned", comment=""), name="review_returned_needs_comment"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} by {self.reviewer_id}"
