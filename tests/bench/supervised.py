"""One side of the SFT or reward-model benchmark in a process of its own: `python -m tests.bench.supervised SIDE FOLDER SPEC.json`.

SIDE: `trl`, or `ours`; for the reward model ours is the name of an encoding. SPEC is what `training.py` drew for both sides. Prints one
JSON line: processor time of one thread, of training alone, from the model in memory to the last step. The first of two runs is thrown
away: kernels are prepared and memory is found in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from training import cpu, models, rm, sft
from training.checkpoints import RunState
from training.config import to_dict
from training.data import Comparison, Example

CPU = torch.device("cpu")
PAIRS_PER_PASS = 16  # of TRL

TRL_SETTINGS: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1000,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "num_train_epochs": 1,
}

Training = Callable[[], object]


def state(config: Any, stage: str) -> RunState:
    """Where a run would keep its checkpoints; none is written in so few steps."""
    return RunState(config.out, stage, to_dict(config), {}, None)


# ---- SFT ------------------------------------------------------------------------------------------------------------


def sft_ours(folder: Path, spec: dict, _encoding: str) -> Training:
    """`training.sft`'s own loop."""
    config = sft.Config(
        str(folder / "sft"),
        str(folder / "policy"),
        "",
        packed_tokens=512 if spec["packing"] else 0,
        log_every=1000,
        epochs=1,
        batch_size=spec["batch"],
        learning_rate=1e-5,
        packing=spec["packing"],
    )
    examples = [Example(ids, prompt) for ids, prompt in spec["examples"]]
    model, pad = models.load_policy(folder / "policy", CPU), models.load_tokenizer(folder / "policy").pad_token_id
    return lambda: sft.train_model(config, state(config, "sft"), model, examples, None, None, pad, CPU)


def sft_trl(folder: Path, spec: dict) -> Training:
    """TRL's SFTTrainer, with as many packed rows a step as hold as many demonstrations."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    rows = [
        {"input_ids": ids, "completion_mask": [0] * prompt + [1] * (len(ids) - prompt)}
        for ids, prompt in spec["examples"]
    ]
    per_row = 512 * len(rows) / sum(len(row["input_ids"]) for row in rows)
    settings = SFTConfig(
        str(folder / "trl"),
        per_device_train_batch_size=max(1, round(spec["batch"] / per_row)) if spec["packing"] else spec["batch"],
        max_length=512,
        packing=spec["packing"],
        completion_only_loss=True,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        **TRL_SETTINGS,
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    return SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train


# ---- reward model ---------------------------------------------------------------------------------------------------


def comparisons_of(spec: dict) -> list[Comparison]:
    """Rankings without ties, their responses in order."""
    rankings = [[Example(ids, spec["prompt"]) for ids in ranking] for ranking in spec["rankings"]]
    pairs = [(better, worse) for better in range(spec["k"]) for worse in range(better + 1, spec["k"])]
    return [Comparison(examples, pairs, len(pairs), [None] * spec["k"], "training", None) for examples in rankings]


def rm_ours(folder: Path, spec: dict, encoding: str) -> Training:
    """`training.rm`'s own loop."""
    config = rm.Config(
        str(folder / "rm"),
        str(folder / "policy"),
        "",
        epochs=1,
        batch_size=spec["batch"],
        encoding=encoding,  # type: ignore[arg-type]
        log_every=1000,
    )
    comparisons, pad = comparisons_of(spec), models.load_tokenizer(folder / "policy").pad_token_id
    model = models.load_reward_model(folder / "reward", CPU)

    def train() -> None:
        with mock.patch.object(rm.models, "reward_model_from", return_value=model):  # in memory, as TRL's is
            runner, adapter = rm.start_runner(config, len(comparisons), pad, CPU)
            rm.train_model(config, state(config, "rm"), None, runner, adapter, comparisons)

    return train


def rm_trl(folder: Path, spec: dict) -> Training:
    """TRL's RewardTrainer on all pairs, with as many passes accumulated as make Heed's step."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    pairs = [
        {"chosen_ids": c.examples[better].ids, "rejected_ids": c.examples[worse].ids}
        for c in comparisons_of(spec)
        for better, worse in c.pairs
    ]
    per_step = spec["batch"] * spec["k"] * (spec["k"] - 1) // 2
    settings = RewardConfig(
        str(folder / "trl"),
        per_device_train_batch_size=min(PAIRS_PER_PASS, per_step),
        gradient_accumulation_steps=max(1, per_step // PAIRS_PER_PASS),
        max_length=None,
        **TRL_SETTINGS,
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    return RewardTrainer(model, settings, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer).train


def seconds_of(train: Training) -> float:
    """Processor time that it took."""
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        train()
    return time.process_time() - begun


def main(side: str, folder: Path, spec: dict) -> None:
    """Train twice, each time from a model as it was loaded, and print the seconds of the second."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage = spec["stage"]
    if side == "trl":
        make: Callable[[], Training] = lambda: {"sft": sft_trl, "rm": rm_trl}[stage](folder, spec)  # noqa: E731
    else:
        cpu.use(threads=1)  # as every stage begins
        make = lambda: {"sft": sft_ours, "rm": rm_ours}[stage](folder, spec, side)  # noqa: E731
    seconds_of(make())
    print(json.dumps({"seconds": seconds_of(make())}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
