"""Labelers' programs that cost as little as they can: they share the machine with the servers whose requests per second they ask for.

One process of its own, `python -m tests.bench.clients`, one event loop, and for each client a connection that is kept open if the server
keeps it. It reads a Load from its standard input and writes a Tally. httpx with a thread for each client cost 1.5 ms of processor time a
request, which weighs most on the side that answers most; this costs 0.1.
"""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from tests.bench.label_studio import RESULT

K = 4  # responses to a task
IDLE_SECONDS = 1.0  # an older connection is not asked again: servers hang up after two


class Refused(Exception):
    """An answer of another status than that of success, or one that does not say what it should."""


class NothingLeft(Exception):
    """There is no next task."""


class Connection:
    """A client's connection to an HTTP/1.1 server, opened when it is needed."""

    def __init__(self, url: str, headers: dict[str, str]):
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        lines = {"Host": f"{self.host}:{self.port}", "Accept": "*/*", "Content-Type": "application/json"} | headers
        self.head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.used = 0.0

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and whole body of the answer. Raises Refused, OSError, EOFError."""
        if time.monotonic() > self.used + IDLE_SECONDS:
            self.close()
        reader, writer = self.streams = self.streams or await asyncio.open_connection(self.host, self.port, limit=2**20)
        writer.write(f"{method} {path} HTTP/1.1\r\n{self.head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        is_kept = headers.get("connection") != "close"
        if length := headers.get("content-length"):
            answer = await reader.readexactly(int(length))
        elif not is_kept:
            answer = await reader.read()
        elif status.split()[1] == "204":
            answer = b""
        else:
            raise Refused(f"an answer of unknown length: {status}")
        self.used = time.monotonic()
        if not is_kept:
            self.close()
        return int(status.split()[1]), answer

    def close(self) -> None:
        """Hang up; the next request opens another."""
        if self.streams:
            self.streams[1].close()
            self.streams = None


class Labeler:
    """A labeler of Heed's with a token."""

    def __init__(self, url: str, token: str, project: int = 0):
        self.connection = Connection(url, {"Authorization": f"Bearer {token}"})

    async def next(self) -> dict:
        """The next task, whole. Raises NothingLeft."""
        status, answer = await self.connection.ask("POST", "/api/v1/tasks/next/", b"{}")
        if status == 204:
            raise NothingLeft
        task = _said(status, 200, answer)
        if len(task["responses"]) != K:
            raise Refused(f"a task of {len(task['responses'])} responses")
        return task

    async def submit(self, task: dict) -> None:
        """Hand a ranking in, every response rated."""
        ids = [response["response_id"] for response in task["responses"]]
        ranking = {"tiers": [[i] for i in ids], "ratings": {i: {"quality": 4, "flags": {}} for i in ids}}
        body = json.dumps({"submit_key": str(uuid.uuid4()), "answer": ranking}).encode()
        status, answer = await self.connection.ask("POST", f"/api/v1/tasks/{task['task_id']}/submit/", body)
        made = _said(status, 200, answer)
        if (made["task_id"], made["status"], made["is_surplus"]) != (task["task_id"], "submitted", False):
            raise Refused(f"another submission: {made}")


class Annotator:
    """The user of a project of Label Studio's."""

    def __init__(self, url: str, token: str, project: int = 0):
        self.connection, self.project = Connection(url, {"Authorization": f"Token {token}"}), project
        self.body = json.dumps({"result": RESULT}).encode()

    async def next(self) -> int:
        """The id of the next task, which came whole. Raises NothingLeft."""
        status, answer = await self.connection.ask("GET", f"/api/projects/{self.project}/next")
        if status == 404:
            raise NothingLeft
        task = _said(status, 200, answer)
        if len(task["data"]["items"]) != K:
            raise Refused(f"a task of {len(task['data']['items'])} responses")
        return task["id"]

    async def submit(self, task: int) -> None:
        """Hand a ranking in."""
        path = f"/api/tasks/{task}/annotations/?project={self.project}"
        status, answer = await self.connection.ask("POST", path, self.body)
        made = _said(status, 201, answer)
        if made["task"] != task:
            raise Refused(f"another annotation: {made}")


def _said(status: int, expected: int, answer: bytes) -> dict:
    if status != expected:
        raise Refused(f"{status}: {answer[:500]!r}")
    return json.loads(answer)


# Many at once --------------------------------------------------------------------------------------------------

SIDES: dict[str, type[Labeler] | type[Annotator]] = {"heed": Labeler, "label_studio": Annotator}


@dataclass(frozen=True)
class Load:
    """Who asks whom, and for how long: a client for each token."""

    side: str
    url: str
    tokens: list[str]
    seconds: float
    project: int = 0


@dataclass(frozen=True)
class Tally:
    """What came of it: requests that were answered well and those that were not, one of which is told; `seconds`: until the last
    answer; `processor_seconds`: of the clients' process."""

    answered: int
    refused: int
    refusal: str
    seconds: float
    processor_seconds: float

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.answered / self.seconds

    @property
    def client_ms(self) -> float:
        """Processor time of the clients for each good answer."""
        return 1000 * self.processor_seconds / self.answered


def ask(load: Load) -> Tally:
    """Put the load on from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.clients"]
    done = subprocess.run(command, input=json.dumps(asdict(load)), stdout=subprocess.PIPE, check=True, text=True)
    return Tally(**json.loads(done.stdout))


async def _all(load: Load) -> Tally:
    """Each client takes the next task and hands it in, until time is up or nothing is left."""
    answered, refusals = 0, []
    began, spent = time.monotonic(), time.process_time()
    last = began

    async def client(token: str) -> None:
        nonlocal answered, last
        each = SIDES[load.side](load.url, token, load.project)
        while time.monotonic() < began + load.seconds:
            try:
                task = await each.next()
                answered += 1
                await each.submit(task)
                answered += 1
            except NothingLeft:
                break
            except (Refused, OSError, EOFError) as refused:
                refusals.append(str(refused))
                each.connection.close()
            last = time.monotonic()
        each.connection.close()

    await asyncio.gather(*map(client, load.tokens))
    refusal = refusals[0] if refusals else ""
    return Tally(answered, len(refusals), refusal, last - began, time.process_time() - spent)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_all(Load(**json.loads(sys.stdin.read())))))))
