"""Nights run in processes of their own, each forked from one that has loaded what they need: cheap enough to be killed often."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing import spawn
from pathlib import Path
from typing import Any
from unittest.mock import patch

OUT_OF_TIME = "the time budget is spent"
"""A stage that is told to fail so has reached the end of the run's hours."""
PRELOADED = ["training.nightly", "tests.training.recorded"]


def run(arguments: list[str], said: Path, environment: dict[str, str], **faults: Any) -> int:
    """`python -m training nightly …` with stages that are recorded. Returns the exit status; negative: the signal that ended it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_night, args=(arguments, said, environment, faults))
    with patch.object(spawn, "get_preparation_data", _without_main):
        process.start()
    process.join(60)
    assert process.exitcode is not None, "the night does not end"
    return process.exitcode


_prepared = spawn.get_preparation_data


def _without_main(name: str) -> dict[str, Any]:
    """What a child is told, but for our main module: it would load pytest each time."""
    return {key: value for key, value in _prepared(name).items() if not key.startswith("init_main")}


def _night(arguments: list[str], said: Path, environment: dict[str, str], faults: dict[str, Any]) -> None:
    os.environ.update(environment)
    with said.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        _put_in(**faults)
        from training.__main__ import main

        try:
            status = main(["nightly", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    sys.exit(status)


def _put_in(
    kill: str = "", largest_file: int = 0, impatient: bool = False, real_sample: bool = False, overtaken_by: str = ""
) -> None:
    """The faults: kill -9 "before STEP" is entered as done, "after STEP", "before end"; no file above some bytes; no patience;
    another policy promoted just before the night's. And without faults too: a machine that has the training half alone.
    """
    for name in ("django", "labeling", "procrastinate"):
        sys.modules[name] = None  # type: ignore[assignment] # a night that imported them would end
    from tests.training import recorded
    from training import children, client, night_state
    from training.__main__ import main
    from training.errors import StageError

    def stage(command: list[str], log: Path, **_options: Any) -> None:
        arguments = command[command.index("recorded") + 1 :]
        try:
            if real_sample and arguments[0] == "sample":
                if main(arguments):
                    raise StageError("sample failed")
            else:
                recorded.main(arguments)
        except recorded.Failed as error:
            if str(error) == OUT_OF_TIME:
                raise children.OutOfTime(OUT_OF_TIME) from None
            raise StageError(f"{error} (status 1; {log})") from None

    children.run = stage
    finish = night_state.Night.finish

    def finish_or_die(night: Any, step: str, *rest: Any) -> None:
        if kill == f"before {step}":
            os.kill(os.getpid(), signal.SIGKILL)
        finish(night, step, *rest)
        if kill == f"after {step}":
            os.kill(os.getpid(), signal.SIGKILL)

    night_state.Night.finish = finish_or_die
    if kill == "before end":
        night_state.Night.end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    promote = client.HeedClient.promote

    def promote_later(self: Any, model: str, **options: Any) -> Any:
        promote(self, overtaken_by, reason="an admin says so")
        return promote(self, model, **options)

    if overtaken_by:
        client.HeedClient.promote = promote_later
    if impatient:
        client.HttpClient.__init__.__kwdefaults__["patience_seconds"] = 0.3
