"""Exercises: items with a known answer, to practise on or to be screened by, and people's attempts at them."""

import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.tasks import Kind


class Purpose(models.TextChoices):
    """What an exercise is for. One that screens is never shown with its answer."""

    PRACTICE = "practice", _("practice")
    SCREENING = "screening", _("screening")


class Part(models.TextChoices):
    """What an exercise asks for (InstructGPT B.1; the fourth part, the self-assessment, has no items)."""

    FLAGGING = "flagging", _("flagging sensitive text")
    RANKING = "ranking", _("ranking")
    DEMONSTRATION = "demonstration", _("demonstration")


PARTS_OF_KIND = {Kind.RANKING: (Part.FLAGGING, Part.RANKING), Kind.DEMONSTRATION: (Part.DEMONSTRATION,)}


class ExerciseQuerySet(models.QuerySet):
    def live(self, purpose: str) -> "ExerciseQuerySet":
        """Exercises for this purpose that are given out, oldest first."""
        return self.filter(purpose=purpose, retired_at=None).order_by("id")

    def practice_left(self, user, kind: str) -> "ExerciseQuerySet":
        """Practice for a kind of task that this person has not done, in order: flags before rankings."""
        done = Attempt.objects.filter(user=user, screening=None, submitted_at__isnull=False)
        left = self.live(Purpose.PRACTICE).filter(part__in=PARTS_OF_KIND[Kind(kind)])
        return left.exclude(pk__in=done.values("exercise")).order_by("part", "id")


class Exercise(models.Model):
    """A prompt, for a ranking its responses, and the answer that researchers agreed on.

    `reference` has the shape of an answer (labeling/answers.py): {"prompt_flags": {name: bool}} for flagging; {"tiers": [[id]],
    "ratings": {id: {"quality": n}}} for a ranking, ratings optional and on the scale of `schema`; {"text": …} for a
    demonstration, which one that screens may lack. Once somebody has begun it, it is never edited: a change retires it and makes
    another.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    purpose = models.CharField(_("for"), max_length=9, choices=Purpose.choices)
    part = models.CharField(_("part"), max_length=13, choices=Part.choices)
    messages = models.JSONField(help_text="Chat messages, as a prompt's")
    responses = models.JSONField(default=list, blank=True, help_text='[{"id", "text"}]; ids are never shown')
    reference = models.JSONField(default=dict, blank=True)
    schema = models.ForeignKey(
        "LabelSchema",
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Whose flags it asks for, by whose labels and on whose scale; later versions do not change it",
    )
    reference_by = models.CharField(_("whose answer it is"), max_length=200, blank=True)
    explanation = models.TextField(_("explanation"), blank=True, help_text=_("Markdown"))
    content_sha256 = models.CharField(max_length=64, editable=False)
    replaces = models.ForeignKey("self", on_delete=models.PROTECT, null=True, blank=True, related_name="replaced_by")
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    retired_at = models.DateTimeField(null=True, blank=True)

    objects = ExerciseQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(purpose__in=Purpose.values), name="exercise_purpose_valid"),
            models.CheckConstraint(condition=models.Q(part__in=Part.values), name="exercise_part_valid"),
            models.UniqueConstraint(
                fields=["content_sha256"], condition=models.Q(retired_at=None), name="exercise_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.part}: {self.preview}"

    @property
    def preview(self) -> str:
        """The beginning of the last message."""
        text = " ".join(str(self.messages[-1]["content"]).split()) if self.messages else ""
        return text if len(text) <= 100 else text[:99] + "…"

    @property
    def asks_ratings(self) -> bool:
        """True if each response is rated as well: the reference then has ratings."""
        return bool(self.reference.get("ratings"))


class Attempt(models.Model):
    """What one person says about an exercise: a draft until it is handed in, and then never changed.

    `agreed` of `compared`: flags, or comparisons of responses, on which they and the reference say the same. A demonstration has
    none: people grade it.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    exercise = models.ForeignKey(Exercise, on_delete=models.PROTECT, related_name="attempts")
    user = models.ForeignKey("User", on_delete=models.PROTECT, related_name="attempts")
    screening = models.ForeignKey("Screening", on_delete=models.PROTECT, null=True, blank=True, related_name="attempts")
    position = models.PositiveSmallIntegerField(default=0)
    shown_order = models.JSONField(default=list, blank=True, help_text="Response ids as shown: the first is letter A")
    content = models.JSONField(default=dict, blank=True)
    page = models.CharField(max_length=40, blank=True, help_text="The page that sent it last by a button")
    saved_at = models.DateTimeField(null=True, blank=True)
    active_seconds = models.FloatField(default=0, help_text="Time worked, idle time excluded")
    worked_at = models.DateTimeField(null=True, blank=True, help_text="The last sign of work: opened or saved")
    submitted_at = models.DateTimeField(null=True, blank=True)
    agreed = models.PositiveSmallIntegerField(null=True, blank=True)
    compared = models.PositiveSmallIntegerField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["exercise", "user"], condition=models.Q(screening=None), name="attempt_practice_once"
            ),
            models.UniqueConstraint(fields=["screening", "exercise"], name="attempt_screening_once"),
            models.CheckConstraint(
                condition=models.Q(agreed=None, compared=None)
                | models.Q(agreed__isnull=False, compared__isnull=False, agreed__lte=models.F("compared")),
                name="attempt_agreed_of_compared",
            ),
        ]

    def __str__(self) -> str:
        return str(self.uuid)
