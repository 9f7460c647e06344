"""Screening: who applies, the tries they make at its four parts, researchers' grades, and what people decide."""

import uuid
from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.people import Group

GROUPS = [
    "Women and girls", "Men and boys", "LGBTQ+ people", "Ethnic and racial groups", "Indigenous peoples", "Migrants and refugees",
    "Religious groups", "People with disabilities", "Older people", "Children and young people",
]  # fmt: skip
TOPICS = [
    "Politics and elections", "Religion and belief", "Sexual content", "Violence and war", "Self-harm and suicide",
    "Drugs and addiction", "Crime and abuse", "Health and the body",
]  # fmt: skip


def default_groups() -> list[str]:
    return list(GROUPS)


def default_topics() -> list[str]:
    return list(TOPICS)


class ScreeningRules(models.Model):
    """The project's rules of screening, by version; the newest is in force, and each try keeps those it began under.

    Cutoffs are soft: they stand beside a candidate's figures, and a person decides (InstructGPT B.1: 75 %, 75 %, 6 of 7).
    """

    version = models.PositiveIntegerField(unique=True)
    flagging_cutoff = models.FloatField(_("flagging: share agreed on"), default=0.75)
    ranking_cutoff = models.FloatField(_("ranking: share of comparisons agreed on"), default=0.75)
    demonstration_cutoff = models.FloatField(_("demonstrations: average grade, 1 to 7"), default=6.0)
    flagging_items = models.PositiveSmallIntegerField(_("texts to flag"), default=10)
    ranking_items = models.PositiveSmallIntegerField(_("prompts to rank on"), default=3)
    demonstration_items = models.PositiveSmallIntegerField(_("demonstrations to write"), default=2)
    graders = models.PositiveSmallIntegerField(_("researchers who grade each demonstration"), default=2)
    max_tries = models.PositiveSmallIntegerField(_("tries at most"), default=2)
    cooldown_days = models.PositiveSmallIntegerField(_("days before a retake"), default=14)
    groups = models.JSONField(_("groups of the self-assessment"), default=default_groups)
    topics = models.JSONField(_("topics of the self-assessment"), default=default_topics)
    terms = models.TextField(_("terms that applicants consent to"), blank=True, help_text=_("Markdown"))
    changed_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    changed_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name_plural = "screening rules"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(
                    flagging_cutoff__range=(0, 1), ranking_cutoff__range=(0, 1), demonstration_cutoff__range=(1, 7),
                    graders__range=(1, 9), max_tries__gte=1,
                ),
                name="screening_rules_ranges",
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"version {self.version}"


class Application(models.Model):
    """What an applicant says of themselves. Theirs to edit and withdraw until it is decided; name and why are the account's."""

    class Status(models.TextChoices):
        DRAFT = "draft", _("being written")
        SUBMITTED = "submitted", _("sent")
        WITHDRAWN = "withdrawn", _("withdrawn")

    user = models.OneToOneField("User", on_delete=models.PROTECT, related_name="application")
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.DRAFT)
    languages = models.CharField(_("languages"), max_length=500, blank=True)
    hours_per_week = models.PositiveSmallIntegerField(_("hours per week"), null=True, blank=True)
    availability = models.CharField(_("when"), max_length=500, blank=True)
    rules = models.ForeignKey(
        ScreeningRules, on_delete=models.PROTECT, null=True, related_name="+", help_text="Whose terms were consented to"
    )
    consented_at = models.DateTimeField(null=True, blank=True)
    submitted_at = models.DateTimeField(null=True, blank=True)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["draft", "submitted", "withdrawn"]), name="application_status_valid"
            ),
            models.CheckConstraint(
                condition=~models.Q(status="submitted")
                | models.Q(
                    consented_at__isnull=False,
                    rules__isnull=False,
                    hours_per_week__isnull=False,
                    submitted_at__isnull=False,
                ),
                name="application_sent_whole",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.status}"


class Screening(models.Model):
    """One try of an applicant at the four parts. Its UUID is all that researchers know of the person before they decide.

    `self_assessment`: {"groups": {name: "yes"|"partly"|"no"|"unsaid"}, "topics": {…}, "comment": …}.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    user = models.ForeignKey("User", on_delete=models.PROTECT, related_name="screenings")
    number = models.PositiveSmallIntegerField()
    rules = models.ForeignKey(ScreeningRules, on_delete=models.PROTECT, related_name="screenings")
    self_assessment = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(default=timezone.now, editable=False)
    submitted_at = models.DateTimeField(null=True, blank=True)
    active_seconds = models.FloatField(default=0, help_text="Time worked on the self-assessment, idle time excluded")
    worked_at = models.DateTimeField(null=True, blank=True, help_text="The last sign of work on it: opened or saved")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "number"], name="screening_number_once"),
            models.UniqueConstraint(
                fields=["user"], condition=models.Q(submitted_at=None), name="screening_one_open_try"
            ),
        ]
        indexes = [models.Index(fields=["-submitted_at"], name="screening_submitted")]

    def __str__(self) -> str:
        return self.code

    @property
    def code(self) -> str:
        """What researchers call the candidate."""
        return self.uuid.hex[:6].upper()


class Grade(models.Model):
    """A researcher's grade of a demonstration written in a screening, given without knowing who wrote it or what others gave."""

    attempt = models.ForeignKey("Attempt", on_delete=models.PROTECT, related_name="grades")
    seat = models.PositiveSmallIntegerField()
    grader = models.ForeignKey("User", on_delete=models.PROTECT, related_name="grades")
    grade = models.PositiveSmallIntegerField(help_text="1 to 7")
    comment = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["attempt", "grader"], name="grade_once"),
            models.UniqueConstraint(fields=["attempt", "seat"], name="grade_seat_once"),
            models.CheckConstraint(condition=models.Q(grade__range=(1, 7)), name="grade_1_to_7"),
        ]

    def __str__(self) -> str:
        return f"{self.attempt_id}: {self.grade}"


class Decision(models.Model):
    """What a person decided about an applicant, and why. Kept for ever; the newest counts. Without a try: accepted unscreened."""

    class Verdict(models.TextChoices):
        ACCEPTED = "accepted", _("accepted")
        DECLINED = "declined", _("declined")
        RETAKE = "retake", _("asked to try again")

    user = models.ForeignKey("User", on_delete=models.PROTECT, related_name="decisions")
    screening = models.ForeignKey(Screening, on_delete=models.PROTECT, null=True, related_name="decisions")
    verdict = models.CharField(max_length=8, choices=Verdict.choices)
    group = models.CharField(max_length=10, choices=Group.choices, blank=True)
    reason = models.TextField(help_text="For the team")
    message = models.TextField(blank=True, help_text="For the applicant")
    cooldown_days = models.PositiveSmallIntegerField(default=0)
    decided_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(verdict="accepted", group__in=Group.values)
                | models.Q(verdict__in=["declined", "retake"], group=""),
                name="decision_group_when_accepted",
            ),
            models.CheckConstraint(condition=~models.Q(reason=""), name="decision_has_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.verdict}"

    @property
    def retake_from(self) -> datetime:
        """When a try that was asked for may begin."""
        return self.decided_at + timedelta(days=self.cooldown_days)
