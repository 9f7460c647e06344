"""Batches: what an admin orders, and the label schemas that batches pin."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Count, ExpressionWrapper
from django.db.models.functions import Cast, Extract, Floor
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.people import Group
from labeling.models.tasks import Kind, Skip, Slot


class LabelSchema(models.Model):
    """A version of the rating form: quality scale, per-response flags, per-prompt flags. Never edited; a change is a new version.

    `content`: {"quality": {"min": 1, "max": 7, "anchors": {"1": text}}, "response_flags": [{"name", "label", "help", "required"}],
    "prompt_flags": the same}; anchors, help and required may be absent. Version 1 is InstructGPT's Tables 3 and 7.
    """

    version = models.PositiveIntegerField(unique=True)
    content = models.JSONField()
    created_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["-version"]

    def __str__(self) -> str:
        return str(_("version %d") % self.version)

    @classmethod
    def latest(cls) -> "LabelSchema":
        return cls.objects.order_by("-version")[0]

    @property
    def response_flags(self) -> list[dict]:
        return self.content["response_flags"]

    @property
    def prompt_flags(self) -> list[dict]:
        return self.content["prompt_flags"]

    @property
    def quality_range(self) -> range:
        return range(self.content["quality"]["min"], self.content["quality"]["max"] + 1)

    @property
    def scale(self) -> dict:
        """The rating scale for pages: its ends, what they are called, and every step with its text, if it has one."""
        values, anchors = self.quality_range, self.content["quality"].get("anchors", {})
        low, high = values[0], values[-1]
        return {
            "min": low,
            "max": high,
            "anchors": anchors,
            "worst": anchors.get(str(low)) or _("worst"),
            "best": anchors.get(str(high)) or _("best"),
            "steps": [(value, anchors.get(str(value), "")) for value in values],
        }


PACE_DAYS = 7  # whole weeks hold their weekends


@dataclass
class Progress:
    """How far a batch is, gold left out. Seats: open + leased + submitted = seats. Submissions by status; `surplus` stand outside them."""

    seats: int = 0
    open: int = 0
    leased: int = 0
    submitted: int = 0
    waiting: int = 0
    accepted: int = 0
    returned: int = 0
    rejected: int = 0
    surplus: int = 0
    skipped: int = 0

    @property
    def percent(self) -> int:
        """Seats with work handed in, in hundredths, rounded down: 100 only when all are."""
        return 100 * self.submitted // self.seats if self.seats else 0

    @property
    def reviewed(self) -> int:
        return self.accepted + self.rejected


def is_for(labeler, path: str = "") -> models.Q:
    """That a batch (at `path`, as "batch__") is one for this labeler: of their group or any, in a language of theirs or any, and asking
    for no skill that they lack. The same as in labeling.actions.lines.LINES."""
    wanted = {
        "group__in": ["", labeler.group],
        "language__in": ["", *labeler.languages],
        "skills__contained_by": labeler.skills,
    }
    return models.Q(**{path + name: value for name, value in wanted.items()})


class BatchQuerySet(models.QuerySet):
    def progress(self) -> dict[int, Progress]:
        """Progress by batch id, in three queries however many batches there are."""
        from labeling.models.submissions import Submission

        of = {pk: Progress() for pk in self.values_list("pk", flat=True)}
        for pk, status, n in (
            Slot.objects.filter(batch__in=of, is_gold=False).values_list("batch", "status").annotate(n=Count("id"))
        ):
            setattr(of[pk], status, n)
            of[pk].seats += n
        rows = Submission.objects.filter(batch__in=of, is_gold=False).values_list("batch", "status", "is_surplus")
        for pk, status, is_surplus, n in rows.annotate(n=Count("id")):
            name = "surplus" if is_surplus else "waiting" if status == Submission.Status.SUBMITTED else status
            setattr(of[pk], name, getattr(of[pk], name) + n)
        for pk, n in Skip.objects.filter(task__batch__in=of).values_list("task__batch").annotate(n=Count("id")):
            of[pk].skipped = n
        return of

    def paces(self, now: datetime) -> dict[int, list[int]]:
        """Seats handed in, by batch id, in each of the last PACE_DAYS times 24 hours, newest first; younger batches have fewer."""
        since = now - timedelta(days=PACE_DAYS)
        began = dict(self.values_list("pk", "created_at"))
        done = Slot.objects.filter(batch__in=began, status=Slot.Status.SUBMITTED, submitted_at__gt=since, is_gold=False)
        age = ExpressionWrapper(now - models.F("submitted_at"), output_field=models.DurationField())
        days = Cast(Floor(Extract(age, "epoch") / 86400.0), models.IntegerField())
        lived = {pk: min(PACE_DAYS, max(1, math.ceil((now - at) / timedelta(days=1)))) for pk, at in began.items()}
        of = {pk: [0] * days for pk, days in lived.items()}
        for pk, day, n in done.annotate(day=days).values_list("batch", "day").annotate(n=Count("id")).order_by():
            if 0 <= day < len(of[pk]):
                of[pk][day] = n
        return of


class Batch(models.Model):
    """Prompts × kind of task × models × K × overlap × group, with instructions and a label schema of its own.

    `purpose` says what its labels are for. An evaluation's are ordinary rankings, one response of each policy, on prompts of the
    test split (trigger task_evaluation_split); they say which policy people prefer, and no export takes them unless it names the batch.
    """

    class Purpose(models.TextChoices):
        LABELING = "labeling", _("labeling")
        EVALUATION = "evaluation", _("final evaluation")

    class Status(models.TextChoices):
        ACTIVE = "active", _("active")
        PAUSED = "paused", _("paused")
        CLOSED = "closed", _("closed")

    name = models.CharField(_("name"), max_length=100, unique=True)
    kind = models.CharField(_("kind of task"), max_length=13, choices=Kind.choices)
    purpose = models.CharField(
        _("purpose"), max_length=10, choices=Purpose.choices, default=Purpose.LABELING, db_default=Purpose.LABELING
    )
    status = models.CharField(_("status"), max_length=6, choices=Status.choices, default=Status.ACTIVE)
    instructions = models.TextField(_("instructions"), blank=True, help_text=_("Markdown, shown beside every task"))
    schema = models.ForeignKey(LabelSchema, on_delete=models.PROTECT, related_name="batches")
    responses_per_task = models.PositiveSmallIntegerField(_("responses per task (K)"), null=True, blank=True)
    overlap = models.PositiveSmallIntegerField(_("labelers per task"), default=1)
    group = models.CharField(_("group"), max_length=10, choices=Group.choices, blank=True, help_text=_("empty: any"))
    language = models.CharField(
        _("language"), max_length=3, blank=True, default="", db_default="",
        help_text=_("ISO 639 code; only for labelers who know it. Empty: any"),
    )  # fmt: skip
    skills = ArrayField(
        models.CharField(max_length=50), verbose_name=_("skills"), default=list, db_default=[], blank=True,
        help_text=_("only for labelers who have all of them"),
    )  # fmt: skip
    gold_percent = models.PositiveSmallIntegerField(
        _("gold tasks (%)"),
        default=0,
        db_default=0,
        help_text=_("share of a labeler's tasks whose right answer is known"),
    )
    priority = models.SmallIntegerField(_("priority"), default=0, help_text=_("higher comes first"))
    query = models.JSONField(default=dict, blank=True, help_text="What was asked for: models, split, use case, limit")
    counts = models.JSONField(default=dict, blank=True, help_text="Tasks made, and prompts left out by reason")
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = BatchQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "batches"
        constraints = [
            models.CheckConstraint(condition=models.Q(overlap__gte=1, overlap__lte=50), name="batch_overlap"),
            models.CheckConstraint(
                condition=models.Q(purpose="labeling") | models.Q(purpose="evaluation", kind=Kind.RANKING),
                name="batch_purpose_valid",
            ),
            models.CheckConstraint(condition=models.Q(gold_percent__lte=50), name="batch_gold_percent"),
            models.CheckConstraint(condition=models.Q(group__in=["", *Group.values]), name="batch_group_valid"),
            models.CheckConstraint(
                condition=models.Q(status__in=["active", "paused", "closed"]), name="batch_status_valid"
            ),
            models.CheckConstraint(
                condition=models.Q(kind=Kind.DEMONSTRATION, responses_per_task__isnull=True)
                # Without "is not null" a ranking without K would pass: a check that yields NULL holds.
                | models.Q(
                    kind=Kind.RANKING,
                    responses_per_task__isnull=False,
                    responses_per_task__gte=2,
                    responses_per_task__lte=12,
                ),
                name="batch_k_2_to_12",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_evaluation(self) -> bool:
        return self.purpose == self.Purpose.EVALUATION
