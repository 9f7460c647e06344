"""What a labeler waits for, API against API: the next task, the submit, and requests per second of many labelers at once.

Heed and Label Studio have the same PostgreSQL and two web processes each, tasks of the same size, and take turns step by step. Rows say
the median; ratios are of medians, over all steps and, for their range, in each third of them.
"""

import json
import random
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.bench.label_studio import LabelStudio
from tests.loop.site import ROOT, throwaway_site

K = 4
STEPS = 45
CLIENTS, CLIENT_SECONDS = 32, 10.0
LEASES = 500


def run(folder: Path, sizes: list[int], ours_alone: list[int]) -> list[dict]:
    """The rows, measured by a process that has a database of its own."""
    given = [",".join(map(str, each)) or "-" for each in (sizes, ours_alone)]
    command = [sys.executable, "-m", "tests.bench.serving", str(folder), *given]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the rows."""
    folder, *given = sys.argv[1:]
    sizes, ours_alone = ([int(n) for n in each.split(",") if n != "-"] for each in given)
    peer = LabelStudio.here()
    if peer is None:
        print("no Label Studio beside it: LABEL_STUDIO_URL is not set", file=sys.stderr)
    database_url = peer.database_for_us() if peer else ""
    with throwaway_site(Path(folder), web_processes=2, database_url=database_url) as url:
        import django

        django.setup()
        print(json.dumps(list(rows(url, peer, sizes, ours_alone))))


class Labeler:
    """A labeler of Heed's with a token."""

    def __init__(self, url: str):
        from labeling.actions import tokens
        from tests.bench.assignment import labeler

        _token, secret = tokens.create(user=labeler(), name="bench", scopes=["label"])
        headers = {"Authorization": f"Bearer {secret}"}
        self.http = httpx.Client(base_url=f"{url}/api/v1/tasks", headers=headers, timeout=600, trust_env=False)

    def next(self) -> dict:
        """The next task, whole."""
        answer = self.http.post("/next/", json={}).raise_for_status()
        assert answer.status_code == 200, "nothing is left"
        return answer.json()

    def submit(self, task: dict) -> None:
        """Hand a ranking in, every response rated."""
        ids = [response["response_id"] for response in task["responses"]]
        answer = {"tiers": [[i] for i in ids], "ratings": {i: {"quality": 4, "flags": {}} for i in ids}}
        body = {"submit_key": str(uuid.uuid4()), "answer": answer}
        self.http.post(f"/{task['task_id']}/submit/", json=body).raise_for_status()


class Annotator:
    """The labeler of a project of Label Studio's with so many tasks."""

    def __init__(self, peer: LabelStudio, tasks: int):
        rng = random.Random(tasks)

        def text() -> str:
            return " ".join(f"word{rng.randrange(1000)}" for _ in range(65))

        rows = [{"prompt": text(), "responses": [{"text": text()} for _ in range(K)]} for _ in range(tasks)]
        self.peer, self.project = peer, peer.import_tasks(rows)[0]

    def next(self) -> int:
        """The next task."""
        return self.peer.next(self.project)

    def submit(self, task: int) -> None:
        """Hand a ranking in."""
        self.peer.submit(self.project, task)


def rows(url: str, peer: LabelStudio | None, sizes: list[int], ours_alone: list[int]) -> Iterator[dict]:
    """At each size, and at `ours_alone` without the peer; with foreign leases at each but the first and these."""
    for size in sorted({*sizes, *ours_alone}):
        yield from at(url, peer if size in sizes else None, size, leases=0)
        if size in sizes[1:] or len(sizes) == 1:
            yield from at(url, peer if peer and peer.server else None, size, leases=LEASES)


def at(url: str, peer: LabelStudio | None, tasks: int, leases: int) -> Iterator[dict]:
    """The rows at one size: Heed's database and Label Studio's project hold so many tasks, all open but for the leased."""
    from django.db import connection

    from tests.bench.assignment import empty, lay_out, lease_first

    empty()
    batch = lay_out(tasks=tasks, overlap=1, kind="ranking", responses_per_task=K)
    lease_first(batch, leases := min(leases, tasks // 2))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    sides: list = [Labeler(url)] + ([Annotator(peer, tasks)] if peer else [])
    if peer and leases:
        peer.lock(sides[1].project, leases)
    nexts: list[list[float]] = [[] for _ in sides]
    submits: list[list[float]] = [[] for _ in sides]
    for step in range(STEPS + 3):
        for side, worker in enumerate(sides):
            took, task = timed(worker.next)
            done, _ = timed(lambda w=worker, t=task: w.submit(t))
            if step >= 3:  # the first warm up
                nexts[side].append(1000 * took)
                submits[side].append(1000 * done)
    params = {"tasks": tasks, "k": K} | ({"leases": leases} if leases else {})
    yield row("next task", params, "ms", nexts)
    yield row("submit of a ranking", params, "ms", submits)
    if not leases:
        rates = [rate(clients) for clients in _crowds(url, sides)]
        yield row("rps of next task and submit", params | {"clients": CLIENTS}, "requests/s", rates, is_rate=True)


def _crowds(url: str, sides: list) -> list[list]:
    """CLIENTS clients of each side: labelers of their own in Heed; of Label Studio's only user, where locks stand in nobody's way."""
    return [[Labeler(url) for _ in range(CLIENTS)], *([side] * CLIENTS for side in sides[1:])]


def rate(clients: list) -> list[float]:
    """Requests per second that were answered well, in three stretches."""
    stretches = []
    for _ in range(3):
        answered, until = [0] * len(clients), time.monotonic() + CLIENT_SECONDS / 3

        def ask(i: int, answered=answered, until=until) -> None:
            while time.monotonic() < until:
                try:
                    task = clients[i].next()
                    answered[i] += 1
                    clients[i].submit(task)
                    answered[i] += 1
                except (httpx.HTTPError, AssertionError):  # refused, or nothing is left: no answer that counts
                    continue

        began = time.monotonic()
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stretches.append(sum(answered) / (time.monotonic() - began))
    return stretches


def timed(action: Callable) -> tuple[float, object]:
    """(seconds, result)."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def row(name: str, params: dict, unit: str, sides: list[list[float]], *, is_rate: bool = False) -> dict:
    """Ours and, if there is one, the peer's beside it; a ratio above 1 means that ours is better."""
    ours, *peers = sides
    made = {"name": name, "params": params, "unit": unit, "ours": statistics.median(ours), "runs": len(ours)}
    if not peers:
        return made | {"peer": None, "ratio": None, "ratio_min": None, "ratio_max": None}
    third = len(ours) // 3
    pairs = [(ours[i : i + third], peers[0][i : i + third]) for i in range(0, 3 * third, third)]
    ratios = [_ratio(mine, other, is_rate) for mine, other in pairs]
    ratio = _ratio(ours, peers[0], is_rate)
    return made | {
        "peer": statistics.median(peers[0]),
        "ratio": ratio,
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _ratio(ours: list[float], peers: list[float], is_rate: bool) -> float:
    mine, other = statistics.median(ours), statistics.median(peers)
    return mine / max(other, 1e-9) if is_rate else other / mine


if __name__ == "__main__":
    main()
