"""Imports of prompts and responses: all or nothing, safe to repeat, every error named with file, line and field."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, OperationalError, transaction
from django.utils.translation import gettext as _
from psycopg.errors import DeadlockDetected

from labeling import locks
from labeling.actions import import_direct, intake
from labeling.actions.import_files import FORMATS, Columns, data_files, read_rows
from labeling.actions.import_formats import of_field
from labeling.actions.import_rows import PROMPT_FIELDS, RESPONSE_FIELDS, PromptItem, check_row
from labeling.actions.import_staging import Staging
from labeling.actions.import_store import Made, Progress, Store
from labeling.errors import Conflict, Invalid
from labeling.models import Import, User

MAX_ERRORS = 100
# Who uploads a file waits for its import; longer ones go in by command, which shows progress.
UPLOAD_MAX_BYTES = min(100 * 2**20, settings.IMPORT_MAX_BYTES)
NO_COLUMNS = Columns()


def import_prompts(
    *,
    path: str | Path,
    file_name: str | None = None,
    form: str = "heed",
    columns: Columns = NO_COLUMNS,
    progress: Progress | None = None,
    by: User | None,
) -> Import:
    """Store a file's prompts, and the demonstrations beside them. Rows that are here already are counted as present.

    `file_name` is what errors call the file; `form` one of import_files.FORMATS. Raises Invalid with every error found
    (100 at most); then nothing was stored. `progress` is told which share of the work is done, 0 to 1.
    """
    return _import_file(Import.Kind.PROMPTS, Path(path), file_name, form, columns, progress, by)


def import_responses(
    *,
    path: str | Path,
    file_name: str | None = None,
    form: str = "heed",
    columns: Columns = NO_COLUMNS,
    progress: Progress | None = None,
    by: User | None,
) -> Import:
    """Store a file's responses, and the prompts they answer. Models not known yet become outside models.

    As `import_prompts`; a row adds `model` and `response`, or `responses: [{model, text}]`.
    """
    return _import_file(Import.Kind.RESPONSES, Path(path), file_name, form, columns, progress, by)


IMPORT_OF = {Import.Kind.PROMPTS: import_prompts, Import.Kind.RESPONSES: import_responses}


def import_rows(*, kind: str, rows: Iterable[dict[str, Any]], name: str = "rows", by: User | None) -> dict[str, int]:
    """Store rows that came by API; as the file imports, and errors name `rows[3]`. Returns the counts.

    What adds nothing leaves no entry in the list of imports.
    """
    rows = list(rows)
    found = Problems()
    checked = _checked(((f"{name}[{i}]", row) for i, row in enumerate(rows)), kind, NO_COLUMNS, found)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    record = Import(kind=kind, file_name="API", file_sha256=digest, created_by=by)
    return _store(checked, found, record, Steps(lambda done: None), keeps_empty=False).counts


class Steps:
    """The steps of an import as one progress: while rows are stored as they are read, reading is all of it, then half of the rest."""

    def __init__(self, tell: Progress):
        self.tell = tell
        self._read = 0.0
        self._directly = 1.0  # until which share rows were stored as they were read

    def read(self, share: float) -> None:
        """So much of the file was read."""
        self._read = share
        self.tell((min(self._directly, share) + share) / 2)

    def compare(self) -> None:
        """From here on rows are read first, and stored when all of them are there."""
        self._directly = self._read

    def store(self, share: float) -> None:
        """So much of what was read first is stored."""
        half = (self._directly + 1) / 2
        self.tell(half + (1 - half) * share)


class Problems:
    """What is wrong with an import, up to MAX_ERRORS; then it is not worth reading on."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []
        self._rows: Counter[str] = Counter()
        self._first: dict[str, dict[str, str]] = {}

    def add(self, place: str, message: str) -> None:
        """Note a problem. Raises Invalid when there are too many."""
        self.errors.append({"place": place, "message": message})
        if len(self.errors) >= MAX_ERRORS:
            self.refuse(is_cut_short=True)

    def add_once(self, place: str, message: str) -> None:
        """Note a problem that many rows may share: it is told of the first, with how many they are."""
        self._rows[message] += 1
        if self._rows[message] == 1:
            self._first[message] = {"place": place, "message": message}
            self.errors.append(self._first[message])

    def add_field(self, place: str, name: str, message: str) -> None:
        """Note a problem with a field of a row."""
        self.add(of_field(place, name), message)

    def refuse(self, *, is_cut_short: bool = False) -> None:
        """Raise Invalid if anything was noted: the first problem, and how many there are. `is_cut_short`: not all was read."""
        for message, error in self._first.items():
            if (count := self._rows[message]) > 1:
                said = _("%(problem)s (%(n)s rows, this one the first)")
                if is_cut_short:
                    said = _("%(problem)s (%(n)s rows so far, this one the first)")
                error["message"] = said % {"problem": message, "n": f"{count:,}"}
        if self.errors:
            said = "%(first)s"
            if len(self.errors) > 1:
                said = _("%(first)s (%(n)d errors)")
            if is_cut_short:
                said = _("%(first)s (%(n)d errors or more; the rest was not read)")
            first = f"{self.errors[0]['place']}: {self.errors[0]['message']}"
            raise Invalid(said % {"first": first, "n": len(self.errors)}, errors=self.errors)


def _import_file(
    kind: str,
    path: Path,
    file_name: str | None,
    form: str,
    columns: Columns,
    progress: Progress | None,
    by: User | None,
) -> Import:
    file_name = file_name or path.name
    _check_file(path, file_name, form)
    _check_columns(columns, _fields(kind))
    found = Problems()
    left_out: Counter[str] = Counter()
    steps = Steps(progress or (lambda done: None))
    files = data_files(path)
    size = max(sum(file.stat().st_size for file in files), 1)
    rows = read_rows(
        path, file_name, form, kind == Import.Kind.RESPONSES, found.add, lambda why: left_out.update((f"left_out_{why}",)),
        lambda read: steps.read(min(read / size, 1)),
    )  # fmt: skip
    record = Import(
        kind=kind,
        file_name=file_name[:255],
        file_sha256=_sha256(path, files),
        mapping=columns.as_json() | ({} if form == "heed" else {"format": form}),
        counts=left_out,
        created_by=by,
    )
    made = _store(_checked(rows, kind, columns, found), found, record, steps)
    steps.tell(1)
    return made


def _check_file(path: Path, file_name: str, form: str) -> None:
    if form not in FORMATS:
        raise Invalid(
            _("format %(format)r: expected one of %(formats)s") % {"format": form, "formats": ", ".join(FORMATS)}
        )
    if not path.exists():
        raise Invalid(_("%s: there is no such file") % file_name)
    files = data_files(path)
    if missing := [file for file in files if not file.is_file()]:
        raise Invalid(_("%(file)s: %(part)s is not there") % {"file": file_name, "part": missing[0].name})
    if (size := sum(file.stat().st_size for file in files)) > settings.IMPORT_MAX_BYTES:
        said = _("%(file)s: %(n)s bytes; %(most)s at most (IMPORT_MAX_MB)")
        raise Invalid(said % {"file": file_name, "n": f"{size:,}", "most": f"{settings.IMPORT_MAX_BYTES:,}"})


def _check_columns(columns: Columns, known: frozenset[str]) -> None:
    unknown = sorted(columns.fields - known)
    if unknown:
        said = _("mapping: %(name)s is no field; fields are %(fields)s")
        raise Invalid(said % {"name": unknown[0], "fields": ", ".join(sorted(known))})
    groups = [set(columns.map), set(columns.constant), set(columns.template)]
    twice = (groups[0] & groups[1]) | (groups[0] & groups[2]) | (groups[1] & groups[2])
    if twice:
        raise Invalid(_("mapping: %s is filled twice") % min(twice))


def _fields(kind: str) -> frozenset[str]:
    return RESPONSE_FIELDS if kind == Import.Kind.RESPONSES else PROMPT_FIELDS


def _checked(
    rows: Iterable[tuple[str, dict[str, Any]]], kind: str, columns: Columns, found: Problems
) -> Iterator[tuple[str, PromptItem]]:
    """(place, item) of the rows that are right; the others are noted."""
    seen_unknown: set[str] = set()
    for place, row in rows:
        if columns:
            try:
                row = columns.apply(row, _fields(kind))
            except KeyError as error:
                found.add_once(place, _("there is no column %r, or its cell is empty") % error.args[0])
                continue
        item = check_row(
            row,
            with_responses=kind == Import.Kind.RESPONSES,
            complain=partial(found.add_field, place),
            seen_unknown=seen_unknown,
        )
        if item:
            yield place, item


def _store(
    items: Iterator[tuple[str, PromptItem]],
    found: Problems,
    record: Import,
    steps: Steps,
    *,
    keeps_empty: bool = True,
) -> Import:
    """Write what was checked, in one transaction; once something is wrong only checking goes on.

    `keeps_empty`: the import is listed even if it added nothing.
    """
    try:
        _store_whole(items, found, record, steps, keeps_empty)
    except IntegrityError as error:  # another door made one of these prompts while we did
        said = _("%(file)s: rows were added meanwhile by others; try again (%(error)s)")
        raise Conflict(said % {"file": record.file_name, "error": error}) from error
    except OperationalError as error:
        if not isinstance(error.__cause__, DeadlockDetected):
            raise
        said = _("%(file)s: others stored some of these prompts meanwhile, in another order; try again")
        raise Conflict(said % {"file": record.file_name}) from error
    intake.after_import(record=record)
    return record


@transaction.atomic
def _store_whole(
    items: Iterator[tuple[str, PromptItem]], found: Problems, record: Import, steps: Steps, keeps_empty: bool
) -> None:
    record.save(force_insert=True)  # prompts name it; what it has to say of them comes last
    made = Made(record)
    left = import_direct.store(items, made, lambda: bool(found.errors))
    if first := next(left, None):
        _compare_and_store(chain((first,), left), found, made, steps)
    found.refuse()
    if not made.counts["rows"]:
        raise Invalid(_("%s: there are no rows in it") % record.file_name)
    record.counts = {**made.as_counts(), **record.counts}  # and what was left out
    if not keeps_empty and not any(count for name, count in record.counts.items() if name.endswith("_new")):
        transaction.set_rollback(True)  # nothing was made but the record
    else:
        record.save(update_fields=["counts"])


def _compare_and_store(items: Iterator[tuple[str, PromptItem]], found: Problems, made: Made, steps: Steps) -> None:
    """Rows that may meet others, in the file or in the database."""
    steps.compare()
    staged = Staging()
    staged.fill(items)
    made.counts["rows"] += staged.rows
    locks.hold("import")  # one at a time: two of the same file would else both find its rows missing
    store = Store(staged, found.add, steps.store, made)
    store.check()
    if found.errors:
        store.check_splits()
    found.refuse()
    store.write_prompts()
    store.check_splits()
    found.refuse()
    store.write_responses()
    store.drop()


def _sha256(path: Path, files: list[Path]) -> str:
    """Of the file; of a folder, over the names and hashes of its files."""
    digests = {}
    for file in files:
        with file.open("rb") as opened:
            digests[file.relative_to(path).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    if path.is_file():
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode()).hexdigest()
