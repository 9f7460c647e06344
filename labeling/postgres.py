"""The embedded PostgreSQL 18: where its cluster lives, who owns it, how it starts, stops and recovers.

One process owns a cluster: `manage.py postgres`, in the foreground, under a lock. Everybody else only connects, through
the URL that `embedded_url` computes without starting anything. No Django in here, because settings need that URL.

    var/postgres/            the cluster's home: `lock` (who owns it) and `data`
    /tmp/heed-UID-CLONE/     short, as a socket path holds 107 bytes; its name depends on nothing but user and clone

Which user it runs as, and where all this lies when root's folders are closed to that user: labeling/postgres_places.py.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from labeling.postgres_places import (
    PostgresError,
    digest,
    find_binaries,
    home_of,
    identity,
    make_home,
    make_private,
    make_runtime_folder,
    runtime_folder,
    server_account,
)
from labeling.tether import end_with_parent

DATABASE = "heed"
ROLE = "heed"  # owns the database and may create others (tests); never a superuser
SUPERUSER = "postgres"
PORT = 5432  # only names the socket; nothing listens on TCP
FAST_STOP_SECONDS = 60.0
LOCK_PATIENCE_SECONDS = 2.0  # --status holds the lock for an instant; a starting owner waits that out

NOT_RUNNING = (
    "PostgreSQL is not running for {base_dir}: run `make demo`, or `python manage.py postgres` in another terminal, "
    "or set DATABASE_URL to a server of your own."
)


class _StopRequestedError(BaseException):
    """SIGTERM, SIGINT or SIGHUP arrived."""


def embedded_url(base_dir: Path | str) -> str:
    """The URL of this clone's embedded database, for DATABASE_URL and libpq alike; starts and touches nothing.

    It asks libpq to refuse a server that runs under any other user than ours would (`requirepeer`).
    """
    socket_folder = quote(str(runtime_folder(base_dir) / "postgres"), safe="")
    peer = quote(server_account(base_dir).pw_name)
    return f"postgresql://{ROLE}@{socket_folder}:{PORT}/{DATABASE}?requirepeer={peer}"


def wait_until_ready(url: str, timeout_seconds: float = 60.0, base_dir: Path | str | None = None) -> None:
    """Return once the database at `url` answers a query. Raises PostgresError with the last reason at the time-out."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                connection.execute("SELECT 1")
                return
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                reason = NOT_RUNNING.format(base_dir=base_dir) if base_dir else "The database does not answer."
                raise PostgresError(f"{reason} (waited {timeout_seconds:g} s; {str(error).strip()})") from error
        time.sleep(0.1)


def explain_silence(base_dir: Path | str) -> str | None:
    """After a failed connection: what to do, if it is this clone's embedded server that was asked and does not run."""
    if os.environ.get("DATABASE_URL") not in (None, "", embedded_url(base_dir)):
        return None
    return None if read_status(base_dir).is_accepting else NOT_RUNNING.format(base_dir=base_dir)


@dataclass(frozen=True)
class Status:
    """What `manage.py postgres --status` tells. `owner_pid` is None if nobody holds the lock, or its holder just took it."""

    is_owned: bool
    is_accepting: bool
    owner_pid: int | None
    data: Path
    url: str


def read_status(base_dir: Path | str) -> Status:
    """Who owns this clone's cluster, and whether it takes connections right now."""
    url = embedded_url(base_dir)
    try:
        wait_until_ready(url, timeout_seconds=0)
        is_accepting = True
    except PostgresError:
        is_accepting = False
    is_owned, owner_pid = _lock_holder(home_of(base_dir) / "lock")
    return Status(is_owned, is_accepting, owner_pid, home_of(base_dir) / "data", url)


def stop_owner(base_dir: Path | str, timeout_seconds: float = FAST_STOP_SECONDS + 30) -> bool:
    """Ask the owner of this clone's cluster to stop, and wait. False if there was none. Raises PostgresError at time-out."""
    lock = home_of(base_dir) / "lock"
    deadline = time.monotonic() + timeout_seconds
    is_owned, asked = True, None
    while is_owned:
        is_owned, pid = _lock_holder(lock)
        if pid and pid != asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked = pid
        if is_owned and time.monotonic() > deadline:
            raise PostgresError(f"Process {pid} still owns {lock.parent} after {timeout_seconds:g} s.")
        if is_owned:
            time.sleep(0.1)
    return asked is not None


def run_owner(base_dir: Path | str, *, is_durable: bool = True, say: Callable[[str], None] = print) -> None:
    """Own this clone's cluster and serve it until SIGTERM, SIGINT or SIGHUP, then stop it fast.

    Creates the cluster, role and database where they are missing, stops a server that a killed owner left behind, and
    starts the server again when it dies. Without `is_durable` a power cut may lose everything: for throwaway clusters.
    Raises PostgresError if another process owns the cluster, or if the server cannot start.
    """
    handlers = {
        number: signal.signal(number, _request_stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        home = make_home(Path(base_dir))
        with _owned(home):
            cluster = _Cluster(Path(base_dir), home, server_account(base_dir), is_durable, say)
            cluster.clear_leftovers()
            cluster.create_if_missing()
            cluster.serve()
    except _StopRequestedError:
        say("PostgreSQL stopped before it had started.")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Cluster:
    """One cluster, held by its owner. Every method assumes that the lock is held."""

    def __init__(
        self, base_dir: Path, home: Path, account: pwd.struct_passwd, is_durable: bool, say: Callable[[str], None]
    ) -> None:
        self.base_dir, self.home, self.account, self.is_durable, self.say = base_dir, home, account, is_durable, say
        self.data = home / "data"
        # The title of every process of the server carries this name, which tells them from those of other clusters.
        self.name = f"heed-{digest(home)}"
        self.binaries = find_binaries(account)
        self.socket_folder = make_runtime_folder(base_dir) / "postgres"
        make_private(self.socket_folder, account.pw_uid, account.pw_gid, 0o700)

    def processes(self) -> list[psutil.Process]:
        """The postmaster and backends of this cluster that live, whoever started them."""
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "postgres" and self.name in " ".join(process.info["cmdline"] or [])
        ]

    def clear_leftovers(self) -> None:
        """End what a killed owner or postmaster left running, and remove pid files that name a reused process id."""
        leftovers = self.processes()
        if leftovers:
            self.say(f"Stopping a PostgreSQL that lost its owner: {sorted(process.pid for process in leftovers)}.")
        for number, patience_seconds in (
            (signal.SIGINT, FAST_STOP_SECONDS),
            (signal.SIGQUIT, 10.0),
            (signal.SIGKILL, 10.0),
        ):
            if not leftovers:
                break
            # A postmaster tells its backends; backends without one leave by themselves, a query later at most.
            for process in leftovers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            psutil.wait_procs(leftovers, timeout=patience_seconds)
            leftovers = self.processes()
        if leftovers:
            raise PostgresError(
                f"PostgreSQL processes {[process.pid for process in leftovers]} do not end; end them by hand."
            )
        # No process of this cluster lives, so these files are stale, even where another process has their id by now
        # (after a reboot), which PostgreSQL would take for a running server.
        for path in (self.data / "postmaster.pid", *self.socket_folder.glob(".s.PGSQL.*")):
            path.unlink(missing_ok=True)

    def create_if_missing(self) -> None:
        """initdb beside the final place and rename, so that a killed initdb leaves nothing half-made behind."""
        if (self.data / "PG_VERSION").exists():
            return
        for abandoned in self.home.glob("data.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        fresh = self.home / f"data.new-{uuid.uuid4().hex[:8]}"
        make_private(fresh, self.account.pw_uid, self.account.pw_gid, 0o700)
        self.say(f"Creating a database cluster in {self.data} …")
        done = self._initdb(fresh)
        if done.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise PostgresError(f"initdb failed:\n{done.stdout}")
        fresh.rename(self.data)

    def _initdb(self, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries / "initdb"), "--pgdata", str(folder), "--username", SUPERUSER, "--no-instructions"]
        # A locale inside PostgreSQL: the same order and the same upper case on every machine.
        command += [
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--locale-provider",
            "builtin",
            "--builtin-locale",
            "C.UTF-8",
        ]
        command += ["--auth-local", "peer", "--auth-host", "reject"]
        command += [] if self.is_durable else ["--no-sync"]
        return subprocess.run(
            command,
            cwd=self.home,
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Its children end with it (they read from its pipe), it ends with us: no initdb outlives its owner.
            preexec_fn=end_with_parent(signal.SIGKILL),
            **identity(self.account),
        )

    def serve(self) -> None:
        """Run the server until asked to stop; start it again when it dies. Raises PostgresError when it keeps dying."""
        quick_deaths = 0
        while quick_deaths < 3:
            started = time.monotonic()
            process = self._start()
            try:
                if self._prepare_database(process):
                    self.say(f"PostgreSQL is ready (process {process.pid}): {embedded_url(self.base_dir)}")
                code = process.wait()
            except _StopRequestedError:
                self._stop_fast(process)
                return
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < 10 else 0
            self.say(f"PostgreSQL ended with {code}; recovering.")
            self.clear_leftovers()
        raise PostgresError(f"PostgreSQL ended {quick_deaths} times right after its start; its messages above say why.")

    def _write_access_rules(self) -> dict[str, str]:
        """Peer authentication: the kernel says who connects, and only the user who owns this clone is let in.

        Returns the settings that name the files. They lie outside `data`: as root, we write nothing where the server's
        user could have put a link.
        """
        client = pwd.getpwuid(os.geteuid()).pw_name
        rules = {
            "hba_file": ("pg_hba.conf", "local all all peer map=heed\n"),
            "ident_file": ("pg_ident.conf", "".join(f'heed "{client}" {role}\n' for role in (ROLE, SUPERUSER))),
        }
        for name, text in rules.values():
            (self.home / name).write_text(text)
            (self.home / name).chmod(0o644)
        return {setting: str(self.home / name) for setting, (name, _) in rules.items()}

    def _settings(self) -> dict[str, str]:
        settings = {
            "cluster_name": self.name,
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": f'"{self.socket_folder}"',
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] %q%d ",
        }
        return settings if self.is_durable else settings | {"fsync": "off", "full_page_writes": "off"}

    def _start(self) -> subprocess.Popen[str]:
        settings = self._settings() | self._write_access_rules()
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return subprocess.Popen(
            [self.binaries / "postgres", "-D", self.data, *options],
            cwd=self.data,
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
            # A killed owner cannot stop its server; the kernel asks it then (SIGINT: fast stop).
            preexec_fn=end_with_parent(signal.SIGINT),
            **identity(self.account),
        )

    def _prepare_database(self, process: subprocess.Popen[str]) -> bool:
        """Wait for the server, then create role and database where missing. False if the server died meanwhile."""
        while process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                with psycopg.connect(
                    host=str(self.socket_folder),
                    port=PORT,
                    user=SUPERUSER,
                    dbname="postgres",
                    options="",  # not PGOPTIONS
                    autocommit=True,
                    connect_timeout=5,
                ) as connection:
                    _create_role_and_database(connection)
                return True
            time.sleep(0.05)
        return False

    def _stop_fast(self, process: subprocess.Popen[str]) -> None:
        """Fast stop: open transactions roll back, no recovery is needed. At once if that hangs or a second signal comes."""
        with contextlib.suppress(subprocess.TimeoutExpired, _StopRequestedError):
            process.send_signal(signal.SIGINT)
            process.wait(FAST_STOP_SECONDS)
            self.say("PostgreSQL stopped.")
            return
        self.say("PostgreSQL did not stop in order; stopping it at once. It recovers at the next start.")
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
        process.kill()
        process.wait()


def _create_role_and_database(connection: psycopg.Connection) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(ROLE)))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
        )


def _clean_environment() -> dict[str, str]:
    """Nothing of the user's PG* variables, locale or time zone: the server is the same wherever it starts."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def _owned(home: Path) -> Iterator[None]:
    """Hold the cluster's lock; the kernel frees it however we end. Raises PostgresError naming who holds it."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise PostgresError(f"{home / 'lock'} belongs to another user: run this as that user.") from error
    try:
        _take_lock(descriptor, home)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}).encode())
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, home: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                _refuse_second_owner(home)
            time.sleep(0.1)


def _refuse_second_owner(home: Path) -> NoReturn:
    holder = _read_holder(home / "lock")
    raise PostgresError(
        f"Process {holder.get('pid', '?')} already runs PostgreSQL for {home}, since {holder.get('since', '?')}. "
        "Use it as it is, or end it with `python manage.py postgres --stop`."
    )


def _lock_holder(lock: Path) -> tuple[bool, int | None]:
    """Whether the lock is held, and the process id written in it (None until its holder has written it)."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, None
    except PermissionError as error:
        raise PostgresError(f"{lock} belongs to another user: run this as that user.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, _read_holder(lock).get("pid")
    finally:
        os.close(descriptor)
    return False, None


def _read_holder(lock: Path) -> dict:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(lock.read_text())
    return {}


def _request_stop(number: int, frame: object) -> NoReturn:
    raise _StopRequestedError
