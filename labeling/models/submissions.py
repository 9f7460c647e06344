"""Submissions: what labelers hand in, with every revision kept."""

import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.people import Group
from labeling.models.tasks import Kind


class Origin(models.TextChoices):
    """Who made a label. Only people's labels enter an export unasked."""

    PERSON = "person", _("person")
    SIMULATED = "simulated", _("simulated")
    AI = "ai", _("AI")


class Submission(models.Model):
    """One labeler's work on one task. The answer itself is in the revisions; the newest counts.

    Group, origin and schema are frozen when it is made. `slot` is empty for surplus work: handed in after the seat
    was lost to another; kept, paid, visible, outside the overlap.
    """

    class Status(models.TextChoices):
        SUBMITTED = "submitted", _("waiting for review")
        RETURNED = "returned", _("returned for changes")
        ACCEPTED = "accepted", _("accepted")
        REJECTED = "rejected", _("rejected")

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    task = models.ForeignKey("Task", on_delete=models.PROTECT, related_name="submissions")
    # The task's: the database fills it in (trigger submission_batch) and holds it (submission_batch_is_tasks).
    batch = models.ForeignKey(
        "Batch",
        on_delete=models.PROTECT,
        related_name="submissions",
        editable=False,
        db_constraint=False,
        db_index=False,
    )
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="submissions")
    slot = models.OneToOneField("Slot", on_delete=models.PROTECT, null=True, blank=True, related_name="submission")
    kind = models.CharField(max_length=13, choices=Kind.choices)
    is_surplus = models.BooleanField(default=False)
    is_gold = models.BooleanField(
        default=False, db_default=False, help_text="Made on a gold seat: measures the labeler, is exported nowhere"
    )
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.SUBMITTED)
    labeler_group = models.CharField(max_length=10, choices=Group.choices)
    origin = models.CharField(max_length=9, choices=Origin.choices, default=Origin.PERSON)
    schema = models.ForeignKey("LabelSchema", on_delete=models.PROTECT, related_name="+")
    shown_order = models.JSONField(default=list, blank=True)
    revision_count = models.PositiveIntegerField(default=0)
    active_seconds = models.PositiveIntegerField(default=0)
    has_unread_feedback = models.BooleanField(
        default=False, db_default=False, help_text="A reviewer's word that the labeler has not opened yet"
    )
    review_priority = models.FloatField(
        default=0, db_default=0, help_text="How much a look is worth: labeling/priorities.py"
    )
    review_reasons = models.JSONField(default=list, blank=True, help_text="What the priority is made of, most first")
    disagreement = models.FloatField(
        null=True, blank=True, help_text="Share of comparisons that other rankings order otherwise"
    )
    model_conflict = models.FloatField(null=True, blank=True, help_text="How surely a model contradicts it, 0 to 1")
    prioritized_at = models.DateTimeField(
        null=True, blank=True, help_text="Empty: the priority is to be computed (again)"
    )
    paste_chars = models.PositiveIntegerField(default=0, db_default=0, help_text="Characters pasted into the answer")
    erased_at = models.DateTimeField(null=True, editable=False, help_text="Redacted with its author: exported nowhere")
    submitted_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "labeler"], name="submission_once"),
            models.CheckConstraint(
                condition=models.Q(is_surplus=True, slot=None) | models.Q(is_surplus=False, slot__isnull=False),
                name="submission_slot_or_surplus",
            ),
            models.CheckConstraint(condition=models.Q(kind__in=Kind.values), name="submission_kind_valid"),
            models.CheckConstraint(condition=models.Q(labeler_group__in=Group.values), name="submission_group_valid"),
            models.CheckConstraint(condition=models.Q(origin__in=Origin.values), name="submission_origin_valid"),
            models.CheckConstraint(
                condition=models.Q(status__in=["submitted", "returned", "accepted", "rejected"]),
                name="submission_status_valid",
            ),
        ]
        indexes = [
            models.Index(fields=["status", "-submitted_at"], name="submission_status"),
            models.Index(fields=["labeler", "-submitted_at"], name="submission_labeler"),
            models.Index(fields=["labeler"], name="submission_unread", condition=models.Q(has_unread_feedback=True)),
            # The review queue, as it is read.
            models.Index(
                models.F("review_priority").desc(),
                "updated_at",
                "id",
                name="submission_queue",
                condition=models.Q(status="submitted"),
            ),
            models.Index(
                fields=["id"],
                name="submission_unprioritized",
                condition=models.Q(status="submitted", prioritized_at=None),
            ),
            models.Index(fields=["batch", "status", "is_surplus", "id"], name="submission_batch"),
            models.Index(fields=["batch", "id"], name="submission_batch_newest"),
        ]

    def __str__(self) -> str:
        return str(self.uuid)

    @property
    def is_open_to_change(self) -> bool:
        """The labeler may still revise it: not reviewed yet, or returned."""
        return self.status in {self.Status.SUBMITTED, self.Status.RETURNED}

    @property
    def current(self) -> "Revision":
        """The newest revision."""
        return self.revisions.order_by("-number")[0]


class Revision(models.Model):
    """What was handed in, once. Append-only: the database refuses changes (migration 0002), except erasure.

    demonstration: `text`. ranking: `tiers` [[response uuid, …], …] best first, each response of the task exactly once;
    `ratings` {response uuid: {"quality": 1–7 | null, "flags": {name: true | false | null}}}; null is "unanswered".
    """

    submission = models.ForeignKey(Submission, on_delete=models.PROTECT, related_name="revisions")
    number = models.PositiveIntegerField()
    submit_key = models.UUIDField(help_text="Sent with the form, so that a repeated submit is recognised")
    text = models.TextField(null=True, blank=True)
    tiers = models.JSONField(null=True, blank=True)
    all_bad = models.BooleanField(default=False)
    ratings = models.JSONField(default=dict, blank=True)
    prompt_flags = models.JSONField(default=dict, blank=True)
    comment = models.TextField(blank=True, help_text="To the reviewer")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["submission", "number"], name="revision_number_once"),
            models.UniqueConstraint(fields=["submission", "submit_key"], name="revision_submit_key_once"),
            models.CheckConstraint(
                condition=models.Q(text__isnull=False, tiers__isnull=True)
                | models.Q(text__isnull=True, tiers__isnull=False),
                name="revision_text_or_tiers",
            ),
        ]

    def __str__(self) -> str:
        return f"submission {self.submission_id} revision {self.number}"
