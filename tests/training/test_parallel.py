"""Two processes give what one gives: every stage under DDP and FSDP2, on the CPU, over gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training import launched
from tests.training.conftest import LIMITS, SMALL
from training import parallel, processes
from training.contract import read_model_manifest

pytestmark = pytest.mark.slow  # one launch serves all tests

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "sft", "rm", "dpo", "ppo")
WEIGHT_TOLERANCE = 1e-5
"""Largest difference of a weight after a stage's few steps, relative to the largest weight of its tensor; seen: 8e-7 at most."""
GRADIENT_TOLERANCE = 1e-6


def words(stage, out, flags):
    given = {"out": out, "threads": 1, "adam-epsilon": 1e-5} | LIMITS_OF.get(stage, {}) | flags
    return [stage, *(word for item in given.items() for word in flag(*item))]


def flag(name, value):
    """A field as words of a command line."""
    return [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])


LIMITS_OF = {"sft": LIMITS, "rm": LIMITS, "dpo": LIMITS, "ppo": {"prompt-tokens": 200, "response-tokens": 6}}


@pytest.fixture(scope="module")
def flags(base, sft_model, reward_model, export):
    """Few steps, and in each what could go wrong between processes: odd batches, parts, a judge, a mix, averages, folds of work."""
    common = {"export": export, "learning-rate": 1e-3, "log-every": 1}
    players = {"policy": sft_model, "reward-model": reward_model, "export": export, "learning-rate": 1e-3}
    text = {"ptx-text": "tinyworld", "ptx-documents": 30, "ptx-valid-documents": 4, "ptx-row-tokens": 256}
    mix = {"pretraining-mix": 0.2, "pretraining-documents": 230, "pretraining-row-tokens": 256}
    return {
        "pretrain": {**SMALL, "documents": 60, "row-tokens": 256, "batch-rows": 3, "steps": 3, "warmup-steps": 1},
        "sft": {**common, "base-model": base, "epochs": 1, "batch-size": 7, "parts": 2, **mix}
        | {"reward-model": reward_model, "selection-prompts": 3, "selection-temperature": 0},
        "rm": {**common, "sft-model": sft_model, "epochs": 1, "batch-size": 9, "parts": 2, "encoding": "shared"},
        "dpo": {**common, "policy": sft_model, "epochs": 1, "batch-size": 9, "valid-episodes": 3},
        "ppo": {
            **players,
            **text,
            "iterations": 2,
            "warmup-iterations": 1,
            "episodes": 6,
            "minibatch": 3,
            "valid-episodes": 3,
            "ptx-coef": 0.5,
        }
        | {"ptx-examples": 1, "ema-decay": 0.5, "kl-target": 0.5, "parts": 2},
    }


@pytest.fixture(scope="module")
def together(flags, base, sft_model, export, tmp_path_factory):
    """One launch of two processes that does it all; (its folder, what each process saw, by job)."""
    folder = tmp_path_factory.mktemp("together")
    jobs = {}
    for kind in ("ddp", "fsdp"):
        for stage in STAGES:
            jobs[f"{stage} {kind}"] = {
                "run": words(stage, folder / f"{stage}-{kind}", flags[stage] | {"parallel": kind})
            }
        jobs[f"gradients {kind}"] = {
            "gradients": {"kind": kind, "base": str(base), "sft_model": str(sft_model), "export": str(export)}
        }
        lora = flags["dpo"] | {"adapter": "lora", "merge": True, "parallel": kind}
        jobs[f"lora {kind}"] = {"run": words("dpo", folder / f"lora-{kind}", lora)}
    cut = flags["ppo"] | {"checkpoint-every": 1, "parallel": "fsdp"}
    jobs["cut"] = {"run": words("ppo", folder / "cut", cut), "stop_at": 1}
    jobs["bf16"] = {"run": words("rm", folder / "bf16", flags["rm"] | {"dtype": "bf16", "parallel": "fsdp"})}
    alone = launched.run_stage(words("ppo", folder / "resumed", cut), stop_at=1)
    assert alone["status"] == "stopped" and list((folder / "resumed.run").glob("*.pt"))
    jobs["resumed"] = {"run": words("ppo", folder / "resumed", cut)}
    plan = folder / "plan.json"
    plan.write_text(json.dumps(list(jobs.values())))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.training.launched", str(plan)], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-6000:]
    seen = [json.loads(plan.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]
    return folder, {name: [process[number] for process in seen] for number, name in enumerate(jobs)}


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """The folder of the same stages in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for stage in STAGES:
        assert launched.run_stage(words(stage, folder / stage, flags[stage]), None)["status"] == 0
    return folder


def largest_difference(one, other):
    """Over all tensors of two model folders, relative to each tensor's largest weight."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max() / first[name].abs().max()) for name in first)


def log_of(place):
    """The rows of a model folder's log."""
    return [json.loads(line) for line in (place / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_give_the_model_log_and_metrics_of_one(stage, kind, together, alone):
    folder, seen = together
    assert [process["status"] for process in seen[f"{stage} {kind}"]] == [0, 0]
    ours, theirs = folder / f"{stage}-{kind}", alone / stage
    assert largest_difference(theirs, ours) < WEIGHT_TOLERANCE
    logs = [log_of(place) for place in (ours, theirs)]
    if stage == "dpo":  # before the first step all implicit rewards are 0, and rounding says which is larger
        assert [row.pop("accuracy") for row in (logs[0][0], logs[1][0])]
    for ours_row, theirs_row in zip(*logs, strict=True):
        assert ours_row == pytest.approx(theirs_row, rel=1e-3, abs=1e-4)
    metrics = [read_model_manifest(f).metrics for f in (ours, theirs)]
    numbers = [{k: v for k, v in m.items() if isinstance(v, int | float)} for m in metrics]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-4)
    assert not ours.with_name(ours.name + ".run").exists()
    samples = [numbers_in(json.loads((f / "samples.json").read_bytes())) for f in (ours, theirs)]
    assert samples[0] == pytest.approx(samples[1], abs=1e-4)


def numbers_in(samples):
    """What the report shows, flat: rewards to be held against each other, texts by whether they are there."""
    lines = [line for sample in samples for line in sample.get("responses", [sample])]
    return [len(lines), *(value if isinstance(value, int | float) else 0 for line in lines for value in line.values())]


@pytest.mark.parametrize("stage", STAGES)
def test_models_are_wrapped_as_was_asked_and_not_silently_otherwise(stage, together):
    _, seen = together
    for process in seen[f"{stage} ddp"]:
        assert process["wrapped"] and all(w["kinds"][0] == "DistributedDataParallel" for w in process["wrapped"])
    for process in seen[f"{stage} fsdp"]:
        assert process["wrapped"] and all("FSDPModule" in w["kinds"] and w["sharded"] for w in process["wrapped"])
    assert len(seen["ppo fsdp"][0]["wrapped"]) == 2, "policy and critic"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_summed_gradients_are_those_of_one_process_even_where_one_of_two_has_no_rows(kind, together):
    worst = together[1][f"gradients {kind}"][0]
    assert worst.keys() == {"sft 7", "sft 1", "rm 7", "rm 1"}
    assert max(worst.values()) < GRADIENT_TOLERANCE, worst


def test_an_adapter_trains_under_ddp_and_is_refused_under_fsdp(flags, together, tmp_path):
    folder, seen = together
    assert [process["status"] for process in seen["lora ddp"]] == [0, 0]
    assert [process["status"] for process in seen["lora fsdp"]] == [1, 1]
    alone = words("dpo", tmp_path / "lora", flags["dpo"] | {"adapter": "lora", "merge": True})
    assert launched.run_stage(alone, None)["status"] == 0
    assert largest_difference(tmp_path / "lora", folder / "lora-ddp") < WEIGHT_TOLERANCE


def test_bf16_goes_with_sharded_weights(together, alone):
    folder, seen = together
    assert [process["status"] for process in seen["bf16"]] == [0, 0]
    rounded, exact = (log_of(place) for place in (folder / "bf16", alone / "rm"))
    assert [row["loss"] for row in rounded] != [row["loss"] for row in exact]
    assert [row["loss"] for row in rounded] == pytest.approx([row["loss"] for row in exact], rel=0.03)


def test_a_run_of_two_processes_goes_on_in_one(flags, together, alone):
    folder, seen = together
    assert [process["status"] for process in seen["cut"]] == ["stopped", "stopped"]
    assert [path.name for path in (folder / "cut.run").glob("*.pt")] == ["checkpoint-00000001.pt"]
    assert launched.run_stage(words("ppo", folder / "cut", flags["ppo"]), None)["status"] == 0
    assert largest_difference(alone / "ppo", folder / "cut") < WEIGHT_TOLERANCE


def test_a_run_of_one_process_goes_on_in_two(together, alone):
    folder, seen = together
    assert [process["status"] for process in seen["resumed"]] == [0, 0]
    assert len(log_of(folder / "resumed")) == 2
    assert largest_difference(alone / "ppo", folder / "resumed") < WEIGHT_TOLERANCE


def test_shares_are_all_rows_once_and_even(monkeypatch):
    costs = [5, 1, 9, 9, 2, 7, 3]
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "index", lambda rank=rank: rank)
        shares.append(processes.share(costs))
    assert sorted(i for share in shares for i in share) == list(range(7))
    sums = [sum(costs[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= 3, sums
    monkeypatch.setattr(processes, "index", lambda: 2)
    assert processes.share([1]) == [] and processes.share([]) == []


def test_alone_nothing_is_wrapped(policy):
    parallel.spread(policy, "fsdp")
    assert parallel.wrapper_of(policy) is None and parallel.collect(policy) is policy
