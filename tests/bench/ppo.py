"""PPO episodes per second beside TRL 1.12, the last TRL that had PPO, on one thread: `python -m tests.bench.ppo --trl FOLDER`.

    pip install --no-deps --target var/bench/trl-1.12 trl==1.12.0

Both sides train the same 0.9M random Llama on the same prompts with equal episodes, minibatches, lengths and one epoch; each in a
process of its own. "ragged" ends a response at one common token, so lengths differ; without it each has as many tokens as
the limit. Processor time, not wall time, so that other work on the machine counts less; loading is not counted, and the
first iteration not either. Without --trl only ours is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CELLS = [(64, 24, False), (256, 24, False), (256, 64, True)]
"""(episodes, longest response, ragged)."""
ITERATIONS = 3


def rows(folder: Path, trl: Path | None, runs: int) -> list[dict]:
    """A row of `make bench` per cell; the share of time in generation stands beside each rate."""
    make_models(folder)
    found = []
    for episodes, tokens, ragged in CELLS:
        cell = (str(episodes), str(tokens), str(int(ragged)))
        pairs = [
            (side("ours", folder, trl, cell), side("trl", folder, trl, cell) if trl else None) for _ in range(runs)
        ]
        ours = [pair[0] for pair in pairs]
        theirs = [pair[1] for pair in pairs if pair[1]]
        ratios = [a["rate"] / b["rate"] for a, b in pairs if b]
        found.append(
            {
                "name": "PPO" + (" (ragged)" if ragged else ""),
                "params": {"episodes": episodes, "response_tokens": tokens},
                "unit": "episodes/s",
                "ours": statistics.median(r["rate"] for r in ours),
                "peer": statistics.median(r["rate"] for r in theirs) if theirs else None,
                "ratio": statistics.median(ratios) if ratios else None,
                "ratio_min": min(ratios) if ratios else None,
                "ratio_max": max(ratios) if ratios else None,
                "runs": runs,
                "generation_share": statistics.median(r["generation"] for r in ours),
                "peer_generation_share": statistics.median(r["generation"] for r in theirs) if theirs else None,
            }
        )
    return found


def side(name: str, folder: Path, trl: Path | None, cell: tuple[str, ...]) -> dict[str, float]:
    """One side's rate and share of generation, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.ppo", "--side", name, "--folder", str(folder), "--cell", *cell]
    path = os.pathsep.join([str(trl)] if name == "trl" else [])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {cell}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_models(folder: Path) -> None:
    """A random policy of 0.9M parameters and a reward model on it, once."""
    import torch

    from training import models, tinyworld

    if (folder / "judge").exists():
        return
    torch.manual_seed(0)
    texts = [text for text in tinyworld.documents(2000, 0) if isinstance(text, str)]
    tokenizer = models.train_tokenizer(texts, vocab_size=1024, max_tokens=256)
    sizes = {"width": 160, "layers": 2, "heads": 4, "mlp_width": 512}
    policy = models.new_model(tokenizer, **sizes, max_tokens=256, init_std=0.08)
    policy.save_pretrained(folder / "policy")
    models.reward_model_from(folder / "policy", seed=0).save_pretrained(folder / "judge")
    for name in ("policy", "judge"):
        tokenizer.save_pretrained(folder / name)


def prompts_of(tokenizer) -> list[list[int]]:
    """1,024 prompts of the tiny world as ids."""
    from training import data, tinyworld

    asks = [row["prompt"] for row in tinyworld.prompts(1024, 7)]
    return [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in asks]


def end_of(folder: Path, ragged: bool) -> int:
    """The token that ends a response: one that comes about every thirtieth time, or one that never comes."""
    import torch

    from training import generation, models

    if not ragged:
        return -1
    policy, tokenizer = models.load_policy(folder / "policy"), models.load_tokenizer(folder / "policy")
    drawn = generation.sample(
        policy,
        prompts_of(tokenizer)[:256],
        eos_id=-1,
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=64,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(drawn.responses_BR.flatten())
    return int((counts - drawn.responses_BR.numel() / 30).abs().argmin())


class Clock:
    """Processor time in all, and within the functions it wraps; `restart` forgets the first iteration."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from here."""
        self.begun, self.inside = time.process_time(), 0.0

    def within(self, function: Callable) -> Callable:
        """The function, its time counted."""

        def timed(*arguments, **keywords):
            begun = time.process_time()
            result = function(*arguments, **keywords)
            self.inside += time.process_time() - begun
            return result

        return timed

    def result(self, episodes: int) -> dict[str, float]:
        """Episodes per second of processor time, and the share within."""
        total = time.process_time() - self.begun
        return {"rate": episodes / total, "generation": self.inside / total}


def ours(folder: Path, episodes: int, tokens: int, ragged: bool) -> dict[str, float]:
    """`training.ppo`'s own loop."""
    import torch

    from training import ppo

    torch.set_num_threads(1)
    fields = {"policy": str(folder / "policy"), "reward_model": str(folder / "judge"), "export": "", "out": ""}
    sizes = {"episodes": episodes, "minibatch": min(64, episodes), "response_tokens": tokens}
    config = ppo.Config(**fields, **sizes, iterations=ITERATIONS + 1, checkpoint_every=1000)
    players = ppo.load_players(config, torch.device("cpu"))
    prompts = prompts_of(players.tokenizer)
    ends = argparse.Namespace(eos_token_id=end_of(folder, ragged), pad_token_id=players.tokenizer.pad_token_id)
    state = argparse.Namespace(load=lambda: None, save=lambda *_: None)
    clock, calls = Clock(), []

    def respond(*arguments, sample=ppo.respond):
        calls.append(None)
        if len(calls) == 2:
            clock.restart()
        return clock.within(sample)(*arguments)

    ppo.respond = respond
    ppo.train_policy(config, state, players._replace(tokenizer=ends), prompts, None)
    return clock.result(ITERATIONS * episodes)


def theirs(folder: Path, episodes: int, tokens: int, ragged: bool) -> dict[str, float]:
    """TRL's PPOTrainer, with the same batch, minibatch, lengths and one epoch."""
    warnings.filterwarnings("ignore")
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from training import models

    if not trl.__version__.startswith("1.12"):
        raise RuntimeError(f"TRL {trl.__version__} has no PPO; name a folder with 1.12 by --trl")
    torch.set_num_threads(1)
    tokenizer = models.load_tokenizer(folder / "policy")
    tokenizer.padding_side = "left"
    end, minibatch = end_of(folder, ragged), min(64, episodes)
    arguments = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=minibatch,
        gradient_accumulation_steps=episodes // minibatch,
        num_mini_batches=episodes // minibatch,
        total_episodes=episodes * (ITERATIONS + 1),
        num_ppo_epochs=1,
        response_length=tokens,
        stop_token_id=end if ragged else None,
        local_rollout_forward_batch_size=minibatch,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=9.65e-6,
        kl_coef=0.02,
        temperature=1.0,
    )
    policies = [AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32) for _ in range(2)]
    judges = [
        AutoModelForSequenceClassification.from_pretrained(folder / "judge", dtype=torch.float32) for _ in range(2)
    ]
    data = Dataset.from_list([{"input_ids": ids} for ids in prompts_of(tokenizer)])
    trainer = PPOTrainer(arguments, tokenizer, policies[0], policies[1], judges[0], data, judges[1])
    clock, calls = Clock(), []

    def generate(*positional, original=ppo_trainer.batch_generation, **keywords):
        calls.append(None)
        if len(calls) == 2:
            clock.restart()
        return clock.within(original)(*positional, **keywords)

    ppo_trainer.batch_generation = generate
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return clock.result(ITERATIONS * episodes)


def main() -> None:
    """Measure and print a table; or, as a child, one side of one cell as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, help="folder that TRL 1.12 was installed into")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "bench" / "ppo")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--cell", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        episodes, tokens, ragged = options.cell
        measure = ours if options.side == "ours" else theirs
        print(json.dumps(measure(options.folder, episodes, tokens, bool(ragged))))
        return
    trl = options.trl.resolve() if options.trl else None
    for row in rows(options.folder, trl, options.runs):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
