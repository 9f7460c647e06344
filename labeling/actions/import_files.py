"""Files of prompts and responses as rows: JSON Lines, CSV, TSV and Parquet, read as a stream, columns mapped to fields.

A place reads "posts.csv line 7"; Parquet has rows, not lines. What cannot be read is reported with its place.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from django.utils.translation import gettext as _

from labeling.errors import Invalid

MAX_LINE_BYTES = 64 * 2**20
MAX_COLUMNS = 1000
FORMATS = ("auto", "jsonl", "csv", "tsv", "parquet", "self_instruct")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

Row = dict[str, Any]
Report = Callable[[str, str], None]
"""Takes (place, message) of something wrong; reading goes on where it can."""
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


def detect_format(file_name: str) -> str:
    """The format that a file's name tells. Raises Invalid when it tells none."""
    found = SUFFIXES.get(Path(file_name).suffix.lower())
    if found is None:
        said = _("%(file)s: expected a name ending in %(endings)s, or a format to be named")
        raise Invalid(said % {"file": file_name, "endings": ", ".join(SUFFIXES)})
    return found


def read_rows(path: Path, file_name: str, form: str, report: Report, progress: BytesRead) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of the file. What cannot be read goes to `report`, and reading goes on if it can."""
    form = detect_format(file_name) if form == "auto" else form
    if form == "parquet":
        yield from _read_parquet(path, file_name, report, progress)
        return
    with path.open("rb") as file:
        lines = _decoded_lines(file, file_name, report, progress)
        if form in ("csv", "tsv"):
            yield from _read_csv(lines, file_name, "," if form == "csv" else "\t", report)
        elif form == "jsonl":
            yield from _read_jsonl(lines, file_name, report)
        else:
            yield from _self_instruct(_read_jsonl(lines, file_name, report), report)


def of_field(place: str, name: str) -> str:
    """A field of a row, as a place."""
    return _("%(place)s: field %(field)s") % {"place": place, "field": name}


def _line(file_name: str, number: int) -> str:
    return _("%(file)s line %(n)d") % {"file": file_name, "n": number}


class _Unreadable(Exception):
    """The rest of the file cannot be read; it was reported."""


def _decoded_lines(
    file: BinaryIO, file_name: str, report: Report, progress: BytesRead
) -> Iterator[tuple[int, str | None]]:
    """(number, text) of each line, its newline kept. Text is None where the line was reported instead."""
    number = read = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
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
    if len(KEY.findall(text)) == _count_keys(row):
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
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(one) for one in value.values() if isinstance(one, dict | list))
    return sum(_count_keys(one) for one in value if isinstance(one, dict | list)) if isinstance(value, list) else 0


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


def _read_parquet(path: Path, file_name: str, report: Report, progress: BytesRead) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            total, number, in_row = max(file.metadata.num_rows, 1), 0, _("%(file)s row %(n)d")
            for batch in file.iter_batches(batch_size=500):
                for row in batch.to_pylist():
                    number += 1
                    place = in_row % {"file": file_name, "n": number}
                    yield place, {name: value for name, value in row.items() if value is not None}
                progress(size * number // total)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        report(file_name, _("not a readable Parquet file: %s") % error)


def _self_instruct(rows: Iterator[tuple[str, Row]], report: Report) -> Iterator[tuple[str, Row]]:
    """The Self-Instruct seed tasks: {id, instruction, instances: [{input, output}]} as prompts with demonstrations."""
    for place, row in rows:
        instances = row.get("instances")
        if not isinstance(row.get("instruction"), str):
            report(of_field(place, "instruction"), _("missing, or not a text"))
        elif not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
            report(of_field(place, "instances"), _("missing, or not a list of objects"))
        else:
            for number, instance in enumerate(instances):
                yield place, _self_instruct_row(row, instance, number)


def _self_instruct_row(row: Row, instance: Row, number: int) -> Row:
    given = instance.get("input") or ""
    found: Row = {
        "prompt": f"{row['instruction']}\n\n{given}" if given else row["instruction"],
        "demonstration": instance.get("output"),
        "metadata": {"name": row["name"]} if "name" in row else {},
    }
    if "id" in row:
        found["external_id"] = str(row["id"]) if number == 0 else f"{row['id']}#{number + 1}"
    if row.get("is_classification") is True:
        found["use_case"] = "classification"
    return found
