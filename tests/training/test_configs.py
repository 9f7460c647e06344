"""The settings that ship: each loads for its stage, and the paper's are the paper's."""

import dataclasses
import json
from pathlib import Path

import pytest

import training
from training import dpo, evaluate, night_work, nightly, ppo, pretrain, rm, sft
from training.config import ConfigError, from_dict, from_flags, read_toml

CONFIGS = Path(training.__file__).parent / "configs"
STAGES = {"pretrain": pretrain, "sft": sft, "rl_init": sft, "rm": rm, "dpo": dpo, "ppo": ppo, "ppo_ptx": ppo,
          "evaluate": evaluate, "nightly": nightly}  # fmt: skip
GIVEN = {
    "pretrain": ["out"],
    "sft": ["out", "base_model", "export"],
    "rl_init": ["out", "base_model", "export"],
    "rm": ["out", "sft_model", "export"],
    "dpo": ["out", "policy", "export"],
    "ppo": ["out", "policy", "reward_model", "export"],
    "evaluate": ["out", "export", "policy"],
    "nightly": [],
    "ppo_ptx": ["out", "policy", "reward_model", "export", "ptx_text"],
}


def load(name: str):
    stage = name.split("_", 2 if name.startswith("paper") else 1)[-1]
    given = dict.fromkeys(GIVEN[stage], "x")
    return from_dict(STAGES[stage].Config, read_toml(CONFIGS / f"{name}.toml") | given, name)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*_*.toml")))
def test_each_config_loads(name):
    load(name)


def test_a_nights_own_settings_name_files_that_are_there():
    tiny = load("tiny_nightly")
    night_work.check_settings(tiny)
    with pytest.raises(ConfigError, match=r"nothing\.toml: there is no such file"):
        night_work.check_settings(dataclasses.replace(tiny, rm="nothing.toml"))
    ours = from_dict(nightly.Config, read_toml(CONFIGS / "nightly.toml"), "nightly.toml")
    assert ours.rules == "gate.toml" and ours.start == "sft"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("next_k", 1), ("next_k", 65), ("next_max_new_tokens", 0), ("next_temperatures", [1.0, 1.0]), ("next_server_model", "m"),
        ("webhook", "hooks.example.org"), ("mail_to", ["nobody"]), ("mail_from", "a\nb@x.example"), ("notify", ["never"]),
        ("fixed_export", "no/such/folder"), ("base_model", "/no/such/folder"), ("own_evaluation", ["no-such-command"]),
        ("publish_to", "nowhere://models"), ("by_model", "unknown.toml"), ("by_task", "unknown.toml"), ("evaluate", "unknown.toml"),
    ],
)  # fmt: skip
def test_a_night_refuses_before_it_begins_what_cannot_work(tmp_path, name, value):
    (tmp_path / "unknown.toml").write_text("speed = 3\n")  # found beside the settings that name it
    settings = tmp_path / "nightly.toml"
    fields = read_toml(CONFIGS / "tiny_nightly.toml") | {name: value}
    settings.write_text("".join(f"{key} = {json.dumps(each)}\n" for key, each in fields.items()))
    with pytest.raises(ConfigError, match="field speed: unknown" if value == "unknown.toml" else f"field {name}"):
        night_work.check_settings(from_flags(nightly.Config, ["--config", str(settings)], "nightly"))


def test_the_papers_figures():
    """InstructGPT, appendices C.1 to C.4."""
    small, large = load("paper_1.3b_sft"), load("paper_175b_sft")
    assert (small.epochs, small.residual_dropout, small.learning_rate, small.batch_size) == (16, 0.2, 9.65e-6, 32)
    assert (large.learning_rate, large.batch_size) == (5.03e-6, 8)
    for size, rate, batch in (("1.3b", 5e-6, 32), ("6b", 1.04e-5, 32), ("175b", 2.45e-6, 8)):
        start = load(f"paper_{size}_rl_init")
        assert (start.epochs, start.pretraining_mix) == (2, 0.1)
        assert (start.learning_rate, start.batch_size) == (rate, batch)
    model = load("paper_6b_rm")
    assert (model.epochs, model.batch_size, model.learning_rate, model.ties) == (1, 64, 9e-6, "drop")
    policy = load("paper_175b_ppo_ptx")
    assert (policy.kl_coef, policy.episodes, policy.minibatch, policy.inner_epochs) == (0.02, 512, 64, 1)
    assert policy.iterations * policy.episodes == 256_000
    assert (policy.warmup_iterations, policy.ema_decay, policy.clip, policy.temperature) == (10, 0.992, 0.2, 1.0)
    assert (policy.ptx_coef, policy.ptx_examples, policy.value_learning_rate) == (27.8, 8, 5e-6)
    assert {load(f"paper_{size}_ppo_ptx").value_learning_rate for size in ("1.3b", "6b")} == {9e-6}
