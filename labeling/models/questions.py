"""Questions that labelers ask the team, on a task or on the instructions of a kind of task, and the threads that follow."""

import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.tasks import Kind


class QuestionQuerySet(models.QuerySet):
    def published(self) -> "QuestionQuerySet":
        """Questions that every labeler may read, in their public wording."""
        return self.filter(published_at__isnull=False)

    def saying(self, words: str) -> "QuestionQuerySet":
        """Published questions whose public wording holds every one of the words, in any order, whatever their case."""
        rows = self.published()
        for word in words.split():
            rows = rows.filter(models.Q(public_question__icontains=word) | models.Q(public_answer__icontains=word))
        return rows


class Question(models.Model):
    """A thread between one labeler and the team. `is_open`: the last word is the labeler's, an answer is awaited.

    Only `public_question` and `public_answer` are ever shown to other labelers: what a reviewer worded for all, without the
    asker's name, the task or its responses.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    asker = models.ForeignKey("User", on_delete=models.PROTECT, related_name="questions")
    task = models.ForeignKey("Task", on_delete=models.PROTECT, null=True, blank=True, related_name="questions")
    kind = models.CharField(_("kind of task"), max_length=13, choices=Kind.choices)
    is_open = models.BooleanField(default=True)
    is_unread = models.BooleanField(default=False, help_text="An answer that the asker has not opened yet")
    public_question = models.TextField(blank=True)
    public_answer = models.TextField(blank=True)
    published_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    published_at = models.DateTimeField(null=True, blank=True)
    asked_at = models.DateTimeField(default=timezone.now, help_text="When the asker wrote last")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = QuestionQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(kind__in=Kind.values), name="question_kind_valid"),
            models.CheckConstraint(
                condition=models.Q(published_at=None, published_by=None)
                | models.Q(published_at__isnull=False, published_by__isnull=False)
                & ~models.Q(public_question="")
                & ~models.Q(public_answer=""),
                name="question_published_whole",
            ),
        ]
        indexes = [
            models.Index(fields=["asked_at", "id"], name="question_open", condition=models.Q(is_open=True)),
            models.Index(fields=["asker", "-asked_at"], name="question_asker"),
            models.Index(fields=["asker"], name="question_unread", condition=models.Q(is_unread=True)),
        ]

    def __str__(self) -> str:
        return str(self.uuid)


class QuestionMessage(models.Model):
    """One message of a thread; `is_answer`: the team's. Append-only: the database refuses changes, except erasure."""

    question = models.ForeignKey(Question, on_delete=models.PROTECT, related_name="messages")
    author = models.ForeignKey("User", on_delete=models.PROTECT, related_name="+")
    is_answer = models.BooleanField()
    text = models.TextField()
    key = models.UUIDField(help_text="Sent with the form, so that a repeated message is recognised")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["author", "key"], name="question_message_key_once"),
            models.CheckConstraint(condition=~models.Q(text=""), name="question_message_says_something"),
        ]

    def __str__(self) -> str:
        return f"question {self.question_id} by {self.author_id}"
