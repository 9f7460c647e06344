"""The training half beside TRL, on a Llama of 0.9 million random weights: the same rows, the same steps, interleaved runs.

SFT and the reward model stand beside TRL 1.16.0's SFTTrainer and RewardTrainer, PPO beside TRL 1.12.0's PPOTrainer (the last one). Each
side runs in a process of its own (supervised.py, ppo.py), so that neither is made faster by what the other sets up, and counts processor
time on one thread. TRL gets fair settings: no bf16, no gradient checkpointing on a CPU, batches of 16 pairs with as many
accumulated as make Heed's step.
"""

import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.bench import ppo
from training import corpus, models

SHAPES = [(32, 48), (128, 32), (256, 24), (64, 64)]  # tokens of prompt and response
WIDTH = {"width": 128, "layers": 4, "heads": 4, "mlp_width": 384, "max_tokens": 512}
RANKINGS, RANKINGS_PER_STEP = {4: 32, 9: 8}, 4  # by K: TRL takes some ten seconds for the longest
FULL_PPO = [(16, 24, False), (64, 24, False), (64, 48, False), (16, 48, True), (64, 48, True), (256, 48, True)]
"""Episodes per rollout, longest response, whether responses end before it (and prompts differ in length)."""
COMPILED_PPO = [(64, 24, False, True), (64, 48, False, True)]
PPO_STEPS = 3
TRL_PPO = "trl==1.12.0"
END_PROBABILITY = 1 / 30

Timed = Callable[[], float]


def run(folder: Path, runs: int, quick: bool = False) -> list[dict]:
    """The rows of var/bench/training.json. `quick` takes one small cell of each stage, to see that all work."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with Quiet():
        tokenizer = make_models(folder)
        return list(measure(folder, tokenizer, runs, quick))


def measure(folder: Path, tokenizer, runs: int, quick: bool) -> Iterator[dict]:
    """SFT, reward model, PPO."""
    for packing in (False,) if quick else (False, True):
        yield from sft_rows(folder, tokenizer, packing, runs)
    shapes = SHAPES[:1] if quick else SHAPES
    for k in (4,) if quick else (4, 9):
        for shape in shapes:
            yield from rm_rows(folder, tokenizer, k, *shape, runs)
    for cell in FULL_PPO[:1] if quick else [*FULL_PPO, *COMPILED_PPO]:
        yield from ppo_rows(folder, tokenizer, *cell, runs=runs)


class Quiet:
    """TRL and transformers say much on stderr; figures are all that is wanted here."""

    def __enter__(self) -> None:
        import transformers

        logging.disable(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
        os.environ["TQDM_DISABLE"] = "1"

    def __exit__(self, *_error: object) -> None:
        logging.disable(logging.NOTSET)
        del os.environ["TQDM_DISABLE"]


def make_models(folder: Path):
    """A policy and a reward model with random weights in `policy/` and `reward/`, and in `ending/` again; returns their tokenizer."""
    documents = list(corpus.read_documents(None, 400, 0))
    tokenizer = models.train_tokenizer(corpus.plain_texts(documents), 512, WIDTH["max_tokens"])
    policy = models.new_model(tokenizer, **WIDTH, init_std=0.08)
    for parent in (folder, folder / "ending"):
        if parent != folder:
            let_end(policy, tokenizer, END_PROBABILITY)
        policy.save_pretrained(parent / "policy")
        reward_model = models.reward_model_from(parent / "policy", 0)
        reward_model.save_pretrained(parent / "reward")
        for name in ("policy", "reward"):
            tokenizer.save_pretrained(parent / name)
    return tokenizer


@torch.no_grad()
def let_end(policy, tokenizer, probability: float) -> None:
    """Change the weights so that each token is EOS with about this probability, whatever stands before it, and none is padding.

    One dimension of the stream is made the same for every token, which no layer writes to: the two tokens' unembeddings have
    nothing but that dimension.
    """
    entries_VH = policy.get_input_embeddings().weight  # tied: the unembedding too
    for layer in policy.model.layers:
        for written in (layer.self_attn.o_proj, layer.mlp.down_proj):
            written.weight[0] = 0.0
    entries_VH[:, 0] = 8 * entries_VH.std()
    special = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    entries_VH[special] = 0.0
    ids_BT = torch.tensor([draw(random.Random(1), tokenizer, 64) for _ in range(16)])
    logits_NV = policy(ids_BT).logits.flatten(0, 1)
    logits_NV[:, special] = -math.inf
    hidden_N = policy.model(ids_BT).last_hidden_state[..., 0].flatten()
    wanted_N = logits_NV.logsumexp(-1) + math.log(probability / (1 - probability))
    entries_VH[special, 0] = torch.stack([(wanted_N / hidden_N).mean(), -1000 / hidden_N.mean()])


def compare(name: str, params: dict, unit: str, amount: float, ours: Timed, peer: Timed | None, runs: int) -> dict:
    """A row: amount per second of both sides, run in turns; ratios of single runs give min and max, of medians the ratio."""
    seconds: list[tuple[float, float]] = []
    for _ in range(runs):
        first = ours()
        seconds.append((first, peer() if peer else float("nan")))
    mine, theirs = ([pair[i] for pair in seconds] for i in (0, 1))
    row = {"name": name, "params": params, "unit": unit, "ours": amount / statistics.median(mine), "runs": runs}
    if peer is None:
        return row | {"peer": None, "ratio": None, "ratio_min": None, "ratio_max": None}
    ratios = [their / my for my, their in seconds]
    return row | {
        "peer": amount / statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(mine),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def draw(rng: random.Random, tokenizer, count: int) -> list[int]:
    """Token ids that are no special tokens."""
    return [rng.randrange(10, len(tokenizer)) for _ in range(count)]


def side(module: str, *arguments: object, site: Path | None = None) -> dict[str, float]:
    """What one side's process says, on one thread; with `site` before all else on its path."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(site)} if site else {})
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[2:])}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- SFT ------------------------------------------------------------------------------------------------------------


def sft_rows(folder: Path, tokenizer, packing: bool, runs: int, count: int = 96, batch: int = 16) -> Iterator[dict]:
    """Demonstrations of ragged length, loss on the response alone."""
    rng = random.Random(0)
    lengths = [(rng.randint(16, 96), rng.randint(16, 160)) for _ in range(count)]
    examples = [(draw(rng, tokenizer, prompt + response), prompt) for prompt, response in lengths]
    spec = write(folder, {"stage": "sft", "packing": packing, "batch": batch, "examples": examples})

    def seconds(which: str) -> float:
        return side("supervised", which, folder, spec)["seconds"]

    params = {"demonstrations": count, "batch": batch, "packing": packing}
    tokens = sum(len(ids) for ids, _ in examples)
    yield compare("sft", params, "tokens/s", tokens, lambda: seconds("ours"), lambda: seconds("trl"), runs)


# ---- reward model ---------------------------------------------------------------------------------------------------


def rm_rows(folder: Path, tokenizer, k: int, prompt: int, response: int, runs: int) -> Iterator[dict]:
    """Rankings of K responses without ties: the default encoding and one pass per response, each beside pairs."""
    rng = random.Random(k)
    count = RANKINGS[k]
    rankings = [ranking(rng, tokenizer, k, prompt, response) for _ in range(count)]
    spec = {"stage": "rm", "k": k, "prompt": prompt, "batch": RANKINGS_PER_STEP, "rankings": rankings}
    path = write(folder, spec)

    def seconds(which: str) -> float:
        return side("supervised", which, folder, path)["seconds"]

    seen: list[float] = []

    def once() -> float:
        """TRL's runs of the first comparison stand in the second too: they take the longest."""
        seen.append(seconds("trl"))
        return seen[-1]

    expected = k * (k - 1) * (prompt + response) / (prompt + k * response)
    params = {"k": k, "prompt": prompt, "response": response, "token_ratio": round(expected, 1)}
    yield compare("rm, default encoding", params, "rankings/s", count, lambda: seconds("auto"), once, runs)
    again = iter(seen)
    params = params | {"token_ratio": k - 1}
    name = "rm, one pass per response"
    yield compare(name, params, "rankings/s", count, lambda: seconds("responses"), lambda: next(again), runs)


def ranking(rng: random.Random, tokenizer, k: int, prompt: int, response: int) -> list[list[int]]:
    """The ids of K different responses of equal length after one prompt."""
    shared = draw(rng, tokenizer, prompt)
    return [shared + draw(rng, tokenizer, response) for _ in range(k)]


def write(folder: Path, spec: dict) -> Path:
    """What both sides read."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return path


# ---- PPO ------------------------------------------------------------------------------------------------------------


def ppo_rows(
    folder: Path, tokenizer, batch: int, tokens: int, ends: bool, compile: bool = False, *, runs: int
) -> Iterator[dict]:
    """Episodes of at most `tokens` tokens, in minibatches of at most 64 and one epoch. Beside the rate, the share of generation.

    All prompts and responses are equally long; or they end as policies' do, after prompts of 8 to 40 tokens: each token ends
    its response with a probability of about 1/30, so a limit of 48 leaves half of them on average, and cuts off a fifth.
    """
    rng = random.Random(0)
    steps = PPO_STEPS * (2 if ends else 1) if batch <= 64 else 2
    lengths = [rng.randint(8, 40) if ends else 24 for _ in range(batch * (steps + 1))]
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps([draw(rng, tokenizer, length) for length in lengths]))
    cell = ppo.Cell(batch, min(batch, 64), tokens, steps, ends, compile)
    site = trl_for_ppo(folder)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}

    def run_side(which: str) -> float:
        place = folder / "ending" if ends else folder
        found[which].append(side("ppo", which, place, prompts, *map(int, cell), site=site if which == "trl" else None))
        return found[which][-1]["seconds"]

    def median(which: str, figure: str) -> float:
        return statistics.median(run[figure] for run in found[which])

    params = {"batch": batch, "prompt": "8-40" if ends else 24, "response": f"up to {tokens}" if ends else tokens}
    name = "ppo" + (", responses end" if ends else "") + (", compiled" if compile else "")
    count = batch * steps
    row = compare(name, params, "episodes/s", count, lambda: run_side("ours"), lambda: run_side("trl"), runs)
    means = {f"mean response, {which}": round(median(which, "length"), 1) for which in found}
    yield row | {"params": params | means}
    share: dict[str, object] = {"ratio": None, "ratio_min": None, "ratio_max": None, "unit": "%"}
    share |= {"ours": 100 * median("ours", "generation"), "peer": 100 * median("trl", "generation")}
    yield {"name": f"{name}, share of time in generation", "params": params, "runs": runs} | share


def trl_for_ppo(folder: Path) -> Path:
    """Where TRL 1.12.0 is, installed beside the environment on first use; what it needs is there already."""
    site = folder / "trl-ppo"
    if not (site / "trl").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), TRL_PPO]
        subprocess.run(command, check=True)
    return site
