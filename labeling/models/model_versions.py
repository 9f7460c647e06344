"""Model versions: the registry of manifests; evaluations of them; what the gate said; promotions."""

from typing import Any

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.people import Role, UserRole


class ModelVersion(models.Model):
    """A registered model. Outside models known only by name (from imports) have stage `external` and no manifest."""

    class Stage(models.TextChoices):
        PRETRAIN = "pretrain", _("pretrained")
        SFT = "sft", _("SFT")
        RM = "rm", _("reward model")
        PPO = "ppo", _("PPO")
        DPO = "dpo", _("DPO")
        EXTERNAL = "external", _("external")

    class Status(models.TextChoices):
        CANDIDATE = "candidate", _("candidate")
        SERVING = "serving", _("serving")
        RETIRED = "retired", _("retired")

    name = models.CharField(max_length=150, unique=True)
    stage = models.CharField(max_length=8, choices=Stage.choices)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.CANDIDATE)
    uri = models.CharField(max_length=1000, blank=True, help_text="Path or fsspec URL of the model folder")
    manifest = models.JSONField(null=True, blank=True)
    manifest_sha256 = models.CharField(max_length=64, null=True, blank=True, unique=True)
    parents = models.ManyToManyField("self", symmetrical=False, related_name="children", blank=True)
    export = models.ForeignKey("Export", on_delete=models.PROTECT, null=True, blank=True, related_name="model_versions")
    few_shot_prefix = models.TextField(blank=True)
    registered_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["status"], condition=models.Q(status="serving"), name="model_one_serving"),
            models.CheckConstraint(
                condition=models.Q(stage="external") | models.Q(manifest__isnull=False, manifest_sha256__isnull=False),
                name="model_has_manifest",
            ),
            models.CheckConstraint(
                condition=~models.Q(status="serving") | ~models.Q(stage__in=["rm", "external"]),
                name="model_serving_is_policy",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_policy(self) -> bool:
        """True if it writes text and can be served."""
        return self.stage not in {self.Stage.RM, self.Stage.EXTERNAL}


class EvaluationQuerySet(models.QuerySet):
    """Evaluations of a model version."""

    def newest(self) -> "EvaluationQuerySet":
        """The last one of each name, by what measured it."""
        return self.order_by("measured_by", "name", "-id").distinct("measured_by", "name")


class Evaluation(models.Model):
    """Figures about a model version. Append-only. What people said, what a model said and what tasks show stand apart."""

    class MeasuredBy(models.TextChoices):
        PEOPLE = "people", _("people")
        MODEL = "model", _("a model")
        TASK = "task", _("tasks")
        LABELS = "labels", _("labels of an export")
        SIMULATION = "simulation", _("simulated labelers")
        UNSTATED = "unstated", _("not stated")

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="evaluations")
    name = models.CharField(max_length=100)
    measured_by = models.CharField(max_length=10, choices=MeasuredBy.choices, default=MeasuredBy.UNSTATED)
    metrics = models.JSONField()
    config = models.JSONField(default=dict, blank=True)
    digest = models.CharField(
        max_length=64, editable=False, help_text="SHA-256 of name, metrics, config and, where stated, what measured it"
    )
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["model_version", "digest"], name="evaluation_once"),
            models.CheckConstraint(
                condition=models.Q(measured_by__in=["people", "model", "task", "labels", "simulation", "unstated"]),
                name="evaluation_measured_by_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.model_version_id}"


class GateCheckQuerySet(models.QuerySet):
    """What the gate said of a model version."""

    def decisive_first(self) -> "GateCheckQuerySet":
        """First the one that counts: the newest refusal or check of an admin; where there is neither, the newest.

        So a refusal stands until an admin records a newer check that holds: what others record then is kept and lifts nothing.
        """
        admins = UserRole.objects.filter(role=Role.ADMIN).values("user")
        weighs = models.Q(holds=False) | models.Q(created_by__in=admins)
        return self.alias(weight=models.Case(models.When(weighs, then=1), default=0)).order_by("-weight", "-id")


class GateCheck(models.Model):
    """What the promotion gate found of a model version, as the training half reported it. Append-only.

    `verdicts`: contract.GateVerdict, one per rule. `holds` follows from them: every required rule's figure is within its bounds.
    `digest`: of rules and verdicts; of a check by which an admin lifts a refusal, of that as well.
    """

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="gate_checks")
    rules = models.TextField(blank=True, help_text="The rules file as it was, whole")
    rules_sha256 = models.CharField(max_length=64)
    verdicts = models.JSONField()
    holds = models.BooleanField()
    digest = models.CharField(max_length=64, editable=False, help_text="SHA-256 of rules and verdicts")
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = GateCheckQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["model_version", "digest"], name="gate_check_once")]

    def __str__(self) -> str:
        return f"{self.model_version_id}: {'holds' if self.holds else 'refused'}"

    @property
    def refusals(self) -> list[dict[str, Any]]:
        """The required rules that did not hold."""
        return [verdict for verdict in self.verdicts if verdict["required"] and not verdict["holds"]]


class Promotion(models.Model):
    """Which policy serves, since when, by whom and why. Append-only; the newest is in force.

    `gate_check`: what the gate had said, if it was asked. `override_by`: who decided against it, by name.
    """

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotions")
    previous = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    reason = models.TextField()
    metrics = models.JSONField(default=dict, blank=True)
    gate_check = models.ForeignKey(
        GateCheck, on_delete=models.PROTECT, null=True, blank=True, related_name="promotions"
    )
    override_by = models.CharField(max_length=200, blank=True)
    promoted_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    promoted_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=~models.Q(reason=""), name="promotion_needs_reason")]

    def __str__(self) -> str:
        return f"{self.model_version_id} at {self.promoted_at:%Y-%m-%d %H:%M}"
