"""Files of prompts and responses as rows: JSON Lines, CSV, TSV, Parquet and Arrow, read as a stream, columns mapped to fields.

A place reads "posts.csv line 7"; Parquet has rows, not lines. What cannot be read is reported with its place.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
from django.utils.translation import gettext as _

from labeling.actions.import_formats import NAMED, LeaveOut, Report, Row
from labeling.errors import Invalid

MAX_LINE_BYTES = 64 * 2**20
MAX_COLUMNS = 1000
BATCH_ROWS = 500
CONTAINERS = ("jsonl", "csv", "tsv", "parquet", "arrow")
FORMATS = ("heed", *CONTAINERS, *NAMED)
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

BytesRead = Callable[[int], None]
"""Told how many bytes of the file have been read so far."""

csv.field_size_limit(MAX_LINE_BYTES)  # the default, 131,072 characters, is shorter than a long prompt


@dataclass(frozen=True)
class Columns:
    """Which column fills which field. Without any, columns must be named as Heed's fields are.

    `map`: field → column, or a path into nested data (`instances.0.output`). `constant`: field → the same text in every
    row. `template`: field → text with {column} in it. Columns not named here and not Heed's own are left unread.
    """

    map: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, *, map: list[str] = (), constant: list[str] = (), template: list[str] = ()) -> "Columns":  # type: ignore[assignment]
        """From `FIELD=COLUMN`, `FIELD=TEXT` and `FIELD=TEMPLATE` as people type them. Raises Invalid."""
        return cls(_pairs(map, "map"), _pairs(constant, "constant"), _pairs(template, "template"))

    def __bool__(self) -> bool:
        return bool(self.map or self.constant or self.template)

    @property
    def fields(self) -> set[str]:
        """The fields that are filled here."""
        return {*self.map, *self.constant, *self.template}

    def as_json(self) -> dict[str, dict[str, str]]:
        """What an Import keeps."""
        return {name: dict(value) for name, value in asdict(self).items() if value}

    def apply(self, row: Row, known: frozenset[str]) -> Row:
        """The row under Heed's field names. Raises KeyError with the column that is missing."""
        used = {path.partition(".")[0] for path in self.map.values()} | {*self.map.values()}
        kept = {name: value for name, value in row.items() if name in known and name not in self.fields | used}
        mapped = {name: look_up(row, path) for name, path in self.map.items()}
        filled = {name: _fill(text, row) for name, text in self.template.items()}
        return kept | mapped | dict(self.constant) | filled


def _pairs(texts: list[str], what: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise Invalid(_("--%(option)s %(text)s: expected FIELD=…") % {"option": what, "text": text})
        if name.strip() in pairs:
            said = _("--%(option)s %(text)s: field %(field)s is filled twice")
            raise Invalid(said % {"option": what, "text": text, "field": name.strip()})
        pairs[name.strip()] = value
    return pairs


def look_up(row: Row, path: str) -> Any:
    """The value of a column, or at a dotted path into it. Raises KeyError(path) when there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(path)
    return value


def _fill(template: str, row: Row) -> str:
    def value_of(match: re.Match[str]) -> str:
        value = look_up(row, match[1])
        return "" if value is None else str(value)

    return PLACEHOLDER.sub(value_of, template).strip()


def detect_container(file_name: str) -> str:
    """How a file is written, by its name; .gz may follow. Raises Invalid when the name tells nothing."""
    found = _container_or_none(Path(file_name))
    if found is None:
        said = _("%(file)s: expected a name ending in %(endings)s, or a format to be named")
        raise Invalid(said % {"file": file_name, "endings": ", ".join(SUFFIXES)})
    return found


def _container_or_none(path: Path) -> str | None:
    return SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix.lower())


def data_files(path: Path) -> list[Path]:
    """The files of a data set: the file itself, or those of a folder as `datasets` saves or publishes them.

    Of a folder, what `save_to_disk` listed in each state.json; else all files of the first kind that is there: Arrow,
    Parquet, JSON Lines, CSV. Raises Invalid for a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith((".", "cache-")))
    if states := [one for one in files if one.name == "state.json"]:
        return [state.parent / name for state in states for name in _saved_files(state)]
    for container in ("arrow", "parquet", "jsonl", "csv", "tsv"):
        if found := [one for one in files if _container_or_none(one) == container]:
            return found
    said = _("%s: no data in this folder; expected what save_to_disk wrote, or .arrow, .parquet, .jsonl or .csv files")
    raise Invalid(said % path.name)


def _saved_files(state: Path) -> list[str]:
    try:
        found = msgspec.json.decode(state.read_bytes(), type=_Saved)
    except msgspec.DecodeError as error:
        said = _("%(file)s: not as save_to_disk writes it: %(problem)s")
        raise Invalid(said % {"file": f"{state.parent.name}/state.json", "problem": error}) from None
    return [Path(one.filename).name for one in found.files]


class _SavedFile(msgspec.Struct):
    filename: str


class _Saved(msgspec.Struct):
    files: list[_SavedFile] = msgspec.field(name="_data_files")


def read_rows(
    path: Path,
    file_name: str,
    form: str,
    with_responses: bool,
    report: Report,
    leave_out: LeaveOut,
    progress: BytesRead,
) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of a file or folder; those of a named format under the names of Heed's fields.

    What cannot be read goes to `report`, and reading goes on if it can.
    """
    rows = _read_files(path, file_name, form, report, progress)
    named = NAMED.get(form)
    yield from named(rows, with_responses, report, leave_out) if named else rows


def _read_files(
    path: Path, file_name: str, form: str, report: Report, progress: BytesRead
) -> Iterator[tuple[str, Row]]:
    done = 0
    for file in data_files(path):
        name = file_name if file == path else f"{file_name}/{file.relative_to(path).as_posix()}"
        before = done
        yield from _read_file(file, name, form, report, lambda read: progress(before + read))  # noqa: B023 called before it changes
        done += file.stat().st_size


def _read_file(path: Path, file_name: str, form: str, report: Report, progress: BytesRead) -> Iterator[tuple[str, Row]]:
    container = _container(file_name, form)
    if container in ("parquet", "arrow"):
        yield from _read_arrow(path, file_name, container, report, progress)
        return
    with cast(BinaryIO, gzip.open(path) if file_name.endswith(".gz") else path.open("rb")) as file:
        lines = _decoded_lines(file, file_name, report, progress)
        if container == "jsonl":
            yield from _read_jsonl(lines, file_name, report)
        else:
            yield from _read_csv(lines, file_name, "," if container == "csv" else "\t", report)


def _container(file_name: str, form: str) -> str:
    """How a file is written: as `form` says, else as its name says. Known data sets without a telling name are JSON Lines."""
    if form in CONTAINERS:
        return form
    return (_container_or_none(Path(file_name)) or "jsonl") if form in NAMED else detect_container(file_name)


def _line(file_name: str, number: int) -> str:
    return _("%(file)s line %(n)d") % {"file": file_name, "n": number}


class _Unreadable(Exception):
    """The rest of the file cannot be read; it was reported."""


def _decoded_lines(
    file: BinaryIO, file_name: str, report: Report, progress: BytesRead
) -> Iterator[tuple[int, str | None]]:
    """(number, text) of each line, its newline kept. Text is None where the line was reported instead."""
    number = read = 0
    while line := _next_line(file, file_name, number + 1, report):
        number += 1
        read += len(line)
        if number % 1000 == 0:
            progress(read)
        if len(line) > MAX_LINE_BYTES:
            said = _("longer than %s bytes; the rest was not read") % f"{MAX_LINE_BYTES:,}"
            report(_line(file_name, number), said)
            return
        text: str | None = None
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            said = _("not UTF-8: byte %(byte)s at position %(n)d")
            said %= {"byte": f"0x{line[error.start]:02x}", "n": error.start + 1}
            report(_line(file_name, number), said)
        yield number, text


def _next_line(file: BinaryIO, file_name: str, number: int, report: Report) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        report(_line(file_name, number), _("broken gzip: %s; the rest was not read") % error)
        return b""


def _read_jsonl(lines: Iterator[tuple[int, str | None]], file_name: str, report: Report) -> Iterator[tuple[str, Row]]:
    line = _("%(file)s line %(n)d")  # looked up once: there may be many
    for number, text in lines:
        if text is None or not text.strip():
            continue
        place = line % {"file": file_name, "n": number}
        try:
            row = msgspec.json.decode(text)
            repeated = _repeated_key(text, row)
        except (msgspec.DecodeError, RecursionError) as error:
            report(place, _why_no_json(text, error))
            continue
        if not isinstance(row, dict):
            report(place, _("expected a JSON object, got %s") % type(row).__name__)
        elif repeated is not None:
            report(place, _("the key %r is there twice in one object") % repeated)
        else:
            yield place, row


SURROGATES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""In JSON: an escaped backslash, a surrogate pair, or half of one (the group)."""


def _why_no_json(text: str, error: Exception) -> str:
    for match in SURROGATES.finditer(text):
        if match[1]:
            said = _("not JSON: %(escape)s (character %(n)d) is half a surrogate pair, which is no character")
            return said % {"escape": match[1], "n": match.start() + 1}
    return _("not JSON: %s") % error


KEY = re.compile(r'"[ \t\r\n]*:')
"""Ends every key of a JSON text, and may be found inside of strings too."""


def _repeated_key(text: str, row: Any) -> str | None:
    """A key that an object of this JSON, read as `row`, has twice; None when there is none.

    The faster reader keeps the last and does not tell. Where the text has no more ends of keys than `row` has keys, none can
    be repeated; only the other texts are read a second time.
    """
    keys = _count_keys(row)
    if text.count(":") == keys or len(KEY.findall(text)) == keys:
        return None
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _value in pairs]
            found.append(next(name for name in made if names.count(name) > 1))
        return made

    json.loads(text, object_pairs_hook=check)
    return found[0][:100] if found else None


def _count_keys(value: Any) -> int:
    keys, inner = 0, value
    if isinstance(value, dict):
        keys, inner = len(value), value.values()
    elif not isinstance(value, list):
        return 0
    for one in inner:
        if isinstance(one, (dict, list)):
            keys += _count_keys(one)
    return keys


def _read_csv(
    lines: Iterator[tuple[int, str | None]], file_name: str, delimiter: str, report: Report
) -> Iterator[tuple[str, Row]]:
    """Rows by the header's names; empty cells are left out. A broken quote or byte ends the reading: rows after it lie."""
    reader = csv.reader(_whole_texts(lines), delimiter=delimiter, strict=True)
    begins = 1
    try:
        header = next(reader, None)
        if header is None or not _check_header(header, file_name, report):
            return
        begins, line = reader.line_num + 1, _("%(file)s line %(n)d")
        for cells in reader:
            place, begins = line % {"file": file_name, "n": begins}, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                said = _("%(n)d cells, but the header has %(wanted)d")
                report(place, said % {"n": len(cells), "wanted": len(header)})
                continue
            yield place, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    except csv.Error as error:
        # A quote that was never closed swallows what follows: the mistake is where the record began, not where reading failed.
        said = _("broken %(format)s: %(problem)s (read on to line %(n)d)")
        if reader.line_num <= begins:
            said = _("broken %(format)s: %(problem)s")
        form = "CSV" if delimiter == "," else "TSV"
        report(_line(file_name, begins), said % {"format": form, "problem": error, "n": reader.line_num})
    except _Unreadable:
        return


def _whole_texts(lines: Iterator[tuple[int, str | None]]) -> Iterator[str]:
    for _number, text in lines:
        if text is None:
            raise _Unreadable
        yield text


def _check_header(header: list[str], file_name: str, report: Report) -> bool:
    place = _line(file_name, 1)
    repeated = {name for name in header if header.count(name) > 1} if len(header) <= MAX_COLUMNS else set()
    if len(header) > MAX_COLUMNS:
        report(place, _("%(n)d columns; %(most)d at most") % {"n": len(header), "most": MAX_COLUMNS})
    elif repeated:
        report(place, _("the header names the column %r twice") % min(repeated))
    else:
        return True
    return False


def _read_arrow(
    path: Path, file_name: str, container: str, report: Report, progress: BytesRead
) -> Iterator[tuple[str, Row]]:
    """Rows of a Parquet or Arrow file, null fields left out."""
    import pyarrow as pa

    number, in_row = 0, _("%(file)s row %(n)d")
    try:
        for batch, share in _parquet_batches(path) if container == "parquet" else _arrow_batches(path):
            for row in batch.to_pylist():
                number += 1
                place = in_row % {"file": file_name, "n": number}
                yield place, {name: value for name, value in row.items() if value is not None}
            progress(int(path.stat().st_size * share))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = _("not a readable Parquet file: %s") if container == "parquet" else _("not a readable Arrow file: %s")
        report(file_name, said % error)


def _parquet_batches(path: Path) -> Iterator[tuple[Any, float]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        total, read = max(file.metadata.num_rows, 1), 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            read += batch.num_rows
            yield batch, read / total


def _arrow_batches(path: Path) -> Iterator[tuple[Any, float]]:
    """As `datasets` writes it: a stream of record batches, mapped and not loaded."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            for begin in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(begin, BATCH_ROWS), source.tell() / max(source.size(), 1)
