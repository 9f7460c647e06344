"""One side of the PPO benchmark in a process of its own: `python -m tests.bench.ppo ours|trl FOLDER PROMPTS.json CELL`, one JSON line.

CELL: episodes, episodes per minibatch, longest response, iterations, whether EOS ends a response (1) or nothing but the limit (0), and
whether ours compiles its layers (1): TRL's torch_compile made its iterations longer. TRL's side needs TRL 1.12.0, the last with PPO, before
all else on PYTHONPATH. Processor time of one thread, so that other work counts less; loading is not counted, and one iteration before the
others not either. `length` is the mean of responses, EOS included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Cell(NamedTuple):
    """What both sides do alike."""

    episodes: int
    minibatch: int
    tokens: int
    iterations: int
    ends: bool
    compile: bool


class Clock:
    """Processor time in all, and within the sampling that it wraps. The first iteration is not counted."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple, Any]] = []

    def within(self, function: Callable) -> Callable:
        """The function, its time counted and what it was given and gave kept; its second call begins what is measured."""

        def timed(*arguments):
            if len(self.calls) < 2:
                self.begun, self.inside = time.process_time(), 0.0
            begun = time.process_time()
            result = function(*arguments)
            self.inside += time.process_time() - begun
            self.calls.append((arguments, result))
            return result

        return timed

    def result(self, length_of: Callable[[tuple, Any], float]) -> dict[str, float]:
        """Seconds of processor time, the share of them within, and the mean over calls of what `length_of` makes of them."""
        total = time.process_time() - self.begun
        lengths = [length_of(arguments, result) for arguments, result in self.calls[1:]]
        return {"seconds": total, "generation": self.inside / total, "length": sum(lengths) / len(lengths)}


def ours(folder: Path, prompts: list[list[int]], cell: Cell) -> dict[str, float]:
    """`training.ppo`'s own loop."""
    from training import compiling, cpu, ppo

    fields: dict[str, Any] = {"policy": str(folder / "policy"), "reward_model": str(folder / "reward")}
    fields |= {"episodes": cell.episodes, "minibatch": cell.minibatch, "response_tokens": cell.tokens}
    config = ppo.Config(out="", export="", iterations=cell.iterations + 1, checkpoint_every=1000, **fields)
    players = ppo.load_players(config, torch.device("cpu"))
    end = players.tokenizer.eos_token_id if cell.ends else -1
    ends = argparse.Namespace(eos_token_id=end, pad_token_id=players.tokenizer.pad_token_id)
    state: Any = argparse.Namespace(load=lambda: None, save=lambda *_: None)
    cpu.use(threads=1)  # as every stage begins
    if cell.compile:
        compiling.compile_layers(*players[:4])
    clock = Clock()
    ppo.respond = clock.within(ppo.respond)
    ppo.train_policy(config, state, players._replace(tokenizer=ends), prompts, None)
    return clock.result(lambda _arguments, rollout: float(rollout.lengths_B.float().mean()))


def trl(folder: Path, prompts: list[list[int]], cell: Cell) -> dict[str, float]:
    """TRL's PPOTrainer, with the same batch, minibatch, lengths and one epoch."""
    warnings.filterwarnings("ignore")
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    assert trl.__version__ == "1.12.0", trl.__version__
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    settings = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=cell.minibatch,
        gradient_accumulation_steps=cell.episodes // cell.minibatch,
        num_mini_batches=cell.episodes // cell.minibatch,
        total_episodes=cell.episodes * (cell.iterations + 1),
        num_ppo_epochs=1,
        response_length=cell.tokens,
        stop_token="eos" if cell.ends else None,
        missing_eos_penalty=1.0 if cell.ends else None,
        local_rollout_forward_batch_size=cell.minibatch,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=9.65e-6,
        kl_coef=0.02,
        temperature=1.0,
    )
    policies = [AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32) for _ in range(2)]
    judges = [
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32) for _ in range(2)
    ]
    data = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    trainer = PPOTrainer(settings, tokenizer, policies[0], policies[1], judges[0], data, judges[1])
    clock = Clock()
    ppo_trainer.batch_generation = clock.within(ppo_trainer.batch_generation)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()

    def length(arguments: tuple, result: Any) -> float:
        responses_BR = result[0][:, arguments[1].shape[1] :]
        ended_BR = (responses_BR == tokenizer.eos_token_id).cumsum(1) > 0
        return float((~ended_BR[:, :-1]).sum(1).float().mean()) + 1 if cell.ends else responses_BR.shape[1]

    return clock.result(length)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side, folder, prompts, *numbers = sys.argv[1:]
    measure = {"ours": ours, "trl": trl}[side]
    print(json.dumps(measure(Path(folder), json.loads(Path(prompts).read_text()), Cell(*map(int, numbers)))))
