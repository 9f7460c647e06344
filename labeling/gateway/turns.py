"""The playground's answers: written here piece by piece, while the pages come and fetch what is there so far.

The web half hands a conversation over and asks how far it is, each in a few milliseconds, so a slow policy holds none of its
threads. What it sends is signed with SECRET_KEY, which the two share; nobody else can speak to these addresses. Answers live in
this process's memory and are forgotten some minutes after their last reader.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from django.core import signing

from labeling.gateway.errors import GatewayError, invalid

SALT = "heed playground"
MAX_AGE_SECONDS = 60  # of a signed message
FORGET_SECONDS = 600.0
MAX_TURNS = 1000
MAX_RUNNING_PER_PERSON = 2


@dataclass
class Turn:
    """An answer in the playground, under way or over."""

    person_id: int
    text: str = ""
    model: str = ""
    finish_reason: str = ""
    error: dict[str, Any] | None = None
    is_over: bool = False
    read_at: float = field(default_factory=time.monotonic)
    task: asyncio.Task | None = None

    async def stop(self) -> None:
        """Leave it at what is there."""
        if self.task and not self.is_over:
            self.task.cancel()
            await asyncio.wait([self.task])
            self.finish_reason = "stopped"
            self.is_over = True

    @property
    def body(self) -> dict[str, Any]:
        """As the web half reads it."""
        names = ("text", "model", "finish_reason", "error", "is_over")
        return {name: getattr(self, name) for name in names}


def signed(message: dict[str, Any]) -> bytes:
    """A message of the web half, for the gateway alone."""
    return signing.dumps(message, salt=SALT, compress=True).encode()


def opened(body: bytes) -> dict[str, Any]:
    """The message. Raises GatewayError 403 unless the web half signed it within the last minute."""
    try:
        return signing.loads(body.decode("ascii", "replace"), salt=SALT, max_age=MAX_AGE_SECONDS)
    except signing.BadSignature:
        raise GatewayError(403, "not_signed", "This address is for the web half alone.") from None


class Turns:
    """All answers that pages may come for, by the id that the page gave."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    def begin(self, turn_id: str, person_id: int) -> Turn | None:
        """A new turn; None if this one was begun before (a double click). Raises GatewayError 429 when there are too many."""
        self._forget_old()
        if known := self._turns.get(turn_id):
            if known.person_id != person_id:
                raise invalid("turn: belongs to somebody else")
            return None
        running = [turn for turn in self._turns.values() if not turn.is_over]
        if sum(turn.person_id == person_id for turn in running) >= MAX_RUNNING_PER_PERSON or len(running) >= MAX_TURNS:
            message = "Answers to other questions are still being written. Wait for one to end, or stop it."
            raise GatewayError(429, "too_many_turns", message, retry_after_seconds=5)
        turn = self._turns[turn_id] = Turn(person_id)
        return turn

    def read(self, turn_id: str, person_id: int) -> Turn:
        """A person's turn. Raises GatewayError 404 when it is not here (any more)."""
        turn = self._turns.get(turn_id)
        if turn is None or turn.person_id != person_id:
            raise GatewayError(404, "turn_gone", "This answer is not here any more.")
        turn.read_at = time.monotonic()
        return turn

    async def end(self) -> None:
        """Stop all that is under way."""
        for turn in list(self._turns.values()):
            await turn.stop()

    def _forget_old(self) -> None:
        now = time.monotonic()
        for turn_id, turn in list(self._turns.items()):
            if now - turn.read_at > FORGET_SECONDS:
                if turn.task:
                    turn.task.cancel()
                del self._turns[turn_id]
