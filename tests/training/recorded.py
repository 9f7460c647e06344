"""Stages of a night that train nothing: models with the figures that a file says, samples of made-up text. No torch.

    python -m tests.training.recorded rm --out F --sft-model S --export E …

HEED_RECORDED names a JSON file: {"rm": {metrics}, "ppo": {metrics}, "policy": {figures of evaluate}, "fail": {stage: message},
"bytes": {stage: size of its weights}}. Like the real ones, a stage whose output is there does nothing, and none is ever half there.
"""

import json
import os
import sys
from pathlib import Path

from training.client import HeedClient
from training.contract import atomic_folder, parent_ref, read_export, write_atomically, write_model_manifest
from training.prompt_files import read_rows
from training.sample import deal

GOOD = {
    "rm": {"accuracy_valid": 0.71, "accuracy_test_held_out": 0.7, "demonstrations_valid_mean": 0.1},
    "ppo": {"kl_after": 3.5, "kl_coef": 0.1, "lm_loss_before": 2.0, "lm_loss_after": 2.02},
    "policy": {"lm_loss": 1.5, "empty_share": 0.0, "looping_share": 0.0, "distinct_responses": 0.9, "finished": 0.95},
}
PARENTS = {
    "sft": {"base": "base_model", "rm": "reward_model"},
    "rm": {"sft": "sft_model"},
    "ppo": {"policy": "policy", "rm": "reward_model", "reference": "policy"},
}


class Failed(Exception):
    """The stage was told to fail."""


def main(arguments: list[str]) -> None:
    """Do what the real stage would leave behind."""
    stage, flags = arguments[0], flags_of(arguments[1:])
    recorded = GOOD | json.loads(Path(os.environ.get("HEED_RECORDED", os.devnull)).read_text() or "{}")
    if message := recorded.get("fail", {}).get(stage):
        raise Failed(message)
    if stage == "evaluate" and arguments[1] == "by-model":
        others = [Path(folder).name for folder in flags["against"].split(",")]
        judge = {"win_rate": 0.7, "low": 0.6, "high": 0.8, "n": 90}
        metrics = {
            "by": "model",
            "against": others,
            "judge": judge,
            "others": {name: {"judge": judge} for name in others[1:]},
        }
        write_atomically(flags["out"], json.dumps(metrics).encode())
        HeedClient.from_environment().record_evaluation(
            Path(flags["policy"]).name, name="by model", metrics=metrics, config={}
        )
    elif stage == "evaluate":
        figures = {"policy": recorded["policy"]} if "policy" in flags else {}
        result = {"metrics": figures | {"reward_model": recorded["rm"]}, "config": {"split": "valid"}}
        write_atomically(flags["out"], json.dumps(result).encode())
    elif stage == "sample":
        answer(flags)
    else:
        model(stage, flags, recorded.get(stage, {}), recorded.get("bytes", {}).get(stage, 10))


def flags_of(words: list[str]) -> dict[str, str]:
    """`--a-b x --c` as {"a_b": "x", "c": ""}."""
    flags: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            flags[name] = ""
        else:
            flags[name] = word
    return flags


def model(stage: str, flags: dict[str, str], metrics: dict, size: int = 10) -> Path:
    """A model folder of this stage with these figures."""
    out = Path(flags["out"])
    if out.exists():
        return out
    parents = {role: parent_ref(flags[name]) for role, name in PARENTS.get(stage, {}).items() if flags.get(name)}
    export = read_export(flags["export"]).ref if "export" in flags else None
    with atomic_folder(out) as building:
        (building / "weights").write_bytes(b"w" * size)
        rows = [{"iteration": i, "score": i / 10, "kl": i} for i in range(3)] if stage == "ppo" else []
        (building / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if stage == "ppo":
            samples = [{"prompt": "<What> is a sea?", "before": "A sea.", "after": "Much salt water."}]
            (building / "samples.json").write_text(json.dumps(samples))
        seed = int(flags["seed"]) if "seed" in flags else None
        write_model_manifest(
            building, name=out.name, stage=stage, parents=parents, export=export, config={}, metrics=metrics, seed=seed
        )
    return out


def answer(flags: dict[str, str]) -> None:
    """K responses per prompt, dealt to the models, brought to the web half."""
    names = [Path(folder).name for folder in flags.get("model", "outside").split(",")]
    rows, client = [], HeedClient.from_environment()
    asked = (
        read_rows(flags["prompts"])
        if "prompts" in flags
        else client.prompts(split=flags["split"], limit=int(flags["limit"]))
    )
    for prompt in asked:
        for name, count in zip(names, deal(int(flags["k"]), len(names)), strict=True):
            for number in range(count):
                text = f"{name} says {number} at {flags.get('temperature')}, seed {flags['seed']}."
                same = {"prompt_id": prompt["prompt_id"], "model": name, "response": text, "response_external_id": text}
                rows.append(same | {"messages": prompt["messages"], "finish_reason": "stop", "sampling": {}})
    write_atomically(flags["out"], b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    client.bring_responses(rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failed as error:
        sys.exit(str(error))
