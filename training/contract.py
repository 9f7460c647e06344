"""The contract between Heed's halves: what an export and a model manifest look like, with their reader and writer.

Both ends are strict: an unknown or missing field, a wrong type, an unsorted file or a bad checksum raises
`ContractError`, which names file, line and field. Needs neither torch nor Django. Rows are `msgspec.Struct`s (frozen,
keyword-only): build them by keywords, read them by attribute, turn them into a dict with `msgspec.structs.asdict`.

Data files are canonical, so the same rows give the same bytes wherever they are written: one JSON object per line, keys
in schema order, no spaces, UTF-8, `\\n`, rows in bytewise order of their ids. Each `.jsonl` has a Parquet twin.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

# Of the training half the web half imports this module alone, so what both need of folders is to be had here.
from training.folders import HALF_BUILT, atomic_folder, hash_file, remove_half_built, write_atomically  # noqa: F401

EXPORT_SCHEMA: Final = 2
"""Exports of schema 1 are read too: contract_schema1.py."""
MODEL_SCHEMA: Final = 1

Split = Literal["train", "valid", "test"]
Group = Literal["training", "held_out"]
Role = Literal["system", "user", "assistant"]
PromptKind = Literal["plain", "few_shot", "user_based"]
PromptSource = Literal["import", "labeler", "playground"]
LabelOrigin = Literal["person", "import", "simulated", "ai"]
ResponseOrigin = Literal["model", "person"]
ReviewState = Literal["unreviewed", "accepted", "returned", "rejected"]
Verdict = Literal["accepted", "returned", "rejected"]
Stage = Literal["pretrain", "sft", "rm", "ppo", "dpo", "external"]

Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
ResponseId = str  # of a response of the same row, which has a Uuid: _check_ranking_row sees to it, in a third of a pattern's time
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
UtcTime = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z\Z")]
Quality = Annotated[int, Meta(ge=1, le=7)]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1)]


class ContractError(Exception):
    """Data that breaks the contract. The message names the file, and the line and field where there is one."""


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What every part of the contract is: immutable, built by keywords, and closed to unknown fields. Holds no cycles."""


# ---- the rows of an export ------------------------------------------------------------------------------------------


class Message(Row, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: Role
    content: str


class PromptRow(Row, frozen=True, kw_only=True):
    """A prompt. `author` and `organization` are pseudonyms; `metadata` is a JSON object as text, "{}" when empty."""

    prompt_id: Uuid
    external_id: str | None
    kind: PromptKind
    use_case: str | None
    source: PromptSource
    split: Split
    author: str | None
    organization: str | None
    messages: list[Message]
    metadata: str


class ReviewRow(Row, frozen=True, kw_only=True):
    """A reviewer's verdict on one revision of a submission."""

    revision: Positive
    verdict: Verdict
    comment: str
    reviewer: str | None
    reviewed_at: UtcTime


class RevisionRow(Row, frozen=True, kw_only=True):
    """A demonstration as it stood at an earlier revision."""

    revision: Positive
    response: str
    submitted_at: UtcTime


class DemonstrationRow(Row, frozen=True, kw_only=True):
    """A response that a person wrote to show what is wanted; `earlier_revisions`: how it stood before, oldest first."""

    demonstration_id: Uuid
    prompt_id: Uuid
    split: Split
    use_case: str | None
    messages: list[Message]
    response: str
    labeler: str | None
    labeler_group: Group
    origin: LabelOrigin
    review: ReviewState
    is_surplus: bool
    schema_version: Positive
    revision: Positive
    submitted_at: UtcTime
    earlier_revisions: list[RevisionRow]
    reviews: list[ReviewRow]


class Flags(Row, frozen=True, kw_only=True):
    """The yes/no questions asked about a response or a prompt, by how they were answered. Unanswered is not "no"."""

    yes: list[Name]
    no: list[Name]
    unanswered: list[Name]

    @classmethod
    def of(cls, answers: Iterable[tuple[str, bool | None]]) -> "Flags":
        """From (name, answer), None for unanswered; names keep their order."""
        names: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for name, answer in answers:
            names[answer].append(name)
        return cls(yes=names[True], no=names[False], unanswered=names[None])


class Rating(Row, frozen=True, kw_only=True):
    """What a labeler said about one response alone: quality 1–7 (None when unanswered) and flags."""

    response_id: ResponseId
    quality: Quality | None
    flags: Flags


class RankedResponse(Row, frozen=True, kw_only=True):
    """A response of the task. `model` names the model version that wrote it; `sampling` is a JSON object as text."""

    response_id: Uuid
    text: str
    model: str | None
    origin: ResponseOrigin
    finish_reason: str | None
    sampling: str


class RankingRevisionRow(Row, frozen=True, kw_only=True):
    """A ranking as it stood at an earlier revision."""

    revision: Positive
    tiers: list[list[ResponseId]]
    all_bad: bool
    ratings: list[Rating]
    prompt_flags: Flags
    comment: str
    schema_version: Positive
    submitted_at: UtcTime


class Ranking(Row, frozen=True, kw_only=True):
    """One labeler's ranking: tiers, best first, ties within a tier; every response of the row stands in exactly one.

    `earlier_revisions`: how it stood before, oldest first.
    """

    ranking_id: Uuid
    labeler: str | None
    origin: LabelOrigin
    review: ReviewState
    is_surplus: bool
    tiers: list[list[ResponseId]]
    all_bad: bool
    ratings: list[Rating]
    prompt_flags: Flags
    shown_order: list[ResponseId]
    schema_version: Positive
    revision: Positive
    comment: str
    submitted_at: UtcTime
    earlier_revisions: list[RankingRevisionRow]
    reviews: list[ReviewRow]


class RankingRow(Row, frozen=True, kw_only=True):
    """The rankings of one task by one labeler group, so that held-out labels stand in rows of their own."""

    task_id: Uuid
    prompt_id: Uuid
    batch: str
    split: Split
    use_case: str | None
    messages: list[Message]
    labeler_group: Group
    responses: list[RankedResponse]
    rankings: list[Ranking]


class PairRow(Row, frozen=True, kw_only=True):
    """Two responses of a ranking, of which one stands in a higher tier. Derived from the rankings: training/pairs.py."""

    task_id: Uuid
    labeler_group: Group
    ranking_id: Uuid
    chosen_id: Uuid
    rejected_id: Uuid
    prompt_id: Uuid
    split: Split
    use_case: str | None
    labeler: str | None
    origin: LabelOrigin
    review: ReviewState
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


# ---- manifests ------------------------------------------------------------------------------------------------------


class ExportFile(Row, frozen=True, kw_only=True):
    """Checksum and size of one file of an export; `rows` is None where the file has none."""

    sha256: Sha256
    bytes: Count
    rows: Count | None


class ExportManifest(Row, frozen=True, kw_only=True):
    """An export's `manifest.json`. `data_sha256` identifies the data files alone: equal data, equal hash.

    `fields_sha256` is `hash_fields` of all the rest; what was written before it existed goes without.
    """

    kind: Literal["heed-export"]
    schema_version: Literal[1, 2]
    version: Positive
    name: Name
    created_at: UtcTime
    code_version: str
    query: dict[str, Any]
    counts: dict[str, int]
    files: dict[str, ExportFile]
    data_sha256: Sha256
    fields_sha256: Sha256 | UnsetType = UNSET


class ModelFile(Row, frozen=True, kw_only=True):
    """Checksum and size of one file of a model folder."""

    sha256: Sha256
    bytes: Count


class ParentRef(Row, frozen=True, kw_only=True):
    """A model that another was made from, by name and by the hash of its manifest."""

    name: Name
    manifest_sha256: Sha256


class ExportRef(Row, frozen=True, kw_only=True):
    """The export that a model was trained on."""

    name: Name
    data_sha256: Sha256


class ModelManifest(Row, frozen=True, kw_only=True):
    """A model folder's `manifest.json`: what it is and came from (`parents` by role: base, sft, rm, reference…).

    `fields_sha256` is `hash_fields` of all the rest; what was written before it existed goes without.
    """

    kind: Literal["heed-model"]
    schema_version: Literal[1]
    name: Name
    stage: Stage
    parents: dict[str, ParentRef]
    export: ExportRef | None
    config: dict[str, Any]
    metrics: dict[str, Any]
    seed: int | None
    code_version: str
    created_at: UtcTime
    libraries: dict[str, str | None]
    files: dict[str, ModelFile]
    few_shot_prefix: str
    fields_sha256: Sha256 | UnsetType = UNSET


class GateVerdict(Row, frozen=True, kw_only=True):
    """What the promotion gate found of one rule: a figure of the candidate, and the bounds that it is held to.

    `value`: None where there is no finite figure. Whether the rule holds follows from value and bounds and is never told apart
    from them, so both halves find the same. `required`: a rule that must hold for a promotion; the others are advice.
    """

    name: Name
    figure: Name
    value: float | None
    floor: float | None
    ceiling: float | None
    required: bool
    reason: Name

    def __post_init__(self) -> None:
        if self.floor is None and self.ceiling is None:
            raise ValueError("expected a floor, a ceiling or both")
        if not all(number is None or math.isfinite(number) for number in (self.value, self.floor, self.ceiling)):
            raise ValueError("expected finite numbers")

    @property
    def holds(self) -> bool:
        """True for a figure that is there and within its bounds."""
        if self.value is None or (self.floor is not None and self.value < self.floor):
            return False
        return self.ceiling is None or self.value <= self.ceiling


def all_hold(verdicts: Iterable[GateVerdict]) -> bool:
    """True if every required rule holds and there is one: no verdicts are no pass."""
    required = [verdict.holds for verdict in verdicts if verdict.required]
    return bool(required) and all(required)


def verdict_fields(verdict: GateVerdict) -> dict[str, Any]:
    """A verdict as plain values."""
    return msgspec.structs.asdict(verdict)


def decode_verdicts(plain: list[Any]) -> list[GateVerdict]:
    """Verdicts from plain values. Raises ContractError naming verdict and field."""
    verdicts = []
    for number, one in enumerate(plain):
        try:
            verdicts.append(msgspec.convert(one, GateVerdict))
        except msgspec.ValidationError as error:
            raise ContractError(f"verdicts[{number}]: {_explain(error)}") from None
    return verdicts


# ---- what each data file holds, and in which order ------------------------------------------------------------------

AnyRow = TypeVar("AnyRow", bound=Row)


class Kind(Struct, Generic[AnyRow], frozen=True):
    """A data file of an export: the type of its rows, the key they are sorted by, what the schema alone cannot say."""

    name: str
    row_type: type[AnyRow]
    key_fields: tuple[str, ...]

    @property
    def jsonl(self) -> str:
        """The name of the JSON Lines file."""
        return f"{self.name}.jsonl"

    @property
    def parquet(self) -> str:
        """The name of the Parquet twin."""
        return f"{self.name}.parquet"

    def key(self, row: AnyRow) -> tuple[bytes, ...]:
        """What rows are sorted by: the UTF-8 bytes of the key fields, so that no collation can matter."""
        return tuple(getattr(row, name).encode() for name in self.key_fields)


PROMPTS = Kind("prompts", PromptRow, ("prompt_id",))
DEMONSTRATIONS = Kind("demonstrations", DemonstrationRow, ("demonstration_id",))
RANKINGS = Kind("rankings", RankingRow, ("task_id", "labeler_group"))
KINDS: tuple[Kind[Any], ...] = (PROMPTS, DEMONSTRATIONS, RANKINGS)
DATA_FILES = tuple(sorted(name for kind in KINDS for name in (kind.jsonl, kind.parquet)))

PAIR_SPLITS = ("train", "valid", "test", "held_out")
"""Held-out labelers' pairs are a split of their own, so that nobody trains on them by loading all."""
PAIR_KEY = ("task_id", "labeler_group", "ranking_id", "chosen_id", "rejected_id")
PAIRS = {split: Kind(f"pairs_{split}", PairRow, PAIR_KEY) for split in PAIR_SPLITS}
PAIR_FILES = tuple(sorted(name for kind in PAIRS.values() for name in (kind.jsonl, kind.parquet)))

_DECODERS = {kind.name: msgspec.json.Decoder(kind.row_type) for kind in (*KINDS, *PAIRS.values())}
_ENCODER = msgspec.json.Encoder()


def encode_row(row: Row) -> bytes:
    """A row as its canonical JSON line, newline included."""
    return _ENCODER.encode(row) + b"\n"


def decode_row(kind: Kind[AnyRow], line: bytes, place: str) -> AnyRow:
    """The row of one canonical line; `place` ("rankings.jsonl line 17") begins the message of any ContractError."""
    row = _decode_checked(kind, line, place)
    if encode_row(row) != line:
        raise ContractError(f"{place}: not in canonical form (key order, spaces, repeated keys or a missing newline)")
    return row


def _decode_written(kind: Kind[AnyRow], line: bytes, place: str, manifest: ExportManifest) -> AnyRow:
    """The row of one line of an export with this manifest, whatever schema it was written in."""
    if manifest.schema_version == 1:
        from training import contract_schema1

        line = contract_schema1.upgrade(kind, line, place)
    return decode_row(kind, line, place)


def _decode_checked(kind: Kind[AnyRow], line: bytes, place: str) -> AnyRow:
    """The row of a line, all checked but that the line is canonical."""
    try:
        row = _DECODERS[kind.name].decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{place}: {_explain(error)}") from None
    _check_row(row, place)
    return row


def _explain(error: Exception) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.a.b`" in our words: "field a.b: expected `int`, got `str`"."""
    reason, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    for marker in ("Object missing required field `", "Object contains unknown field `"):
        if reason.startswith(marker):
            name = reason.removeprefix(marker).rstrip("`")
            field = f"{field}.{name}" if field else name
            reason = "missing" if "missing" in marker else "unknown field"
    if not reason[:2].isupper():  # "JSON is malformed" stays
        reason = reason[:1].lower() + reason[1:]
    return f"field {field}: {reason}" if field else reason


def _check_row(row: Row, place: str) -> None:
    """What the types alone cannot say; raises ContractError."""
    if isinstance(row, PromptRow):
        _check_messages(row.messages, place)
        _check_json_object(row.metadata, f"{place}: field metadata")
    elif isinstance(row, DemonstrationRow):
        _check_messages(row.messages, place)
        _check_revisions(row, place)
    elif isinstance(row, RankingRow):
        _check_messages(row.messages, place)
        _check_ranking_row(row, place)
    elif isinstance(row, PairRow):
        _check_messages(row.prompt, place)
        if row.chosen_id == row.rejected_id:
            raise ContractError(f"{place}: field rejected_id: the same as chosen_id")


def _check_messages(messages: list[Message], place: str) -> None:
    if not messages:
        raise ContractError(f"{place}: field messages: empty")


def _check_json_object(text: str, place: str) -> None:
    if text == "{}":  # nearly always
        return
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ContractError(f"{place}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ContractError(f"{place}: expected a JSON object, got {type(value).__name__}")


def _check_revisions(label: DemonstrationRow | Ranking, place: str) -> None:
    """Every revision before the label's own is there, oldest first."""
    numbers = [revision.revision for revision in label.earlier_revisions]
    wanted = list(range(1, label.revision))
    if numbers != wanted:
        raise ContractError(f"{place}: field earlier_revisions: expected {wanted}, got {numbers}")


def _check_ranking_row(row: RankingRow, place: str) -> None:
    ids = [response.response_id for response in row.responses]
    if len(ids) < 2:
        raise ContractError(f"{place}: field responses: a ranking needs at least 2, got {len(ids)}")
    if any(a >= b for a, b in pairwise(ids)):
        raise ContractError(f"{place}: field responses: not in order of response_id, or repeated")
    for response in row.responses:
        if response.sampling != "{}":
            _check_json_object(response.sampling, f"{place}: field responses: {response.response_id}: field sampling")
    for number, ranking in enumerate(row.rankings):
        if ranking.revision != 1 or ranking.earlier_revisions:
            _check_revisions(ranking, f"{place}: field rankings[{number}]")
        if problem := _problem_of_ranking(ranking, ids):
            raise ContractError(f"{place}: field rankings[{number}]{problem}")


def _problem_of_ranking(ranking: Ranking, ids: list[str]) -> str | None:
    """What is wrong with it beside responses of these ids (sorted), its field first, or None."""
    if problem := _problem_of_order(ranking, ids):
        return problem
    if problem := _problem_of_ids(ranking.shown_order, ids):
        return f".shown_order: {problem}"
    if not all(ranking.tiers):
        return ".tiers: holds an empty tier"
    for revision in ranking.earlier_revisions:
        if problem := _problem_of_order(revision, ids):
            return f".earlier_revisions[{revision.revision - 1}]{problem}"
    return None


def _problem_of_order(said: Ranking | RankingRevisionRow, ids: list[str]) -> str | None:
    if problem := _problem_of_ids([i for tier in said.tiers for i in tier], ids):
        return f".tiers: {problem}"
    for flags in (said.prompt_flags, *[rating.flags for rating in said.ratings]):
        if problem := _problem_of_flags(flags):
            return problem
    rated = [rating.response_id for rating in said.ratings]
    if rated == ids:  # nearly always
        return None
    if foreign := set(rated) - set(ids):
        return f".ratings: holds foreign {min(foreign)}"
    return ".ratings: rates a response twice" if len(rated) != len(set(rated)) else None


def _problem_of_flags(flags: Flags) -> str | None:
    names = [*flags.yes, *flags.no, *flags.unanswered]
    if len(set(names)) == len(names):
        return None
    return f": the flag {next(name for name in names if names.count(name) > 1)!r} stands there twice"


def _problem_of_ids(given: list[str], wanted: list[str]) -> str | None:
    """None if `given` holds each of `wanted` (sorted) exactly once, in any order."""
    if sorted(given) == wanted:
        return None
    missing, foreign = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    return f"leaves out {missing[0]}" if missing else f"holds foreign {foreign[0]}" if foreign else "repeats a response"


# ---- writing an export ----------------------------------------------------------------------------------------------

PIECE_ROWS, PIECE_BYTES = 500, 4 * 2**20
"""What is parsed and written at once, while the next is made: so many rows, or fewer of long texts."""
GROUP_ROWS, GROUP_BYTES = 8000, 64 * 2**20
"""When a row group of Parquet ends. Until the file ends its writer holds 0.1 MB of each group of rankings, and of a group its rows."""


def write_export(
    path: str | os.PathLike[str],
    *,
    version: int,
    prompts: Iterable[PromptRow],
    demonstrations: Iterable[DemonstrationRow],
    rankings: Iterable[RankingRow],
    query: dict[str, Any],
    counts: dict[str, int] | None = None,
    pairs: bool = False,
    agreement: Callable[[], str] = lambda: "",
    name: str | None = None,
    created_at: str | None = None,
    code_version: str | None = None,
) -> ExportManifest:
    """Write an export folder at `path`, whole or not at all, and return its manifest.

    Rows are taken as they come, in flat memory, and must be sorted by id; the three iterables are read one after the
    other. `counts` adds to the manifest's counts; `pairs` adds the files of PAIRS, made of the rankings; `agreement`, asked
    when all rows were read, is what the card says of how far labelers agree. Raises ContractError for a row that breaks the contract,
    FileExistsError if `path` exists: an export never changes.
    """
    path = Path(path)
    with atomic_folder(path) as folder:
        files: dict[str, ExportFile] = {}
        for kind, rows in zip(KINDS, (prompts, demonstrations, rankings), strict=True):
            files |= _write_kind(folder, kind, rows)
        for split in PAIRS if pairs else ():
            files |= _write_pairs(folder, split)
        manifest = ExportManifest(
            kind="heed-export",
            schema_version=EXPORT_SCHEMA,
            version=version,
            name=name or export_name(version),
            created_at=created_at or utc_now(),
            code_version=find_code_version() if code_version is None else code_version,
            query=query,
            counts={kind.name: files[kind.jsonl].rows or 0 for kind in kinds_in(files)} | (counts or {}),
            files=files,
            data_sha256=hash_data_files(files),
        )
        (folder / "README.md").write_text(dataset_card(manifest, agreement()), encoding="utf-8")
        readme = _file_entry(folder / "README.md")
        manifest = msgspec.structs.replace(manifest, files=dict(sorted((files | {"README.md": readme}).items())))
        return _write_manifest(folder, manifest)


def export_name(version: int) -> str:
    """The name of an export: "v0007"."""
    return f"v{version:04d}"


def hash_data_files(files: dict[str, ExportFile]) -> str:
    """The hash that identifies an export's data: SHA-256 over "name sha256\\n" of its data files, sorted by name."""
    names = sorted({*DATA_FILES, *(name for name in PAIR_FILES if name in files)})
    lines = "".join(f"{name} {files[name].sha256}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def kinds_in(files: Iterable[str]) -> tuple[Kind[Any], ...]:
    """The kinds of rows in an export with these files."""
    there = set(files)
    return (*KINDS, *(kind for kind in PAIRS.values() if kind.jsonl in there))


def _write_pairs(folder: Path, split: str) -> dict[str, ExportFile]:
    from training import pairs

    return _write_kind(folder, PAIRS[split], pairs.pairs_in(folder / RANKINGS.jsonl, split))


def _write_kind(folder: Path, kind: Kind[AnyRow], rows: Iterable[AnyRow]) -> dict[str, ExportFile]:
    """Write one kind's two files, in a thread that is a few pieces behind at most."""
    from training import parquet

    count = 0
    with parquet.Twins(folder / kind.jsonl, folder / kind.parquet, parquet.schema_of(kind.row_type)) as twins:
        for piece, lines, is_last_of_group in _pieces(_checked_lines(kind, rows)):
            twins.write(piece, is_last_of_group)
            count += lines
    jsonl = ExportFile(sha256=twins.jsonl_sha256, bytes=twins.jsonl_bytes, rows=count)
    return {kind.jsonl: jsonl, kind.parquet: _file_entry(folder / kind.parquet, rows=count)}


def _checked_lines(kind: Kind[AnyRow], rows: Iterable[AnyRow]) -> Iterator[bytes]:
    """Each row's line, after the reader's own checks: what the writer lets through, the reader accepts."""
    last: tuple[bytes, ...] | None = None
    for number, row in enumerate(rows, start=1):
        place = f"{kind.jsonl} line {number}"
        try:
            line = encode_row(row)
        except (TypeError, UnicodeEncodeError, OverflowError) as error:
            raise ContractError(f"{place}: {error}") from None
        last = _check_order(kind, _decode_checked(kind, line, place), last, place)
        yield line


def _check_order(kind: Kind[AnyRow], row: AnyRow, last: tuple[bytes, ...] | None, place: str) -> tuple[bytes, ...]:
    key = kind.key(row)
    if last is not None and key <= last:
        what = "repeats" if key == last else "comes before"
        raise ContractError(f"{place}: field {kind.key_fields[0]}: {what} the row above; rows are sorted and unique")
    return key


def _pieces(lines: Iterator[bytes]) -> Iterator[tuple[bytes, int, bool]]:
    """(some lines, how many, whether a row group ends with them)."""
    piece: list[bytes] = []
    size = rows_in_group = bytes_in_group = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if len(piece) == PIECE_ROWS or size >= PIECE_BYTES:
            rows_in_group, bytes_in_group = rows_in_group + len(piece), bytes_in_group + size
            is_full = rows_in_group >= GROUP_ROWS or bytes_in_group >= GROUP_BYTES
            yield b"".join(piece), len(piece), is_full
            piece, size = [], 0
            if is_full:
                rows_in_group = bytes_in_group = 0
    if piece or rows_in_group:
        yield b"".join(piece), len(piece), True


def dataset_card(manifest: ExportManifest, agreement: str = "") -> str:
    """The export's `README.md`: a dataset card by which `datasets.load_dataset(folder, "rankings")` finds its way; without a name it
    loads the rankings, where there are none the demonstrations, else the prompts (`datasets` refuses what has no rows)."""
    default = next((kind for kind in (RANKINGS, DEMONSTRATIONS) if manifest.counts.get(kind.name)), PROMPTS)
    configs = "".join(
        f"- config_name: {kind.name}\n" + "  default: true\n" * (kind is default) + f"  data_files: {kind.parquet}\n"
        for kind in KINDS
    )
    has_pairs = len(kinds_in(manifest.files)) > len(KINDS)
    full = [(split, kind) for split, kind in PAIRS.items() if manifest.counts.get(kind.name)]
    if full:  # `datasets` refuses a split without rows
        configs += "- config_name: pairs\n  data_files:\n"
        configs += "".join(f"  - split: {split}\n    path: {kind.parquet}\n" for split, kind in full)
    counts = "".join(f"| {name.replace('_', ' ')} | {count} |\n" for name, count in sorted(manifest.counts.items()))
    counts += f"\n{agreement}\n" if agreement else ""
    query = json.dumps(manifest.query, indent=2, sort_keys=True, ensure_ascii=False)
    pairs = PAIRS_ON_CARD if has_pairs else ""
    return CARD.format(configs=configs, counts=counts, query=query, manifest=manifest, pairs=pairs)


PAIRS_ON_CARD = (
    "| `pairs` | two responses of a ranking as `prompt`, `chosen` and `rejected`, in splits: the training labelers' on prompts of "
    "train, valid and test, and `held_out`, the held-out labelers' (never train on them); ties make no pair |\n"
)


CARD = """---
pretty_name: Heed export {manifest.name}
configs:
{configs}---

# Heed export {manifest.name}

Human feedback on language-model output, frozen at {manifest.created_at} by Heed {manifest.code_version}.
It never changes; `manifest.json` holds the SHA-256 of each file, and `data_sha256` names the data as a whole:
`{manifest.data_sha256}`.

| what | count |
|---|---|
{counts}
| file | one row is |
|---|---|
| `prompts` | a prompt: chat messages, kind, source, and the split of its author (an author is never in two splits) |
| `demonstrations` | a response written by a person, with its earlier revisions and its reviews |
| `rankings` | the rankings of one task by one labeler group: tiers best first (ties share a tier), ratings 1–7, flags |
{pairs}
Each is there as JSON Lines and as Parquet with the same rows. People are pseudonyms, the same in every export of one
installation. Labels of held-out labelers stand in rows of their own (`labeler_group`): never train on them.
`is_surplus` marks work beyond the ordered overlap. A quality of null, and a flag that stands under `unanswered`, was not
answered, which is not "no".

Selection:

```json
{query}
```

Read it with `datasets.load_dataset("{manifest.name}", "rankings")`, with any Parquet engine, or with
`training.contract.read_export("{manifest.name}")`, which checks every byte.
"""


# ---- reading an export ----------------------------------------------------------------------------------------------


class Export:
    """An export folder, verified. Rows come as a stream: `prompts()`, `demonstrations()`, `rankings()`."""

    def __init__(self, path: Path, manifest: ExportManifest):
        self.path = path
        self.manifest = manifest

    @property
    def ref(self) -> ExportRef:
        """What a model manifest says of this export."""
        return ExportRef(name=self.manifest.name, data_sha256=self.manifest.data_sha256)

    def prompts(self) -> Iterator[PromptRow]:
        """The prompts, sorted by prompt_id."""
        return self._rows(PROMPTS)

    def demonstrations(self) -> Iterator[DemonstrationRow]:
        """The demonstrations, sorted by demonstration_id."""
        return self._rows(DEMONSTRATIONS)

    def rankings(self) -> Iterator[RankingRow]:
        """The rankings of each task and labeler group, sorted by task_id, then group."""
        return self._rows(RANKINGS)

    def pairs(self, split: str) -> Iterator[PairRow]:
        """The pairs of a split of PAIRS. Raises ContractError where the export was written without."""
        if PAIRS[split].jsonl not in self.manifest.files:
            raise ContractError(f"{self.manifest.name}: was written without pairs")
        return self._rows(PAIRS[split])

    def _rows(self, kind: Kind[AnyRow]) -> Iterator[AnyRow]:
        count, last = 0, None
        with (self.path / kind.jsonl).open("rb") as file:
            for count, line in enumerate(file, start=1):
                place = f"{kind.jsonl} line {count}"
                row = _decode_written(kind, line, place, self.manifest)
                last = _check_order(kind, row, last, place)
                yield row
        if count != self.manifest.files[kind.jsonl].rows:
            raise ContractError(
                f"{kind.jsonl}: {count} rows, manifest.json says {self.manifest.files[kind.jsonl].rows}"
            )


def read_export(path: str | os.PathLike[str], *, verify: bool = True) -> Export:
    """Open an export folder and check every file against its manifest.

    Raises ContractError naming the file, and the line wherever it can be told: the Parquet twin says which changed.
    `verify=False` skips the checksums (rows are still checked as they are read).
    """
    folder = Path(path)
    manifest = _read_manifest(folder, ExportManifest)
    expected = {*DATA_FILES, "README.md"} | (set(PAIR_FILES) if set(PAIR_FILES) & set(manifest.files) else set())
    if set(manifest.files) != expected:
        odd = sorted(set(manifest.files) ^ expected)
        raise ContractError(f"manifest.json: field files: missing or unknown {', '.join(odd)}")
    if hash_data_files(manifest.files) != manifest.data_sha256:
        raise ContractError("manifest.json: field data_sha256: does not match the files listed")
    if verify:
        _verify_export(folder, manifest)
    return Export(folder, manifest)


def _verify_export(folder: Path, manifest: ExportManifest) -> None:
    bad = {name for name, entry in manifest.files.items() if not _is_intact(folder / name, entry)}
    for kind in kinds_in(manifest.files):
        if kind.jsonl in bad or kind.parquet in bad:
            raise ContractError(_locate_damage(folder, kind, bad, manifest))
    if bad:
        raise ContractError(f"{min(bad)}: does not match its checksum")


def _locate_damage(folder: Path, kind: Kind[Any], bad: set[str], manifest: ExportManifest) -> str:
    """Say where a file was changed, by holding each line against its Parquet twin (of which one is still whole)."""
    damaged = kind.jsonl if kind.jsonl in bad else kind.parquet
    unknown = f"{damaged}: does not match its checksum"
    if not (folder / damaged).exists():
        return f"{damaged}: missing"
    if damaged == kind.jsonl and (problem := _first_bad_line(folder, kind, manifest)):
        return f"{problem} (the file does not match its checksum)"
    if {kind.jsonl, kind.parquet} <= bad:
        return unknown
    from training import parquet

    # A damaged Parquet file may be unreadable in any way: then the file is all we can name.
    with suppress(Exception), (folder / kind.jsonl).open("rb") as file:
        for number, (line, twin) in enumerate(
            zip_longest(file, parquet.read_lines(folder / kind.parquet, GROUP_ROWS)), start=1
        ):
            if line != twin:
                word = "line" if damaged == kind.jsonl else "row"
                return f"{damaged} {word} {number}: changed since it was written (the checksum does not match)"
    return unknown


def _first_bad_line(folder: Path, kind: Kind[Any], manifest: ExportManifest) -> str | None:
    with (folder / kind.jsonl).open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                _decode_written(kind, line, f"{kind.jsonl} line {number}", manifest)
        except ContractError as error:
            return str(error)
    return None


CARDS = {"README.md", "report.html"}
"""Files that tell of a model by its name: a copy under another name goes without."""


# ---- model folders --------------------------------------------------------------------------------------------------


def write_model_manifest(
    folder: str | os.PathLike[str],
    *,
    name: str,
    stage: Stage,
    parents: dict[str, ParentRef],
    export: ExportRef | None,
    config: dict[str, Any],
    metrics: dict[str, Any],
    seed: int | None,
    few_shot_prefix: str = "",
    created_at: str | None = None,
    code_version: str | None = None,
) -> ModelManifest:
    """Hash the files of a model folder and write its `manifest.json` last, atomically. Raises ContractError."""
    folder = Path(folder)
    manifest = ModelManifest(
        kind="heed-model",
        schema_version=MODEL_SCHEMA,
        name=name,
        stage=stage,
        parents=parents,
        export=export,
        config=config,
        metrics=metrics,
        seed=seed,
        code_version=find_code_version() if code_version is None else code_version,
        created_at=created_at or utc_now(),
        libraries=library_versions(),
        files={file: ModelFile(sha256=hash_file(folder / file), bytes=size) for file, size in _model_files(folder)},
        few_shot_prefix=few_shot_prefix,
    )
    return _write_manifest(folder, manifest)


def read_model_manifest(folder: str | os.PathLike[str], *, verify: bool = True) -> ModelManifest:
    """The manifest of a model folder, its files checked against it. Raises ContractError naming file or field."""
    folder = Path(folder)
    manifest = _read_manifest(folder, ModelManifest)
    if verify:
        verify_files(folder, manifest)
    return manifest


def decode_model_manifest(data: bytes, place: str = "manifest.json") -> ModelManifest:
    """A model manifest from the bytes of its file. Raises ContractError whose message begins with `place`."""
    return _decode_manifest(data, ModelManifest, place)


def verify_files(folder: str | os.PathLike[str], manifest: ModelManifest | ExportManifest) -> None:
    """Check that each file a manifest lists is there and matches its checksum. Raises ContractError naming the file."""
    for name, entry in manifest.files.items():
        file = Path(folder, name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ContractError(f"manifest.json: field files: {name} lies outside the folder")
        if not file.is_file():
            raise ContractError(f"{file}: missing")
        if not _is_intact(file, entry):
            raise ContractError(f"{file}: does not match its checksum in manifest.json")


def parent_ref(folder: str | os.PathLike[str]) -> ParentRef:
    """How a child's manifest names the model in `folder`."""
    manifest = read_model_manifest(folder, verify=False)
    return ParentRef(name=manifest.name, manifest_sha256=hash_file(Path(folder, "manifest.json")))


def with_few_shot_prefix(folder: str | os.PathLike[str], out: str | os.PathLike[str], prefix: str) -> ModelManifest:
    """The same model under another name, `out`'s, with a few-shot prefix before its prompts: a prompted baseline.

    Its files are hard links where the file system allows, so the weights take no room twice; the model in `folder` is its parent,
    by the role "weights". Raises ContractError for a damaged folder, FileExistsError if `out` exists.
    """
    folder, out = Path(folder), Path(out)
    manifest = read_model_manifest(folder)
    with atomic_folder(out) as building:
        for name in manifest.files:
            if name not in CARDS:
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                _link(folder / name, building / name)
        return write_model_manifest(
            building,
            name=out.name,
            stage=manifest.stage,
            parents={"weights": parent_ref(folder)},
            export=manifest.export,
            config=manifest.config,
            metrics={},
            seed=manifest.seed,
            few_shot_prefix=prefix,
        )


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, to)


def _model_files(folder: Path) -> list[tuple[str, int]]:
    """Relative POSIX paths and sizes of the folder's files, bytewise sorted, manifest.json left out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
    return sorted((pair for pair in named if pair[0] != "manifest.json"), key=lambda pair: pair[0].encode())


def library_versions() -> dict[str, str | None]:
    """Versions that decide a model's numbers; None where a library is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in ("torch", "transformers", "tokenizers"):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return versions


# ---- manifests, hashes and folders ----------------------------------------------------------------------------------

AnyManifest = TypeVar("AnyManifest", ExportManifest, ModelManifest)


def hash_fields(manifest: ExportManifest | ModelManifest) -> str:
    """SHA-256 over a manifest without `fields_sha256`, as JSON with sorted keys and no spaces: a manifest's own checksum.

    Raises ContractError for what JSON cannot hold.
    """
    fields = msgspec.structs.replace(manifest, fields_sha256=UNSET)
    try:
        plain = msgspec.json.decode(_ENCODER.encode(fields))  # as a reader finds it: NaN is null, a tuple a list
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise ContractError(f"manifest.json: {error}") from None
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def encode_manifest(manifest: ExportManifest | ModelManifest) -> bytes:
    """A manifest as the bytes of its file: JSON indented by 2, keys in schema order, a newline at the end."""
    try:
        encoded = _ENCODER.encode(manifest)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise ContractError(f"manifest.json: {error}") from None
    return msgspec.json.format(encoded, indent=2) + b"\n"


def _write_manifest(folder: Path, manifest: AnyManifest) -> AnyManifest:
    """Write it with its own checksum. Returns what was written. Raises ContractError for what the reader would refuse."""
    manifest = msgspec.structs.replace(manifest, fields_sha256=hash_fields(manifest))
    data = encode_manifest(manifest)
    _decode_manifest(data, type(manifest), "manifest.json")
    write_atomically(folder / "manifest.json", data)
    return manifest


def _read_manifest(folder: Path, manifest_type: type[AnyManifest]) -> AnyManifest:
    path = folder / "manifest.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ContractError(f"{path}: {error.strerror}") from None
    return _decode_manifest(data, manifest_type, str(path))


def _decode_manifest(data: bytes, manifest_type: type[AnyManifest], place: str) -> AnyManifest:
    try:
        manifest = msgspec.json.decode(data, type=manifest_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{place}: {_explain(error)}") from None
    if manifest.fields_sha256 is not UNSET and manifest.fields_sha256 != hash_fields(manifest):
        raise ContractError(f"{place}: field fields_sha256: does not match the other fields; one was changed")
    return manifest


def _file_entry(path: Path, rows: int | None = None) -> ExportFile:
    return ExportFile(sha256=hash_file(path), bytes=path.stat().st_size, rows=rows)


def _is_intact(path: Path, entry: ExportFile | ModelFile) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and hash_file(path) == entry.sha256


def utc_now() -> str:
    """The time now as the contract writes it: "2026-11-21T08:00:00Z"."""
    return format_time(datetime.now(UTC).replace(microsecond=0))


def format_time(moment: datetime) -> str:
    """A moment with a time zone as the contract writes it: UTC, ISO 8601, ending in "Z"."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def find_code_version() -> str:
    """HEED_CODE_VERSION, else the git commit of this checkout (marked "+changes" when it has some), else "unknown"."""
    if version := os.environ.get("HEED_CODE_VERSION"):
        return version
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
