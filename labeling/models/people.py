"""People: accounts that log in by e-mail, their roles, their group, and invitations."""

from datetime import timedelta
from typing import ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _


class Role(models.TextChoices):
    """What a person may do. One person may hold several."""

    APPLICANT = "applicant", _("applicant")
    LABELER = "labeler", _("labeler")
    REVIEWER = "reviewer", _("reviewer")
    RESEARCHER = "researcher", _("researcher")
    ADMIN = "admin", _("admin")


class Group(models.TextChoices):
    """Held-out labelers produce no training data; they only evaluate (InstructGPT §3.4)."""

    TRAINING = "training", _("training")
    HELD_OUT = "held_out", _("held-out")


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields) -> "User":
        """A person with a hashed password (None: cannot log in by password). Raises ValueError without an e-mail."""
        if not email:
            raise ValueError("A person needs an e-mail address.")
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields) -> "User":
        user = self.create_user(email, password, is_superuser=True, **fields)
        user.grant(Role.ADMIN)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        """The person with this e-mail address, whatever its case."""
        return self.get(email=(username or "").lower())

    def with_role(self, *roles: str):
        """Active people who hold one of the roles."""
        return self.filter(is_active=True, roles__role__in=roles).distinct()


class User(AbstractBaseUser, PermissionsMixin):
    """A person. Simulated labelers are people too, marked, and never log in."""

    email = models.EmailField(_("e-mail address"), max_length=254)
    name = models.CharField(_("name"), max_length=150, blank=True)
    group = models.CharField(_("group"), max_length=10, choices=Group.choices, default=Group.TRAINING)
    is_simulated = models.BooleanField(
        default=False, help_text=_("Labels by this account enter an export only by name.")
    )
    is_active = models.BooleanField(default=True)
    is_paused = models.BooleanField(
        default=False, db_default=False, help_text="Gets no new tasks until a person decides; see LabelerPause"
    )
    languages = ArrayField(
        models.CharField(max_length=3), verbose_name=_("languages"), default=list, db_default=[], blank=True,
        help_text="ISO 639 codes that they read and write well, as they say",
    )  # fmt: skip
    skills = ArrayField(
        models.CharField(max_length=50), verbose_name=_("skills"), default=list, db_default=[], blank=True,
        help_text="Names that an admin has given them; batches may ask for some",
    )  # fmt: skip
    statement = models.TextField(_("why you would like to label"), blank=True)
    worked_until = models.DateTimeField(null=True, editable=False, help_text="Work time is counted up to here")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects = UserManager()

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("email"), name="user_email_unique"),
            models.CheckConstraint(condition=models.Q(group__in=Group.values), name="user_group_valid"),
        ]

    def __str__(self) -> str:
        return self.name or self.email

    def get_full_name(self) -> str:
        return str(self)

    def get_short_name(self) -> str:
        return self.name or self.email.split("@")[0]

    @cached_property
    def role_names(self) -> frozenset[str]:
        """Roles held, read once per request."""
        return frozenset(self.roles.values_list("role", flat=True)) if self.pk else frozenset()

    def has_role(self, *roles: str) -> bool:
        """True if the person holds one of the roles; an admin holds reviewer and researcher too, but never labels by that."""
        held = self.role_names
        if Role.ADMIN in held:
            held = held | {Role.REVIEWER, Role.RESEARCHER}
        return self.is_active and bool(held & set(roles))

    @property
    def is_labeler(self) -> bool:
        return self.has_role(Role.LABELER)

    @property
    def is_reviewer(self) -> bool:
        return self.has_role(Role.REVIEWER)

    @property
    def is_researcher(self) -> bool:
        return self.has_role(Role.RESEARCHER)

    @property
    def is_admin(self) -> bool:
        return self.has_role(Role.ADMIN)

    @property
    def is_staff(self) -> bool:
        """Django's own admin is for admins."""
        return self.is_admin

    def has_perm(self, perm, obj=None) -> bool:
        return self.is_admin or super().has_perm(perm, obj)

    def has_module_perms(self, app_label) -> bool:
        return self.is_admin or super().has_module_perms(app_label)

    def grant(self, role: str, by: "User | None" = None) -> None:
        """Give a role; giving it twice changes nothing."""
        UserRole.objects.get_or_create(user=self, role=role, defaults={"granted_by": by})
        self.__dict__.pop("role_names", None)

    def withdraw(self, role: str) -> None:
        """Take a role away; labels made under it stay."""
        self.roles.filter(role=role).delete()
        self.__dict__.pop("role_names", None)


class UserRole(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="roles")
    role = models.CharField(max_length=12, choices=Role.choices)
    granted_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    granted_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "role"], name="user_role_once"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="user_role_valid"),
        ]

    def __str__(self) -> str:
        return f"{self.user}: {self.role}"


def two_weeks_from_now():
    return timezone.now() + timedelta(days=14)


class Invitation(models.Model):
    """A link that lets one person sign up with roles already given. Only the hash of its secret is stored."""

    email = models.EmailField()
    role = models.CharField(max_length=12, choices=Role.choices, default=Role.LABELER)
    group = models.CharField(max_length=10, choices=Group.choices, default=Group.TRAINING)
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    invited_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(default=two_weeks_from_now)
    accepted_by = models.OneToOneField(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="invitation"
    )
    accepted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role_valid"),
            models.CheckConstraint(condition=models.Q(group__in=Group.values), name="invitation_group_valid"),
        ]

    def __str__(self) -> str:
        return f"{self.email} as {self.role}"

    @property
    def is_open(self) -> bool:
        return self.accepted_at is None and self.expires_at > timezone.now()
