"""Serve the promoted policy to people: `transformers serve` under a watch that follows promotions.

Which model: --model, else what the web half says is promoted (HEED_URL, HEED_TOKEN), else --pointer, a file that names a
folder. While there is none yet, it waits. The model chosen last is remembered beside --state, so a restart serves at once
even when the web half is down. A new policy that does not come up is given up for the one before it.

`transformers serve` is for chat, not for sampling to label: it ignores `n`, so `python -m training sample` never uses it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx

from training.client import ClientError, HeedClient
from training.config import option, require
from training.contract import ContractError, read_model_manifest, write_atomically
from training.errors import StageError


@dataclass(frozen=True)
class Config:
    """Serve the promoted policy to people over an OpenAI-compatible API; follows promotions until stopped."""

    model: str | None = option(None, help="serve this model folder and follow nothing")
    pointer: str | None = option(
        None, help="file that holds the path of the model folder; asked when HEED_URL is not set"
    )
    host: str = option("127.0.0.1", help="address to listen on; keep it local, transformers serve knows no keys")
    port: int = option(8001, help="port to listen on (the web half has 8000)")
    state: str = option("var/serve.json", help="file that remembers the model served last")
    poll_seconds: float = option(5.0, help="seconds between looks for a new promotion")
    start_seconds: float = option(180.0, help="seconds within which a model must be up")
    threads: int = option(1, help="CPU threads; 1 is fastest for tiny models (45 → 835 tokens/s on two cores)")
    device: str = option("auto", help="cpu, cuda, or auto")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require(0 < self.port < 65536, "port", "must be from 1 to 65535")
        require(self.poll_seconds > 0, "poll_seconds", "must be positive")
        require(self.start_seconds > 0, "start_seconds", "must be positive")
        require(self.threads > 0, "threads", "must be positive")


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    watch = Watch(config, Chooser(config))
    try:
        while not stop.is_set:
            watch.step()
            stop.wait(config.poll_seconds if watch.is_up else min(1.0, config.poll_seconds))
    finally:
        watch.server.stop()


class Stop:
    """A signal handler that can be waited for."""

    is_set = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.is_set = True

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until a signal."""
        deadline = time.monotonic() + seconds
        while not self.is_set and time.monotonic() < deadline:
            time.sleep(0.1)


class Chooser:
    """Which folder should be served now."""

    def __init__(self, config: Config):
        self.config = config

    def folder(self) -> Path | None:
        """The promoted model's folder; the one remembered when nobody can be asked; None when there is none yet."""
        if self.config.model:
            return Path(self.config.model)
        if os.environ.get("HEED_URL"):
            return self._promoted()
        if self.config.pointer:
            with suppress(FileNotFoundError):
                return Path(Path(self.config.pointer).read_text().strip())
            return None
        raise StageError("nothing says what to serve: set HEED_URL and HEED_TOKEN, or give --model or --pointer")

    def _promoted(self) -> Path | None:
        """What the web half says; asked once per look, as the loop itself is the retry and must notice a signal."""
        try:
            with HeedClient.from_environment(patience_seconds=0, timeout_seconds=10) as client:
                promoted = client.serving_model()
                return client.fetch_model(promoted) if promoted else None
        except ClientError as error:
            say_once(f"{error}; staying with the last known policy")
            return self.remembered()

    def remembered(self) -> Path | None:
        """The model that was up last, by the state file."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            return Path(json.loads(Path(self.config.state).read_bytes())["model"])
        return None

    def remember(self, folder: Path) -> None:
        """Note that `folder` is up."""
        path = Path(self.config.state)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"model": str(folder)}).encode() + b"\n")


@dataclass(frozen=True)
class Refusal:
    """Until when a folder that did not come up is left alone: a minute, then twice as long each time, to an hour."""

    until: float
    seconds: float

    @classmethod
    def after(cls, last: "Refusal | None") -> "Refusal":
        """The next refusal; each try at a broken model costs the time in which the old one is down."""
        seconds = min(last.seconds * 2, 3600.0) if last else 60.0
        return cls(time.monotonic() + seconds, seconds)


class Watch:
    """Keeps the wanted model up: starts, restarts, changes over, and falls back."""

    def __init__(self, config: Config, chooser: Chooser):
        self.config, self.chooser = config, chooser
        self.server = Server(config)
        self.refused: dict[Path, Refusal] = {}

    @property
    def is_up(self) -> bool:
        """True while the server answers for some model."""
        return self.server.is_alive

    def step(self) -> None:
        """Look once, and do what is needed."""
        wanted = self.chooser.folder()
        wanted = wanted.resolve() if wanted else None
        if wanted is None:
            say_once("no policy has been promoted yet; waiting")
        elif self._needs_change(wanted):
            self._change_to(wanted)

    def _needs_change(self, wanted: Path) -> bool:
        if wanted == self.server.folder and self.server.is_alive:
            return False
        return wanted not in self.refused or time.monotonic() >= self.refused[wanted].until

    def _change_to(self, wanted: Path) -> None:
        previous = self.server.folder or self.chooser.remembered()
        try:
            self.server.start(wanted)
        except (StageError, ContractError) as error:
            self.refused[wanted] = Refusal.after(self.refused.get(wanted))
            say(f"{wanted} cannot be served: {error}")
            if previous is None or previous == wanted or self.server.is_alive:
                return
            with suppress(StageError, ContractError):
                self.server.start(previous)
                say(f"serving {previous} instead")
        else:
            self.refused.pop(wanted, None)
            self.chooser.remember(wanted)
            say(f"serving {wanted} on http://{self.config.host}:{self.config.port}")


class Server:
    """One `transformers serve` process, pinned to one folder, that dies with us."""

    def __init__(self, config: Config):
        self.config = config
        self.folder: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, folder: Path) -> None:
        """Serve `folder`, in place of what is served now. The folder is checked before the old server is stopped."""
        manifest = read_model_manifest(folder)
        if manifest.stage == "rm":
            raise StageError("a reward model writes no text")
        self.stop()
        self.folder = folder
        self.process = subprocess.Popen(self._command(folder), env=self._environment(), preexec_fn=_die_with_parent)
        self._wait_until_up()

    def stop(self) -> None:
        """End the process, by force if it lingers."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process, self.folder = None, None

    def _command(self, folder: Path) -> list[str]:
        """Pinned to the folder: requests that name another model are refused, which is the whitelist."""
        config = self.config
        program = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
        address = ["--host", config.host, "--port", str(config.port), "--device", config.device]
        return [*program, *address, "--log-level", "error"]

    def _environment(self) -> dict[str, str]:
        threads = str(self.config.threads)
        cache = Path(self.config.state).with_name("serve-hub-cache").resolve()
        cache.mkdir(parents=True, exist_ok=True)  # GET /v1/models answers 500 where there is no cache folder
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **offline}

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.config.start_seconds
        url = f"http://{self.config.host}:{self.config.port}/health"
        while time.monotonic() < deadline:
            if not self.is_alive:
                status = self.process.returncode if self.process else None
                raise StageError(f"transformers serve ended with status {status} before it was up")
            with suppress(httpx.TransportError):
                if httpx.get(url, timeout=2, trust_env=False).is_success and self.is_alive:
                    return
            time.sleep(0.2)
        self.stop()
        raise StageError(f"transformers serve was not up within {self.config.start_seconds:.0f} s")


def _die_with_parent() -> None:
    """Have the kernel end the child when we are killed, so that no orphan holds the port (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG


_said: str | None = None


def say(message: str) -> None:
    """One line on stderr."""
    global _said
    _said = message
    print(f"serve: {message}", file=sys.stderr, flush=True)


def say_once(message: str) -> None:
    """The same, unless it was the last thing said."""
    if message != _said:
        say(message)
