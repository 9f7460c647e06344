"""What is written when an answer is over: use, tokens, the prompt where it may be kept. No answer waits for it or fails by it.

Notes wait in memory. While the database is away they are tried again for some minutes; what is then still unwritten, or finds no
room, or waits in a process that is killed, is lost, and (unless killed) counted and said in the log, without its text.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import transaction
from django.utils import timezone

from labeling.actions.capture import Asker, Outcome, capture
from labeling.gateway.admission import AWAY, Database
from labeling.models import GatewayKey, GatewayUsage, RateBucket
from labeling.models.gateway_keys import Amounts

log = logging.getLogger(__name__)

GIVE_UP_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
MAX_WAITING = 20_000  # notes
MAX_WAITING_CHARS = 50_000_000  # of prompts among them


@dataclass(frozen=True)
class Note:
    """One request, over. `messages`: the prompt, where it may be kept."""

    key_id: int | None
    bucket: str
    amounts: Amounts
    asker: Asker | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def chars(self) -> int:
        """The room that it takes."""
        return sum(len(message["content"]) for message in self.messages)


def write(note: Note) -> None:
    """Write a note to the database: all of it, or nothing."""
    with transaction.atomic():
        amounts = note.amounts
        if note.messages and note.asker is not None:
            outcome = capture(messages=note.messages, asker=note.asker, metadata=note.metadata)
            is_kept = outcome == Outcome.CAPTURED
            amounts = replace(amounts, captured=int(is_kept), held_back=int(not is_kept))
        if note.key_id is None or GatewayKey.objects.filter(pk=note.key_id).exists():
            GatewayUsage.objects.add(key_id=note.key_id, day=timezone.localdate(), amounts=amounts)
        if tokens := amounts.prompt_tokens + amounts.completion_tokens:
            RateBucket.objects.charge(note.bucket, tokens)


class Afterwards:
    """Notes that wait to be written, and the task that writes them, in order."""

    def __init__(self, database: Database, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep):
        self._database, self._sleep = database, sleep
        self._notes: deque[Note] = deque()
        self._chars = 0
        self._has_news = asyncio.Event()
        self.lost = 0

    @property
    def waiting(self) -> int:
        """How many notes are not written yet."""
        return len(self._notes)

    def put(self, note: Note) -> None:
        """Take a note to write later. Never waits; what finds no room is lost and counted."""
        if len(self._notes) >= MAX_WAITING or self._chars + note.chars > MAX_WAITING_CHARS:
            self._lose("there is no room for more while the database is away")
            return
        self._notes.append(note)
        self._chars += note.chars
        self._has_news.set()

    async def run(self) -> None:
        """Write notes as they come, until cancelled."""
        while True:
            await self._has_news.wait()
            while self._notes:
                note = self._notes[0]
                try:
                    await self._write(note)
                finally:  # also when cancelled in the middle: it was written, or will not be
                    self._notes.popleft()
                    self._chars -= note.chars
            self._has_news.clear()

    async def drain(self, seconds: float) -> None:
        """Wait until all is written, but no longer; then what is left is lost."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._notes and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for _ in range(self.waiting):
            self._lose("the gateway was stopped while the database was away")

    async def _write(self, note: Note) -> None:
        pause, waited = FIRST_PAUSE_SECONDS, 0.0
        while True:
            try:
                return await self._database.run(write, note)
            except AWAY as error:
                if waited >= GIVE_UP_SECONDS:
                    return self._lose(f"the database is away too long ({type(error).__name__})")
            except Exception as error:  # a row that cannot be written must not stop those behind it
                # The error's own words may hold the prompt.
                return self._lose(f"it cannot be written ({type(error).__name__})")
            await self._sleep(pause)
            waited += pause
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _lose(self, why: str) -> None:
        self.lost += 1
        log.error("use of one request was not recorded, nor its prompt kept: %s (%d lost so far)", why, self.lost)
