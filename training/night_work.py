"""A night being carried out: what its steps share, and how they run stages as processes of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training import children, gate
from training.client import HeedClient
from training.config import ConfigError, from_dict, read_toml
from training.contract import hash_file, read_model_manifest
from training.errors import StageError
from training.night_state import Night

if TYPE_CHECKING:
    from training.nightly import Config

SHIPPED = Path(__file__).parent / "configs"
PYTHON = (sys.executable, "-m", "training")


class Damaged(StageError):
    """What a finished step left is not what it was: the night cannot go on."""


class Waiting(Exception):
    """The night waits for people, and goes on with a later run."""


@dataclass(frozen=True)
class Work:
    """A night being carried out."""

    config: Config
    client: HeedClient
    night: Night
    root: Path
    until: float | None
    held: IO[str]

    @property
    def start(self) -> dict[str, Any]:
        """What the night starts from, by role: {name, uri, manifest_sha256}, or None."""
        return self.night.state["start"]

    @property
    def seed(self) -> int:
        """Another one each night: a run that failed by its draws fails so once."""
        return self.config.seed + self.night.number - 1

    @property
    def export(self) -> Path:
        """The night's export."""
        return Path(self.done("export")["folder"])

    def done(self, step: str) -> dict[str, Any]:
        """What a finished step came to."""
        output = self.night.output(step)
        if output is None:
            raise StageError(f"night {self.night.number}: {step} is not done yet")
        return output

    def model(self, stage: str) -> Path:
        """Where the night's model of this stage is, or will be."""
        return self.root / "models" / f"{self.config.name}-{self.night.number:04d}-{stage}"

    def stage(self, stage: str, settings: str | None, **fields: Any) -> None:
        """Run a training stage as a process of its own, until the night's time is spent."""
        launch = self.config.launch if stage in ("sft", "rm", "ppo") else self.config.stage
        config = {"config": settings_path(settings)} if settings else {}
        command = [*(launch or PYTHON), *stage.split(), *flags(config | {"seed": self.seed} | fields)]
        self.command(stage.replace(" ", "-"), command)

    def command(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Run any command so; what it prints goes to the night's logs."""
        log = self.night.folder / "logs" / f"{name}.log"
        children.run(command, log, until=self.until, held=self.held, environment=environment)


def flags(fields: Mapping[str, Any]) -> list[str]:
    """Settings as a command line; None is left out, True is a flag alone."""
    words: list[str] = []
    for name, value in fields.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def settings_path(name: str) -> Path:
    """The settings file: this path, or a shipped one of this name. Raises ConfigError if there is neither."""
    for path in (Path(name), SHIPPED / name):
        if path.is_file():
            return path
    raise ConfigError(f"{name}: there is no such file, here or in {SHIPPED}")


def check_settings(config: Config) -> None:
    """Raise ConfigError for settings of a stage that it would refuse after hours of waiting for its turn."""
    gate.read_rules(settings_path(config.rules))
    needed = {"rm": ("sft_model",), "ppo": ("policy", "reward_model")}
    needed |= {"sft": ("base_model",)} if config.base_model else {}
    for stage, folders in needed.items():
        path = settings_path(getattr(config, stage))
        values = read_toml(path) | dict.fromkeys(("out", "export", *folders), "given later")
        if not config.launch:  # else another Python may have the libraries that ours lacks
            from_dict(importlib.import_module(f"training.{stage}").Config, values, str(path))
    for also in (config.evaluate, config.by_model, config.by_task):
        if also:
            settings_path(also)


def named(model: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the state keeps of a registered model."""
    return {name: model[name] for name in ("name", "stage", "uri", "manifest_sha256")} if model else None


def fetched(work: Work, role: str) -> Path | None:
    """The folder of what the night starts from, here; None where there is none."""
    model = work.start[role]
    return HeedClient.fetch_model(model, work.root / "models" / "fetched") if model else None


def pin(folder: Path) -> dict[str, Any]:
    """A model folder, intact, by its name and its manifest's hash."""
    manifest = read_model_manifest(folder)
    return {"name": manifest.name, "folder": str(folder), "manifest_sha256": hash_file(folder / "manifest.json")}
