"""`make demo` and `make stop`: the lines of the Procfile on this machine, in order, until told to stop. No Django in here.

    this process          takes the lock, starts supervisord, migrates, seeds, says where to go, trains the base model
      └ supervisord       starts again what dies
          └ postgres, web, worker, gateway, policy      the Procfile's lines, each asked by the kernel to end when supervisord is killed

So whichever of them is killed, nothing keeps running unseen; and the next start ends what lingers before it begins.
"""

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import psutil
from honcho.environ import parse_procfile
from supervisor.xmlrpc import SupervisorTransport

from labeling import postgres
from labeling.tether import PROCFILE, end_with_parent

BASE_DIR = Path(__file__).resolve().parent.parent
FOLDER = BASE_DIR / "var" / "demo"
LOGS = BASE_DIR / "var" / "log"
TINY_BASE_MODEL = BASE_DIR / "var" / "models" / "tiny-base"
MARK = "HEED_DEMO"  # in the environment of every process we start, so that a later start finds it
STOP_SECONDS = 100.0  # the database may need 60 to stop in order

# Databases start first and stop last; a group stops before the next one is asked to.
PRIORITIES = {"postgres": 1}
STOP_WAIT_SECONDS = {"postgres": 75}


class DemoError(Exception):
    """The demo cannot start or stop; the message says why and what to do."""


class _StopRequestedError(BaseException):
    """SIGTERM, SIGINT or SIGHUP arrived."""


def main(arguments: list[str]) -> int:
    """`start` or `stop`. Returns the exit status."""
    try:
        if arguments == ["start"]:
            return start()
        if arguments == ["stop"]:
            return stop()
    except (DemoError, postgres.PostgresError, OSError) as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    print("usage: python -m labeling.demo start|stop", file=sys.stderr)
    return 2


def start() -> int:
    """Run everything in the foreground until a signal. 0 after an ordered stop, 1 when supervisord was killed."""
    os.chdir(BASE_DIR)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _request_stop)
    for folder in (FOLDER, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _sole_demo():
            os.environ |= demo_environment()
            end_leftovers()
            return Demo().run()
    except _StopRequestedError:
        return 0


def stop() -> int:
    """End a running demo of this clone, and what a killed one left behind. 0 also when there is nothing to end."""
    deadline = time.monotonic() + STOP_SECONDS
    asked = None
    while pid := _holder():
        if asked != pid:
            print(f"Stopping the demo (process {pid}) …", flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked = pid
        if time.monotonic() > deadline:
            raise DemoError(f"process {pid} has not ended after {STOP_SECONDS:g} s")
        time.sleep(0.2)
    if not end_leftovers() and asked is None:
        print("No demo of this clone is running.")
    return 0


def demo_environment() -> dict[str, str]:
    """What every process of the demo gets. Secrets are made once and kept in var/env, readable by their owner alone.

    The caller's own settings win, so that DATABASE_URL, PORT or MFA may be set as for any installation.
    """
    port = os.environ.get("PORT") or "8000"
    if not port.isdecimal() or not 0 < int(port) < 65534:
        raise DemoError(f"PORT={port}: expected a number from 1 to 65533")
    kept = _kept_secrets(BASE_DIR / "var" / "env")
    chosen = {
        **kept,
        "ALLOWED_HOSTS": "127.0.0.1,localhost",
        "PORT": port,
        "POLICY_PORT": str(int(port) + 1),
        "GATEWAY_PORT": str(int(port) + 2),
        "HEED_URL": f"http://127.0.0.1:{port}",
        "HEED_TOKEN_FILE": str(FOLDER / "token"),
    }
    chosen = {name: os.environ.get(name) or value for name, value in chosen.items()}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return chosen | {"PATH": path, "PYTHONUNBUFFERED": "1", "HEED_PYTHON": sys.executable, MARK: str(BASE_DIR)}


def _kept_secrets(path: Path) -> dict[str, str]:
    """SECRET_KEY and the demo password, from a file that a shell can source: `set -a; . var/env`."""
    if path.exists():
        return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    made = {"SECRET_KEY": secrets.token_urlsafe(48), "ALLOWED_HOSTS": "127.0.0.1,localhost"}
    made["HEED_DEMO_PASSWORD"] = "-".join(secrets.token_hex(2) for _ in range(3))
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in made.items())
    fresh.rename(path)
    return made


class Demo:
    """One start: supervisord, then its programs in order, then the base model."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.port = int(os.environ["PORT"])
        self.programs = list(parse_procfile(PROCFILE.read_text()).processes)
        status = postgres.read_status(BASE_DIR)
        if os.environ.get("DATABASE_URL") or status.is_owned:
            self.programs.remove("postgres")
            self.say("using the database of DATABASE_URL" if os.environ.get("DATABASE_URL") else _by_hand(status))
        self.socket = postgres.make_runtime_folder(BASE_DIR) / "supervisor.sock"
        self.supervisord: subprocess.Popen | None = None
        self.base_model: subprocess.Popen | None = None

    def run(self) -> int:
        """Start everything, then wait for a signal."""
        for port in (self.port, int(os.environ["POLICY_PORT"]), int(os.environ["GATEWAY_PORT"])):
            _require_free(port)
        try:
            self._start_supervisord()
            self._bring_up()
            return self._watch()
        finally:
            self._end()

    def say(self, line: str) -> None:
        """One line of progress, with the seconds since the start."""
        print(f"{time.monotonic() - self.began:5.1f} s  {line}", flush=True)

    def _start_supervisord(self) -> None:
        config = FOLDER / "supervisord.conf"
        config.write_text(supervisord_config(self.programs, self.socket))
        with (LOGS / "supervisord.log").open("a") as log:
            self.supervisord = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "supervisor.supervisord",
                    "--nodaemon",
                    "--configuration",
                    "var/demo/supervisord.conf",
                ],
                cwd=BASE_DIR,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
                preexec_fn=end_with_parent(signal.SIGTERM),
            )

    def _bring_up(self) -> None:
        if "postgres" in self.programs:
            self._start_program("postgres")
        self.say("waiting for the database")
        url = os.environ.get("DATABASE_URL") or postgres.embedded_url(BASE_DIR)
        postgres.wait_until_ready(url, 90)
        self.say("bringing tables and demo data up to date")
        self._manage("seed_demo", "--migrate")
        self._start_program("web")
        self._start_program("worker")
        self._wait_for_web()
        self._start_program("gateway")
        self._start_program("policy")
        self.say("ready")
        print((FOLDER / "welcome.txt").read_text(), flush=True)
        self._bring_base_model()

    def _start_program(self, name: str) -> None:
        """Ask supervisord, which may itself be starting."""
        deadline = time.monotonic() + 30
        while True:
            # A transport that failed once stays broken: a new one for each try.
            transport = SupervisorTransport(None, None, serverurl=f"unix://{self.socket}")
            server = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            try:
                server.supervisor.startProcess(name, False)
                return
            except (OSError, http.client.HTTPException) as error:
                self._check_supervisord()
                if time.monotonic() > deadline:
                    raise DemoError(f"supervisord does not answer ({error}); see var/log/supervisord.log") from error
            except xmlrpc.client.Fault as fault:
                raise DemoError(f"{name} does not start: {fault.faultString}; see var/log/{name}.log") from fault
            time.sleep(0.1)

    def _manage(self, *arguments: str) -> None:
        """A management command. Its output goes to our log, and to the terminal when it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=BASE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
        with (LOGS / "demo.log").open("a") as log:
            log.write(done.stdout)
        if done.returncode:
            raise DemoError(f"`manage.py {arguments[0]}` failed:\n{done.stdout}")

    def _wait_for_web(self) -> None:
        deadline = time.monotonic() + 90
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                opener.open(f"http://127.0.0.1:{self.port}/healthz", timeout=5).close()
                return
            self._check_supervisord()
            if time.monotonic() > deadline:
                raise DemoError(f"the web server does not answer on port {self.port}; see var/log/web.log")
            time.sleep(0.1)

    def _bring_base_model(self) -> None:
        """Have a policy to serve: the folder that BASE_MODEL names (`off`: none), else the tiny one, trained at first."""
        chosen = os.environ.get("BASE_MODEL") or str(TINY_BASE_MODEL)
        if chosen == "off":
            return
        if chosen != str(TINY_BASE_MODEL) or (TINY_BASE_MODEL / "manifest.json").exists():
            self._manage("seed_demo", "--base-model", chosen)
            return
        self.say("training the tiny base model in the background (some minutes; see var/log/base_model.log)")
        config = "training/configs/tiny_pretrain.toml"
        with (LOGS / "base_model.log").open("a") as log:
            self.base_model = subprocess.Popen(
                [sys.executable, "-m", "training", "pretrain", "--config", config, "--out", str(TINY_BASE_MODEL)],
                cwd=BASE_DIR,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_polite_and_tethered(),
            )

    def _watch(self) -> int:
        while True:
            self._check_supervisord()
            if self.base_model and (code := self.base_model.poll()) is not None:
                self._base_model_ended(code)
            time.sleep(0.5)

    def _base_model_ended(self, code: int) -> None:
        self.base_model = None
        if code:
            self.say(f"the base model was not trained (exit {code}): see var/log/base_model.log; the rest goes on")
            return
        self._manage("seed_demo", "--base-model", str(TINY_BASE_MODEL))
        self.say(f"the base model is trained; it is served on http://127.0.0.1:{os.environ['POLICY_PORT']} in a moment")

    def _check_supervisord(self) -> None:
        if self.supervisord and (code := self.supervisord.poll()) is not None:
            raise DemoError(f"supervisord ended with {code} (see var/log/supervisord.log); run `make demo` again")

    def _end(self) -> None:
        """Stop all programs in order. A second signal does not interrupt this: supervisord is on its way already."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self.base_model and self.base_model.poll() is None:
            self.base_model.terminate()
        if self.supervisord and self.supervisord.poll() is None:
            self.say("stopping")
            self.supervisord.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.supervisord.wait(STOP_SECONDS)
        end_leftovers(is_quiet=True)
        self.say("stopped")


def supervisord_config(programs: list[str], socket_path: Path) -> str:
    """supervisord's configuration for these lines of the Procfile.

    Paths are relative to the clone, whose own path may hold characters that mean something in this format.
    """
    sections = [
        "[supervisord]",
        "nodaemon = true",
        "logfile = /dev/null",  # it also writes to its standard output, which is our log
        "logfile_maxbytes = 0",
        "pidfile = var/demo/supervisord.pid",
        "childlogdir = var/log",
        "umask = 022",
        *(["user = root"] if os.geteuid() == 0 else []),
        "[unix_http_server]",
        f"file = {socket_path}",
        "chmod = 0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for name in programs:
        sections += [
            f"[program:{name}]",
            f"""command = /bin/sh -c 'exec "$HEED_PYTHON" -m labeling.tether {name}'""",
            f"priority = {PRIORITIES.get(name, 10)}",
            "autostart = false",
            "autorestart = true",
            "startsecs = 1",
            "startretries = 1000",  # pauses grow by a second each time; the database may be away for long
            f"stopwaitsecs = {STOP_WAIT_SECONDS.get(name, 20)}",
            "killasgroup = true",
            "redirect_stderr = true",
            f"stdout_logfile = var/log/{name}.log",
            "stdout_logfile_maxbytes = 10MB",
            "stdout_logfile_backups = 3",
        ]
    return "\n".join(sections) + "\n"


def end_leftovers(is_quiet: bool = False) -> bool:
    """End every process that carries this clone's mark, as a killed demo may have left. True if there was one."""
    found = _marked_processes()
    if found and not is_quiet:
        print(f"Ending what an earlier demo left running: {sorted(process.pid for process in found)}", flush=True)
    any_found = bool(found)
    for action, patience_seconds in (("terminate", 75), ("kill", 10)):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, action)()
        psutil.wait_procs(found, timeout=patience_seconds)
        found = _marked_processes()
    if found:
        raise DemoError(f"processes {[process.pid for process in found]} do not end; end them by hand")
    return any_found


def _marked_processes() -> list[psutil.Process]:
    ours = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in ours and process.environ().get(MARK) == str(BASE_DIR):
                found.append(process)
    return found


@contextlib.contextmanager
def _sole_demo() -> Iterator[None]:
    """Hold the lock of this clone's demo. Raises DemoError if another process holds it."""
    descriptor = os.open(FOLDER / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid()}).encode())
        yield
    except BlockingIOError as error:
        raise DemoError(
            f"a demo of this clone is running already (process {_holder()}); `make stop` ends it"
        ) from error
    finally:
        os.close(descriptor)


def _holder() -> int | None:
    """The process that holds the demo's lock."""
    try:
        descriptor = os.open(FOLDER / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads((FOLDER / "lock").read_text())["pid"]
        return None
    finally:
        os.close(descriptor)
    return None


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoError(f"port {port} is taken by another program; choose one: make demo PORT=8100") from error


def _by_hand(status: postgres.Status) -> str:
    return f"using the PostgreSQL that process {status.owner_pid} runs for this clone"


def _polite_and_tethered():
    tether = end_with_parent(signal.SIGTERM)

    def prepare() -> None:
        os.nice(10)
        if tether:
            tether()

    return prepare


def _request_stop(number: int, frame: object) -> None:
    raise _StopRequestedError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
