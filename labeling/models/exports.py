"""Exports: numbered, immutable folders of labels."""

import secrets
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.archives import Archive, Member, crc32_of
from training.contract import KINDS, PAIRS


class Export(models.Model):
    class Status(models.TextChoices):
        BUILDING = "building", _("building")
        READY = "ready", _("ready")
        FAILED = "failed", _("failed")
        WITHDRAWN = "withdrawn", _("withdrawn")
        SAME = "same", _("same as an earlier one")

    number = models.PositiveIntegerField(
        unique=True, null=True, blank=True, help_text="Given when ready: v0001, v0002, …"
    )
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.BUILDING)
    query = models.JSONField(default=dict, blank=True)
    counts = models.JSONField(default=dict, blank=True)
    data_sha256 = models.CharField(max_length=64, blank=True)
    manifest = models.JSONField(default=dict, blank=True)
    crc32s = models.JSONField(default=dict, blank=True, editable=False, help_text="Of its data files, once asked for")
    error = models.TextField(blank=True)
    same_as = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text="The export that holds the same data, when it was asked for again",
    )
    created_by = models.ForeignKey("User", on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    withdrawn_by = models.ForeignKey("User", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["building", "failed"], number=None, same_as=None)
                | models.Q(status="same", number=None, same_as__isnull=False)
                | models.Q(status__in=["ready", "withdrawn"], number__isnull=False, finished_at__isnull=False),
                name="export_number_when_ready",
            ),
            # Asked again for the same selection of the same data, Heed answers with the existing export.
            models.UniqueConstraint(
                fields=["query", "data_sha256"], condition=models.Q(status="ready"), name="export_same_data_once"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def resolved(self) -> "Export":
        """This export, or the earlier one that turned out to hold the same data."""
        return self.same_as or self

    @property
    def name(self) -> str:
        """v0007, once it is ready."""
        return f"v{self.number:04d}" if self.number else f"export {self.pk} ({self.status})"

    @property
    def counts_in_order(self) -> dict[str, int]:
        """The counts in the manifest's order: files first, as they are written. The database keeps none."""
        order = {kind.name: number for number, kind in enumerate((*KINDS, *PAIRS.values()))}
        return {name: self.counts[name] for name in sorted(self.counts, key=lambda name: (order.get(name, 99), name))}

    def sha256_of(self, name: str) -> str:
        """The checksum of one of its files; of manifest.json, over what it says."""
        if name == "manifest.json":
            return self.manifest.get("fields_sha256") or f"data-{self.data_sha256}"
        return self.manifest["files"][name]["sha256"]

    @property
    def folder(self) -> Path:
        return Path(settings.EXPORT_DIR) / self.name

    def archive(self) -> Archive:
        """Its files, which are there, as one zip to be read from anywhere. The first time takes as long as reading them all."""
        if not self.crc32s:  # of use to zips alone: a build does not wait for them
            self.crc32s = {name: crc32_of(self.folder / name) for name in self.manifest["files"]}
            self.save(update_fields=["crc32s"])
        crc32s = {"manifest.json": crc32_of(self.folder / "manifest.json"), **self.crc32s}
        members = [
            Member(self.folder / name, f"{self.name}/{name}", crc32, self.sha256_of(name))
            for name, crc32 in sorted(crc32s.items())
        ]
        return Archive(members, self.finished_at or self.created_at)


class PseudonymKey(models.Model):
    """The secret behind the pseudonyms in exports. One row, made once: a person's pseudonym never changes."""

    is_only = models.BooleanField(default=True, unique=True, editable=False)
    key = models.BinaryField()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(is_only=True), name="pseudonym_key_is_only")]

    def __str__(self) -> str:
        return "pseudonym key"

    @classmethod
    def secret(cls) -> bytes:
        """32 random bytes, made on first use."""
        row, _created = cls.objects.get_or_create(is_only=True, defaults={"key": secrets.token_bytes(32)})
        return bytes(row.key)
