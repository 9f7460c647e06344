"""Commands run as processes of their own, that end with us, on time, and say in one line why they failed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from training.errors import StageError

SAVING_SECONDS = 600.0
"""How long a stage may take to save its checkpoint after it was asked to end."""
PR_SET_PDEATHSIG = 1


class OutOfTime(StageError):
    """The command was asked to end because the time budget was spent; what it saved is gone on with."""


def run(
    command: Sequence[str],
    log: Path,
    *,
    until: float | None = None,
    held: IO[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end; what it prints goes to `log`, behind what is there.

    At `until` (by time.monotonic) it gets SIGTERM, at which a stage saves and ends: OutOfTime. It inherits `held`, and is asked
    to end when we are killed. Raises StageError with the last line that it printed when it ends otherwise than well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            pass_fds=[held.fileno()] if held else [],
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
        try:
            status = process.wait(None if until is None else max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            raise OutOfTime("the time budget is spent; it goes on from its last checkpoint") from None
        except BaseException:
            _end(process)
            raise
    if status:
        raise StageError(f"{last_line(log) or 'it said nothing'} (status {status}; {log})")


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For Popen's preexec_fn: have the kernel send `number` to the child when we die. Linux only; nothing elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(number))


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(SAVING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that says something; bars redraw themselves behind a carriage return."""
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1][:1000] if lines else ""
    return ""
