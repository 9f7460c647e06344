"""A night being carried out: what its steps share, and how they run stages as processes of their own."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training import children, gate
from training.client import HeedClient
from training.config import ConfigError, from_dict, read_toml, require
from training.contract import hash_file, read_model_manifest
from training.errors import StageError
from training.night_state import Night

if TYPE_CHECKING:
    from training.nightly import Config

SHIPPED = Path(__file__).parent / "configs"
PYTHON = (sys.executable, "-m", "training")
LAUNCHED = ("sft", "rm", "ppo")


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
        config = {"config": settings_path(settings)} if settings else {}
        command = [
            *(launcher(self.config, stage) or PYTHON),
            *stage.split(),
            *flags(config | {"seed": self.seed} | fields),
        ]
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


def launcher(config: Config, stage: str) -> tuple[str, ...]:
    """What starts a stage: `launch` for those that train, `stage` for the others; empty for this Python."""
    return config.launch if stage in LAUNCHED else config.stage


def settings_path(name: str) -> Path:
    """The settings file: this path, or a shipped one of this name. Raises ConfigError if there is neither."""
    for path in (Path(name), SHIPPED / name):
        if path.is_file():
            return path
    raise ConfigError(f"{name}: there is no such file, here or in {SHIPPED}")


GIVEN = {
    "sft": ("out", "export", "base_model", "reward_model"),
    "rm": ("out", "export", "sft_model"),
    "ppo": ("out", "export", "policy", "reward_model"),
    "evaluate": ("out", "export", "policy", "reward_model", "reference"),
    "by_model": ("out", "export", "policy", "against"),
    "by_task": ("out", "policy"),
}
"""What a night fills in of each stage's settings."""
MODULES = {"by_model": "model_evaluation", "by_task": "task_evaluation"}


def check_settings(config: Config) -> None:
    """Raise ConfigError for settings that a step would refuse after hours of waiting for its turn."""
    gate.read_rules(settings_path(config.rules))
    for stage, given in GIVEN.items():
        name = getattr(config, stage)
        if name is None or (stage == "sft" and config.base_model is None):
            continue
        path = settings_path(name)
        values = read_toml(path) | dict.fromkeys(given, "given later")
        if "against" in given:
            values["against"] = ["given later"]
        if not launcher(config, stage):  # else another Python may have libraries that ours lacks
            module = importlib.import_module(f"training.{MODULES.get(stage, stage)}")
            from_dict(module.Config, values, str(path))
    base, fixed = config.base_model, config.fixed_export
    is_path = base is not None and (base.startswith(("/", ".", "~")) or base.count("/") > 1)
    require(not is_path or Path(base or "").is_dir(), "base_model", f"{base}: there is no such folder")
    require(fixed is None or Path(fixed).is_dir(), "fixed_export", f"{fixed}: there is no such folder")
    for program in config.own_evaluation[:1]:
        require(shutil.which(program) is not None, "own_evaluation", f"{program}: there is no such command")
    if config.publish_to:
        check_storage(config.publish_to)


def check_storage(url: str) -> None:
    """Raise ConfigError where fsspec does not know the kind of storage, or lacks its library."""
    import fsspec

    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"field publish_to: {url}: {error}") from None


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
