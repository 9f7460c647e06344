"""Run a stage, kill -9 it again and again at random moments, let it finish: `python -m tests.training.kills KILLS SEED EVENTS STAGE …`.

Each attempt is a process of its own, forked from one that has loaded torch but run nothing. A kill comes a few random milliseconds
after a random one of its optimiser steps, or after it begins to write a checkpoint. Prints how often it was killed and where
it then resumed from; exits non-zero when an attempt ends by itself before its kill.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from training import dpo, ppo, pretrain, rm, sft  # noqa: F401 loaded once, before forking
from training.__main__ import main


def attempt(arguments: list[str], moment: tuple[str, int] | None, tell: int) -> int:
    """In the child: run the stage, and tell the parent by a byte when the moment is there."""
    seen = {"step": 0, "save": 0}

    def note(event: str) -> None:
        seen[event] += 1
        if moment == (event, seen[event]):
            os.write(tell, b"!")

    step, save = torch.optim.AdamW.step, torch.save

    def noted_step(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        note("step")
        return result

    def noted_save(*args, **kwargs):
        note("save")
        return save(*args, **kwargs)

    torch.optim.AdamW.step, torch.save = noted_step, noted_save
    return main(arguments)


def fork(arguments: list[str], moment: tuple[str, int] | None, delay: float) -> int:
    """Run an attempt and, at its moment, kill it. Returns its wait status."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        status = 70
        try:
            status = attempt(arguments, moment, tell)
        finally:
            os._exit(status)
    os.close(tell)
    if os.read(hear, 1):
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    os.close(hear)
    return os.waitpid(child, 0)[1]


def run(kills: int, seed: int, reach: int, arguments: list[str]) -> None:
    """Kill the stage `kills` times within `reach` steps of each start, then let it finish."""
    rng = random.Random(seed)
    state = Path(arguments[arguments.index("--out") + 1] + ".run")
    for number in range(kills):
        moment = ("save", rng.randint(1, 2)) if rng.random() < 0.3 else ("step", rng.randint(1, reach))
        status = fork(arguments, moment, rng.random() * 0.01)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"kill {number + 1} at {moment}: the stage ended by itself first (status {status})")
        newest = max((path.name for path in state.glob("checkpoint-*.pt")), default="none")
        print(f"killed at {moment[0]} {moment[1]}: newest checkpoint {newest}")
    status = fork(arguments, None, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
