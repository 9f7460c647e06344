"""Nights that go wrong, with real training: `python -m tests.loop.sabotage --seed 0`. Half an hour on one core.

After an honest night each fault has a night of its own: the gate refuses what it made, or its step fails with the reason, and the
policy that served goes on serving; then the fault is taken out, and the next night succeeds. Gates are the loop's and those that ship.
Prints what stopped each, and exits with 1 if one was not stopped.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import django

from tests.loop import faults, run
from tests.loop.site import ROOT, throwaway_site
from training.night_state import Busy, Night, only_one
from training.night_steps import STEPS

AT_THE_GATE = ("labels shuffled", "rankings reversed", "KL off")
IN_A_STEP = {"rm": "disk full", "ppo": "NaN in the optimiser", "sample": "policy server down"}
DEAD_SERVER = "http://127.0.0.1:9"
LONGEST_STEP = 12.0  # seconds: a kill in it comes at most this long after the start
DECIDED = [step for step, _run in STEPS].index("promote")
SHIPPED_RULES = ROOT / "training" / "configs" / "gate.toml"


class NotStopped(Exception):
    """A fault that went through, or a good night that did not."""


class Sabotage:
    """A loop's installation, and nights in it that are meddled with."""

    def __init__(self, loop: run.Loop):
        self.loop = loop
        self.nights = 0
        self.stopped: dict[str, str] = {}
        self.killed: list[str] = []

    # Nights ----------------------------------------------------------------------------------------------------------

    def good_night(self) -> None:
        """A night as it should be: it ends with its candidate serving."""
        self._label()
        self.nights += 1
        before = self.serving
        line = self._nightly()
        if self.serving == before or self.night.outcome != "promoted":
            raise NotStopped(f"night {self.nights} was to succeed: {line}")
        print(f"         night {self.nights}: {self.serving} serves", flush=True)

    def refused_night(self, fault: str) -> None:
        """A night whose candidate the gate must refuse, and a good one."""
        self._label()
        self.nights += 1
        before = self.serving
        line = self._nightly(**faulty(fault))
        if self.night.outcome != "refused" or self.serving != before:
            raise NotStopped(f"{fault}: {line}")
        self._tell(fault, self.night.output("promote")["reason"])
        self.good_night()

    def broken_night(self) -> None:
        """One night that is killed in each step, and fails in some, each for its reason; mended, its candidate serves."""
        self._label()
        self.nights += 1
        before, rng = self.serving, random.Random(self.loop.seed)
        for number, (step, _run) in enumerate(STEPS):
            if step == "sft":
                self._truncated_export()
            if fault := IN_A_STEP.get(step):
                self._must_fail(fault, step, **faulty(fault))
            self._kill_in(number, patience=rng.uniform(1.0, LONGEST_STEP))
            if self.serving != before and number < DECIDED:
                raise NotStopped(f"{self.serving} serves before the night is decided")
        self._tell("kill -9", f"{len(self.killed)} times: {', '.join(self.killed)}")
        if self.night.outcome is None:
            self._nightly()
        if self.night.outcome != "promoted" or self.serving != self._candidate:
            raise NotStopped(f"the mended night: {self.night.outcome}, {self.serving} serves")
        self._check_nothing_is_twice()

    # Faults ----------------------------------------------------------------------------------------------------------

    def _truncated_export(self) -> None:
        """The files of the night that is under way lose their end: here, and where they would be fetched from again."""
        while self._steps_done() == 0:
            self._kill_in(0, patience=60.0)
        name = self.night.output("export")["name"]
        from labeling.models import Export

        origin = Export.objects.get(number=int(name[1:])).folder / "rankings.jsonl"
        kept = shutil.copy2(origin, self.loop.folder / "rankings.kept")
        for file in (origin, self.loop.nights / "exports" / name / "rankings.jsonl"):
            os.truncate(file, file.stat().st_size // 2)
        self._must_fail("truncated export", "export")
        shutil.copy2(kept, origin)

    def _must_fail(self, fault: str, step: str, **changes) -> None:
        before = self.serving
        line = self._nightly(fails=True, **changes)
        if self.serving != before or (step not in line):
            raise NotStopped(f"{fault}: {line}")
        self._tell(fault, line)

    def _kill_in(self, number: int, patience: float) -> None:
        """Start the night and kill it in its step of this number: so many seconds after the start, or as soon as the step is over."""
        process = self._start()
        until = time.monotonic() + patience
        while process.poll() is None:
            done = self._steps_done()
            if done > number or (done == number and time.monotonic() >= until):
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.killed.append(f"{'in' if done == number else 'after'} {STEPS[number][0]}")
                return
            time.sleep(0.01)

    def _steps_done(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return len(self.night.state["steps"])
        return 0

    # What they share -------------------------------------------------------------------------------------------------

    @property
    def serving(self) -> str:
        model = self.loop.client.serving_model()
        return model["name"] if model else ""

    @property
    def night(self) -> Night:
        return Night(self.loop.nights / f"night-{self.nights:04d}")

    @property
    def _candidate(self) -> str:
        return self.night.output("ppo")["name"]

    def _label(self) -> None:
        if not self.loop.people.work("ranking"):
            raise NotStopped("labelers had nothing to do")

    def _start(self, **changes) -> subprocess.Popen:
        """The nightly command. A stage that a killed night left behind is waited for: it saves, and holds the lock until it has."""
        while self.loop.nights.is_dir():
            with contextlib.suppress(Busy), only_one(self.loop.nights):
                break
            time.sleep(0.1)
        command = [sys.executable, "-m", "training", "nightly", "--config", str(self.loop.settings(**changes))]
        return run.start(command, self.loop.folder, "nightly")

    def _nightly(self, *, fails: bool = False, **changes) -> str:
        """Run it; its last line. Raises NotStopped when it ends otherwise than expected."""
        process = self._start(**changes)
        status = process.wait()
        line = process.log.read_text().strip().splitlines()[-1]  # type: ignore[attr-defined]
        if bool(status) != fails:
            raise NotStopped(f"status {status}: {line}")
        return line

    def _tell(self, fault: str, reason: str) -> None:
        self.stopped[fault] = reason
        print(f"stopped  {fault}: {reason}", flush=True)

    def _check_nothing_is_twice(self) -> None:
        from labeling.models import Batch, Evaluation, Export, ModelVersion, Promotion

        name = f"night-{self.nights:04d}"
        found = {
            "models": ModelVersion.objects.filter(name__startswith=name).count() == 2,
            "promotions": Promotion.objects.filter(model_version__name=self._candidate).count() == 1,
            "batches": Batch.objects.filter(name=f"night {self.nights}").count() == 1,
            "records": Evaluation.objects.filter(name="night", model_version__name=self._candidate).count() == 1,
            "exports": Export.objects.filter(status="ready").count() == 1 + self.nights,  # and SFT's
        }
        if wrong := [each for each, is_right in found.items() if not is_right]:
            raise NotStopped(f"twice, or not there: {', '.join(wrong)}")


def faulty(name: str) -> dict[str, Any]:
    """Settings of a night with this fault in the stage that it is about."""
    start = [sys.executable, "-m", "tests.loop.faults", name]
    server = {"next_server": DEAD_SERVER} if faults.FAULTS[name][0] == "sample" else {}
    return {"launch": start, "stage": start} | server


def main() -> int:
    """Found a loop, have an honest night, then sabotage it in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, people, weights, sampling and kills")
    arguments = parser.parse_args()
    folder, began = ROOT / "var" / "sabotage", time.monotonic()
    with throwaway_site(folder):
        django.setup()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        scale, rules = run.Scale(test_prompts=500), SHIPPED_RULES.read_text()
        loop = run.Loop(folder, arguments.seed, scale, nights=2, more_rules=rules)
        loop.found()
        sabotage = Sabotage(loop)
        try:
            sabotage.good_night()
            sabotage.broken_night()
            for fault in AT_THE_GATE:
                sabotage.refused_night(fault)
        except NotStopped as problem:
            print(f"\nNOT STOPPED  {problem}")
            return 1
    seconds = round(time.monotonic() - began)
    found = {"seed": arguments.seed, "seconds": seconds, "nights": sabotage.nights, "stopped": sabotage.stopped}
    Path(folder, "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nevery fault was stopped in {seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
