"""Imports and exports of many rows, beside the raw limit (COPY of the same rows into the same tables, COPY of the same query out) and
beside Label Studio where one runs (label_studio.py).

All runs of a size are done by one process of ours, as by a worker, which says how long each took and how much memory it ever had; a
small import or export goes before, as Label Studio's processes have long begun, too. What is timed of an import ends when its rows are
stored; intake's checks of new prompts follow as jobs and hold the prompts back until then.

    python -m tests.bench.bulk rows FOLDER 3 1000 10000 100000
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.label_studio import LabelStudio, peak_mb
from tests.loop.site import ROOT, throwaway_site

K = 4
TEXT_WORDS = 65  # of a prompt and of each response, on both sides
WORDS = [f"word{i}" for i in range(1000)]
TABLES = {"prompts": ["labeling_prompt"], "responses": ["labeling_prompt", "labeling_response"]}
BLOCK_BYTES = 2**20
PEER_ROWS = 100_000  # at most: minutes, there


def run(folder: Path, sizes: list[int], runs: int) -> list[dict]:
    """The rows, measured by a process whose database is a throwaway of its own: imports begin with empty tables."""
    command = [sys.executable, "-m", "tests.bench.bulk", "rows", str(folder), str(runs), *map(str, sizes)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, sizes: list[int], runs: int) -> Iterator[dict]:
    """Imports, then exports, in a throwaway installation; on the peer's PostgreSQL, if it says which that is."""
    peer = LabelStudio.here()
    if peer is None:
        print("no Label Studio beside it: LABEL_STUDIO_URL is not set", file=sys.stderr)
    with throwaway_site(folder, database_url=peer.database_for_us() if peer else ""):
        import django

        django.setup()
        yield from import_rows(folder, sizes, runs, peer)
        yield from export_rows(folder, sizes, runs, peer)


def import_rows(folder: Path, sizes: list[int], runs: int, peer: LabelStudio | None = None) -> Iterator[dict]:
    """Rows of prompts, and of responses K to a prompt, at each size: speed, share of COPY's speed, memory; the peer's beside."""
    for kind in TABLES:
        for size in sizes:
            file = write_rows(folder / f"{kind}-{size}.jsonl", kind, size)
            tasks = [json.loads(line) for line in file.open()] if peer and size <= PEER_ROWS else []
            made, raw, theirs = [], [], []
            with Worker() as worker:
                for _ in range(runs):  # interleaved
                    made.append(worker.do("import", kind, str(file)))
                    raw.append(raw_copy_in(folder, TABLES[kind]))
                    theirs += [peer.import_tasks(tasks)[1]] if peer and tasks else []
            took = [one["seconds"] for one in made]
            yield from rows_of(f"import of {kind}", {"rows": size}, size, took, raw, theirs)
            peak = max(one["peak_mb"] for one in made)
            yield row(f"import of {kind}, peak memory", {"rows": size}, "MB", peak, None, runs)
            file.unlink()


def export_rows(folder: Path, sizes: list[int], runs: int, peer: LabelStudio | None = None) -> Iterator[dict]:
    """Exports of so many rankings, each of a task of its own: speed, share of COPY's speed, memory; the peer's beside."""
    from django.conf import settings
    from django.db import connection

    from tests.bench.assignment import empty, lay_out, rank_all

    for size in sizes:
        empty()
        batch = lay_out(tasks=size, overlap=1, kind="ranking", responses_per_task=K, words=TEXT_WORDS)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")  # what follows looks up a million rows by what is known of them
            rank_all(batch)
            cursor.execute("VACUUM ANALYZE")
        project = 0
        if peer and size <= PEER_ROWS:
            tasks = write_rows(folder / "peer.jsonl", "responses", size * K)
            project, _seconds = peer.import_tasks([json.loads(line) for line in tasks.open()], are_labeled=True)
        made, raw, theirs = [], [], []
        with Worker() as worker:
            for number_of_run in range(runs):
                # Untimed: the peer's rows were last read seconds before its run, ours a minute or two before, and where idle memory
                # is taken back they alone would come from the disk.
                raw_copy_out(folder)
                # A selection of its own: none is there already.
                made.append(worker.do("export", f"1970-01-{1 + number_of_run:02}"))
                shutil.rmtree(settings.EXPORT_DIR)  # as COPY's file gives way to the next
                raw.append(raw_copy_out(folder))
                theirs += [peer.export(project)] if peer and project else []
        params = {"rankings": size}
        yield from rows_of("export of rankings", params, size, [one["seconds"] for one in made], raw, theirs)
        peak = max(one["peak_mb"] for one in made)
        high = peer.peak_mb() if peer and project else None
        beside = {"peer": high, "shares": [high / peak]} if high else None
        yield row("export of rankings, peak memory", params, "MB", peak, beside, runs)


def rows_of(
    name: str, params: dict, count: int, took: list[float], raw: list[float], theirs: list[float]
) -> Iterator[dict]:
    """Our speed, Label Studio's beside it where it ran, and in a row of its own our share of COPY's speed."""
    speed = count / statistics.median(took)
    yield row(name, params, "rows/s", speed, _beside(count, took, theirs), len(took))
    yield row(f"{name}, share of COPY", params, "rows/s", speed, _beside(count, took, raw), len(took))


def _beside(count: int, took: list[float], theirs: list[float]) -> dict | None:
    if not theirs:
        return None
    shares = [other / own for own, other in zip(took, theirs, strict=True)]
    return {"peer": count / statistics.median(theirs), "shares": shares}


def row(name: str, params: dict, unit: str, ours: float, beside: dict | None, runs: int) -> dict:
    """A row, with what stands beside it."""
    shares = sorted(beside["shares"]) if beside else []
    return {
        "name": name,
        "params": params,
        "unit": unit,
        "ours": ours,
        "peer": beside["peer"] if beside else None,
        "ratio": statistics.median(shares) if shares else None,
        "ratio_min": shares[0] if shares else None,
        "ratio_max": shares[-1] if shares else None,
        "runs": runs,
    }


def write_rows(path: Path, kind: str, rows: int, seed: int = 0) -> Path:
    """An import file: so many prompts of about 500 characters, or responses of as many, K to a prompt."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=TEXT_WORDS)) + f" {rng.getrandbits(64):x}"

    with path.open("w") as file:
        for _ in range(rows if kind == "prompts" else -(-rows // K)):
            made: dict = {"prompt": text()}
            if kind == "responses":
                made["responses"] = [{"model": f"model-{k}", "text": text()} for k in range(K)]
            file.write(json.dumps(made) + "\n")
    return path


class Worker:
    """A process of ours that imports and exports one after the other. Use it in a `with` block."""

    def __enter__(self) -> "Worker":
        command = [sys.executable, "-m", "tests.bench.bulk", "worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ, text=True, **pipes)
        self.has_begun = False
        return self

    def do(self, *arguments: str) -> dict:
        """What it says of some work: {"seconds", "peak_mb"}."""
        if not self.has_begun:
            self._ask(*arguments, "few")
            self.has_begun = True
        return self._ask(*arguments)

    def _ask(self, *arguments: str) -> dict:
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __exit__(self, *_exception: object) -> None:
        self.process.stdin.close()
        self.process.wait()


def timed(action: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def raw_copy_in(folder: Path, tables: list[str]) -> float:
    """Seconds to COPY what is in these tables into them, emptied; then they are empty."""
    from django.db import connection, transaction

    def truncate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE labeling_prompt, labeling_response, labeling_author CASCADE")

    files = [copy_out(f"SELECT * FROM {table} ORDER BY id", folder / f"{table}.copy") for table in tables]
    truncate()

    def copy_in() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for table, file in zip(tables, files, strict=True):
                with cursor.copy(f"COPY {table} FROM STDIN") as copy, file.open("rb") as source:
                    while block := source.read(BLOCK_BYTES):
                        copy.write(block)

    seconds = timed(copy_in)
    truncate()
    return seconds


def raw_copy_out(folder: Path) -> float:
    """Seconds to COPY the queries of an export to files, under the export's own settings."""
    from django.db import connection

    from labeling.actions import export_queries

    with connection.cursor() as cursor:
        cursor.execute("SET jit = off")
    return timed(
        lambda: [copy_out(sql, folder / "raw.copy") for sql in export_queries.queries(export_queries.Selection())]
    )


def copy_out(sql: str, path: Path) -> Path:
    """COPY what a query answers to a file."""
    from django.db import connection

    with connection.cursor() as cursor, cursor.copy(f"COPY ({sql}) TO STDOUT") as copy, path.open("wb") as file:
        for block in copy:
            file.write(block)
    return path


def work() -> None:
    """Do what stdin asks for, a line each, and answer on stdout."""
    import django

    django.setup()
    from django.db import connection

    from labeling.actions import intake

    intake.INLINE = 0  # its checks are timed apart
    connection.ensure_connection()  # as the raw side's is open already
    for line in sys.stdin:
        seconds = timed(partial(_do, *json.loads(line)))
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(os.getpid())}), flush=True)


def _do(what: str, *arguments: str) -> None:
    from labeling.actions import exports, imports

    if what == "export":
        since, *few = arguments
        exports.build(query={"since": since, "splits": ["test"] if few else []}, by=None)  # there are none of test
        return
    kind, file, *few = arguments
    action = {"prompts": imports.import_prompts, "responses": imports.import_responses}[kind]
    if few:
        file = str(write_rows(Path(file).with_name("few.jsonl"), kind, 2 * K, seed=1))
    action(path=file, by=None)


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        print(json.dumps(list(measure(Path(sys.argv[2]), [int(size) for size in sys.argv[4:]], int(sys.argv[3])))))
    else:
        work()
