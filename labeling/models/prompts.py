"""Prompts and the authors by whom they are split."""

import hashlib
import uuid

import msgspec
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Split(models.TextChoices):
    TRAIN = "train", _("train")
    VALID = "valid", _("valid")
    TEST = "test", _("test")


# Shares of train, valid and test among authors, in hundredths. Never change them: an author's split is for ever.
SPLIT_HUNDREDTHS = ((Split.TRAIN, 80), (Split.VALID, 10), (Split.TEST, 10))
SPLIT_OF_HUNDREDTH = [split for split, share in SPLIT_HUNDREDTHS for _hundredth in range(share)]


def split_of(key: str) -> Split:
    """The split of an author (or of an authorless prompt's digest): a stable hash, the same on every installation."""
    digest = hashlib.sha256(f"heed-split:{key}".encode()).digest()
    return SPLIT_OF_HUNDREDTH[int.from_bytes(digest[:8], "big") % 100]


def content_digest(messages: list[dict]) -> str:
    """Hex SHA-256 of a prompt's messages; equal prompts have equal digests."""
    canonical = msgspec.json.encode([[m["role"], m["content"]] for m in messages])  # UTF-8, no spaces
    return hashlib.sha256(canonical).hexdigest()


class Author(models.Model):
    """Whoever wrote prompts: an outside user known by a key, or a labeler. All prompts of an author share one split."""

    key = models.CharField(max_length=200, unique=True)
    organization = models.CharField(max_length=200, blank=True)
    split = models.CharField(max_length=5, choices=Split.choices)
    user = models.OneToOneField("User", on_delete=models.SET_NULL, null=True, blank=True, related_name="author")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(split__in=Split.values), name="author_split_valid"),
            # The target of prompt's (author, split) foreign key: see migration 0002.
            models.UniqueConstraint(fields=["id", "split"], name="author_id_split_unique"),
        ]

    def __str__(self) -> str:
        return self.key


class Intake(models.TextChoices):
    """How far a prompt has come in. Only open ones are labeled, sampled or exported."""

    WAITING = "waiting", _("waiting for checks")
    OPEN = "open", _("open")
    HELD = "held", _("held for a person to decide")
    REFUSED = "refused", _("refused")
    ERASED = "erased", _("erased")


class PromptQuerySet(models.QuerySet["Prompt"]):
    def opened(self) -> "PromptQuerySet":
        """Prompts that came through intake: checked without findings, or released by a person."""
        return self.filter(intake=Intake.OPEN)


class Prompt(models.Model):
    """A list of chat messages that models answer and labelers judge."""

    class Kind(models.TextChoices):
        """How labelers write prompts (InstructGPT §3.2)."""

        PLAIN = "plain", _("plain")
        FEW_SHOT = "few_shot", _("few-shot")
        USER_BASED = "user_based", _("user-based")

    class Source(models.TextChoices):
        IMPORT = "import", _("import")
        LABELER = "labeler", _("labeler")
        PLAYGROUND = "playground", _("playground")

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    messages = models.JSONField(
        help_text='[{"role": "system|user|assistant", "content": "…"}], the last one from the user'
    )
    # Unique by a constraint below, and compared byte by byte: `unique=True` would make a second index, for LIKE, at every import's cost.
    content_sha256 = models.CharField(max_length=64, editable=False, db_collation="C")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.PLAIN)
    source = models.CharField(max_length=10, choices=Source.choices, default=Source.IMPORT)
    use_case = models.CharField(max_length=50, blank=True)
    # Held by prompt_split_is_authors (migration 0002), which refers to the author and the split together.
    author = models.ForeignKey(
        Author,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="prompts",
        db_index=False,
        db_constraint=False,
    )
    organization = models.CharField(max_length=200, blank=True)
    split = models.CharField(max_length=5, choices=Split.choices)
    external_id = models.CharField(max_length=200, null=True, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    intake = models.CharField(
        max_length=7, choices=Intake.choices, default=Intake.WAITING, db_default=Intake.WAITING, editable=False
    )
    language = models.CharField(
        max_length=8, blank=True, default="", db_default="", editable=False, help_text="ISO 639; empty: cannot be told"
    )
    original = models.JSONField(
        null=True, blank=True, editable=False, help_text="The messages as they came, where intake normalised them"
    )
    imported_in = models.ForeignKey(
        "Import",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="prompts",
        db_index=False,
        db_constraint=False,  # the trigger prompt_import looks once for all prompts of a statement
    )

    objects = PromptQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(split__in=Split.values), name="prompt_split_valid"),
            models.CheckConstraint(
                condition=models.Q(intake__in=["waiting", "open", "held", "refused", "erased"]),
                name="prompt_intake_valid",
            ),
            models.CheckConstraint(
                condition=models.Q(kind__in=["plain", "few_shot", "user_based"]), name="prompt_kind_valid"
            ),
            models.CheckConstraint(
                condition=models.Q(source__in=["import", "labeler", "playground"]), name="prompt_source_valid"
            ),
            models.UniqueConstraint(fields=["content_sha256"], name="prompt_once"),
            models.UniqueConstraint(
                fields=["external_id"], condition=models.Q(external_id__isnull=False), name="prompt_external_id_unique"
            ),
        ]
        indexes = [
            # Each index is paid for by every prompt of an import. Whoever asks for the split that most are in finds it in any order.
            models.Index(fields=["split", "id"], name="prompt_split", condition=~models.Q(split="train")),
            models.Index(fields=["author"], name="prompt_author", condition=models.Q(author__isnull=False)),
            models.Index(fields=["id"], name="prompt_waiting", condition=models.Q(intake="waiting")),
            models.Index(
                fields=["intake", "imported_in", "id"],
                name="prompt_held",
                condition=models.Q(intake__in=["held", "refused"]),
            ),
            # How many an organization has: the checks hold back what is too many.
            models.Index(
                fields=["organization"],
                name="prompt_organization",
                condition=models.Q(intake="open") & ~models.Q(organization=""),
            ),
        ]

    def __str__(self) -> str:
        return self.preview

    @property
    def text(self) -> str:
        """The last message: what the response answers."""
        return self.messages[-1]["content"]

    @property
    def preview(self) -> str:
        """The first 80 characters, for lists."""
        flat = " ".join(self.text.split())
        return flat if len(flat) <= 80 else flat[:79] + "…"

    @classmethod
    def from_messages(cls, messages: list[dict], author: Author | None = None, **fields) -> "Prompt":
        """An unsaved prompt with its digest and split filled in."""
        digest = content_digest(messages)
        split = author.split if author else fields.pop("split", None) or split_of(digest)
        fields.pop("split", None)
        return cls(messages=messages, content_sha256=digest, author=author, split=split, **fields)
