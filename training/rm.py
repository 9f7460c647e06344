"""The reward model, trained on an export's rankings (InstructGPT, section 3.5 and appendix C.2).

All C(K,2) comparisons of a ranking are one batch element, with one forward pass per response; ties are dropped; after
training a bias makes labelers' demonstrations score 0 on average.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training import models
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, to_dict
from training.contract import Export, read_export
from training.data import (
    Comparison,
    Example,
    LengthLimits,
    OnTooLong,
    collate,
    encode_demonstrations,
    read_comparisons,
    read_demonstrations,
    shuffled_batches,
)
from training.losses import ranking_loss
from training.optimizers import adamw, apply_step, cosine_schedule


@dataclass(frozen=True)
class Config:
    """Train a reward model on an export's rankings."""

    out: str = option(help="model folder to write")
    sft_model: str = option(help="SFT model folder whose body the reward model starts from")
    export: str = option(help="export folder with rankings (and demonstrations, for the bias)")
    epochs: int = option(1, help="passes over the rankings (paper: 1; more overfits)")
    batch_size: int = option(64, help="rankings per step (paper: 64)")
    parts: int = option(1, help="forward passes a step is split into, to save memory; the gradient stays the same")
    learning_rate: float = option(9e-6, help="peak learning rate (paper: 9e-6)")
    warmup_steps: int = option(0, help="steps of linear warm-up")
    weight_decay: float = option(0.0, help="AdamW weight decay, on matrices only")
    adam_epsilon: float = option(1e-8, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a ranking that holds a response past these limits")
    seed: int = option(0, help="seed of head and order")
    log_every: int = option(5, help="steps between log rows")
    checkpoint_every: int = option(100, help="steps between checkpoints")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")
    overwrite: bool = option(False, help="replace an existing output of another run")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in (
            "epochs",
            "batch_size",
            "parts",
            "prompt_tokens",
            "response_tokens",
            "log_every",
            "checkpoint_every",
        ):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.parts <= self.batch_size, "parts", "must not exceed batch_size")
        require(self.learning_rate > 0, "learning_rate", "must be positive")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Train and publish the reward model; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"sft": models.parent_of(config.sft_model)}
    state = RunState(config.out, "rm", to_dict(config), parents, export.ref)
    if state.is_published(config.overwrite):
        return Path(config.out)
    models.use_threads(config.threads)
    device = models.pick_device(config.device)
    tokenizer = models.load_tokenizer(config.sft_model)
    pad_id = tokenizer.pad_token_id
    counts: Counter[str] = Counter()
    train = read_comparisons(export, tokenizer, "train", config.limits, counts, for_training=True)
    torch.manual_seed(config.seed)
    model = models.reward_model_from(config.sft_model, config.seed).to(device)
    log = train_model(config, state, model, train, pad_id, device)
    centre = demonstration_mean(model, export, "train", tokenizer, config, device)
    model.config.reward_bias -= centre or 0.0
    metrics = {
        **accuracies(model, export, tokenizer, config.limits, config.batch_size, device),
        "rankings": len(train),
        "pairs": sum(len(comparison.pairs) for comparison in train),
        "demonstrations_valid_mean": demonstration_mean(model, export, "valid", tokenizer, config, device),
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "rm",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    models.publish(config.out, model.cpu(), tokenizer, metrics=metrics, log=log, **lineage)
    state.clear()
    return Path(config.out)


def train_model(
    config: Config, state: RunState, model, train: list[Comparison], pad_id: int, device: torch.device
) -> list[dict]:
    """The loop: one batch of rankings a step. Returns the log."""
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    steps = max(1, len(train) * config.epochs // config.batch_size)
    first, log = restore(state.load(), model=model, optimizer=optimizer)
    batches = itertools.islice(shuffled_batches(len(train), config.batch_size, config.seed), first, None)
    model.train()
    with stop_request() as stop, tqdm(total=steps, initial=first, desc="rm", unit="step", disable=None) as bar:
        for step in range(first, steps):
            chosen = [train[i] for i in next(batches)]
            loss, accuracy = backward_mean(model, chosen, config.parts, pad_id, device)
            rate = config.learning_rate * cosine_schedule(step, steps, warmup_steps=config.warmup_steps)
            apply_step(optimizer, model, rate, config.clip_norm)
            if step % config.log_every == 0 or step == steps - 1:
                log.append({"step": step, "loss": loss, "accuracy": accuracy})
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}")
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, model=model, optimizer=optimizer))
            if stop.is_set:
                raise KeyboardInterrupt
    return log


def backward_mean(model, batch: list[Comparison], parts: int, pad_id: int, device: torch.device) -> tuple[float, float]:
    """Accumulate the gradient of the mean loss over the batch's rankings; returns (loss, accuracy on its pairs)."""
    size = -(-len(batch) // parts)
    total, right = 0.0, 0
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        rewards_N, comparisons = rewards_of(model, part, pad_id, device)
        loss = ranking_loss(rewards_N, comparisons) * len(part) / len(batch)
        loss.backward()
        total += loss.item()
        right += sum(int(rewards_N[w] > rewards_N[l]) for pairs, _ in comparisons for w, l in pairs)
    return total, right / sum(len(comparison.pairs) for comparison in batch)


def rewards_of(
    model, batch: Sequence[Comparison], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, list[tuple[list[tuple[int, int]], int]]]:
    """(rewards of all responses of the batch, each ranking's pairs as indices into them with its C(K,2))."""
    examples = [example for comparison in batch for example in comparison.examples]
    comparisons, offset = [], 0
    for comparison in batch:
        comparisons.append(([(w + offset, l + offset) for w, l in comparison.pairs], comparison.pair_count))
        offset += len(comparison.examples)
    return score_examples(model, examples, pad_id, device), comparisons


def score_examples(model, examples: Sequence[Example], pad_id: int, device: torch.device) -> torch.Tensor:
    """The reward of each example, read at its last token → (N,)."""
    batch = collate(examples, pad_id, device)
    return models.scores_at_end(
        models.token_scores(model, batch.ids_BT, batch.keep_BT, batch.positions_BT), batch.lengths_B
    )


@torch.no_grad()
def score_all(model, examples: Sequence[Example], pad_id: int, batch: int, device: torch.device) -> torch.Tensor:
    """The rewards of any number of examples, batch by batch, on the CPU → (N,). Leaves the model in evaluation mode."""
    model.eval()
    starts = range(0, len(examples), batch)
    return torch.cat([score_examples(model, examples[i : i + batch], pad_id, device).cpu() for i in starts])


def demonstration_mean(
    model, export: Export, split: str, tokenizer, config: Config, device: torch.device
) -> float | None:
    """Mean reward of the split's demonstrations; None when it has none."""
    rows = read_demonstrations(export, split, Counter())
    examples = encode_demonstrations(tokenizer, rows, config.limits, Counter())
    if not examples:
        return None
    return float(score_all(model, examples, tokenizer.pad_token_id, config.batch_size * 4, device).mean())


def accuracies(model, export: Export, tokenizer, limits: LengthLimits, batch: int, device: torch.device) -> dict:
    """Share of non-tied pairs that the model orders as the labelers did: by split, labeler group and use case.

    Held-out labelers are scored here and nowhere trained on. Also the rewards' mean and deviation per split.
    """
    right: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    metrics: dict = {}
    for split in ("train", "valid", "test"):
        comparisons = read_comparisons(export, tokenizer, split, limits, Counter(), for_training=False)
        rewards = []
        for comparison in comparisons:
            rewards_K = score_all(model, comparison.examples, tokenizer.pad_token_id, batch * 4, device)
            rewards.append(rewards_K)
            hits = sum(bool(rewards_K[w] > rewards_K[l]) for w, l in comparison.pairs)
            for key in (split, f"{split}_{comparison.group}", f"{split}_{comparison.use_case}"):
                right[key] += hits
                pairs[key] += len(comparison.pairs)
        if rewards:
            metrics[f"reward_mean_{split}"] = float(torch.cat(rewards).mean())
            metrics[f"reward_std_{split}"] = float(torch.cat(rewards).std())
    return {f"accuracy_{key}": right[key] / pairs[key] for key in sorted(pairs)} | metrics
