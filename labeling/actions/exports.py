"""Exports: frozen, numbered, checksummed folders of labels. Asked again for the same data, the existing one is the answer."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import locks
from labeling.actions import webhooks
from labeling.actions.export_queries import STATES, Selection, count
from labeling.actions.export_rows import ExportRows
from labeling.errors import Conflict, Invalid, refuse
from labeling.models import Batch, Erasure, Export, Group, LabelSchema, Origin, PseudonymKey, Split, User
from training.contract import (
    HALF_BUILT,
    ContractError,
    ExportManifest,
    encode_manifest,
    read_export,
    remove_half_built,
    write_export,
)

log = logging.getLogger(__name__)

CHOICES = {
    "splits": set(Split.values),
    "groups": set(Group.values),
    "origins": {"import", *Origin.values},
    "review": set(STATES.values()),
}


def check_query(query: Mapping[str, Any]) -> Selection:
    """The selection that a query asks for. Raises Invalid naming each wrong key.

    Keys, all optional: `batches` (empty: all but evaluations), `splits`, `use_cases`, `groups` (empty: all), `origins`
    (default person and import; simulated and ai only by name), `review` (default accepted and unreviewed; returned and
    rejected by name), `surplus` (default false: work outside the ordered overlap stays out), `since` and `until`
    ("2026-01-31", days in UTC), `schemas` (versions), `min_agreement` (0 to 1; of rankings), `pairs` (default false:
    rankings as pairs too).
    """
    defaults, errors = vars(Selection()), []
    for name, value in query.items():
        if problem := _problem(name, value, defaults):
            errors.append({"place": f"query.{name}", "message": problem})
    since, until = query.get("since"), query.get("until")
    if not errors and since and until and until < since:
        errors = [{"place": "query.until", "message": "is before since: no day is left"}]
    if not errors and (missing := _unknown_batches(query.get("batches") or [])):
        errors = [{"place": "query.batches", "message": f"there is no batch named {name!r}"} for name in missing]
    if not errors and (unknown := _unknown_schemas(query.get("schemas") or [])):
        errors = [{"place": "query.schemas", "message": f"there is no label schema {version}"} for version in unknown]
    refuse(errors, between=": ")
    given = {n: tuple(sorted(set(value))) if isinstance(value, list | tuple) else value for n, value in query.items()}
    return Selection(**defaults | {name: value for name, value in given.items() if value not in ((), None)})


def _problem(name: str, value: Any, defaults: dict[str, Any]) -> str:
    if name not in defaults:
        return f"unknown; keys are {', '.join(field.name for field in fields(Selection))}"
    if isinstance(defaults[name], bool):
        return "" if isinstance(value, bool) else "expected true or false"
    if name in SINGLE:
        return SINGLE[name](value)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and "\x00" not in item for item in value):
        return "expected a list of texts"
    wrong = sorted(set(value) - CHOICES[name]) if name in CHOICES else []
    return f"unknown {wrong[0]!r}; expected {', '.join(sorted(CHOICES[name]))}" if wrong else ""


def _day_problem(value: Any) -> str:
    try:
        return "" if value is None or date.fromisoformat(value).isoformat() == value else DAY_EXPECTED
    except (TypeError, ValueError):
        return DAY_EXPECTED


def _versions_problem(value: Any) -> str:
    is_fine = isinstance(value, list | tuple) and all(type(item) is int and 0 < item < 2**31 for item in value)
    return "" if is_fine else "expected a list of version numbers"


def _share_problem(value: Any) -> str:
    is_fine = value is None or (type(value) in (int, float) and 0 <= value <= 1)
    return "" if is_fine else "expected a number from 0 to 1"


DAY_EXPECTED = "expected a day, as 2026-01-31"
SINGLE: dict[str, Callable[[Any], str]] = {
    "since": _day_problem, "until": _day_problem, "schemas": _versions_problem, "min_agreement": _share_problem,
}  # fmt: skip


def _unknown_schemas(versions: list[int]) -> list[int]:
    known = LabelSchema.objects.filter(version__in=versions).values_list("version", flat=True)
    return sorted(set(versions) - set(known))


def _unknown_batches(names: list[str]) -> list[str]:
    return sorted(set(names) - set(Batch.objects.filter(name__in=names).values_list("name", flat=True)))


def count_labels(*, query: Mapping[str, Any]) -> dict[str, int]:
    """How many labels an export of this query would hold now, without building it. Raises Invalid for a wrong query."""
    return count(check_query(query))


# ---- asking ---------------------------------------------------------------------------------------------------------


@transaction.atomic
def request(*, query: Mapping[str, Any], by: User | None) -> Export:
    """Order an export: its row, and the job that builds it, at once. While one is being built the same order is that one.

    Raises Invalid for a wrong query.
    """
    from labeling import jobs  # jobs import this module

    selection = check_query(query)
    locks.hold("export request")
    waiting = Export.objects.filter(status=Export.Status.BUILDING, query=selection.as_query()).first()
    if waiting:
        return waiting
    export = Export.objects.create(query=selection.as_query(), created_by=by)
    jobs.build_export.defer(export_id=export.pk)
    return export


def build(*, query: Mapping[str, Any], by: User | None) -> Export:
    """Build an export now, and answer with it, or with the existing one of the same data. Raises Invalid.

    A build that fails leaves a row that says why, and raises.
    """
    export = Export.objects.create(query=check_query(query).as_query(), created_by=by)
    return finish(export=export).resolved


def finish(*, export: Export) -> Export:
    """Build an ordered export. Safe to repeat: one that is finished is left as it is, a half-built one is begun anew."""
    with _sole_builder():
        export.refresh_from_db()
        if export.status != Export.Status.BUILDING:
            return export
        root = Path(settings.EXPORT_DIR)
        root.mkdir(parents=True, exist_ok=True)
        remove_half_built(root)
        staging = root / f"{HALF_BUILT}{export.pk}"
        try:
            while not _publish(export, staging):
                log.info("export %s is written anew: somebody was erased meanwhile", export.pk)
                shutil.rmtree(staging)
            return export
        except Exception as error:
            _fail(export, error)
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@transaction.atomic
def withdraw(*, export: Export, by: User | None) -> Export:
    """Take a finished export back: its data files go, its manifest stays as a tombstone. Done twice, it is finished the second time.

    Asked again, the same selection makes a new export. Raises Conflict for one that was never finished.
    """
    export = Export.objects.select_for_update().get(pk=export.pk)
    if export.status not in (Export.Status.READY, Export.Status.WITHDRAWN):
        raise Conflict(_("%(export)s is not finished: there is nothing to withdraw.") % {"export": export.name})
    if export.status == Export.Status.READY:
        export.status, export.withdrawn_by, export.withdrawn_at = Export.Status.WITHDRAWN, by, timezone.now()
        export.save(update_fields=["status", "withdrawn_by", "withdrawn_at"])
    # Marked first: were we killed here, nobody is offered files that are half gone, and a second call goes on.
    transaction.on_commit(lambda: _remove_data(export.folder))
    return export


def _remove_data(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != "manifest.json":
            path.unlink(missing_ok=True)


# ---- building -------------------------------------------------------------------------------------------------------


def _publish(export: Export, staging: Path) -> bool:
    """Write the files, give the number, move the folder into place and mark the row ready, in that order. False, and none of it but the
    files, where somebody was erased since they were begun: they may hold the person, and the erasure does not know of them.

    Killed before the move, nothing is there; killed after it, the row still says building and the next try sets the
    unannounced folder aside.
    """
    erased = Erasure.objects.count()
    number = (Export.objects.aggregate(newest=Max("number"))["newest"] or 0) + 1
    manifest = _write(export, staging / f"v{number:04d}", number)
    existing = Export.objects.filter(
        status=Export.Status.READY, query=export.query, data_sha256=manifest.data_sha256
    ).first()
    if existing:
        _ensure_intact(existing, staging)
    with transaction.atomic():
        locks.hold("erasure")  # from here until it is announced nobody is erased
        if Erasure.objects.count() != erased:
            return False
        if existing:
            export.status, export.same_as, export.finished_at = Export.Status.SAME, existing, timezone.now()
            _announce(export, ["status", "same_as", "finished_at"])
        else:
            _move_into_place(export, staging, manifest, number)
    return True


def _move_into_place(export: Export, staging: Path, manifest: ExportManifest, number: int) -> None:
    target = staging.parent / manifest.name
    if target.exists():
        target.rename(staging.parent / f"unannounced-{manifest.name}-{timezone.now():%Y%m%dT%H%M%S%f}")
    (staging / manifest.name).rename(target)
    export.status, export.number, export.finished_at = Export.Status.READY, number, timezone.now()
    export.manifest = _as_json(manifest)
    export.counts, export.data_sha256 = manifest.counts, manifest.data_sha256
    _announce(export)


@transaction.atomic
def _announce(export: Export, fields: list[str] | None = None) -> None:
    """Keep that it is ready, and tell those who want to hear of it."""
    export.save(update_fields=fields)
    webhooks.exported(export)


def _ensure_intact(existing: Export, staging: Path) -> None:
    """Put a missing or damaged folder back, byte for byte, from the same data; what was there is set aside, not deleted."""
    try:
        read_export(existing.folder)
        return
    except ContractError as error:
        log.warning("export %s: %s; it is written anew from the same data", existing.name, error)
    stored = existing.manifest
    again = staging / "again" / existing.name
    manifest = _write(existing, again, stored["version"], stored["created_at"], stored["code_version"])
    written = _as_json(manifest)  # may have a field more than at the time
    if {name: written.get(name) for name in stored} != stored:
        raise ContractError(f"{existing.folder}: missing or damaged, and this version of Heed writes it differently")
    if existing.folder.exists():
        existing.folder.rename(staging.parent / f"damaged-{existing.name}-{timezone.now():%Y%m%dT%H%M%S%f}")
    again.rename(existing.folder)


def _write(
    export: Export, path: Path, number: int, created_at: str | None = None, code_version: str | None = None
) -> ExportManifest:
    PseudonymKey.secret()  # made now if never before: a snapshot is read-only
    with _one_snapshot(), ExportRows(check_query(export.query)) as rows:
        return write_export(
            path,
            version=number,
            prompts=rows.prompts(),
            demonstrations=rows.demonstrations(),
            rankings=rows.rankings(),
            query=export.query,
            pairs=bool(export.query.get("pairs")),
            agreement=rows.agreement,
            created_at=created_at,
            code_version=code_version,
        )


def _as_json(manifest: ExportManifest) -> dict[str, Any]:
    return json.loads(encode_manifest(manifest))


def _fail(export: Export, error: Exception) -> None:
    """Say why in the row; a broken connection or a shutdown leaves it building, for the next try."""
    if isinstance(error, ContractError | Invalid | OSError):
        Export.objects.filter(pk=export.pk, status=Export.Status.BUILDING).update(
            status=Export.Status.FAILED, error=str(error)[:2000], finished_at=timezone.now()
        )
        export.refresh_from_db()
        webhooks.exported(export)


@contextmanager
def _sole_builder() -> Iterator[None]:
    """One build at a time in the installation; the lock goes with the connection when we are killed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended('heed export', 0))")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended('heed export', 0))")


@contextmanager
def _one_snapshot() -> Iterator[None]:
    """All queries see the same moment, so that no label is there without its prompt."""
    is_outermost = not connection.in_atomic_block
    with transaction.atomic():
        if is_outermost:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL jit = off")  # compiling took longer than reading 10,000 rankings
        yield
