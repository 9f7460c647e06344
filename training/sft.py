"""Supervised fine-tuning on an export's demonstrations (InstructGPT, section 3.5 and appendix C.1).

Loss on the response only, EOS included; averaged over the tokens of the whole batch, however it is split into parts;
cosine to 10 %, no warm-up.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training import models
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, to_dict
from training.contract import read_export
from training.data import (
    Example,
    LengthLimits,
    OnTooLong,
    collate,
    encode_demonstrations,
    read_demonstrations,
    shuffled_batches,
)
from training.losses import next_token_loss_sum
from training.optimizers import adamw, apply_step, cosine_schedule


@dataclass(frozen=True)
class Config:
    """Fine-tune a base model on an export's demonstrations."""

    out: str = option(help="model folder to write")
    base_model: str = option(help="model to start from: a folder, or a Hugging Face name")
    export: str = option(help="export folder with demonstrations")
    epochs: int = option(16, help="passes over the demonstrations (paper: 16)")
    batch_size: int = option(32, help="demonstrations per step (paper: 32 at 1.3B)")
    parts: int = option(1, help="forward passes a step is split into, to save memory; the gradient stays the same")
    learning_rate: float = option(9.65e-6, help="peak learning rate (paper: 9.65e-6 at 1.3B)")
    weight_decay: float = option(0.0, help="AdamW weight decay, on matrices only")
    adam_epsilon: float = option(1e-8, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a demonstration past these limits")
    seed: int = option(0, help="seed of the order")
    log_every: int = option(10, help="steps between log rows")
    checkpoint_every: int = option(200, help="steps between checkpoints")
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
    """Train and publish the SFT model; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"base": models.parent_of(config.base_model)}
    state = RunState(config.out, "sft", to_dict(config), parents, export.ref)
    if state.is_published(config.overwrite):
        return Path(config.out)
    models.use_threads(config.threads)
    device = models.pick_device(config.device)
    tokenizer = models.load_tokenizer(config.base_model)
    counts: Counter[str] = Counter()
    train = encode_demonstrations(tokenizer, read_demonstrations(export, "train", counts), config.limits, counts)
    valid = encode_demonstrations(tokenizer, read_demonstrations(export, "valid", Counter()), config.limits, Counter())
    torch.manual_seed(config.seed)
    model = models.load_policy(config.base_model, device)
    before = mean_loss(model, valid, tokenizer.pad_token_id, config.batch_size, device)
    log = train_model(config, state, model, train, tokenizer.pad_token_id, device)
    metrics = {
        "valid_loss_before": before,
        "valid_loss": mean_loss(model, valid, tokenizer.pad_token_id, config.batch_size, device),
        "demonstrations": len(train),
        "demonstrations_valid": len(valid),
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "sft",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    models.publish(config.out, model.cpu(), tokenizer, metrics=metrics, log=log, **lineage)
    state.clear()
    return Path(config.out)


def train_model(
    config: Config, state: RunState, model, train: list[Example], pad_id: int, device: torch.device
) -> list[dict]:
    """The loop: one batch of demonstrations a step. Returns the log."""
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    steps = max(1, len(train) * config.epochs // config.batch_size)
    first, log = restore(state.load(), model=model, optimizer=optimizer)
    batches = itertools.islice(shuffled_batches(len(train), config.batch_size, config.seed), first, None)
    model.train()
    with stop_request() as stop, tqdm(total=steps, initial=first, desc="sft", unit="step", disable=None) as bar:
        for step in range(first, steps):
            chosen = [train[i] for i in next(batches)]
            loss = backward_mean(model, chosen, config.parts, pad_id, device)
            rate = config.learning_rate * cosine_schedule(step, steps)
            apply_step(optimizer, model, rate, config.clip_norm)
            if step % config.log_every == 0 or step == steps - 1:
                log.append({"step": step, "loss": loss})
                bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, model=model, optimizer=optimizer))
            if stop.is_set:
                raise KeyboardInterrupt
    return log


def backward_mean(model, examples: list[Example], parts: int, pad_id: int, device: torch.device) -> float:
    """Accumulate the gradient of the mean loss over all response tokens of the batch; returns that mean (nats).

    Each part's sum is divided by the whole batch's token count, so the number of parts changes nothing but rounding.
    """
    tokens = sum(example.response_tokens for example in examples)
    size = -(-len(examples) // parts)
    total = 0.0
    for start in range(0, len(examples), size):
        loss = response_loss_sum(model, examples[start : start + size], pad_id, device) / tokens
        loss.backward()
        total += loss.item()
    return total


def response_loss_sum(model, examples: list[Example], pad_id: int, device: torch.device) -> torch.Tensor:
    """Sum of −log p over the response tokens of the examples."""
    batch = collate(examples, pad_id, device)
    output = model(
        input_ids=batch.ids_BT, attention_mask=batch.keep_BT, position_ids=batch.positions_BT, use_cache=False
    )
    return next_token_loss_sum(output.logits, batch.ids_BT, batch.loss_BT)


@torch.no_grad()
def mean_loss(model, examples: list[Example], pad_id: int, batch: int, device: torch.device) -> float | None:
    """Nats per response token over the examples; None when there are none."""
    if not examples:
        return None
    model.eval()
    starts = range(0, len(examples), batch)
    total = sum(response_loss_sum(model, examples[i : i + batch], pad_id, device).item() for i in starts)
    return total / sum(example.response_tokens for example in examples)
