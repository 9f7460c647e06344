"""Processes that end when the one that started them is killed: the kernel tells them (Linux).

As a program, `python -m labeling.tether NAME` becomes one line of the Procfile. It imports little: `make demo` waits for it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from honcho.environ import parse_procfile

PROCFILE = Path(__file__).resolve().parent.parent / "Procfile"
PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For Popen's preexec_fn: have the kernel send `number` to the child when we die. Linux only; a no-op elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(number))


def become(name: str) -> None:
    """Turn into a line of the Procfile, tied to our parent. Does not return."""
    command = parse_procfile(PROCFILE.read_text()).processes[name]
    if tie := end_with_parent(signal.SIGTERM):
        tie()
    os.execv("/bin/sh", ["/bin/sh", "-c", command])  # noqa: S606


if __name__ == "__main__":
    become(sys.argv[1])
