"""Processes that a night starts: their last word is the reason, time ends them kindly, and none outlives us for long."""

import fcntl
import sys
import time

import pytest

from training import children
from training.errors import StageError

SAVES = """
import signal, sys, time

def save(*_):
    print("saved")
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
print("on", flush=True)
time.sleep(60)
"""


def test_the_last_line_is_the_reason(tmp_path):
    log = tmp_path / "logs" / "rm.log"
    children.run(["sh", "-c", "echo well"], log)
    with pytest.raises(StageError, match=r"rm: out of memory \(status 3; .*rm\.log\)"):
        children.run(["sh", "-c", r"printf '10%%\r20%%\n'; echo rm: out of memory >&2; echo; exit 3"], log)
    assert log.read_text().startswith("well\n"), "behind what is there"
    with pytest.raises(StageError, match="it said nothing"):
        children.run(["sh", "-c", "exit 1"], tmp_path / "silent.log")


def test_time_ends_a_stage_kindly_and_it_holds_our_lock_meanwhile(tmp_path):
    saves = tmp_path / "saves.py"
    saves.write_text(SAVES)
    with (tmp_path / "lock").open("w") as held, (tmp_path / "lock").open("w") as other:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(children.OutOfTime):
            children.run([sys.executable, str(saves)], tmp_path / "log", until=time.monotonic() + 1.5, held=held)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / "log").read_text() == "on\nsaved\n"
