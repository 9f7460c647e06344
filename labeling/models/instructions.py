"""Instructions: what labelers are told about a kind of task or about final evaluations, by version, and who has acknowledged which."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.tasks import Kind


class Subject(models.TextChoices):
    """What instructions are about: a kind of task, or the rankings of a final evaluation, which follow rules of their own."""

    DEMONSTRATION = Kind.DEMONSTRATION.value, _("demonstration")
    RANKING = Kind.RANKING.value, _("ranking")
    EVALUATION = "evaluation", _("final evaluation")


class InstructionsQuerySet(models.QuerySet):
    def current(self) -> "InstructionsQuerySet":
        """The newest version of each kind that has one."""
        return self.order_by("kind", "-version").distinct("kind")

    def unread_by(self, user) -> list["Instructions"]:
        """The versions in force that this person has not acknowledged."""
        read = models.Exists(Acknowledgement.objects.filter(instructions=models.OuterRef("pk"), user=user))
        return [each for each in self.annotate(is_read=read).current() if not each.is_read]


class Instructions(models.Model):
    """A published version of the instructions for a subject. Never edited; a change is a new version."""

    kind = models.CharField(_("about"), max_length=13, choices=Subject.choices)
    version = models.PositiveIntegerField()
    text = models.TextField(_("instructions"), help_text=_("Markdown"))
    examples = models.TextField(_("examples"), blank=True, help_text=_("Markdown, shown below the instructions"))
    note = models.CharField(
        _("what changed"), max_length=500, blank=True, help_text=_("Shown to those who knew the version before")
    )
    published_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    published_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = InstructionsQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "instructions"
        constraints = [
            models.UniqueConstraint(fields=["kind", "version"], name="instructions_version_once"),
            models.CheckConstraint(condition=models.Q(kind__in=Subject.values), name="instructions_kind_valid"),
        ]

    def __str__(self) -> str:
        return f"{self.kind}, version {self.version}"


class Acknowledgement(models.Model):
    """A person has read a version of the instructions and says so."""

    instructions = models.ForeignKey(Instructions, on_delete=models.PROTECT, related_name="acknowledgements")
    user = models.ForeignKey("User", on_delete=models.PROTECT, related_name="acknowledgements")
    acknowledged_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["instructions", "user"], name="acknowledgement_once")]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.instructions_id}"


class InstructionsDraft(models.Model):
    """The next version of a kind's instructions while it is being written; one for all who write."""

    kind = models.CharField(max_length=13, choices=Subject.choices, unique=True)
    text = models.TextField(blank=True)
    examples = models.TextField(blank=True)
    note = models.CharField(max_length=500, blank=True)
    version = models.PositiveIntegerField(default=0, help_text="Rises with every save and with publishing")
    is_open = models.BooleanField(default=False, help_text="False once published: there is nothing unpublished in it")
    saved_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    saved_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(kind__in=Subject.values), name="instructions_draft_kind_valid")
        ]

    def __str__(self) -> str:
        return f"{self.kind}: next version"
