"""The embedded PostgreSQL under its owner: real processes, really killed.

Each test starts owners as `manage.py postgres` does, on a clone of its own below the run's folder.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from django.conf import settings

from labeling import postgres, postgres_places
from tests.conftest import ROOT

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to become other users")
COMMAND = [sys.executable, str(ROOT / "manage.py"), "postgres", "--throwaway", "--base-dir"]
# What COMMAND does once Django is loaded, half a second sooner.
QUICK_CODE = "postgres.run_owner(sys.argv[1], is_durable=False, say=lambda line: print(line, flush=True))"
QUICK = [sys.executable, "-c", f"import sys; from labeling import postgres; {QUICK_CODE}"]


class Owner:
    """A running owner and what it said."""

    def __init__(self, clone: Path, command: list[str] | None = None, **environment: str):
        self.clone, self.log = clone, clone / f"owner-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*(command or QUICK), str(clone)], cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment
            )

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert self.process.poll() is None or text in self.said, self.said
            assert time.monotonic() < deadline, f"not said within {seconds} s: {text}\n{self.said}"
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def postmaster(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def new_clone() -> Iterator[Callable[..., Path]]:
    """Folders that stand for clones; whatever still runs in one at the end is stopped, and all traces go."""
    clones: list[Path] = []

    def make(name: str = "clone", parent: Path = settings.TEST_BASE) -> Path:
        clone = parent / f"{len(clones)}-{time.monotonic_ns()}" / name
        clone.mkdir(parents=True)
        clones.append(clone)
        return clone

    yield make
    for clone in clones:
        postgres.stop_owner(clone)
        shutil.rmtree(os.path.realpath(clone / "var" / "postgres"), ignore_errors=True)
        shutil.rmtree(postgres.runtime_folder(clone), ignore_errors=True)
        shutil.rmtree(clone.parent)


@pytest.fixture
def start(new_clone) -> Iterator[Callable[..., Owner]]:
    """start() runs an owner until it is ready; start(clone) does so again on that clone."""
    owners: list[Owner] = []

    def run(clone: Path | None = None, until: str = "PostgreSQL is ready", **options) -> Owner:
        owners.append(Owner(clone or new_clone(), **options))
        owners[-1].wait_for(until)
        return owners[-1]

    yield run
    for owner in owners:
        if owner.process.poll() is None:
            owner.stop()


def query(clone: Path, statement: str) -> list[tuple]:
    """What the statement returns; it is committed."""
    with psycopg.connect(postgres.embedded_url(clone)) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def live_servers(clone: Path) -> list[psutil.Process]:
    """The postmasters of this clone's cluster: more than one is a disaster."""
    data = str(Path(os.path.realpath(clone / "var" / "postgres")) / "data")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"]
        and process.info["cmdline"][0].endswith("/bin/postgres")
        and data in process.info["cmdline"]
    ]


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A finished `manage.py postgres …`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "postgres", *arguments], capture_output=True, text=True, timeout=100
    )


def as_user(name: str, action: Callable[[], None]) -> None:
    """Run `action` in a forked process that has become `name`; fail with its traceback if it raises."""
    account = pwd.getpwnam(name)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            action()
            os._exit(0)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
            os._exit(1)
    os.close(writer)
    message = os.fdopen(reader).read()
    _, status = os.waitpid(child, 0)
    assert status == 0, message


def become(name: str) -> list[str]:
    """The command of an owner that has become `name` after loading what that user may be unable to read."""
    code = (
        "import os, pwd, sys; from labeling import postgres\n"
        f"account = pwd.getpwnam({name!r}); binaries = postgres.find_binaries(account); postgres.find_binaries = lambda _: binaries\n"
        "os.setgroups([]); os.setgid(account.pw_gid); os.setuid(account.pw_uid)\n"
        f"{QUICK_CODE}"
    )
    return [sys.executable, "-c", code]


def test_url_is_computed_without_touching_anything(new_clone):
    clone = new_clone()
    url = postgres.embedded_url(clone)
    assert list(clone.iterdir()) == []
    assert not postgres.runtime_folder(clone).exists()
    assert url == postgres.embedded_url(f"{clone}/.")
    assert psycopg.conninfo.conninfo_to_dict(url)["dbname"] == "heed"


def test_a_server_that_does_not_run_is_named(new_clone):
    clone = new_clone()
    done = run_command("--wait", "0.2", "--base-dir", str(clone))
    assert done.returncode == 1
    assert f"PostgreSQL is not running for {clone}" in done.stderr
    assert "make demo" in done.stderr
    assert "python manage.py postgres" in done.stderr
    status = run_command("--status", "--base-dir", str(clone))
    assert status.returncode == 3
    assert "takes no connections" in status.stdout


def test_commands_say_that_the_server_does_not_run(new_clone):
    """A copy of manage.py and labeling/ has a database of its own, which nobody runs."""
    clone = new_clone()
    shutil.copy(ROOT / "manage.py", clone)
    (clone / "labeling").symlink_to(ROOT / "labeling")
    (clone / "training").symlink_to(ROOT / "training")
    code = f"from pathlib import Path; from labeling import settings; settings.BASE_DIR = Path({str(clone)!r})"
    (clone / "here.py").write_text(f"{code}\nfrom labeling.settings import *\n")
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {"DATABASE_URL": postgres.embedded_url(clone), "DJANGO_SETTINGS_MODULE": "here"}
    command = [sys.executable, "manage.py", "migrate", "--check"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"PostgreSQL is not running for {clone}" in done.stderr
    assert "Traceback" not in done.stderr


def test_serves_postgresql_18_and_stops_on_sigterm(start):
    owner = start(command=COMMAND)
    clone = owner.clone
    assert query(clone, "SHOW server_version_num")[0][0].startswith("18")
    # The application's role can make databases and nothing else that is special.
    assert query(clone, "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user") == [
        (False, True, False)
    ]
    status = run_command("--status", "--base-dir", str(clone))
    assert (status.returncode, f"process {owner.process.pid}" in status.stdout) == (0, True)
    assert owner.stop() == 0
    assert "PostgreSQL stopped." in owner.said
    assert live_servers(clone) == []


def test_sigint_stops_it_while_a_client_holds_a_transaction(start):
    owner = start()
    with psycopg.connect(postgres.embedded_url(owner.clone)) as connection:
        connection.execute("CREATE TABLE never_committed (n int)")
        owner.process.send_signal(signal.SIGINT)
        assert owner.process.wait(20) == 0
        connection.close()
    start(owner.clone)
    assert query(owner.clone, "SELECT to_regclass('never_committed')") == [(None,)]


@pytest.mark.parametrize("name", ["with space and 'quote", "x" * 180], ids=["space", "long"])
def test_any_path(start, new_clone, name):
    clone = new_clone(name)
    assert " " in str(clone) or len(str(clone)) >= 200
    start(clone)
    assert query(clone, "SELECT 1") == [(1,)]


def test_any_locale_and_environment(start):
    """An uninstalled locale, another time zone and stray PG* variables change nothing about the cluster."""
    owner = start(
        None, LANG="xx_XX.UTF-8", LC_ALL="xx_XX", TZ="Asia/Tokyo", PGPORT="1", PGDATA="/nowhere", PGOPTIONS="-c port=1"
    )
    assert query(owner.clone, "SHOW server_encoding") == [("UTF8",)]
    assert query(owner.clone, "SHOW timezone") == [("UTC",)]
    assert query(owner.clone, "SHOW lc_messages") == [("C",)]
    words = "VALUES ('b'), ('B'), ('a'), ('ä'), ('A')"
    assert query(owner.clone, f"SELECT upper('ä'), array_agg(w ORDER BY w) FROM ({words}) AS v(w)") == [
        ("Ä", ["A", "B", "a", "b", "ä"])
    ]


def test_two_clones_at_once(start):
    first, second = start(), start()
    query(first.clone, "CREATE TABLE mine (n int)")
    assert query(second.clone, "SELECT to_regclass('mine')") == [(None,)]
    first.stop()
    assert query(second.clone, "SELECT 1") == [(1,)]


def test_a_second_owner_is_told_who_the_first_is(start):
    owner = start()
    second = subprocess.run([*COMMAND, str(owner.clone)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"Process {owner.process.pid} already runs PostgreSQL" in second.stderr
    assert "Traceback" not in second.stderr
    assert len(live_servers(owner.clone)) == 1


def test_several_processes_share_it(start):
    owner = start()
    query(owner.clone, "CREATE TABLE counter AS SELECT 0 AS n")
    code = (
        "import psycopg, sys\n"
        "with psycopg.connect(sys.argv[1], autocommit=True) as c:\n"
        "    for _ in range(50): c.execute('UPDATE counter SET n = n + 1')"
    )
    command = [sys.executable, "-c", code, postgres.embedded_url(owner.clone)]
    clients = [subprocess.Popen(command) for _ in range(4)]
    assert [client.wait(60) for client in clients] == [0] * 4
    assert query(owner.clone, "SELECT n FROM counter") == [(200,)]


def test_recovers_when_the_server_is_killed(start):
    owner = start()
    query(owner.clone, "CREATE TABLE kept AS SELECT 42 AS n")
    killed = owner.postmaster()
    killed.kill()
    owner.wait_for("recovering")
    postgres.wait_until_ready(postgres.embedded_url(owner.clone), 60)
    assert query(owner.clone, "SELECT n FROM kept") == [(42,)]
    assert [process.pid for process in live_servers(owner.clone)] == [owner.postmaster().pid]
    assert owner.postmaster().pid != killed.pid


def test_recovers_when_the_owner_is_killed(start):
    owner = start()
    query(owner.clone, "CREATE TABLE kept AS SELECT 42 AS n")
    server = owner.postmaster()
    owner.process.kill()
    owner.process.wait()
    start(owner.clone)  # at once: it must wait for the end of the first server
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert query(owner.clone, "SELECT n FROM kept") == [(42,)]
    assert len(live_servers(owner.clone)) == 1


def test_a_server_that_outlives_its_owner_is_stopped_first(start):
    owner = start()
    query(owner.clone, "CREATE TABLE kept AS SELECT 42 AS n")
    server = owner.postmaster()
    server.suspend()  # cannot hear that its owner died
    owner.process.kill()
    owner.process.wait()
    second = start(owner.clone, until="lost its owner")
    time.sleep(0.5)
    assert live_servers(owner.clone) == [server], "never two servers on one cluster"
    server.resume()
    second.wait_for("PostgreSQL is ready")
    assert query(owner.clone, "SELECT n FROM kept") == [(42,)]
    assert live_servers(owner.clone) == [second.postmaster()]


def test_survives_its_parent_and_can_be_stopped(start, new_clone):
    """A killed shell leaves the owner running and known: nobody starts a second one, `--stop` ends it."""
    clone = new_clone()
    parent = start(clone, command=["/bin/sh", "-c", '"$@" & wait', "sh", *COMMAND])
    (owner,) = psutil.Process(parent.process.pid).children()
    parent.process.kill()
    parent.process.wait()
    assert query(clone, "SELECT 1") == [(1,)]
    assert postgres.read_status(clone).owner_pid == owner.pid
    assert run_command("--stop", "--base-dir", str(clone)).stdout.strip() == "Stopped."
    assert live_servers(clone) == []
    assert run_command("--stop", "--base-dir", str(clone)).stdout.strip() == "It was not running."


def test_a_pid_file_that_names_another_live_process_is_no_obstacle(start):
    """After a reboot another process may have the id that the pid files remember."""
    owner = start()
    query(owner.clone, "CREATE TABLE kept AS SELECT 42 AS n")
    data, sockets = owner.clone / "var/postgres/data", postgres.runtime_folder(owner.clone) / "postgres"
    pid_file = (data / "postmaster.pid").read_text()
    lock_file = (sockets / ".s.PGSQL.5432.lock").read_text()
    old = str(owner.postmaster().pid)
    owner.stop()
    account = postgres.server_account(owner.clone)
    other = subprocess.Popen(["sleep", "100"], **postgres.identity(account))  # as the same user: PostgreSQL looks
    try:
        for path, text in ((data / "postmaster.pid", pid_file), (sockets / ".s.PGSQL.5432.lock", lock_file)):
            path.write_text(text.replace(old, str(other.pid), 1))
            os.chown(path, account.pw_uid, account.pw_gid)
        start(owner.clone)
        assert query(owner.clone, "SELECT n FROM kept") == [(42,)]
        assert other.poll() is None, "an innocent process was killed"
    finally:
        other.kill()
        other.wait()


def test_a_killed_initdb_leaves_nothing_behind(start, new_clone):
    clone = new_clone()
    owner = start(clone, until="Creating a database cluster")
    deadline = time.monotonic() + 30
    while not list(clone.glob("var/postgres/data.new-*/*")):
        assert time.monotonic() < deadline, owner.said
    owner.process.kill()
    owner.process.wait()
    assert not (clone / "var/postgres/data").exists()
    start(clone)
    assert query(clone, "SELECT 1") == [(1,)]
    assert not list(clone.glob("var/postgres/data.new-*"))


@needs_root
def test_root_drops_to_another_user_and_loosens_nothing(start, new_clone):
    clone = new_clone()
    before = [path.stat().st_mode for path in (clone, clone.parent, settings.TEST_BASE)]
    owner = start(clone)
    server = owner.postmaster()
    assert all(0 not in process.uids() for process in [server, *server.children()])
    data = clone / "var/postgres/data"
    assert (data.stat().st_uid, data.stat().st_mode & 0o077) == (server.uids().real, 0)
    assert [path.stat().st_mode for path in (clone, clone.parent, settings.TEST_BASE)] == before


@needs_root
def test_root_in_a_private_folder(start, new_clone):
    """A checkout and an environment that only root may enter, as below /root: cluster and binaries go to /var/lib/heed."""
    private = settings.TEST_BASE / "private"
    private.mkdir(mode=0o700)
    clone = new_clone(parent=private)
    package = Path(postgres.find_binaries(pwd.getpwuid(0))).parent.parent
    for path in (package, package.with_name(f"{package.name}.libs")):
        (private / path.name).symlink_to(path)
    copies_before = set(postgres_places.SYSTEM_FOLDER.glob("*"))
    owner = start(clone, PYTHONPATH=str(private))
    try:
        assert query(clone, "SELECT 1") == [(1,)]
        home = (clone / "var/postgres").resolve()
        assert home.parent == postgres_places.SYSTEM_FOLDER
        assert Path(owner.postmaster().exe()).is_relative_to(postgres_places.SYSTEM_FOLDER)
        assert private.stat().st_mode & 0o777 == 0o700
        # What the server runs, it cannot write.
        program = Path(owner.postmaster().exe())
        assert all(
            path.stat().st_uid == 0 and not path.stat().st_mode & 0o022 for path in (program, *program.parents[:4])
        )
        owner.process.kill()
        owner.process.wait()
        start(clone, PYTHONPATH=str(private))
        assert (clone / "var/postgres").resolve() == home
    finally:
        postgres.stop_owner(clone)
        for path in set(postgres_places.SYSTEM_FOLDER.glob("*")) - copies_before:
            shutil.rmtree(path)


@needs_root
def test_as_an_ordinary_user(start, new_clone):
    clone = new_clone()
    account = pwd.getpwnam("nobody")
    os.chown(clone, account.pw_uid, account.pw_gid)
    owner = start(clone, command=become("nobody"))

    def use() -> None:
        assert query(clone, "SELECT 1") == [(1,)]
        assert postgres.runtime_folder(clone).stat().st_mode & 0o777 == 0o700

    as_user("nobody", use)
    assert owner.postmaster().uids().real == account.pw_uid
    # Root, asked to run the same cluster later, keeps it that user's.
    owner.stop()
    as_user("nobody", lambda: shutil.rmtree(postgres.runtime_folder(clone)))
    assert start(clone).postmaster().uids().real == account.pw_uid


@needs_root
def test_other_users_stay_out(start):
    owner = start()
    socket_path = postgres.runtime_folder(owner.clone) / "postgres" / ".s.PGSQL.5432"
    account = postgres.server_account(owner.clone)
    url = postgres.embedded_url(owner.clone)
    stranger = "nobody" if account.pw_name != "nobody" else "daemon"

    def knock() -> None:
        with pytest.raises(PermissionError), socket.socket(socket.AF_UNIX) as knocking:
            knocking.connect(str(socket_path))

    def enter() -> None:
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            psycopg.connect(url)

    as_user(stranger, knock)
    as_user(account.pw_name, enter)  # other programs of the server's user reach the socket, and are refused


@needs_root
def test_a_folder_that_another_user_made_first_is_refused(new_clone):
    clone = new_clone()
    folder = postgres.runtime_folder(clone)
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    done = subprocess.run([*COMMAND, str(clone)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{folder} belongs to user id 12345" in done.stderr


@needs_root
def test_a_server_of_another_user_is_not_believed(start, new_clone):
    """Whoever listens in our socket's place must run as our server's user, or libpq refuses to talk."""
    clone = new_clone()
    folder = postgres.make_runtime_folder(clone) / "postgres"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(folder / ".s.PGSQL.5432"))
        impostor.listen()
        with pytest.raises(psycopg.OperationalError, match="requirepeer"):
            psycopg.connect(postgres.embedded_url(clone), connect_timeout=5)
