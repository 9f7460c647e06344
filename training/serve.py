"""Serve policies to people at one address, and follow promotions without losing a request.

Which one: --model, or several with --models, else what the web half says is promoted (HEED_URL, HEED_TOKEN), else --pointer,
a file that names a folder. While there is none yet, it waits. The model chosen last is remembered beside --state, so a restart
serves at once even when the web half is down.

The public port is a small proxy's (`front.py`); each policy has an engine behind it (`engines.py`). A new policy is started beside
the old one, checked, and takes its place in one step; requests under way end on the old one, which is stopped then. A new policy
that does not come up changes nothing. Two policies are in memory meanwhile; --stop-first has one at a time, and requests
wait for it.

`transformers serve` is for chat, not for sampling to label: it ignores `n`, so `python -m training sample` never uses it.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from training.client import ClientError, HeedClient
from training.config import option, require
from training.contract import ContractError, read_model_manifest, write_atomically
from training.engines import Engine, Kind, manifest_of, vllm
from training.errors import StageError
from training.front import Front


@dataclass(frozen=True)
class Config:
    """Serve the promoted policy to people over an OpenAI-compatible API; follows promotions until stopped."""

    model: str | None = option(None, help="serve this model folder and follow nothing")
    models: tuple[str, ...] = option(
        (), help="serve these model folders, each under its own name, the first where none is named; follow nothing"
    )
    pointer: str | None = option(
        None, help="file that holds the path of the model folder; asked when HEED_URL is not set"
    )
    engine: Kind = option("transformers", help="what runs a model: transformers (transformers serve) or vllm")
    engine_args: str = option("", help="more arguments for the engine, e.g. '--gpu-memory-utilization 0.45'")
    stop_first: bool = option(
        False, help="stop the old policy before the new one starts, where memory holds one; requests wait meanwhile"
    )
    host: str = option("127.0.0.1", help="address to listen on; keep it local, there are no keys here")
    port: int = option(8001, help="port to listen on (the web half has 8000)")
    state: str = option("var/serve.json", help="file that remembers the model served last")
    poll_seconds: float = option(5.0, help="seconds between looks for a new promotion")
    start_seconds: float = option(180.0, help="seconds within which a model must be up")
    drain_seconds: float = option(300.0, help="seconds that a replaced policy may take to end its answers")
    threads: int = option(1, help="CPU threads; 1 is fastest for tiny models (45 → 835 tokens/s on two cores)")
    device: str = option("auto", help="cpu, cuda, or auto (transformers)")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require(0 < self.port < 65536, "port", "must be from 1 to 65535")
        for name in ("poll_seconds", "start_seconds", "drain_seconds"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.threads > 0, "threads", "must be positive")
        require(not (self.model and self.models), "models", "give model or models")


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    chooser = Chooser(config)
    chooser.check()
    watch = Watch(config, chooser, Front(config.host, config.port))
    try:
        while not stop.is_set:
            watch.step()
            watch.rest(stop)
    finally:
        watch.stop()


class Stop:
    """A signal handler that can be waited for."""

    is_set = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.is_set = True

    def wait(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
        """Sleep, but no longer than until a signal, or until `unless` holds."""
        deadline = time.monotonic() + seconds
        while not self.is_set and not unless() and time.monotonic() < deadline:
            time.sleep(0.1)


class Chooser:
    """Which folders should be served now."""

    def __init__(self, config: Config):
        self.config = config

    def check(self) -> None:
        """Raise StageError or ContractError when nothing says what to serve, the engine is not here, or a folder named is no policy's."""
        config = self.config
        if not (config.model or config.models or config.pointer or os.environ.get("HEED_URL")):
            raise StageError("nothing says what to serve: set HEED_URL and HEED_TOKEN, or give --model or --pointer")
        if config.engine == "vllm":
            vllm()
        given = config.models or ((config.model,) if config.model else ())
        names = [manifest_of(Path(folder), verify=False).name for folder in given]
        if len(set(names)) < len(names):
            raise StageError(f"models: two folders have one name: {', '.join(sorted(names))}")

    def folders(self) -> list[Path]:
        """The folders named; the promoted model's, or the one remembered when nobody can be asked; none when there is none yet."""
        if self.config.models or self.config.model:
            return [Path(folder) for folder in self.config.models or (self.config.model or "",)]
        if os.environ.get("HEED_URL"):
            found = self._promoted()
            return [found] if found else []
        with suppress(FileNotFoundError):
            return [Path(Path(self.config.pointer or "").read_text().strip())]
        return []

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
        """The next refusal; each try at a broken model takes memory and processors from the one that serves."""
        seconds = min(last.seconds * 2, 3600.0) if last else 60.0
        return cls(time.monotonic() + seconds, seconds)


class Watch:
    """Keeps the wanted models up: starts, restarts, changes over, and stays with what there is when it cannot."""

    def __init__(self, config: Config, chooser: Chooser, front: Front):
        self.config, self.chooser, self.front = config, chooser, front
        self.engines: dict[Path, Engine] = {}
        self.refused: dict[Path, Refusal] = {}
        self.shown: list[Engine] = []

    @property
    def is_up(self) -> bool:
        """True while some model answers."""
        return any(engine.is_alive for engine in self.shown)

    @property
    def is_whole(self) -> bool:
        """True while all that is shown answers."""
        return bool(self.shown) and all(engine.is_alive for engine in self.shown)

    def rest(self, stop: Stop) -> None:
        """Wait for the next look: a while, but no longer than all that is shown stays up, as requests wait for what died."""
        if self.is_whole:
            stop.wait(self.config.poll_seconds, unless=lambda: not self.is_whole)
        else:
            stop.wait(min(1.0, self.config.poll_seconds))

    def stop(self) -> None:
        """Take no more requests, then end all engines."""
        self.front.stop()
        for engine in self.engines.values():
            engine.stop()

    def step(self) -> None:
        """Look once, and do what is needed. Requests wait for what the look finds."""
        with self.front.changing():
            self._look()

    def _look(self) -> None:
        wanted = self._wanted()
        self.front.expect(_names(wanted))
        if not wanted:
            say_once("no policy has been promoted yet; waiting")
            return
        if up := [engine for folder in wanted if (engine := self._up(folder, wanted))]:
            if (
                up == self.shown or not self.is_up or self._wanted() == wanted
            ):  # a rollback may have come while it started
                self._show(up)
        elif not self.is_up:
            self._fall_back()
        self._end_retired()

    def _wanted(self) -> list[Path]:
        return list(dict.fromkeys(folder.resolve() for folder in self.chooser.folders()))

    def _up(self, folder: Path, wanted: list[Path]) -> Engine | None:
        """The engine of a folder, started if need be; None when it does not come up, or did not lately."""
        engine = self.engines.get(folder)
        if engine and engine.is_alive:
            return engine
        if folder in self.refused and time.monotonic() < self.refused[folder].until:
            return None
        try:
            engine = Engine(self.config, folder)
            if self.config.stop_first or not self.is_up:
                self._stop_others(wanted)
            engine.start()
        except (StageError, ContractError) as error:
            self.refused[folder] = Refusal.after(self.refused.get(folder))
            names = ", ".join(str(one.folder) for one in self.shown if one.is_alive)
            say(f"{folder} cannot be served: {error}" + (f"; serving {names} instead" if names else ""))
            return None
        self.engines[folder] = engine
        self.refused.pop(folder, None)
        if not self.is_up:
            self._show([engine])  # what waits need not wait longer
        return engine

    def _show(self, engines: list[Engine]) -> None:
        """Let new requests go to these; those shown before end their answers and are stopped then."""
        if engines == self.shown:
            return
        for old in self.shown:
            old.retired_at = time.monotonic()
        for engine in engines:
            engine.retired_at = None
        self.front.show([engine.served for engine in engines])
        self.shown = engines
        if not (self.config.model or self.config.models):
            self.chooser.remember(engines[0].folder)
        say(f"serving {', '.join(str(engine.folder) for engine in engines)} on {self.front.address}")

    def _fall_back(self) -> None:
        """Nothing answers and nothing that is wanted comes up: serve what was up last."""
        previous = self.chooser.remembered()
        if previous and (engine := self._up(previous.resolve(), [previous.resolve()])):
            say(f"serving {previous} instead")
            self._show([engine])
        else:
            self.front.show([])

    def _stop_others(self, wanted: list[Path]) -> None:
        """Make room: end what is not wanted any more, its answers first; new requests wait."""
        self.front.show([one.served for one in self.shown if one.folder in wanted and one.is_alive])
        for engine in [one for one in self.engines.values() if one.folder not in wanted]:
            deadline = time.monotonic() + self.config.drain_seconds
            while engine.served.in_flight and engine.is_alive and time.monotonic() < deadline:
                time.sleep(0.05)
            engine.stop()

    def _end_retired(self) -> None:
        """Stop what was replaced and has ended its answers, or took too long to."""
        now = time.monotonic()
        for folder, engine in list(self.engines.items()):
            if engine in self.shown:
                continue
            is_late = engine.retired_at is not None and now - engine.retired_at > self.config.drain_seconds
            if is_late or not engine.served.in_flight:
                engine.stop()
                del self.engines[folder]


def _names(folders: list[Path]) -> list[str]:
    """What the models in these folders are called, as far as can be read."""
    names = []
    for folder in folders:
        with suppress(ContractError, OSError):
            names.append(read_model_manifest(folder, verify=False).name)
    return names


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
