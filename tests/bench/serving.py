"""What a labeler waits for, API against API: the next task, the submit, and requests per second of many labelers at once.

Heed and Label Studio have the same PostgreSQL and two web processes each, tasks of the same size, and take turns step by step. Rows say
the median; ratios are of medians, over all steps and, for their range, in each third of them.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench.bulk import TEXT_WORDS
from tests.bench.clients import SIDES, K, Load, Tally, ask
from tests.bench.label_studio import LabelStudio
from tests.loop.site import ROOT, throwaway_site

STEPS = 45
CLIENTS, SECONDS = 32, 10 / 3  # of each stretch
LEASES = 500
BARE = """
SELECT id FROM labeling_slot WHERE batch_id = %s AND status = 'open' AND turn = 0 ORDER BY seat, id LIMIT 1 FOR UPDATE SKIP LOCKED
"""


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


def sides_of(url: str, peer: LabelStudio | None, tasks: int) -> list[Load]:
    """Who is asked, by one client each: ours, and if there is one the peer, with a project of so many tasks."""
    ours = Load("heed", url, [token()], SECONDS)
    if peer is None:
        return [ours]
    rng = random.Random(tasks)

    def text() -> str:
        return " ".join(f"word{rng.randrange(1000)}" for _ in range(TEXT_WORDS))

    made = [{"prompt": text(), "responses": [{"text": text()} for _ in range(K)]} for _ in range(tasks)]
    return [ours, Load("label_studio", peer.url, [peer.token], SECONDS, peer.import_tasks(made)[0])]


def token() -> str:
    """The secret of a new labeler of ours."""
    from labeling.actions import tokens
    from tests.bench.assignment import labeler

    return tokens.create(user=labeler(), name="bench", scopes=["label"])[1]


def rows(url: str, peer: LabelStudio | None, sizes: list[int], ours_alone: list[int]) -> Iterator[dict]:
    """At each size, and at `ours_alone` without the peer; with foreign leases at each but the first and these."""
    for size in sorted({*sizes, *ours_alone}):
        yield from at(url, peer if size in sizes else None, size, leases=0)
        if size in sizes[1:] or len(sizes) == 1:
            yield from at(url, peer if peer and peer.server else None, size, leases=LEASES)


def at(url: str, peer: LabelStudio | None, tasks: int, leases: int) -> Iterator[dict]:
    """The rows at one size: Heed's database and Label Studio's project hold so many tasks, all open but for the leased."""
    from django.db import connection

    from labeling.models import Slot
    from tests.bench.assignment import empty, lay_out, lease_first

    def lay_out_ours() -> None:
        empty()
        batch = lay_out(tasks=tasks, overlap=1, kind="ranking", responses_per_task=K, words=TEXT_WORDS)
        lease_first(batch, leases)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")

    leases = min(leases, tasks // 2)
    lay_out_ours()
    sides = sides_of(url, peer, tasks)
    if peer and leases:
        peer.lock(sides[1].project, leases)
    params = {"tasks": tasks, "k": K} | ({"leases": leases} if leases else {})
    nexts, submits = in_turn(sides)
    yield row("next task", params, "ms", nexts)
    yield row("submit of a ranking", params, "ms", submits)
    yield row("raw limit of next task: a bare SELECT … SKIP LOCKED", params, "ms", [nexts[0], bare_selects()])
    if leases:
        return

    def open_seats() -> int:
        return Slot.objects.filter(status="open").count()

    tallies = crowds(sides, before=lambda: None if open_seats() > 0.9 * tasks else lay_out_ours())
    cost = [round(statistics.median(tally.client_ms for tally in each), 3) for each in tallies]
    rates = [[tally.rate for tally in each] for each in tallies]
    # What the clients cost on the same machine, a request: ours, and the peer's beside it.
    params |= {"clients": CLIENTS, "client_ms": cost}
    yield row("rps of next task and submit", params, "requests/s", rates, is_rate=True)


def in_turn(sides: list[Load]) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds of STEPS next tasks and submits of each side, which take turns task by task."""
    loop = asyncio.new_event_loop()
    workers = [SIDES[side.side](side.url, side.tokens[0], side.project) for side in sides]
    nexts: list[list[float]] = [[] for _ in sides]
    submits: list[list[float]] = [[] for _ in sides]
    for step in range(STEPS + 3):
        for side, worker in enumerate(workers):
            took, task = timed(lambda w=worker: loop.run_until_complete(w.next()))
            done, _ = timed(lambda w=worker, t=task: loop.run_until_complete(w.submit(t)))
            if step >= 3:  # the first warm up
                nexts[side].append(1000 * took)
                submits[side].append(1000 * done)
    for worker in workers:
        worker.connection.close()
    loop.close()
    return nexts, submits


def bare_selects() -> list[float]:
    """Milliseconds of STEPS transactions that find and lock an open seat of the only batch, and do nothing else."""
    from django.db import connection, transaction

    from labeling.models import Batch

    batch = Batch.objects.get().pk

    def select() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(BARE, [batch])

    return [1000 * timed(select)[0] for _ in range(STEPS)]


def crowds(sides: list[Load], before: Callable[[], None]) -> list[list[Tally]]:
    """Three stretches of many clients at once for each side in turn, after short ones that warm up; `before` each is called. In Heed
    they are labelers of their own; of Label Studio it is the only user, whose own locks stand in nobody's way."""
    tokens = [token() for _ in range(CLIENTS)]
    loads = [replace(side, tokens=tokens if side.side == "heed" else side.tokens * CLIENTS) for side in sides]
    tallies: list[list[Tally]] = [[] for _ in sides]
    for stretch in range(4):
        before()
        for load, found in zip(loads, tallies, strict=True):
            tally = ask(load if stretch else replace(load, seconds=1))
            if tally.refused:
                print(f"{load.side}: {tally.refused} requests were refused, as: {tally.refusal}", file=sys.stderr)
            found += [tally] if stretch else []
    return tallies


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
