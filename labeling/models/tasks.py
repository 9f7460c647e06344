"""Tasks, their slots (seats leased to labelers), drafts and skips."""

import uuid
from datetime import timedelta

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Kind(models.TextChoices):
    """What a task asks for."""

    DEMONSTRATION = "demonstration", _("demonstration")
    RANKING = "ranking", _("ranking")


class Task(models.Model):
    """One prompt's unit of work in a batch."""

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    batch = models.ForeignKey("Batch", on_delete=models.PROTECT, related_name="tasks")
    prompt = models.ForeignKey("Prompt", on_delete=models.PROTECT, related_name="tasks")
    kind = models.CharField(max_length=13, choices=Kind.choices)
    is_gold = models.BooleanField(
        db_default=False, default=False, help_text="Has a gold answer and is mixed into labelers' work"
    )
    disagreement = models.FloatField(null=True, editable=False, help_text="Between its rankings, in the mean: 0 to 1")
    adjudicated_at = models.DateTimeField(
        null=True, editable=False, help_text="When a reviewer last settled its ranking"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        indexes = [
            models.Index(fields=["batch"], name="task_gold", condition=models.Q(is_gold=True)),
            models.Index(
                models.F("disagreement").desc(), "id",
                name="task_disagreement", condition=models.Q(disagreement__gt=0, adjudicated_at=None),
            ),
        ]  # fmt: skip
        constraints = [
            models.UniqueConstraint(fields=["batch", "prompt"], name="task_prompt_once_per_batch"),
            models.CheckConstraint(condition=models.Q(kind__in=Kind.values), name="task_kind_valid"),
        ]

    def __str__(self) -> str:
        return str(self.uuid)


class TaskResponse(models.Model):
    """One of the K responses that a ranking task compares."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="task_responses")
    response = models.ForeignKey("Response", on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["task", "response"], name="task_response_once")]

    def __str__(self) -> str:
        return f"{self.task_id}: {self.response_id}"


class SlotQuerySet(models.QuerySet):
    def claimable_by(self, user) -> "SlotQuerySet":
        """Open slots that this labeler may take.

        Active batch that is for them (group, language, skills); not a prompt of their own; no submission, skip or other seat
        of theirs on the task; others' answers to it never shown to them.
        """
        from labeling.models.batches import is_for
        from labeling.models.submissions import Submission

        mine = {"task_id": models.OuterRef("task_id"), "labeler": user}
        return (
            self.filter(is_for(user, "batch__"), status=Slot.Status.OPEN, batch__status="active")
            # By a list of their own, which is short, rather than by the author of each open task.
            .exclude(task__in=Task.objects.filter(prompt__author__user=user))
            .filter(~models.Exists(Submission.objects.filter(**mine)), ~models.Exists(Skip.objects.filter(**mine)))
            .filter(~models.Exists(Slot.objects.filter(**mine)), ~models.Exists(Look.objects.filter(**mine)))
        )

    def give_back(self) -> int:
        """Open these leased seats to others, in the order of their line; those made for a gold task go. How many. Drafts stay."""
        gone, _by_model = self.filter(is_gold=True).delete()
        return gone + self.update(status=Slot.Status.OPEN, labeler=None, leased_at=None, lease_expires_at=None)

    def expired(self, now=None) -> "SlotQuerySet":
        """Leased slots whose lease has run out."""
        return self.filter(status=Slot.Status.LEASED, lease_expires_at__lt=now or timezone.now())


class Slot(models.Model):
    """One seat on a task. open → leased → submitted; an expired or released lease makes it open again.

    Batch and kind are copies of the task's. Open seats of a batch stand in a line (labeling/actions/lines.py).
    """

    class Status(models.TextChoices):
        OPEN = "open", _("open")
        LEASED = "leased", _("leased")
        SUBMITTED = "submitted", _("submitted")

    task = models.ForeignKey(Task, on_delete=models.PROTECT, related_name="slots")
    seat = models.PositiveSmallIntegerField()
    batch = models.ForeignKey("Batch", on_delete=models.PROTECT, related_name="slots")
    kind = models.CharField(max_length=13, choices=Kind.choices)
    turn = models.BigIntegerField(
        null=True,
        editable=False,
        help_text="Number in the batch's line: 0 as laid out; the next higher one, by a trigger, whenever it is opened",
    )
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.OPEN)
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="slots")
    leased_at = models.DateTimeField(null=True, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    submitted_at = models.DateTimeField(null=True, blank=True)
    is_gold = models.BooleanField(
        default=False,
        db_default=False,
        help_text="An extra seat of a gold task: made for its labeler, gone when given back",
    )

    objects = SlotQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "seat"], name="slot_seat_once"),
            models.UniqueConstraint(
                fields=["task", "labeler"], condition=models.Q(labeler__isnull=False), name="slot_labeler_once_per_task"
            ),
            models.CheckConstraint(
                condition=models.Q(
                    status="open", labeler=None, leased_at=None, lease_expires_at=None, submitted_at=None
                )
                | models.Q(
                    status="leased",
                    labeler__isnull=False,
                    leased_at__isnull=False,
                    lease_expires_at__isnull=False,
                    submitted_at=None,
                )
                | models.Q(
                    status="submitted", labeler__isnull=False, lease_expires_at=None, submitted_at__isnull=False
                ),
                name="slot_status_consistent",
            ),
            # So a claim, which looks at open seats alone, never meets one.
            models.CheckConstraint(condition=~models.Q(is_gold=True, status="open"), name="slot_gold_never_open"),
            models.CheckConstraint(condition=~models.Q(status="open", turn__isnull=True), name="slot_open_has_turn"),
        ]
        indexes = [
            # A batch's line as laid out: first seats first, so that tasks in hand are not walked over while others wait.
            models.Index(fields=["batch", "seat", "id"], name="slot_line", condition=models.Q(status="open", turn=0)),
            models.Index(fields=["batch", "turn"], name="slot_returned", condition=models.Q(status="open", turn__gt=0)),
            models.Index(fields=["lease_expires_at"], name="slot_lease", condition=models.Q(status="leased")),
            models.Index(fields=["labeler", "status"], name="slot_labeler", condition=models.Q(labeler__isnull=False)),
            models.Index(fields=["batch", "status"], name="slot_batch_status"),
            models.Index(fields=["batch", "submitted_at"], name="slot_submitted", condition=models.Q(status="submitted")),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"task {self.task_id} seat {self.seat}"

    def lease(self, labeler, now) -> None:
        """Take the seat for a labeler (unsaved)."""
        self.status, self.labeler = self.Status.LEASED, labeler
        self.leased_at, self.lease_expires_at = now, now + timedelta(minutes=settings.LEASE_MINUTES)

    def free(self) -> None:
        """Give the seat back (unsaved). The labeler's draft stays."""
        self.status, self.labeler = self.Status.OPEN, None
        self.leased_at = self.lease_expires_at = self.submitted_at = None


class Bookmark(models.Model):
    """How far a labeler has looked down a batch's line of open seats: nothing up to here is for them, nor will be.

    `turn` in the seats that were given back, (`seat`, `slot`) in those that were laid out with the batch.
    """

    labeler = models.ForeignKey("User", on_delete=models.CASCADE, related_name="+", db_index=False)
    batch = models.ForeignKey("Batch", on_delete=models.CASCADE, related_name="+", db_index=False)
    turn = models.BigIntegerField(default=0)
    seat = models.PositiveSmallIntegerField(default=0)
    slot = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["labeler", "batch"], name="bookmark_once")]

    def __str__(self) -> str:
        return f"{self.labeler_id} in batch {self.batch_id}"


class Draft(models.Model):
    """A labeler's worksheet on a task, made when they first see it and saved as they type. Outlives the lease.

    `content` holds the answer so far in the shape of a Revision's fields; what is not answered is absent or null.
    """

    # Both have an index below.
    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="drafts", db_index=False)
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="drafts", db_index=False)
    content = models.JSONField(default=dict, blank=True)
    shown_order = models.JSONField(default=list, blank=True, help_text="Response UUIDs as shown: the first is letter A")
    version = models.PositiveIntegerField(default=0, help_text="Rises with every save; an older save never overwrites")
    active_seconds = models.FloatField(default=0, help_text="Time worked, idle time excluded")
    page_seconds = models.JSONField(default=dict, blank=True, help_text="Loading of the page → seconds it has claimed")
    paste_chars = models.PositiveIntegerField(default=0, db_default=0, help_text="Characters pasted into the answer")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    saved_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["task", "labeler"], name="draft_once")]
        indexes = [models.Index("labeler", models.F("saved_at").desc(), name="draft_labeler")]

    def __str__(self) -> str:
        return f"task {self.task_id} by {self.labeler_id}"


class DraftCopy(models.Model):
    """Work on a task that could not become the draft, because another page had saved newer work, or was replaced in it by choice.

    `content` as in a draft. Never changed and never deleted: what a labeler typed is not lost.
    """

    task = models.ForeignKey(Task, on_delete=models.PROTECT, related_name="draft_copies")
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="draft_copies")
    content = models.JSONField()
    content_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name_plural = "draft copies"
        constraints = [
            models.UniqueConstraint(fields=["task", "labeler", "content_sha256"], name="draft_copy_once"),
        ]

    def __str__(self) -> str:
        return f"task {self.task_id} by {self.labeler_id}"


class Look(models.Model):
    """A person was shown others' answers to a task: it is never theirs to label again. Append-only."""

    # The index of the constraint begins with it.
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="+", db_index=False)
    task = models.ForeignKey(Task, on_delete=models.PROTECT, related_name="looks")
    seen_at = models.DateTimeField(default=timezone.now, editable=False, help_text="For the first time")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["labeler", "task"], name="look_once")]

    def __str__(self) -> str:
        return f"task {self.task_id} by {self.labeler_id}"


class Skip(models.Model):
    """A labeler passes a task on, with a reason. They are not given it again; the seat goes to others."""

    class Reason(models.TextChoices):
        UNCLEAR = "unclear", _("The prompt is unclear")
        NO_KNOWLEDGE = "no_knowledge", _("I lack the knowledge")
        DISTRESSING = "distressing", _("The content is distressing")
        BROKEN = "broken", _("Something is broken")
        OTHER = "other", _("Another reason")

    task = models.ForeignKey(Task, on_delete=models.PROTECT, related_name="skips")
    labeler = models.ForeignKey("User", on_delete=models.PROTECT, related_name="skips")
    reason = models.CharField(max_length=12, choices=Reason.choices)
    comment = models.TextField(blank=True)
    prompt_flags = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["task", "labeler"], name="skip_once")]

    def __str__(self) -> str:
        return f"task {self.task_id}: {self.reason}"
