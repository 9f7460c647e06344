"""What a night has done so far: a folder per night, whose state.json says which steps are done and what they came to.

The file is written whole after each step, so that a night killed at any moment goes on with the step it was in. A step that was
killed between its work and its entry here runs again: each is safe to repeat.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from training.contract import utc_now
from training.folders import atomic_folder, write_atomically

STATE = "state.json"


class Busy(Exception):
    """Another process is at the nightly work in this folder."""


class Night:
    """One night: its number, what its finished steps came to, what went wrong, and how it ended."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state: dict[str, Any] = json.loads((folder / STATE).read_bytes())

    @classmethod
    def begin(cls, root: Path, number: int, **facts: Any) -> Night:
        """A new night with these facts. Its folder is there whole or not at all."""
        folder = root / f"night-{number:04d}"
        state = {"number": number, "id": str(uuid.uuid4()), "begun_at": utc_now(), "outcome": None} | facts
        with atomic_folder(folder) as building:
            (building / STATE).write_text(json.dumps(state | {"steps": {}, "failures": []}, indent=1))
        return cls(folder)

    @classmethod
    def all(cls, root: Path) -> list[Night]:
        """Every night in this folder, oldest first."""
        folders = [path for path in root.glob("night-*") if re.fullmatch(r"night-\d{4,}", path.name)]
        return [cls(path) for path in sorted(folders, key=lambda path: int(path.name[6:]))]

    @property
    def number(self) -> int:
        return self.state["number"]

    @property
    def outcome(self) -> str | None:
        """promoted, refused or failed; None while it is not over."""
        return self.state["outcome"]

    def output(self, step: str) -> dict[str, Any] | None:
        """What a finished step came to; None for one that is not."""
        entry = self.state["steps"].get(step)
        return entry["output"] if entry else None

    def finish(self, step: str, output: dict[str, Any], seconds: float) -> None:
        """Note that a step is done."""
        self.state["steps"][step] = {"output": output, "seconds": round(seconds, 3), "at": utc_now()}
        self.state["doing"] = None
        self.save()

    def seconds(self, step: str) -> float | None:
        """How long a finished step took, all tries together."""
        entry = self.state["steps"].get(step)
        return entry["seconds"] if entry else None

    def spent(self, step: str, seconds: float) -> float:
        """Seconds of a step that was broken off, added to those before; returns the sum."""
        doing = self.state.get("doing") or {}
        total = seconds + (doing.get("seconds", 0.0) if doing.get("step") == step else 0.0)
        self.state["doing"] = {"step": step, "seconds": round(total, 3)}
        return total

    def fail(self, step: str, reason: str) -> int:
        """Note that a step failed; returns how often it has in this night."""
        self.state["failures"].append({"step": step, "reason": reason, "at": utc_now()})
        self.save()
        return sum(failure["step"] == step for failure in self.state["failures"])

    def end(self, outcome: str) -> None:
        """Close the night."""
        self.state |= {"outcome": outcome, "ended_at": utc_now(), "doing": None}
        self.save()

    def save(self) -> None:
        """Write the state, whole."""
        write_atomically(self.folder / STATE, json.dumps(self.state, indent=1, ensure_ascii=False).encode() + b"\n")


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[IO[str]]:
    """Hold this folder's nightly work. Raises Busy when another does.

    The kernel lets go when the last process that holds the file is gone, killed or not. Stages inherit it: one that is still saving
    its checkpoint after we were killed holds the work too.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            raise Busy(f"{root}: another run is at work ({held.read().strip() or 'it has just begun'})") from None
        held.truncate(0)
        held.write(f"process {os.getpid()} since {utc_now()}\n")
        held.flush()
        yield held
