"""API tokens: hashed, scoped, expiring."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class ApiToken(models.Model):
    """A program's key to the API, acting for a person. The secret is shown once; its SHA-256 is stored."""

    class Scope(models.TextChoices):
        READ = "read", _("read prompts, exports, models")
        IMPORT = "import", _("bring prompts and responses, create batches")
        TRAIN = "train", _("build exports, register models, record evaluations")
        PROMOTE = "promote", _("promote a policy")
        LABEL = "label", _("take tasks and hand them in, as a labeler")
        REVIEW = "review", _("decide on submissions and answer questions, as a reviewer")
        ADMIN = "admin", _("people, gateway keys and webhooks, as an admin")

    user = models.ForeignKey("User", on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, editable=False)
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=10, choices=Scope.choices))
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "name"], condition=models.Q(revoked_at__isnull=True), name="token_name_once"
            ),
            models.CheckConstraint(
                condition=models.Q(
                    scopes__contained_by=["read", "import", "train", "promote", "label", "review", "admin"]
                )
                & ~models.Q(scopes=[]),
                name="token_scopes_valid",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and self.expires_at > timezone.now() and self.user.is_active
