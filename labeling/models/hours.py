"""Hours: what labelers did and how long it took, kept for paying them; and what of it is paid."""

from datetime import date, datetime, time, timedelta

from django.db import models
from django.db.models import Count, Q, Sum
from django.db.models.functions import Coalesce, TruncDate
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Activity(models.TextChoices):
    """What was done. A correction is every later revision of what was handed in."""

    DEMONSTRATION = "demonstration", _("demonstration")
    RANKING = "ranking", _("ranking")
    CORRECTION = "correction", _("correction")
    PROMPT = "prompt", _("prompt")
    SKIP = "skip", _("skip")
    PRACTICE = "practice", _("practice")
    SCREENING = "screening", _("screening")


ALWAYS_PAID = (Activity.DEMONSTRATION, Activity.RANKING, Activity.CORRECTION, Activity.PROMPT)


class PayRule(models.Model):
    """Whether skips, practice and screening are paid. The newest row counts, for every period. Append-only."""

    pays_skips = models.BooleanField(_("skips are paid"), default=False)
    pays_practice = models.BooleanField(_("practice is paid"), default=False)
    pays_screening = models.BooleanField(_("screening is paid"), default=False)
    set_by = models.ForeignKey("User", on_delete=models.PROTECT, related_name="+")
    set_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return f"rule of {self.set_at:%Y-%m-%d}"

    @classmethod
    def current(cls) -> "PayRule":
        """The rule in force; an unsaved one that pays none of the three before any was set."""
        return cls.objects.order_by("-id").first() or cls()

    @property
    def paid(self) -> list[str]:
        """The activities that are paid."""
        more = {"skip": self.pays_skips, "practice": self.pays_practice, "screening": self.pays_screening}
        return [*ALWAYS_PAID, *(name for name, is_paid in more.items() if is_paid)]


class WorkEntryQuerySet(models.QuerySet):
    def between(self, since: date | None, until: date | None) -> "WorkEntryQuerySet":
        """Entries of these days, both included, in the installation's time zone. None: no bound."""
        rows = self
        if since:
            rows = rows.filter(ended_at__gte=_midnight(since))
        if until and until < date.max:
            rows = rows.filter(ended_at__lt=_midnight(until + timedelta(days=1)))
        return rows

    def summed(self, *by: str, rule: PayRule) -> models.QuerySet:
        """One row per value of `by` ("labeler", "day", or both): counts, and seconds, paid and apart."""
        rows = self.annotate(day=TruncDate("ended_at")) if "day" in by else self
        return rows.values(*by).annotate(**sums(rule)).order_by(*by)

    def total(self, rule: PayRule) -> dict:
        """The same sums over all entries."""
        return self.aggregate(**sums(rule))


def _midnight(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time.min))


def sums(rule: PayRule) -> dict:
    """What is counted and summed over entries: name → aggregate. Seconds of what the rule pays, of the rest, and of skips."""

    def seconds(*activities: str) -> Coalesce:
        return Coalesce(Sum("seconds", filter=Q(activity__in=activities)), 0)

    counts = {
        f"{activity.value}s" if activity not in (Activity.PRACTICE, Activity.SCREENING) else activity.value: Count(
            "id", filter=Q(activity=activity)
        )
        for activity in Activity
    }
    return counts | {
        "surplus": Count("id", filter=Q(is_surplus=True) & ~Q(activity=Activity.CORRECTION)),
        "paid_seconds": seconds(*rule.paid),
        "skip_seconds": seconds(Activity.SKIP),
        "unpaid_seconds": seconds(*(set(Activity.values) - set(rule.paid))),
    }


class WorkEntry(models.Model):
    """One thing done, with the time worked on it (idle time excluded). Made in the transaction that does it; append-only, so that
    what was paid for a period never changes. Only a skip that is taken back takes its entry along.
    """

    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="work_entries")
    activity = models.CharField(max_length=13, choices=Activity.choices)
    is_surplus = models.BooleanField(default=False)
    seconds = models.PositiveIntegerField()
    revision = models.OneToOneField("Revision", on_delete=models.PROTECT, null=True, related_name="work_entry")
    skip = models.OneToOneField("Skip", on_delete=models.CASCADE, null=True, related_name="work_entry")
    attempt = models.OneToOneField("Attempt", on_delete=models.PROTECT, null=True, related_name="work_entry")
    writing = models.OneToOneField("Writing", on_delete=models.PROTECT, null=True, related_name="work_entry")
    screening = models.ForeignKey(
        "Screening",
        on_delete=models.PROTECT,
        null=True,
        related_name="work_entries",
        help_text="Several entries where somebody withdrew, and went on later",
    )
    ended_at = models.DateTimeField(default=timezone.now)

    objects = WorkEntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "work entries"
        constraints = [
            models.CheckConstraint(condition=Q(activity__in=Activity.values), name="work_entry_activity_valid"),
            models.CheckConstraint(condition=Q(activity="skip") | Q(skip=None), name="work_entry_skip_is_skip"),
            models.CheckConstraint(
                condition=(Q(activity="practice") | Q(attempt=None))
                & (Q(activity="prompt") | Q(writing=None))
                & (Q(activity="screening") | Q(screening=None))
                & (Q(activity__in=["demonstration", "ranking", "correction"]) | Q(revision=None)),
                name="work_entry_of_its_activity",
            ),
        ]
        indexes = [
            # A period is summed from the index alone.
            models.Index(
                fields=["ended_at"], include=["labeler", "activity", "seconds", "is_surplus"], name="work_entry_ended"
            ),
            models.Index(fields=["labeler", "ended_at"], name="work_entry_labeler"),
        ]

    def __str__(self) -> str:
        return f"{self.activity} by {self.labeler_id}: {self.seconds} s"
