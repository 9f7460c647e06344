"""Pretraining: a byte-level BPE tokenizer and a small Llama-style model, from text. By default the text of the tiny world.

Documents are packed with an end-of-text token and never see each other. AdamW with β2 0.95, weight decay 0.1 on matrices,
gradient clipping at 1, cosine to 10 % after a warm-up (GPT-3, appendix B).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from training import models, packing, tinyworld
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, to_dict
from training.data import LengthLimits, OnTooLong, shuffled_batches
from training.errors import StageError
from training.optimizers import adamw, apply_step, cosine_schedule


@dataclass(frozen=True)
class Config:
    """Train a tokenizer and a small base model from scratch."""

    out: str = option(help="model folder to write")
    text: str | None = option(None, help='JSONL of {"text"} or {"messages"} rows; none: the tiny world writes the text')
    documents: int = option(40_000, help="documents of the tiny world to write (ignored with text)")
    vocab_size: int = option(1024, help="tokens in the vocabulary, at most")
    width: int = option(128, help="hidden size")
    layers: int = option(2, help="transformer layers")
    heads: int = option(4, help="attention heads")
    mlp_width: int = option(352, help="inner size of the MLP")
    init_std: float = option(0.08, help="standard deviation of the initial weights")
    max_tokens: int = option(256, help="longest context the model declares (tokens)")
    row_tokens: int = option(128, help="tokens per packed row; longer documents follow on_too_long")
    batch_rows: int = option(8, help="packed rows per step")
    steps: int = option(2_000, help="optimiser steps")
    learning_rate: float = option(1.5e-3, help="peak learning rate")
    warmup_steps: int = option(50, help="steps of linear warm-up")
    weight_decay: float = option(0.1, help="AdamW weight decay, on matrices only")
    adam_epsilon: float = option(1e-8, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping")
    on_too_long: OnTooLong = option("raise", help="what to do with a document longer than a row")
    valid_documents: int = option(500, help="documents held out for the validation loss")
    seed: int = option(0, help="seed of text, weights and order")
    log_every: int = option(50, help="steps between log rows")
    checkpoint_every: int = option(500, help="steps between checkpoints")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")
    overwrite: bool = option(False, help="replace an existing output of another run")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in (
            "documents",
            "steps",
            "batch_rows",
            "row_tokens",
            "log_every",
            "checkpoint_every",
            "valid_documents",
        ):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.vocab_size >= 300, "vocab_size", "must hold the 256 bytes and the special tokens: at least 300")
        require(self.width % self.heads == 0, "width", "must be a multiple of heads")
        require(self.row_tokens <= self.max_tokens, "row_tokens", "must not exceed max_tokens")
        require(self.learning_rate > 0, "learning_rate", "must be positive")
        require(0 <= self.warmup_steps < self.steps, "warmup_steps", "must be less than steps")


def run(config: Config) -> Path:
    """Train and publish the base model; returns its folder. Resumes from checkpoints of the same run."""
    state = RunState(config.out, "pretrain", to_dict(config), {}, None)
    if state.is_published(config.overwrite):
        return Path(config.out)
    models.use_threads(config.threads)
    device = models.pick_device(config.device)
    documents = list(read_documents(config))
    tokenizer = models.train_tokenizer(plain_texts(documents), config.vocab_size, config.max_tokens)
    counts: Counter[str] = Counter()
    encoded = encode_documents(tokenizer, documents, config, counts)
    valid = packing.pack(encoded[: config.valid_documents], config.row_tokens, tokenizer.pad_token_id)
    train = packing.pack(encoded[config.valid_documents :], config.row_tokens, tokenizer.pad_token_id)
    torch.manual_seed(config.seed)
    sizes = {"width": config.width, "layers": config.layers, "heads": config.heads, "mlp_width": config.mlp_width}
    model: torch.nn.Module = models.new_model(
        tokenizer, **sizes, max_tokens=config.max_tokens, init_std=config.init_std
    )
    model.to(device)
    log = train_model(config, state, model, train, device)
    metrics = {
        "valid_loss": mean_loss(model, valid, config.batch_rows, device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(encoded),
        "epochs": round(config.steps * config.batch_rows / len(train.ids_BT), 3),
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "pretrain",
        "parents": {},
        "export": None,
        "config": to_dict(config),
        "seed": config.seed,
    }
    models.publish(config.out, model.cpu(), tokenizer, metrics=metrics, log=log, **lineage)
    state.clear()
    return Path(config.out)


def train_model(config: Config, state: RunState, model, train: packing.PackedRows, device: torch.device) -> list[dict]:
    """The loop: one packed batch a step, loss averaged over its tokens. Returns the log."""
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    first, log = restore(state.load(), model=model, optimizer=optimizer)
    batches = itertools.islice(shuffled_batches(len(train.ids_BT), config.batch_rows, config.seed), first, None)
    model.train()
    with (
        stop_request() as stop,
        tqdm(total=config.steps, initial=first, desc="pretrain", unit="step", disable=None) as bar,
    ):
        for step in range(first, config.steps):
            loss_sum, tokens = packed_loss(model, train, next(batches), device)
            loss = loss_sum / tokens
            loss.backward()
            factor = cosine_schedule(step, config.steps, warmup_steps=config.warmup_steps)
            apply_step(optimizer, model, config.learning_rate * factor, config.clip_norm)
            if step % config.log_every == 0 or step == config.steps - 1:
                log.append({"step": step, "loss": loss.item()})
                bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, model=model, optimizer=optimizer))
            if stop.is_set:
                raise KeyboardInterrupt
    return log


def packed_loss(model, rows: packing.PackedRows, chosen: list[int], device: torch.device) -> tuple[torch.Tensor, int]:
    """(sum of −log p over next tokens of the same document, their number) for the chosen rows."""
    batch = packing.PackedRows(*(tensor[chosen].to(device) for tensor in rows))
    labels_BT, loss_BT = packing.targets(batch)
    mask = packing.attention_mask(batch.segments_BT)
    output = model(input_ids=batch.ids_BT, attention_mask=mask, position_ids=batch.positions_BT, use_cache=False)
    logits = output.logits.flatten(0, 1).float()
    labels = torch.where(loss_BT, labels_BT, -100).flatten()
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), int(loss_BT.sum())


@torch.no_grad()
def mean_loss(model, rows: packing.PackedRows, batch: int, device: torch.device) -> float:
    """Nats per token over all rows."""
    model.eval()
    indices = list(range(len(rows.ids_BT)))
    parts = [packed_loss(model, rows, indices[i : i + batch], device) for i in range(0, len(indices), batch)]
    return sum(loss.item() for loss, _ in parts) / sum(tokens for _, tokens in parts)


# ---- documents ------------------------------------------------------------------------------------------------------

Document = list[dict[str, str]] | str


def read_documents(config: Config) -> Iterator[Document]:
    """Documents of the tiny world, or of the file `text`. Raises StageError naming file and line."""
    if config.text is None:
        yield from tinyworld.documents(config.documents + config.valid_documents, config.seed)
        return
    with open(config.text, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield (
                    row["text"]
                    if "text" in row
                    else [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
                )
            except (ValueError, KeyError, TypeError) as error:
                raise StageError(f"{config.text} line {number}: needs text or messages ({error!r})") from None


def plain_texts(documents: list[Document]) -> Iterator[str]:
    """What the tokenizer learns its merges from: the texts without the template."""
    for document in documents:
        yield from [document] if isinstance(document, str) else [message["content"] for message in document]


def encode_documents(tokenizer, documents: list[Document], config: Config, counts: Counter[str]) -> list[list[int]]:
    """Token ids, each ending in EOS, dialogues by the chat template; documents longer than a row raise or are dropped."""
    texts = [d if isinstance(d, str) else tokenizer.apply_chat_template(d, tokenize=False) for d in documents]
    limits = LengthLimits(prompt_tokens=0, response_tokens=config.row_tokens, on_too_long=config.on_too_long)
    encoded = []
    for number, ids in enumerate(tokenizer(texts, add_special_tokens=False)["input_ids"], start=1):
        ids = ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
        if limits.admits(f"document {number}", 0, len(ids), counts):
            encoded.append(ids)
    return encoded
