"""Rows whose prompts are new and come without an author, a split or an id: straight into the tables by COPY, while the next are read.

Many files hold no other rows. The first other one, or one whose prompt is here already, ends this way in: it and what follows are
staged and compared set by set (import_staging.py, import_store.py).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from typing import Any

from django.db import IntegrityError, connection

from labeling import locks
from labeling.actions.import_rows import PromptItem
from labeling.actions.import_staging import OPTIONAL_FIELDS, messages_json, own_split
from labeling.actions.import_store import Made, Models, id_of_text

Items = Iterator[tuple[str, PromptItem]]
Chunk = list[tuple[str, PromptItem]]

# The first chunk is small, so that PostgreSQL begins soon; each is twice as long as the one before.
FIRST_ROWS, MOST_ROWS = 100, 2000
MOST_CHARS = 4_000_000
CHARS_OF_EACH = 300  # what a message or a response takes beside its text

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


def store(items: Items, made: Made, has_failed: Callable[[], bool]) -> Items:
    """Store the leading rows, as far as that goes, and give those that are left. Once `has_failed`, no more are stored."""
    most, begin = FIRST_ROWS, SAVEPOINT
    chunk = _take(items, most)
    if chunk and _is_plain(chunk):
        locks.hold("import")
    with connection.cursor() as cursor:
        while chunk and not has_failed() and _is_plain(chunk):
            rows = [item for _place, item in chunk]
            models = made.models(one.model for item in rows for one in item.responses)  # outside: they stay
            cursor.execute(begin)
            most, begin = min(2 * most, MOST_ROWS), NEXT_SAVEPOINT
            ahead: Chunk = []
            try:
                with _storing(rows, models, made):
                    ahead = _take(items, most)
            except IntegrityError:  # one of these rows is no news
                cursor.execute(ROLLBACK)
                return chain(chunk, ahead, items)
            chunk = ahead
    return chain(chunk, items)


def _take(items: Items, most: int) -> Chunk:
    """The next rows: so many, or fewer where they are long."""
    chunk: Chunk = []
    chars = 0
    for place, item in items:
        chunk.append((place, item))
        for message in item.messages:
            chars += len(message["content"]) + CHARS_OF_EACH
        for response in item.responses:
            chars += len(response.text) + len(response.sampling) + CHARS_OF_EACH
        chars += len(item.metadata)
        if len(chunk) >= most or chars > MOST_CHARS:
            break
    return chunk


def _is_plain(chunk: Chunk) -> bool:
    """True where none of these rows needs a look at others, but for whether its prompt is new."""
    for _place, item in chunk:
        for name in OPTIONAL_FIELDS:
            if getattr(item, name) is not None:
                return False
        for response in item.responses:
            if response.external_id and response.external_id.startswith("text:"):
                return False  # taken for one that came without an id, when later rows are compared
    return len({item.content_sha256 for _place, item in chunk}) == len(chunk)


@contextmanager
def _storing(chunk: list[PromptItem], models: Models, made: Made) -> Iterator[None]:
    """Send the rows. PostgreSQL goes on storing the last of them (responses, where there are any) while the caller does other
    things inside; leaving waits for it.

    Raises IntegrityError, having stored none of them, if a prompt is here already, or a response is there twice.
    """
    of_all = ("import", str(made.now), str(made.record.pk))
    has_responses = any(item.responses for item in chunk)
    with connection.wrap_database_errors, connection.cursor() as cursor:
        keys: list[tuple[int, ...]] = [()] * len(chunk)  # the database gives them, where nobody has to know
        if has_responses:
            cursor.execute(KEYS, [len(chunk)])
            keys = cursor.fetchall()
        with cursor.copy(COPY_PROMPTS.format(id="id, " if has_responses else "")) as copy:
            for key, uuid, item in zip(keys, _uuids(len(chunk)), chunk, strict=True):
                copy.write_row((
                    *key, uuid, messages_json(item.messages), messages_json(item.original), item.content_sha256, item.kind,
                    item.use_case, item.organization, own_split(item), item.metadata, *of_all,
                ))  # fmt: skip
            responses = list(_responses(chunk, keys, models, made.now)) if has_responses else []
            if not has_responses:
                yield
        if has_responses:
            with cursor.copy(COPY_RESPONSES) as copy:
                for uuid, row in zip(_uuids(len(responses)), responses, strict=True):
                    copy.write_row((uuid, *row))
                yield
    made.counts.update(rows=len(chunk), prompts_new=len(chunk))
    for item in chunk:
        for one in item.responses:
            made.counts["demonstrations_new" if one.model is None else "responses_new"] += 1


def _responses(
    chunk: list[PromptItem], keys: list[tuple[int, ...]], models: Models, now: datetime
) -> Iterator[tuple[Any, ...]]:
    """The responses' rows, but for their UUIDs."""
    created_at = str(now)
    for key, item in zip(keys, chunk, strict=True):
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


def _uuids(count: int) -> Iterator[str]:
    """New UUIDs of version 4 in hexadecimal, many times faster than by uuid.uuid4 and to be sent as they are."""
    digits = os.urandom(16 * count).hex()
    for at in range(0, len(digits), 32):
        variant = "89ab"[int(digits[at + 16], 16) & 3]
        yield f"{digits[at : at + 12]}4{digits[at + 13 : at + 16]}{variant}{digits[at + 17 : at + 32]}"
