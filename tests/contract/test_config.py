"""Config: TOML and flags into a frozen dataclass, everything wrong refused with its place."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from training.config import ConfigError, FieldError, from_dict, from_flags, option, placed, require, to_dict

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Config:
    """Train something."""

    export: str = option(help="export folder")
    steps: int = option(10, help="optimiser steps")
    kl_coef: float = option(0.1, help="KL penalty (nats, 100%)")
    resume: bool = option(True, help="go on where a killed run stopped")
    device: Literal["cpu", "cuda"] | None = option(None, help="where to run")
    models: tuple[str, ...] = option((), help="model folders")

    def validate(self) -> None:
        require(self.kl_coef >= 0, "kl_coef", "must not be negative")


def test_defaults_file_and_flags_in_rising_order(tmp_path):
    file = tmp_path / "ppo.toml"
    file.write_text('export = "v1"\nsteps = 20\nkl_coef = 1\nresume = false\n')
    assert from_flags(Config, ["--config", str(file)], "x") == Config(export="v1", steps=20, kl_coef=1.0, resume=False)
    flags = ["--config", str(file), "--steps=30", "--kl_coef", "0.5", "--models", "a,b", "--device", "cpu", "--resume"]
    expected = Config(export="v1", steps=30, kl_coef=0.5, models=("a", "b"), device="cpu")
    assert from_flags(Config, flags, "x") == expected
    assert from_flags(Config, [*flags, "--device", "none"], "x").device is None


def test_a_config_survives_a_manifest():
    config = Config(export='a"\\\n\x7f\x01 “ü”', kl_coef=1e-5, models=("x", "y"), device="cuda", resume=False)
    assert from_dict(Config, to_dict(config), "manifest") == config
    assert to_dict(config)["models"] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1", "field export: missing"),
        ('export = "v"\nkl_coeff = 1', r"field kl_coeff: unknown \(did you mean kl_coef\?\)"),
        ('export = "v"\nsteps = "x"', "field steps: expected a whole number, got 'x'"),
        ('export = "v"\nsteps = 1.5', "field steps: expected a whole number"),
        ('export = "v"\nsteps = true', "field steps: expected a whole number"),
        ('export = "v"\nresume = 1', "field resume: expected true or false"),
        ('export = "v"\nkl_coef = nan', "field kl_coef"),
        ('export = "v"\nkl_coef = -1', "field kl_coef: must not be negative"),
        ('export = "v"\ndevice = "tpu"', "field device: expected one of cpu, cuda, got 'tpu'"),
        ('export = "v"\nmodels = ["a", 1]', r"field models\[1\]: expected text"),
        ('export = "v"\nmodels = "a"', "field models: expected a list"),
        ("export = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path, text, message):
    file = tmp_path / "ppo.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"ppo\.toml: .*{message}"):
        from_flags(Config, ["--config", str(file)], "x")


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (["--kl-coef", "-1"], "python -m training ppo: --kl-coef: must not be negative"),
        (["--device", "tpu"], "python -m training ppo: --device: expected one of cpu, cuda, got 'tpu'"),
        ([], "ppo.toml: field kl_coef: must not be negative"),
    ],
)
def test_a_wrong_value_is_blamed_on_where_it_stands(tmp_path, flags, place):
    file = tmp_path / "ppo.toml"
    file.write_text(f'export = "v"\nkl_coef = {-1 if not flags else 1}\n')
    with pytest.raises(ConfigError) as error:
        from_flags(Config, ["--config", str(file), *flags], "python -m training ppo")
    assert str(error.value).endswith(place)
    assert flags == [] or "ppo.toml" not in str(error.value)
    late = placed(
        FieldError("kl_coef", "too much of it"), Config, ["--config", str(file), *flags], "ppo"
    )  # as a run finds
    assert str(late) == (
        "ppo: --kl-coef: too much of it" if "--kl-coef" in flags else f"{file}: field kl_coef: too much of it"
    )


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        from_flags(Config, ["--config", str(tmp_path / "none.toml")], "x")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.toml: .*utf-8"):
        from_flags(Config, ["--config", str(tmp_path / "b.toml")], "x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "x"], "--steps: expected a whole number, got 'x'"),
        (["--stepz", "1"], "--stepz"),
        (["--step", "1"], "--step"),
    ],
)
def test_wrong_flags_exit_with_usage(capsys, flags, message):
    with pytest.raises(SystemExit) as exit_:
        from_flags(Config, ["--export", "v", *flags], "python -m training ppo")
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_each_field_with_default(capsys):
    with pytest.raises(SystemExit):
        from_flags(Config, ["--help"], "python -m training ppo")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Train something." in shown
    assert "--kl-coef X KL penalty (nats, 100%) (default: 0.1)" in shown
    assert "export folder (required)" in shown
    assert "cpu|cuda" in shown


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(export="v").steps = 3  # type: ignore[misc]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "training", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_command_lists_what_is_built_and_loads_no_torch():
    program = "import sys, training.__main__ as m; m.main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "usage: python -m training STAGE" in shown


def test_misuse_exits_2_with_one_line():
    unknown = command("bake")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "bake: no such stage" in unknown.stderr
    assert command().returncode == 2
