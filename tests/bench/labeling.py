"""The labeling half measured from outside, in a throwaway installation with one web process: what a labeler waits for.

Tasks are rankings of K = 4 responses of about 500 characters to prompts of about 500, so about 2.5 KB each.
"""

import json
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.loop.site import throwaway_site

K = 4
STEPS = 60  # tasks done one after the other by one labeler
READERS, READ_SECONDS = 8, 5.0
WORDS = [f"word{i}" for i in range(1000)]


def run(folder: Path, tasks: int, runs: int, submissions: list[int]) -> list[dict]:
    """The rows of var/bench/labeling.json. Durations are medians; those of pages, at so many submissions, the 95th percentile."""
    with throwaway_site(folder) as url:
        import django

        django.setup()
        return [*measure(folder, url, tasks, runs), *all_pages(submissions)]


def all_pages(sizes: list[int]) -> Iterator[dict]:
    """Every page of console and labelers, in this process, with so many submissions by 200 labelers, all measured."""
    from labeling.actions import numbers
    from labeling.models import Submission
    from tests.bench import load, pages

    for size in sizes:
        new = max(0, size - Submission.objects.count())
        load.fill(submissions=new)
        took = timed(numbers.measure)
        yield row("numbers of new submissions", {"submissions": size, "new": new}, "submissions/s", new / took, 1)
        yield from pages.measure(size)


def measure(folder: Path, url: str, tasks: int, runs: int) -> Iterator[dict]:
    """Order, claim and submit, read. Imports and exports: bulk.py."""
    from labeling.actions import batches, imports, intake
    from labeling.models import Kind, Role, User

    sizes = {"tasks": tasks, "k": K}
    people = [User.objects.create_user(f"{name}@bench.example", "bench") for name in ("labeler", "reader")]
    for person in people:
        person.grant(Role.LABELER)
    files = [write_rows(folder / f"rows-{i}.jsonl", tasks, seed=i) for i in range(runs)]
    for file in files:
        intake.finish_import(record=imports.import_responses(path=file, by=None))
    took = timed(lambda: batches.create_batch(name="bench", kind=Kind.RANKING, k=K, limit=tasks, by=None))
    yield row("batch of tasks", sizes, "tasks/s", tasks / took, 1)
    claims, pages, submits = work(Browser(url, "labeler@bench.example"))
    yield row("next task, claimed", sizes, "ms", 1000 * statistics.median(claims), STEPS)
    yield row("next task, claimed and shown", sizes, "ms", 1000 * statistics.median(pages), STEPS)
    yield row("submit of a ranking", sizes, "ms", 1000 * statistics.median(submits), STEPS)
    yield row("rps of the queue page", sizes | {"clients": READERS}, "requests/s", read(url), 1)


def row(name: str, params: dict, unit: str, ours: float, runs: int) -> dict:
    """A row with nothing beside it."""
    beside = {"peer": None, "ratio": None, "ratio_min": None, "ratio_max": None}
    return {"name": name, "params": params, "unit": unit, "ours": ours, **beside, "runs": runs}


def write_rows(path: Path, prompts: int, seed: int) -> Path:
    """An import file of prompts with K responses each."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=65)) + f" {rng.getrandbits(64):x}"

    with path.open("w") as file:
        for _ in range(prompts):
            responses = [{"model": f"model-{k}", "text": text()} for k in range(K)]
            file.write(json.dumps({"prompt": text(), "responses": responses}) + "\n")
    return path


def timed(action: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Browser:
    """A logged-in labeler."""

    def __init__(self, url: str, email: str):
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.http.get("/accounts/login/").raise_for_status()
        assert self.post("/accounts/login/", login=email, password="bench").status_code == 302

    def post(self, path: str, **fields: str) -> httpx.Response:
        """A form, sent as the page would."""
        answer = self.http.post(path, data=fields | {"csrfmiddlewaretoken": self.http.cookies["csrftoken"]})
        assert answer.status_code < 400, f"{path}: {answer.status_code}\n{answer.text[:2000]}"
        return answer


def work(browser: Browser) -> tuple[list[float], list[float], list[float]]:
    """Claim, open and submit STEPS rankings. Seconds: of the claim, of claim and page, of the submit."""
    claims, shown, submits = [], [], []
    for _ in range(STEPS):
        began = time.perf_counter()
        page = browser.post("/tasks/next").headers["location"].partition("?")[0]
        claims.append(time.perf_counter() - began)
        html = browser.http.get(page).raise_for_status().text
        shown.append(time.perf_counter() - began)
        answer = {f"quality-{letter}": "4" for letter in "ABCD"} | {
            f"place-{l}": str(i) for i, l in enumerate("ABCD", 1)
        }
        key = re.search(r'name="submit_key"\s+value="([^"]+)"', html)[1]
        submits.append(timed(lambda: browser.post(f"{page}submit", submit_key=key, **answer)))  # noqa: B023
    return claims, shown, submits


def read(url: str) -> float:
    """Requests per second of the queue page by READERS clients at once."""
    browsers = [Browser(url, "reader@bench.example") for _ in range(READERS)]
    deadline = time.monotonic() + READ_SECONDS
    counts = [0] * READERS

    def ask(i: int) -> None:
        while time.monotonic() < deadline:
            browsers[i].http.get("/tasks/").raise_for_status()
            counts[i] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / READ_SECONDS
