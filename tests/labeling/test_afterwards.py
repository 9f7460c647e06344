"""Notes about answers are written later: in order, again while the database is away, and counted when they are lost."""

import asyncio

import pytest
from django.db import InterfaceError, OperationalError

from labeling.gateway import afterwards
from labeling.gateway.afterwards import Afterwards, Note
from labeling.models.gateway_keys import Amounts
from tests.labeling.gateways import run_apart


class Database:
    """Fails as often as it is told, then writes."""

    def __init__(self, *failures: Exception):
        self.failures, self.written = list(failures), []

    async def run(self, function, note: Note) -> None:
        assert function is afterwards.write
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(note.key_id)


def note(number: int, text: str = "") -> Note:
    return Note(number, "b", Amounts(), messages=[{"role": "user", "content": text}])


def run(notes: list[Note], database: Database) -> tuple[Afterwards, list[float]]:
    """What becomes of notes; and the pauses that were made, without waiting for them."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def main() -> Afterwards:
        made = Afterwards(database, sleep)
        writer = asyncio.create_task(made.run())
        for each in notes:
            made.put(each)
        await made.drain(5)
        writer.cancel()
        return made

    return run_apart(main()), pauses


def test_notes_are_written_in_order():
    database = Database()
    made, pauses = run([note(1), note(2), note(3)], database)
    assert (database.written, made.lost, made.waiting, pauses) == ([1, 2, 3], 0, 0, [])


def test_they_wait_for_the_database():
    database = Database(OperationalError(), InterfaceError(), OperationalError())
    made, pauses = run([note(1), note(2)], database)
    assert (database.written, made.lost) == ([1, 2], 0)
    assert pauses == [0.5, 1.0, 2.0]


def test_after_some_minutes_a_note_is_lost_and_counted(caplog):
    database = Database(*[OperationalError("a secret prompt")] * 60)
    made, pauses = run([note(1, "a secret prompt")], database)
    assert (database.written, made.lost) == ([], 1)
    assert 600 <= sum(pauses) < 620
    assert "1 lost so far" in caplog.text
    assert "secret" not in caplog.text


def test_one_that_cannot_be_written_does_not_stop_the_others():
    database = Database(ValueError("no such column"))
    made, pauses = run([note(1), note(2)], database)
    assert (database.written, made.lost, pauses) == ([2], 1, [])


@pytest.mark.parametrize(("limit", "value"), [("MAX_WAITING", 2), ("MAX_WAITING_CHARS", 6)])
def test_what_finds_no_room_is_counted(monkeypatch, limit, value):
    monkeypatch.setattr(afterwards, limit, value)
    made, _ = run([note(1, "abc"), note(2, "def"), note(3, "g")], database := Database())
    assert (database.written, made.lost) == ([1, 2], 1)
