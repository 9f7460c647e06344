"""One frozen dataclass per stage, as a TOML file and as command-line flags.

    @dataclass(frozen=True)
    class Config:
        export: str = option(help="export folder, e.g. var/exports/v0007")
        kl_coef: float = option(0.1, help="per-token KL penalty (nats)")

        def validate(self) -> None:
            require(self.kl_coef >= 0, "kl_coef", "must not be negative")

Field types: str, int, float, bool, Literal of those, `X | None`, `tuple[X, ...]`. Flags win over the file, the file
over the defaults. Whatever is wrong raises `ConfigError`, which names the place, e.g.
"ppo.toml: field kl_coef: expected a number, got 'x'" or "python -m training ppo: --kl-coef: must not be negative".
"""

import argparse
import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

AnyConfig = TypeVar("AnyConfig")
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class ConfigError(ValueError):
    """A setting that cannot be used; the message names file or flag, and the field."""


class FieldError(ConfigError):
    """A value of the field `name` that cannot be used, and why."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"field {name}: {problem}")
        self.name, self.problem = name, problem


def option(default: Any = dataclasses.MISSING, *, help: str, is_settings: bool = False) -> Any:
    """A config field. `help` says what it is, with its unit; without a default it must be given.

    `is_settings`: it names a settings file, which a config file may name relative to itself.
    """
    return dataclasses.field(default=default, metadata={"help": help, "is_settings": is_settings})


def require(condition: bool, name: str, problem: str) -> None:
    """For `validate()`: raise FieldError about the field `name` unless `condition` holds."""
    if not condition:
        raise FieldError(name, problem)


def require_warmup(config: Any, name: str, steps: int, whose: str = "the run's") -> None:
    """Raise FieldError about the field `name` for a warm-up that a run of so many steps would end in, below its learning rate."""
    warmup, fewest = getattr(config, name), max(1, steps)
    is_default = warmup == next(field.default for field in dataclasses.fields(config) if field.name == name)
    problem = f"{warmup} are not fewer than {whose} {steps}, so its learning rate would never be reached: give {_flag(name)} below {fewest}"
    require(warmup < fewest, name, f"{problem}; {warmup} is its default" if is_default else problem)


def require_out(out: str, kind: Literal["file", "folder"]) -> None:
    """For `validate()`: raise FieldError unless `out` names what is to be written; a file's name may not be a folder's."""
    require(Path(out).name not in ("", ".."), "out", f"must end in the name of the {kind} to write")
    require(kind == "folder" or not Path(out).is_dir(), "out", "is a folder: give the name of the file to write")


def require_seed(seed: int) -> None:
    """For `validate()`: raise ConfigError unless all random generators take the seed, and what is counted on from it."""
    require(0 <= seed < 2**31, "seed", "must be from 0 to 2147483647")


def from_dict(
    config_type: type[AnyConfig], values: Mapping[str, Any], place: str, flags: Mapping[str, str] | None = None
) -> AnyConfig:
    """A validated config from plain values (lists for tuples).

    `place` begins the message of any ConfigError; for fields among `flags`, what these say.
    """
    hints = get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    places = {name: f"{place}: field {name}" for name in (*fields, *values)} | dict(flags or {})
    for name in values:
        if name not in fields:
            raise ConfigError(f"{places[name]}: unknown{_suggest(name, fields)}")
    checked = {name: _check(value, hints[name], places[name]) for name, value in values.items()}
    missing = [field.name for field in fields.values() if _is_required(field) and field.name not in checked]
    if missing:
        raise ConfigError(f"{places[missing[0]]}: missing ({fields[missing[0]].metadata.get('help', '')})")
    config = config_type(**checked)
    try:
        if validate := getattr(config, "validate", None):
            validate()
    except FieldError as error:
        raise ConfigError(f"{places.get(error.name, place)}: {error.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, tuples as lists: what a model manifest holds."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file. Raises ConfigError naming file and line."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


# ---- command line ---------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, config_type: type) -> None:
    """Add `--config FILE.toml` and a flag per field (`--kl-coef`, or `--kl_coef`), with the fields' help."""
    parser.add_argument("--config", metavar="FILE.toml", help="read settings from this file; flags win over it")
    hints = get_type_hints(config_type)
    own_first = sorted(dataclasses.fields(config_type), key=lambda field: field.kw_only is True)
    for field in own_first:
        _add_flag(parser, field, hints[field.name])


def from_flags(config_type: type[AnyConfig], arguments: Sequence[str], prog: str) -> AnyConfig:
    """A validated config from command-line arguments. Exits like argparse on bad usage; raises ConfigError else."""
    return from_dict(config_type, *_read_flags(config_type, arguments, prog))


def placed(error: FieldError, config_type: type, arguments: Sequence[str], prog: str) -> ConfigError:
    """What `from_flags` would have raised of a field in whose value only the run itself found a fault: with the place it came from."""
    _, place, flags = _read_flags(config_type, arguments, prog)
    return ConfigError(f"{flags.get(error.name, f'{place}: field {error.name}')}: {error.problem}")


def _read_flags(
    config_type: type, arguments: Sequence[str], prog: str
) -> tuple[dict[str, Any], str, Mapping[str, str]]:
    """(values, where they stand, those given as flags by what these say), of file and flags."""
    description = (config_type.__doc__ or "").strip()
    if description.startswith(f"{config_type.__name__}("):  # what dataclass makes up where nothing is written
        description = ""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    add_flags(parser, config_type)
    given = vars(parser.parse_args([_dashed(argument) for argument in arguments]))
    path = given.pop("config")
    flags = {name: value for name, value in given.items() if value is not _UNSET}
    values = (_beside(config_type, read_toml(path), Path(path).parent) if path else {}) | flags
    return values, path or prog, {name: f"{prog}: {_flag(name)}" for name in flags}


def _beside(config_type: type, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Values of a config file, with settings files that lie beside it, and not where we are, by their path."""
    for field in dataclasses.fields(config_type):
        name = values.get(field.name)
        if field.metadata.get("is_settings") and isinstance(name, str) and not Path(name).is_file():
            values[field.name] = str(folder / name) if (folder / name).is_file() else name
    return values


_UNSET: Any = object()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, annotation: Any) -> None:
    flag, kind = _flag(field.name), _without_none(annotation)
    note = "required" if _is_required(field) else f"default: {_shown(field.default)}"
    help_text = f"{field.metadata.get('help', '')} ({note})".strip().replace("%", "%%")
    common = {"dest": field.name, "default": _UNSET, "help": help_text}
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    else:
        metavar = "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _metavar(kind)
        parser.add_argument(flag, type=_FlagType(annotation), metavar=metavar, **common)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])}[,…]"
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


class _FlagType:
    """Turns a flag's text into its field's type; argparse calls it and shows its error."""

    def __init__(self, annotation: Any):
        self.annotation = annotation

    def __call__(self, text: str) -> Any:
        try:
            return _parse(text, self.annotation)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def _parse(text: str, annotation: Any) -> Any:
    kind = _without_none(annotation)
    if kind is not annotation and text.lower() == "none":
        return None
    if get_origin(kind) is tuple:
        return tuple(_parse(part, get_args(kind)[0]) for part in text.split(",") if part)
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"expected {NAMES[kind]}, got {text!r}") from None
    return text


def _dashed(argument: str) -> str:
    """`--kl_coef=1` as `--kl-coef=1`: people copy names from config files."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


# ---- checking values ------------------------------------------------------------------------------------------------


def _check(value: Any, annotation: Any, place: str) -> Any:
    kind = _without_none(annotation)
    if value is None and kind is not annotation:
        return None
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{place}: expected a list, got {value!r}")
        return tuple(_check(item, get_args(kind)[0], f"{place}[{i}]") for i, item in enumerate(value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{place}: expected one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{place}: expected {NAMES[kind]}, got {value!r}")
    if kind is float and math.isnan(value):
        raise ConfigError(f"{place}: expected a number, got nan")
    return value


def _without_none(annotation: Any) -> Any:
    """`X | None` as X; anything else as it is."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    options = [option for option in get_args(annotation) if option is not type(None)]
    if len(options) != 1:
        raise TypeError(f"{annotation}: a config field is one type, or that type or None")
    return options[0]


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
