"""Each stage as its user runs it: a command on a tiny model, killed in the middle, run again, equal to one never killed."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.loop import world
from training import dpo, pretrain, rm, sft
from training.__main__ import main
from training.checkpoints import CheckpointError
from training.contract import read_export, read_model_manifest
from training.errors import StageError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "documents": 300,
    "valid-documents": 20,
    "vocab-size": 400,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "mlp-width": 32,
}
PTX = {
    "ptx-coef": 0.5,
    "ptx-text": "tinyworld",
    "ptx-documents": 40,
    "ptx-valid-documents": 4,
    "ptx-row-tokens": 256,
    "ptx-examples": 0.25,
}
LIMITS = {"prompt-tokens": 200, "response-tokens": 200}


@pytest.fixture
def commands(base, sft_model, reward_model, export):
    """The flags of each stage, with enough steps that a kill lands in the middle."""
    labels = {"export": export, **LIMITS}
    players = {"policy": sft_model, "reward-model": reward_model, "export": export, "prompt-tokens": 200}
    return {
        "pretrain": {**SMALL, "row-tokens": 256, "batch-rows": 2, "steps": 120, "warmup-steps": 1},
        "sft": {
            "base-model": base,
            **labels,
            "epochs": 20,
            "batch-size": 4,
            "learning-rate": 1e-3,
            "residual-dropout": 0.1,
        },
        "rm": {"sft-model": sft_model, **labels, "epochs": 20, "batch-size": 4, "learning-rate": 1e-3},
        "dpo": {
            "policy": sft_model,
            **labels,
            "epochs": 20,
            "batch-size": 4,
            "learning-rate": 1e-3,
            "valid-episodes": 4,
        },
        "ppo": {
            **players,
            "response-tokens": 8,
            "iterations": 40,
            "episodes": 8,
            "minibatch": 4,
            "learning-rate": 1e-3,
            "valid-episodes": 8,
            "parts": 2,
            "ema-decay": 0.9,
            "kl-target": 0.5,
            **PTX,
        },
    }


def words(stage: str, out: Path, flags: dict) -> list[str]:
    given = {"out": out, "threads": 1} | flags
    return [stage, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def start(stage: str, out: Path, flags: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "training", *words(stage, out, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 200
    while not list(folder.glob("*.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint in 200 seconds"
        time.sleep(0.002)


REACH = {"ppo": 16}  # two models of two minibatches: four optimiser steps an iteration


def run_killed(stage: str, out: Path, flags: dict, kills: int) -> str:
    """Run a stage, killed so many times at random steps (kills.py). Returns what it printed."""
    arguments = words(stage, out, flags | {"checkpoint-every": 2})
    command = [sys.executable, "-m", "tests.training.kills", str(kills), "11", str(REACH.get(stage, 8)), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at") == kills
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "ppo", "dpo"])
def test_killed_ten_times_and_resumed_equals_never_killed(stage, commands, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    flags = commands[stage]
    printed = run_killed(stage, killed, flags, kills=10)
    assert "newest checkpoint checkpoint-" in printed, "it had something to resume from"
    assert main(words(stage, straight, flags | {"checkpoint-every": 1000})) == 0
    for name in ("model.safetensors", "training_log.jsonl", "samples.json"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
    assert not (tmp_path / "killed.run").exists()
    manifests = [read_model_manifest(folder) for folder in (straight, killed)]
    assert manifests[0].metrics == manifests[1].metrics
    assert manifests[0].stage == stage


def test_an_interrupt_saves_and_the_next_run_goes_on(commands, tmp_path):
    out = tmp_path / "base"
    flags = commands["pretrain"] | {"steps": 400}
    process = start("pretrain", out, flags | {"checkpoint-every": 3})
    wait_for_checkpoint(process, tmp_path / "base.run")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert list((tmp_path / "base.run").glob("*.pt"))


def test_a_finished_run_is_not_repeated_and_never_overwritten(base, export, tmp_path, monkeypatch):
    fields = {"out": str(tmp_path / "sft"), "base_model": str(base), "export": str(export), "epochs": 1}
    config = sft.Config(**fields, prompt_tokens=200, response_tokens=200)
    manifest = sft.run(config) / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert sft.run(config) == tmp_path / "sft"
    assert manifest.stat().st_mtime_ns == written, "the very same run is already done"
    monkeypatch.chdir(base.parent)
    elsewhere = dataclasses.replace(config, base_model=base.name, export=export.name)
    assert sft.run(elsewhere) == tmp_path / "sft"
    assert manifest.stat().st_mtime_ns == written, "wherever it is called from"
    other = sft.Config(**fields, prompt_tokens=200, response_tokens=200, learning_rate=1e-3)
    with pytest.raises(CheckpointError, match="other settings or parents"):
        sft.run(other)
    assert manifest.stat().st_mtime_ns == written


@pytest.mark.parametrize(("stage", "what"), [("sft", "demonstrations"), ("rm", "rankings"), ("dpo", "rankings")])
def test_a_batch_larger_than_the_data_is_all_of_it_once_an_epoch(stage, what, commands, reward_model, tmp_path):
    """And not as many of its records again as fill the batch."""
    flags = commands[stage] | {"epochs": 2, "log-every": 1}
    if stage == "sft":
        flags |= {"reward-model": reward_model, "selection-prompts": 2}
    assert main(words(stage, tmp_path / "larger", flags | {"batch-size": 1000})) == 0
    metrics = read_model_manifest(tmp_path / "larger").metrics
    assert metrics["batch_size_lowered_to"] == metrics[what]
    assert metrics.get("selected_epoch", 1) <= 2
    assert "batch_size_lowered_to" in (tmp_path / "larger" / "report.html").read_text()
    assert main(words(stage, tmp_path / "all", flags | {"batch-size": metrics[what]})) == 0
    for name in ("model.safetensors", "training_log.jsonl"):
        assert (tmp_path / "larger" / name).read_bytes() == (tmp_path / "all" / name).read_bytes(), name


def test_pretraining_learns_from_a_file_and_names_its_bad_line(tmp_path):
    text = tmp_path / "text.jsonl"
    rows = [{"text": "The owl eats seeds."}, {"messages": [{"role": "user", "content": "Hi"}]}] * 20
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"text": str(text), "valid_documents": 4, "vocab_size": 300, "width": 16, "layers": 1, "heads": 2}
    config = pretrain.Config(
        out=str(tmp_path / "a"), **fields, steps=30, warmup_steps=1, batch_rows=1, log_every=29, learning_rate=3e-2
    )
    log = [json.loads(line) for line in (pretrain.run(config) / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    text.write_text(text.read_text() + json.dumps(rows[0]) + "\n")
    with pytest.raises(CheckpointError, match="or of other data"):
        pretrain.run(config)
    text.write_text(text.read_text() + '{"words": 1}\n')
    with pytest.raises(StageError, match=r"text\.jsonl line 42: needs text or messages"):
        pretrain.run(pretrain.Config(out=str(tmp_path / "b"), **fields, steps=2, warmup_steps=1))


def test_the_least_text_there_can_be_is_tried_too_and_none_is_refused(tmp_path, capsys):
    flags = {**SMALL, "documents": 1, "valid-documents": 1}
    assert main([*words("pretrain", tmp_path / "out", flags), "--dry-run"]) == 0
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert main(words("pretrain", tmp_path / "out", {"text": empty})) == 1
    assert capsys.readouterr().err.endswith(f"pretrain: {empty}: holds no text\n")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": null}', "field text: expected text, got null"),
        (b'{"messages": [{"role": "user", "content": null}]}', "field messages[0].content: expected text, got null"),
        (b'{"messages": ["Hi"]}', "needs text or messages"),
        (b"[1]", "needs text or messages"),
        (b'{"text": "half \\ud83d of a pair"}', "field text: half of a surrogate pair at character 5"),
        (b'{"text": ""}', "field text: empty"),
        (b'{"text": "caf\xe9"}', "not JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b"{\x00\xe9", "not JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b"{", "not JSON: Expecting property name"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_in_one_line_with_its_place(line, problem, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    text.write_bytes(b'{"text": "The owl eats seeds."}\n \n' + line + b"\n")  # the second line is blank
    assert main(["pretrain", "--out", str(tmp_path / "out"), "--text", str(text)]) == 1
    assert capsys.readouterr().err.startswith(f"pretrain: {text} line 3: {problem}")


@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_a_warm_up_that_the_run_would_end_in_is_told_before_training(stage, commands, tmp_path, capsys):
    """23 rankings in batches of 4 are 5 steps an epoch, and 3 left over."""
    flags = commands[stage] | {"epochs": 1, "warmup-steps": 6}
    assert main([*words(stage, tmp_path / "out", flags), "--dry-run"]) == 2
    said = "--warmup-steps: 6 are not fewer than the run's 5, so its learning rate would never be reached: give --warmup-steps below 5"
    assert capsys.readouterr().err == f"python -m training {stage}: {said}\n"
    assert main([*words(stage, tmp_path / "out", flags | {"epochs": 2}), "--dry-run"]) == 0


@pytest.fixture
def one_long(export, tmp_path):
    """The export with one response of the validation split's rankings too long."""
    opened = read_export(export)
    rows = list(opened.rankings())
    at = next(i for i, row in enumerate(rows) if row.split == "valid")
    long = msgspec.structs.replace(rows[at].responses[0], text="The owl eats seeds. " * 100)
    rows[at] = msgspec.structs.replace(rows[at], responses=[long, *rows[at].responses[1:]])
    world.write_export(tmp_path / "v0002", 2, list(opened.prompts()), list(opened.demonstrations()), rows)
    return tmp_path / "v0002"


@pytest.mark.parametrize(("stage", "loop"), [(rm, "train_model"), (dpo, "train_policy")])
def test_what_is_too_long_to_measure_is_told_before_training_or_counted(
    stage, loop, commands, one_long, tmp_path, monkeypatch, capsys
):
    name = stage.__name__.removeprefix("training.")
    flags = commands[name] | {"export": one_long, "epochs": 1, "batch-size": 5}
    assert main(words(name, tmp_path / "dropped", flags | {"on-too-long": "drop"})) == 0
    metrics = read_model_manifest(tmp_path / "dropped").metrics
    assert metrics["dropped_too_long_valid"] == 1
    assert "dropped_too_long" not in metrics and "dropped_too_long_train" not in metrics
    assert metrics["skipped_incomplete_batch"] == metrics["rankings"] % 5 > 0
    monkeypatch.setattr(stage, loop, None)
    assert main(words(name, tmp_path / "raised", flags)) == 1
    assert "more than the limit of 200 + 200" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "what"), [("sft", "demonstrations"), ("rm", "rankings"), ("dpo", "rankings")])
def test_an_export_with_nothing_to_train_on_is_told_with_the_reasons(stage, what, commands, export, tmp_path, capsys):
    opened = read_export(export)
    held_out = [
        [msgspec.structs.replace(row, labeler_group="held_out") for row in rows]
        for rows in (opened.demonstrations(), opened.rankings())
    ]
    world.write_export(tmp_path / "v0002", 2, list(opened.prompts()), *held_out)
    assert main(words(stage, tmp_path / "out", commands[stage] | {"export": tmp_path / "v0002"})) == 1
    assert f"no {what} to train on in its train split (skipped_held_out 24)" in capsys.readouterr().err


@pytest.fixture
def short(sft_model, tokenizer, tmp_path):
    """A GPT-2 whose learned positions end at 96: what runs past them is an IndexError deep inside."""
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    return tmp_path / "short"


@pytest.mark.parametrize(
    ("stage", "role"), [("sft", "base-model"), ("rm", "sft-model"), ("dpo", "policy"), ("ppo", "policy")]
)
def test_what_the_model_cannot_read_at_once_is_told_before_anything_runs(
    stage, role, commands, short, tmp_path, capsys
):
    limits = {"response-tokens": 100} if stage == "ppo" else {}
    assert main(words(stage, tmp_path / "out", commands[stage] | {role: short} | limits)) == 1
    assert re.search(rf"^{stage}: .*: \d+ tokens, more than the model's context of 96; lower", capsys.readouterr().err)


def test_a_model_with_a_short_context_trains_where_the_records_fit(commands, short, tmp_path):
    flags = commands["sft"] | {"base-model": short, "epochs": 1, "prompt-tokens": 40, "response-tokens": 50}
    assert main(words("sft", tmp_path / "out", flags | {"on-too-long": "drop"})) == 0
    assert read_model_manifest(tmp_path / "out").metrics["dropped_too_long"] > 0


@pytest.mark.parametrize("device", ["gpu", "cuda"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_in_one_line(device, commands, tmp_path, capsys):
    assert main(words("sft", tmp_path / "out", commands["sft"] | {"device": device})) == 1
    assert capsys.readouterr().err.startswith(f"sft: device {device}: ")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm"])
def test_gradients_that_are_not_finite_stop_a_run(stage, commands, tmp_path, capsys):
    assert main(words(stage, tmp_path / "out", commands[stage] | {"learning-rate": 1e30})) == 1
    assert "not a finite number: the gradients' norm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluation_writes_figures_of_policy_and_reward_model(base, sft_model, reward_model, export, tmp_path):
    flags = {"export": export, "policy": sft_model, "reference": base, "reward-model": reward_model}
    finish(start("evaluate", tmp_path / "figures.json", flags | {"prompt-tokens": 200, "response-tokens": 200}))
    result = json.loads((tmp_path / "figures.json").read_text())
    policy = result["metrics"]["policy"]
    assert 0 < policy["distinct_responses"] <= 1
    assert policy["kl_k3"] > 0
    assert "kl" in policy
    assert policy["lm_loss"] > 0
    assert "reward" in policy
    assert "prompt_dependence" in policy
    assert 0 <= result["metrics"]["reward_model"]["accuracy_train"] <= 1
    assert result["models"]["policy"]["name"] == "sft"


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("ppo", ["--temperature", "0"], "temperature"),
        ("ppo", ["--top-p", "0.9"], "--top-p"),
        ("ppo", ["--top-k", "50"], "--top-k"),
        ("ppo", ["--ptx-coef", "1"], "ptx_text"),
        ("ppo", ["--ptx-only"], "--ptx-only: "),
        ("ppo", ["--ptx-examples", "0.3", "--minibatch", "64"], "--ptx-examples: "),
        ("ppo", ["--ema-decay", "1"], "--ema-decay: "),
        ("sft", ["--epochs", "0"], "epochs"),
        ("rm", ["--parts", "99"], "parts"),
        ("rm", ["--labeler-folds", "1"], "--labeler-folds: "),
        ("rm", ["--encoding", "rows"], "encoding"),
        ("dpo", ["--beta", "0"], "beta"),
        ("sft", ["--clip-norm", "0"], "--clip-norm: "),
        ("rm", ["--weight-decay", "-1"], "--weight-decay: "),
        ("ppo", ["--valid-episodes", "-1"], "--valid-episodes: "),
        ("ppo", ["--valid-episodes", "1"], "--valid-episodes: must be 0, or at least 2"),
        ("ppo", ["--iterations", "8"], "field warmup_iterations: 10 are not fewer than the run's 8"),
        ("ppo", ["--iterations", "8"], "give --warmup-iterations below 8; 10 is its default"),
        ("ppo", ["--out", ""], "--out: must end in the name of the folder to write"),
        ("evaluate", ["--out", "."], "--out: must end in the name of the file to write"),
        ("sample", ["--out", "."], "--out: must end in the name of the file to write"),
        ("evaluate", ["--out", "/tmp"], "--out: is a folder: give the name of the file to write"),
        ("pretrain", ["--out", "."], "--out: must end in the name of the folder to write"),
        ("pretrain", ["--heads", "0"], "--heads: must be positive"),
        ("pretrain", ["--layers", "-1"], "--layers: must be positive"),
        ("pretrain", ["--init-std", "-1"], "--init-std: must be positive"),
        ("pretrain", ["--width", "12", "--heads", "4"], "--width: must be an even multiple of heads"),
        ("sft", ["--pretraining-valid-documents", "0"], "--pretraining-valid-documents: must be positive"),
        ("dpo", ["--seed", "99999999999999999999"], "--seed: must be from 0 to 2147483647"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_loads(stage, flags, named, tmp_path, capsys):
    folders = {
        "pretrain": [],
        "evaluate": ["policy", "export"],
        "sample": ["model", "prompts"],
        "sft": ["base-model", "export"],
        "rm": ["sft-model", "export"],
        "dpo": ["policy", "export"],
        "ppo": ["policy", "reward-model", "export"],
    }
    given = [word for name in ["out", *folders[stage]] for word in (f"--{name}", str(tmp_path / name))]
    try:
        status = main([stage, *given, *flags])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "dpo", "ppo"])
def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(commands, stage, tmp_path, capsys):
    assert main([*words(stage, tmp_path / stage, commands[stage]), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for words_of_the_plan in (f"{stage}: this would be trained", "parameters", "memory, about", "time, about", "AdamW"):
        assert words_of_the_plan in plan
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_a_finished_model_alone(base, export, tmp_path, capsys):
    flags = {"base-model": base, "export": export, **LIMITS, "epochs": 1, "batch-size": 4}
    assert main(words("sft", tmp_path / "sft", flags)) == 0
    manifest = (tmp_path / "sft" / "manifest.json").read_bytes()
    assert main([*words("sft", tmp_path / "sft", flags | {"epochs": 2}), "--overwrite", "--dry-run"]) == 0
    assert (tmp_path / "sft" / "manifest.json").read_bytes() == manifest
    # nor does a run that fails take it away; one that ends puts its own model there
    assert main([*words("sft", tmp_path / "sft", flags | {"prompt-tokens": 1}), "--overwrite"]) == 1
    assert (tmp_path / "sft" / "manifest.json").read_bytes() == manifest
    assert main([*words("sft", tmp_path / "sft", flags | {"seed": 5}), "--overwrite"]) == 0
    assert json.loads((tmp_path / "sft" / "manifest.json").read_bytes())["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]
    # nor is the export that it would learn from taken for a model
    shutil.copytree(export, tmp_path / "v0001")
    flags["export"] = tmp_path / "v0001"
    assert main([*words("sft", tmp_path / "v0001", flags), "--overwrite"]) == 1
    assert "v0001 is no model folder, so overwrite leaves it alone" in capsys.readouterr().err
    read_export(tmp_path / "v0001")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "dpo", "ppo"])
def test_the_report_shows_samples_before_and_after(commands, stage, tmp_path):
    short = {"pretrain": {"steps": 40, "log-every": 10}, "ppo": {"iterations": 2, "warmup-iterations": 1}}
    flags = commands[stage] | short.get(stage, {"epochs": 1})
    assert main([*words(stage, tmp_path / "out", flags), "--track", "tensorboard"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(f'class="card {"ranking" if stage == "rm" else "sample"}"') >= 2
    assert ("by a constant" in page) == (stage == "rm")
    assert "before" in page and "<polyline" in page and not re.search("[\0-\x08\x0e-\x1f]", page)
    samples = json.loads((tmp_path / "out" / "samples.json").read_bytes())
    pairs = samples if stage != "rm" else [response for ranking in samples for response in ranking["responses"]]
    assert any(pair["before"] != pair["after"] for pair in pairs), "two models were asked"
    manifest = read_model_manifest(tmp_path / "out")
    assert {"report.html", "README.md"} <= set(manifest.files)
    if stage in ("rm", "dpo"):
        assert (manifest.config["encoding"], manifest.metrics["encoding"]) == ("auto", "shared"), "asked, and what ran"
    assert list((tmp_path / "out.tracking").rglob("events.out.tfevents.*"))
