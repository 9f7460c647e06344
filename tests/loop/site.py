"""A throwaway Heed: database, web and worker as real processes on this machine, gone when the block ends."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from labeling import postgres
from labeling.tether import end_with_parent

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def throwaway_site(folder: Path, *, web_processes: int = 1, database_url: str = "") -> Iterator[str]:
    """Start a fresh Heed under `folder` and yield its URL. os.environ points at it, so Django may be set up inside the block.

    `database_url`: an empty database elsewhere, instead of a server of its own.

    Everything of an earlier run in `folder` is removed first. Raises RuntimeError with the end of its log if a part
    does not start.
    """
    remove_site(folder)
    (folder / "logs").mkdir(parents=True)
    port = free_port()
    os.environ |= {
        "SECRET_KEY": secrets.token_urlsafe(32),
        "ALLOWED_HOSTS": "127.0.0.1",
        "HEED_VAR": str(folder / "var"),
        "DATABASE_URL": database_url or postgres.embedded_url(folder),
        "DJANGO_SETTINGS_MODULE": "labeling.settings",
        "HEED_URL": f"http://127.0.0.1:{port}",
    }
    processes: list[subprocess.Popen] = []
    try:
        manage = [sys.executable, "manage.py"]
        if not database_url:
            own = [*manage, "postgres", "--throwaway", "--base-dir", str(folder)]
            processes.append(_start(folder, "postgres", own))
        postgres.wait_until_ready(os.environ["DATABASE_URL"], START_SECONDS, folder)
        subprocess.run([*manage, "migrate", "-v0"], cwd=ROOT, check=True, timeout=START_SECONDS * 10)
        web = ["gunicorn", "labeling.wsgi", "--bind", f"127.0.0.1:{port}", "--workers", str(web_processes)]
        web += ["--threads", "4"]
        web += [
            "--graceful-timeout",
            "2",
        ]  # a client that keeps its connection open would hold the end up for 30 seconds
        processes.append(web_process := _start(folder, "web", [sys.executable, "-m", *web]))
        processes.append(_start(folder, "worker", [*manage, "procrastinate", "worker"]))
        _wait_for(os.environ["HEED_URL"] + "/healthz", web_process, folder)
        yield os.environ["HEED_URL"]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            _end(process)


def remove_site(folder: Path) -> None:
    """Remove what a site left; as root the cluster itself may lie elsewhere, behind a link."""
    shutil.rmtree(os.path.realpath(folder / "var" / "postgres"), ignore_errors=True)
    shutil.rmtree(postgres.runtime_folder(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, name: str, command: list[str]) -> subprocess.Popen:
    with (folder / "logs" / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=end_with_parent(signal.SIGTERM))


def _wait_for(url: str, process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    log = (folder / "logs" / "web.log").read_text()[-2000:]
    raise RuntimeError(f"The web process does not answer at {url}:\n{log}")


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
