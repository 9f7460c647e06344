"""Starting the training half's nightly command on this machine: a process of its own, that outlives the worker that starts it."""

import subprocess
import sys
from pathlib import Path

from django.conf import settings


def start(command: tuple[str, ...] = (sys.executable, "-m", "training", "nightly")) -> subprocess.Popen:
    """Start the command with NIGHTLY_CONFIG; what it says goes to var/log/nightly.log. Once it runs already it ends at once, well.

    It asks the web half for an export, which a worker builds: so the worker must not wait for it.
    """
    log = Path(settings.VAR_DIR) / "log" / "nightly.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--config", settings.NIGHTLY_CONFIG],
            cwd=settings.BASE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
