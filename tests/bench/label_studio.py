"""Label Studio beside ours: the same tasks through its API. It is not installed here; whoever has one running says where it is.

`../shared/bench/label_studio_up.sh` starts one (1.23.2, two gunicorn workers, PostgreSQL). LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN
say where it is; without them nothing stands beside ours. LABEL_STUDIO_POSTGRES: its server, as postgresql://postgres@127.0.0.1:55433,
where its database is `ls`: then ours stands on the same, and its tasks can be locked.
"""

import os
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg

CONFIG = (
    '<View><Text name="prompt" value="$prompt"/><List name="answers" value="$items" title="R"/>'
    '<Ranker name="rank" toName="answers"/><Rating name="q" toName="prompt" maxRating="7"/></View>'
)
RESULT = [
    {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": ["r2", "r0", "r1", "r3"]}},
    {"from_name": "q", "to_name": "prompt", "type": "rating", "value": {"rating": 5}},
]
AT_ONCE = 5000  # tasks a request: more do not go through


class LabelStudio:
    """A running Label Studio, spoken to as its users' scripts do."""

    def __init__(self, url: str, token: str):
        self.server = os.environ.get("LABEL_STUDIO_POSTGRES", "")
        self.url, self.token, self.port = url, token, urlsplit(url).port
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Token {token}"}, timeout=900, trust_env=False
        )

    @classmethod
    def here(cls) -> "LabelStudio | None":
        """The one that the environment names."""
        url = os.environ.get("LABEL_STUDIO_URL")
        return cls(url, os.environ["LABEL_STUDIO_TOKEN"]) if url else None

    def import_tasks(self, rows: list[dict], *, are_labeled: bool = False) -> tuple[int, float]:
        """(project, seconds) for rows as write_rows makes them, in a project of their own."""
        made = self.http.post("/api/projects/", json={"title": "bench", "label_config": CONFIG}).raise_for_status()
        project, seconds = made.json()["id"], 0.0
        tasks = [self._task(row, are_labeled) for row in rows]
        for begin in range(0, len(tasks), AT_ONCE):
            began = time.perf_counter()
            url = f"/api/projects/{project}/import?return_task_ids=false"
            self.http.post(url, json=tasks[begin : begin + AT_ONCE]).raise_for_status()
            seconds += time.perf_counter() - began
        return project, seconds

    @staticmethod
    def _task(row: dict, is_labeled: bool) -> dict:
        bodies = [response["text"] for response in row.get("responses", [])]
        items = [{"id": f"r{k}", "title": f"R{k}", "body": body} for k, body in enumerate(bodies)]
        task: dict = {"data": {"prompt": row["prompt"], "items": items}}
        return task | ({"annotations": [{"result": RESULT, "completed_by": 1}]} if is_labeled else {})

    def export(self, project: int) -> float:
        """Seconds to fetch all tasks of a project with their labels."""
        began = time.perf_counter()
        url = f"/api/projects/{project}/export"
        with self.http.stream("GET", url, params={"exportType": "JSON", "download_all_tasks": "true"}) as answer:
            answer.raise_for_status()
            for _block in answer.iter_bytes():
                pass
        return time.perf_counter() - began

    def lock(self, project: int, count: int) -> None:
        """So many tasks are open before another person."""
        mail = f"{uuid.uuid4()}@bench.example"
        body = {"email": mail, "username": mail[:30], "first_name": "", "last_name": ""}
        user = self.http.post("/api/users/", json=body).raise_for_status().json()["id"]
        with psycopg.connect(f"{self.server}/ls", autocommit=True) as database:
            database.execute(
                "INSERT INTO tasks_tasklock (task_id, user_id, unique_id, expire_at, created_at)"
                " SELECT id, %s, gen_random_uuid(), now() + interval '2 hours', now() FROM task"
                " WHERE project_id = %s ORDER BY id LIMIT %s",
                (user, project, count),
            )
            database.execute("ANALYZE")

    def database_for_us(self) -> str:
        """The URL of an empty database on its server; "" if we are to use one of our own."""
        if not self.server:
            return ""
        with psycopg.connect(f"{self.server}/postgres", autocommit=True) as server:
            server.execute("DROP DATABASE IF EXISTS heed_bench WITH (FORCE)")
            server.execute("CREATE DATABASE heed_bench")
        return f"{self.server}/heed_bench"

    def peak_mb(self) -> float | None:
        """The most memory that one of its web processes on this machine ever held, in MiB."""
        listening = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == self.port and c.pid]
        if not listening:
            return None
        # Its processes share a socket, of which psutil names one owner: the master or one of its workers.
        one = psutil.Process(listening[0])
        parent = one.parent()
        master = parent if parent and parent.cmdline() == one.cmdline() else one
        return max(peak_mb(process.pid) for process in (master, *master.children(recursive=True)))


def peak_mb(pid: int) -> float:
    """The most memory that a process ever held, in MiB. Not ru_maxrss, which a process inherits from its parent."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
