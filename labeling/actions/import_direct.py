"""Rows whose prompts are new and come without an author, a split or an id: straight into the tables by COPY, while the next are read.

Many files hold no other rows. The first other one, or one whose prompt is here already, ends this way in: it and what follows are
staged and compared set by set (import_staging.py, import_store.py).
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import repeat
from typing import Any

from django.db import IntegrityError, connection

from labeling import locks
from labeling.actions.import_rows import PromptItem
from labeling.actions.import_staging import OPTIONAL_FIELDS, messages_json, own_split
from labeling.actions.import_store import Made, Models, id_of_text

Placed = tuple[str, PromptItem]

MOST_ROWS, MOST_CHARS = 2000, 4_000_000
"""Of a chunk, that is stored in one go or not at all: so many rows, or fewer where they are long."""
CHARS_OF_EACH = 300  # what a message or a response takes beside its text

UUIDS_AT_ONCE = 100

SAVEPOINT, ROLLBACK = "SAVEPOINT heed_chunk", "ROLLBACK TO SAVEPOINT heed_chunk"
NEXT_SAVEPOINT = (
    f"RELEASE SAVEPOINT heed_chunk; {SAVEPOINT}"  # at once: where files are short, what is waited for shows
)
# The sequence's name is looked up once, by a query of its own; for each key it would take longer than to store a row.
KEYS = """
SELECT nextval((SELECT pg_get_serial_sequence('labeling_prompt', 'id')::regclass)) FROM generate_series(1, %s)
"""
COPY_PROMPTS = """
COPY labeling_prompt ({id}uuid, messages, original, content_sha256, kind, use_case, organization, split, metadata, source,
                      created_at, imported_in_id) FROM STDIN
"""
COPY_RESPONSES = """
COPY labeling_response (uuid, prompt_id, text, text_sha256, origin, model_version_id, sampling, finish_reason, external_id,
                        created_at) FROM STDIN
"""


def store(items: Iterator[Placed], made: Made, has_failed: Callable[[], bool]) -> Iterator[Placed]:
    """Store the leading rows, as far as that goes, and give those that are left. Once `has_failed`, no more are stored."""
    rows, begin = _Rows(items, has_failed), SAVEPOINT
    with connection.cursor() as cursor:
        while rows.have_chunk():
            if begin == SAVEPOINT:
                locks.hold("import")
            cursor.execute(begin)
            begin = NEXT_SAVEPOINT
            chunk: list[Placed] = []
            try:
                _store_chunk(rows, chunk, made)
            except IntegrityError:  # one of these rows is no news
                cursor.execute(ROLLBACK)
                made.forget_models()
                rows.put_back(chunk)
                break
    return rows


class _Rows:
    """The rows of an import, and the chunks of those that need no look at others, but for whether their prompts are new."""

    def __init__(self, items: Iterator[Placed], has_failed: Callable[[], bool]):
        self.have_responses = False  # in a chunk that has its first row without, the first row with ends it
        self._items = items
        self._has_failed = has_failed
        self._back: deque[Placed] = deque()

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> Placed:
        return self._back.popleft() if self._back else next(self._items)

    def put_back(self, rows: list[Placed]) -> None:
        """Let these come next."""
        self._back.extendleft(reversed(rows))

    def have_chunk(self) -> bool:
        """True if one begins with the next row."""
        placed = next(self, None)
        if placed is None:
            return False
        self.put_back([placed])
        self.have_responses |= bool(placed[1].responses)
        return _is_plain(placed[1]) and not self._has_failed()

    def chunk(self, kept: list[Placed]) -> Iterator[PromptItem]:
        """The next rows, as they are read, none of their prompts twice; they are put into `kept`, too."""
        digests: set[str] = set()
        chars = 0
        for placed in self:
            item = placed[1]
            has_no_place = item.content_sha256 in digests or (item.responses and not self.have_responses)
            if has_no_place or not _is_plain(item) or self._has_failed():
                self.put_back([placed])
                return
            kept.append(placed)
            yield item
            digests.add(item.content_sha256)
            chars += _chars(item)
            if len(kept) >= MOST_ROWS or chars > MOST_CHARS:
                return

    def read_ahead(self) -> None:
        """Read a chunk now, for later."""
        ahead: list[Placed] = []
        for _item in self.chunk(ahead):
            pass
        self.put_back(ahead)


def _is_plain(item: PromptItem) -> bool:
    """True where a row needs no look at others, but for whether its prompt is new."""
    for name in OPTIONAL_FIELDS:
        if getattr(item, name) is not None:
            return False
    # An id like ours would be taken for that of a response that came without one, when later rows are compared.
    return not any(one.external_id and one.external_id.startswith("text:") for one in item.responses)


def _chars(item: PromptItem) -> int:
    chars = len(item.metadata)
    for message in item.messages:
        chars += len(message["content"]) + CHARS_OF_EACH
    for response in item.responses:
        chars += len(response.text) + len(response.sampling) + CHARS_OF_EACH
    return chars


def _store_chunk(rows: _Rows, chunk: list[Placed], made: Made) -> None:
    """Store the next rows while they are read, and put them into `chunk`.

    Raises IntegrityError, having stored none of them, if a prompt is here already, or a response is there twice.
    """
    of_all = ("import", str(made.now), str(made.record.pk))
    with connection.wrap_database_errors, connection.cursor() as cursor:
        keys: Iterable[tuple[int, ...]] = repeat(())  # the database gives them, where nobody has to know
        if rows.have_responses:
            cursor.execute(KEYS, [MOST_ROWS])
            keys = cursor.fetchall()
        with cursor.copy(COPY_PROMPTS.format(id="id, " if rows.have_responses else "")) as copy:
            for item, key, uuid in zip(rows.chunk(chunk), keys, _uuids(), strict=False):
                copy.write_row((
                    *key, uuid, messages_json(item.messages), messages_json(item.original), item.content_sha256, item.kind,
                    item.use_case, item.organization, own_split(item), item.metadata, *of_all,
                ))  # fmt: skip
        stored = [item for _place, item in chunk]
        if rows.have_responses:
            models = made.models(one.model for item in stored for one in item.responses)
            with cursor.copy(COPY_RESPONSES) as copy:
                for uuid, row in zip(_uuids(), _responses(stored, keys, models, made.now), strict=False):
                    copy.write_row((uuid, *row))
                rows.read_ahead()  # while PostgreSQL stores the last of them
    made.counts.update(rows=len(stored), prompts_new=len(stored))
    for item in stored:
        for one in item.responses:
            made.counts["demonstrations_new" if one.model is None else "responses_new"] += 1


def _responses(
    items: list[PromptItem], keys: Iterable[tuple[int, ...]], models: Models, now: datetime
) -> Iterator[tuple[Any, ...]]:
    """The responses' rows, but for their UUIDs."""
    created_at = str(now)
    for item, key in zip(items, keys, strict=False):
        copies: Counter[tuple[str | None, str]] = Counter()
        for one in item.responses:
            digest, external_id = one.text_sha256, one.external_id
            if external_id is None:
                copies[one.model, digest] += 1
                external_id = id_of_text(one.model, digest, copies[one.model, digest])
            yield (
                *key, one.text, digest, "person" if one.model is None else "model", models[one.model],
                one.sampling, one.finish_reason, external_id, created_at,
            )  # fmt: skip


def _uuids() -> Iterator[str]:
    """New UUIDs of version 4 in hexadecimal, many times faster than by uuid.uuid4 and to be sent as they are."""
    while True:
        digits = os.urandom(16 * UUIDS_AT_ONCE).hex()
        for at in range(0, len(digits), 32):
            variant = "89ab"[int(digits[at + 16], 16) & 3]
            yield f"{digits[at : at + 12]}4{digits[at + 13 : at + 16]}{variant}{digits[at + 17 : at + 32]}"
