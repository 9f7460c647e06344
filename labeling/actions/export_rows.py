"""The rows of an export, straight from the database: streamed, in bytewise order of their ids, people as pseudonyms."""

import hmac
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from functools import lru_cache
from heapq import merge
from itertools import combinations
from typing import Any, NamedTuple

from django.db import connection
from msgspec import Struct, ValidationError
from msgspec.json import Decoder
from msgspec.structs import astuple

from labeling.actions.export_queries import (
    DEMONSTRATIONS,
    IMPORTED,
    PROMPTS,
    RANKINGS,
    STATES,
    Selection,
    parameters,
)
from labeling.models import LabelSchema, ModelVersion, PseudonymKey
from training.contract import (
    ContractError,
    DemonstrationRow,
    Flags,
    Message,
    PromptRow,
    RankedResponse,
    Ranking,
    RankingRevisionRow,
    RankingRow,
    Rating,
    ReviewRow,
    RevisionRow,
    format_time,
)

FETCH_ROWS = 200
FETCHES_AHEAD = 2
"""So that the database need not wait where we take longer over some rows, nor we where it does."""


class ExportRows:
    """The three kinds of rows of a selection, each read once through a cursor on the server, in flat memory.

    Use it in a `with` block inside the transaction: a cursor closed after its transaction's end is an error.
    """

    def __init__(self, selection: Selection):
        self.cursors = ExitStack()
        self.parameters = parameters(selection)
        self.schemas = {schema.pk: _Schema.of(schema) for schema in LabelSchema.objects.all()}
        self.models = {str(pk): name for pk, name in ModelVersion.objects.values_list("pk", "name")}
        self.names = Pseudonyms(PseudonymKey.secret())
        self.agreed = self.compared = self.shared_tasks = 0

    def __enter__(self) -> "ExportRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self.cursors.close()

    def prompts(self) -> Iterator[PromptRow]:
        """Every prompt of the selected splits and use cases, labeled or not: PPO needs no labels."""
        for row in self._fetch(PROMPTS):
            yield PromptRow(
                prompt_id=row["uuid"],
                external_id=row["external_id"],
                kind=row["kind"],
                use_case=row["use_case"] or None,
                source=row["source"],
                split=row["split"],
                author=self.names.author(row["author_key"], row["author_user"]),
                organization=self.names.organization(row["organization"]),
                messages=row["messages"],
                metadata=_canonical_json(row["metadata"]),
            )

    def demonstrations(self) -> Iterator[DemonstrationRow]:
        """Labelers' demonstrations and imported ones, merged by id."""
        labeled = map(self._demonstration, self._fetch(DEMONSTRATIONS))
        imported = map(self._imported, self._fetch(IMPORTED))
        return merge(labeled, imported, key=lambda row: row.demonstration_id.encode())

    def rankings(self) -> Iterator[RankingRow]:
        """The rankings of each task and labeler group."""
        for row in self._fetch(RANKINGS):
            responses = [self._response(found) for found in _sorted(row["responses"])]
            ids = [response.response_id for response in responses]
            rankings = [self._ranking(ranking, ids) for ranking in _sorted(row["rankings"])]
            self._compare(rankings, ids)
            yield RankingRow(
                task_id=row["task_id"],
                prompt_id=row["prompt_id"],
                batch=row["batch"],
                split=row["split"],
                use_case=row["use_case"] or None,
                messages=row["messages"],
                labeler_group=row["labeler_group"],
                responses=responses,
                rankings=rankings,
            )

    def _compare(self, rankings: list[Ranking], ids: list[str]) -> None:
        """Count the comparisons that each two labelers of a row make, and those on which they agree (InstructGPT §3.4)."""
        if len(rankings) < 2:
            return
        places = [{i: place for place, tier in enumerate(one.tiers) for i in tier} for one in rankings]
        self.shared_tasks += 1
        for first, second in combinations(places, 2):
            for a, b in combinations(ids, 2):
                order, other = first[a] - first[b], second[a] - second[b]
                self.agreed += (order > 0) == (other > 0) and (order < 0) == (other < 0)
                self.compared += 1

    def agreement(self) -> str:
        """What the card says of how far labelers agree, once `rankings` has been read to its end."""
        if not self.compared:
            return "Agreement: no task here was ranked by two labelers of one group."
        return (
            f"Agreement: two labelers of one group say the same of {100 * self.agreed / self.compared:.1f} % of {self.compared:,} "
            f"comparisons of two responses (better, worse or tied; {self.shared_tasks:,} tasks that two or more of them ranked)."
        )

    def _fetch(self, sql: str) -> Iterator[dict[str, Any]]:
        """The rows of a query; the next ones are fetched while these are worked on."""
        cursor = self.cursors.enter_context(connection.chunked_cursor())
        pool = self.cursors.enter_context(ThreadPoolExecutor(1))  # ends before its cursor is closed
        cursor.execute(sql, self.parameters)
        coming = deque(pool.submit(cursor.fetchmany, FETCH_ROWS) for _ in range(FETCHES_AHEAD))
        while rows := coming.popleft().result():
            coming.append(pool.submit(cursor.fetchmany, FETCH_ROWS))
            names = [column.name for column in cursor.description]
            in_json = [name for name in names if name in _READERS]
            for row in rows:
                yield _loaded(dict(zip(names, row, strict=True)), in_json)

    def _demonstration(self, row: dict[str, Any]) -> DemonstrationRow:
        *earlier, current = _sorted(row["revisions"])
        return DemonstrationRow(
            demonstration_id=row["uuid"],
            prompt_id=row["prompt_id"],
            split=row["split"],
            use_case=row["use_case"] or None,
            messages=row["messages"],
            response=current.text,
            labeler=self.names.person(row["labeler_id"]),
            labeler_group=row["labeler_group"],
            origin=row["origin"],
            review=STATES[row["status"]],  # type: ignore[arg-type]
            is_surplus=row["is_surplus"],
            schema_version=self.schemas[row["schema_id"]].version,
            revision=current.number,
            submitted_at=_time(current.at),
            earlier_revisions=[
                RevisionRow(revision=r.number, response=r.text, submitted_at=_time(r.at)) for r in earlier
            ],
            reviews=self._reviews(row["reviews"]),
        )

    @staticmethod
    def _imported(row: dict[str, Any]) -> DemonstrationRow:
        """A demonstration that came with an import: by nobody known here, and reviewed by nobody."""
        return DemonstrationRow(
            demonstration_id=row["uuid"],
            prompt_id=row["prompt_id"],
            split=row["split"],
            use_case=row["use_case"] or None,
            messages=row["messages"],
            response=row["text"],
            labeler=None,
            labeler_group="training",
            origin="import",
            review="unreviewed",
            is_surplus=False,
            schema_version=1,
            revision=1,
            submitted_at=format_time(row["created_at"]),
            earlier_revisions=[],
            reviews=[],
        )

    def _ranking(self, found: "_Label", ids: list[str]) -> Ranking:
        schema = self.schemas[found.schema]
        *earlier, current = _sorted(found.revisions)
        return Ranking(
            ranking_id=found.id,
            labeler=self.names.person(found.labeler),
            origin=found.origin,  # type: ignore[arg-type]
            review=STATES[found.status],  # type: ignore[index,arg-type]
            is_surplus=found.is_surplus,
            tiers=current.tiers,
            all_bad=current.all_bad,
            ratings=_ratings(current, schema, ids),
            prompt_flags=_flags(current.prompt_flags, schema.prompt_flags),
            shown_order=found.shown_order,
            schema_version=schema.version,
            revision=current.number,
            comment=current.comment,
            submitted_at=_time(current.at),
            earlier_revisions=[_ranking_revision(revision, schema, ids) for revision in earlier],
            reviews=self._reviews(found.reviews),
        )

    def _response(self, found: "_Response") -> RankedResponse:
        return RankedResponse(
            response_id=found.id,
            text=found.text,
            model=self.models[found.model] if found.model else None,
            origin=found.origin,  # type: ignore[arg-type]
            finish_reason=found.finish_reason or None,
            sampling=_canonical_json(found.sampling),
        )

    def _reviews(self, reviews: "list[_Review] | None") -> list[ReviewRow]:
        return [
            ReviewRow(
                revision=review.revision,
                verdict=review.verdict,
                comment=review.comment,
                reviewer=self.names.person(review.reviewer),
                reviewed_at=_time(review.at),
            )
            for review in _sorted(reviews or [])
        ]


class Pseudonyms:
    """Names that hide people and stay the same in every export of this installation: keyed hashes of 64 bits.

    A labeler who also writes prompts or reviews has one pseudonym.
    """

    def __init__(self, key: bytes):
        self.key = key
        self._known: dict[str, str] = {}  # a few people say all there is

    def person(self, user_id: int) -> str:
        """The pseudonym of an account."""
        account = f"user:{user_id}"
        if (name := self._known.get(account)) is None:
            name = self._known[account] = self._hash("p", account)
        return name

    def author(self, key: str | None, user_id: int | None) -> str | None:
        """The pseudonym of a prompt's author, None where none is known."""
        if user_id is not None:
            return self.person(user_id)
        return self._hash("p", f"author:{key}") if key is not None else None

    def organization(self, name: str) -> str | None:
        """The pseudonym of an organization, None where none is known."""
        return self._hash("o", f"organization:{name}") if name else None

    def _hash(self, prefix: str, text: str) -> str:
        return f"{prefix}-{hmac.digest(self.key, text.encode(), 'sha256').hex()[:16]}"


class _Found(Struct, gc=False, array_like=True):
    """What the queries say in JSON, an array each, read in one go; whether it makes sense the contract's writer says. Holds no cycles."""


class _Rated(Struct, gc=False):
    quality: int | None = None
    flags: dict[str, bool | None] | None = None


_UNRATED = _Rated()


class _Revision(_Found):
    number: int
    text: str | None
    tiers: list[list[str]] | None
    all_bad: bool
    ratings: dict[str, _Rated | None]
    prompt_flags: dict[str, bool | None]
    comment: str
    at: str


class _Review(_Found):
    at: str
    key: int
    revision: int
    verdict: str
    comment: str
    reviewer: int


class _Label(_Found):
    id: str
    labeler: int
    origin: str
    status: str
    is_surplus: bool
    schema: int
    shown_order: list[str]
    revisions: list[_Revision]
    reviews: list[_Review] | None


class _Response(_Found):
    id: str
    text: str
    model: str | None
    origin: str
    finish_reason: str
    sampling: str


_READERS = {
    "messages": Decoder(list[Message]).decode,
    "responses": Decoder(list[_Response]).decode,
    "revisions": Decoder(list[_Revision]).decode,
    "reviews": Decoder(list[_Review] | None).decode,
    "rankings": Decoder(list[_Label]).decode,
}


def _sorted(found: list[Any]) -> list[Any]:
    """By what comes first in them: ids, numbers, times (of one form, so that they sort as texts)."""
    return sorted(found, key=astuple) if len(found) > 1 else found


def _loaded(row: dict[str, Any], in_json: list[str]) -> dict[str, Any]:
    """The row, with what its JSON says in place of the text."""
    for name in in_json:
        if (text := row[name]) is not None:
            try:
                row[name] = _READERS[name](text)
            except ValidationError as error:
                raise ContractError(f"{name} of {next(iter(row.values()))}: {error}") from None
    return row


def _canonical_json(text: str) -> str:
    """A jsonb in the contract's form. Python's own reader: it takes numbers of any size, as the column does."""
    if text == "{}":  # nearly always
        return text
    return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _time(text: str) -> str:
    """A time from inside a JSON, in the contract's form."""
    if len(text) == 32 and text.endswith("+00:00"):  # nearly always: UTC, to the microsecond
        return text[:26] + "Z"
    return format_time(datetime.fromisoformat(text))


def _ranking_revision(found: _Revision, schema: "_Schema", ids: list[str]) -> RankingRevisionRow:
    return RankingRevisionRow(
        revision=found.number,
        tiers=found.tiers,  # type: ignore[arg-type]
        all_bad=found.all_bad,
        ratings=_ratings(found, schema, ids),
        prompt_flags=_flags(found.prompt_flags, schema.prompt_flags),
        comment=found.comment,
        schema_version=schema.version,
        submitted_at=_time(found.at),
    )


def _ratings(found: _Revision, schema: "_Schema", ids: list[str]) -> list[Rating]:
    """A rating per response, with every flag of the schema, unanswered ones as None."""
    said = [(i, found.ratings.get(i) or _UNRATED) for i in ids]
    return [
        Rating(response_id=i, quality=one.quality, flags=_flags(one.flags, schema.response_flags)) for i, one in said
    ]


class _Questions(NamedTuple):
    """The flags that a label schema asks for, and what it is to answer none of them."""

    names: tuple[str, ...]
    unanswered: Flags

    @classmethod
    def of(cls, flags: list[dict[str, Any]]) -> "_Questions":
        names = tuple(flag["name"] for flag in flags)
        return cls(names, _answered(names, (None,) * len(names)))


class _Schema(NamedTuple):
    """What a row needs of its label schema."""

    version: int
    response_flags: _Questions
    prompt_flags: _Questions

    @classmethod
    def of(cls, schema: LabelSchema) -> "_Schema":
        return cls(schema.version, _Questions.of(schema.response_flags), _Questions.of(schema.prompt_flags))


def _flags(answers: dict[str, bool | None] | None, questions: "_Questions") -> Flags:
    """The schema's flags in its order, then answers to questions it does not have: nothing said is left out."""
    if not answers:  # nearly always
        return questions.unanswered
    names = (*questions.names, *sorted(answers.keys() - questions.names))
    return _answered(names, tuple(map(answers.get, names)))


@lru_cache(maxsize=4096)
def _answered(names: tuple[str, ...], values: tuple[bool | None, ...]) -> Flags:
    """Most answers are alike: one object, which nobody changes, serves many rows."""
    return Flags.of(zip(names, values, strict=True))
