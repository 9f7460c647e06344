"""Many labelers at once, their processes killed at random: no seat given twice, no submission lost or doubled, no lease stuck.

Each labeler claims, and hands in (sometimes twice), puts back or passes on. What was acknowledged to them goes to a journal, as a person
would remember it. Every so often a process of several labelers dies by SIGKILL, wherever it is, and another takes over. At the
end the database is held against the journals.

    python -m tests.experiments.contention --slots 1000000 --steps 100000
"""

import argparse
import json
import multiprocessing
import os
import random
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

from tests.loop.site import ROOT, throwaway_site

OVERLAP = 2
PUT_BACK, PASSED_ON, TWICE = 0.03, 0.02, 0.05  # shares of the steps


# A process of some labelers ---------------------------------------------------------------------------------------------------------


def work(people: list, folder: Path, seed: int) -> None:
    """Labelers at work, a thread each, until the file `stop` is there."""
    journal = os.open(folder / f"{os.getpid()}-{seed}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    threads = [
        threading.Thread(target=_labor, args=(person, folder / "stop", journal, f"{seed} {person.pk}"))
        for person in people
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _labor(person, stop: Path, journal: int, seed: str) -> None:
    from django.db import connection

    from labeling.actions import submissions, tasks

    rng = random.Random(seed)
    while not stop.exists():
        slot = tasks.claim_next(by=person)
        if slot is None:
            time.sleep(0.05)
            continue
        chance = rng.random()
        if chance < PUT_BACK:
            tasks.release(task=slot.task, by=person)
        elif chance < PUT_BACK + PASSED_ON:
            tasks.skip(task=slot.task, reason="unclear", by=person)
        else:
            key = uuid.uuid4()
            for _ in range(2 if chance > 1 - TWICE else 1):
                submissions.submit(task=slot.task, submit_key=key, answer={"text": str(key)}, by=person)
            # One write: a journal never holds half a line, and outlives its process.
            os.write(journal, f"{slot.task_id} {person.pk} {key}\n".encode())
    connection.close()


# The experiment ---------------------------------------------------------------------------------------------------------------------


def run(
    folder: Path,
    *,
    slots: int,
    steps: int,
    labelers: int,
    processes: int,
    kill_seconds: float,
    limit_seconds: float,
    seed: int,
) -> dict:
    """What happened. Needs Django set up, on a database of its own; `folder` is for the journals.

    Ends after so many submissions, or after `limit_seconds`. Raises AssertionError if anything that must not happen has happened.
    """
    from django.db import connections

    from tests.bench.assignment import labeler, lay_out

    rng = random.Random(seed)
    batch = lay_out(tasks=-(-slots // OVERLAP), overlap=OVERLAP)
    people = [labeler() for _ in range(labelers)]
    crews = [people[i::processes] for i in range(processes)]
    fork = multiprocessing.get_context("fork")
    connections.close_all()  # what a child inherits it must not talk through

    def start(crew: int, number: int):
        process = fork.Process(target=work, args=(crews[crew], folder, number), daemon=True)
        process.start()
        return process

    running = {crew: start(crew, crew) for crew in range(processes)}
    began, killed, next_kill = time.monotonic(), 0, time.monotonic() + kill_seconds
    while len(acknowledged(folder)) < steps and time.monotonic() - began < limit_seconds:
        time.sleep(min(0.1, kill_seconds / 4))
        if time.monotonic() >= next_kill:
            crew = rng.randrange(processes)
            running[crew].kill()
            running[crew].join()
            killed += 1
            running[crew] = start(crew, processes + killed)
            next_kill = time.monotonic() + kill_seconds * rng.uniform(0.5, 1.5)
    took = time.monotonic() - began
    (folder / "stop").touch()
    for process in running.values():
        process.join(120)
        assert process.exitcode == 0, f"a process ended with {process.exitcode}"
    return {"seconds": round(took, 1), "killed": killed} | check(batch, people, acknowledged(folder))


def acknowledged(folder: Path) -> list[list[str]]:
    """(task, labeler, key) of every submission that its labeler was told of."""
    return [line.split() for file in folder.glob("*.journal") for line in file.read_text().splitlines()]


def check(batch, people: list, told: list[list[str]]) -> dict:
    """Hold the database against what labelers were told, then let every lease run out, and have everybody claim once more."""
    from django.db.models import Count, F
    from django.utils import timezone

    from labeling.actions import tasks
    from labeling.models import Revision, Slot, Submission

    kept = {(s.task_id, s.labeler_id): s for s in Submission.objects.filter(batch=batch)}
    keys = dict(Revision.objects.filter(submission__batch=batch).values_list("submit_key", "submission_id"))
    lost = [line for line in told if (int(line[0]), int(line[1])) not in kept or uuid.UUID(line[2]) not in keys]
    assert not lost, f"{len(lost)} acknowledged submissions are not there: {lost[:3]}"
    assert len(keys) == len(kept) == Submission.objects.filter(batch=batch).count(), "a submission came twice"
    assert not Submission.objects.filter(batch=batch).exclude(revision_count=1).exists(), "a submission counted twice"
    assert len({(line[0], line[1]) for line in told}) == len(told), (
        "a labeler was given a task again after handing it in"
    )
    assert not [s for s in kept.values() if s.is_surplus], "a seat was given to two labelers"
    seats = Slot.objects.filter(batch=batch)
    assert not seats.filter(status="submitted").exclude(submission__labeler=F("labeler")).exists(), (
        "a seat without its work"
    )
    over = seats.exclude(status="open").values("task").annotate(n=Count("pk")).filter(n__gt=batch.overlap)
    assert not over.exists(), "a task has more labelers than it may"
    leased = seats.filter(status="leased")
    assert not leased.values("labeler").annotate(n=Count("pk")).filter(n__gt=1).exists(), "a labeler holds two seats"
    held, later = leased.count(), timezone.now() + timedelta(days=1)
    while tasks.return_expired(limit=1000, now=later):
        pass
    assert not seats.filter(status="leased").exists(), "a lease is stuck"
    assert seats.filter(status="open").count() + len(kept) == seats.count(), "a seat went missing"
    for person in people:
        assert tasks.claim_next(by=person) or not Slot.objects.claimable_by(person).exists(), "a labeler is stuck"
    return {
        "seats": seats.count(),
        "submissions": len(kept),
        "acknowledged": len(told),
        "done_but_not_acknowledged": len(kept) - len(told),
        "leases_left_by_the_dead": held,
    }


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1_000_000, help="open seats (default 1000000)")
    parser.add_argument("--steps", type=int, default=100_000, help="submissions (default 100000)")
    parser.add_argument("--labelers", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kill-seconds", type=float, default=3, help="time between two kills (default 3)")
    parser.add_argument(
        "--limit-seconds", type=float, default=3600, help="end after so long, whatever was reached (default 3600)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    folder = ROOT / "var" / "contention"
    with throwaway_site(folder):
        import django

        django.setup()
        (folder / "journals").mkdir()
        print(json.dumps({k: options[k] for k in ("slots", "steps", "labelers")} | run(folder / "journals", **options)))


if __name__ == "__main__":
    main()
