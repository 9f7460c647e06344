"""Pretraining: a byte-level BPE tokenizer and a small Llama-style model, from text. By default the text of the tiny world.

Documents are packed with an end-of-text token and never see each other. AdamW with β2 0.95, weight decay 0.1 on matrices,
gradient clipping at 1, cosine to 10 % after a warm-up (GPT-3, appendix B).
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

from training import compiling, corpus, models, packing, parallel, plan, processes
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, require_warmup, to_dict
from training.data import OnTooLong, encode_prompt
from training.generation import sample_texts, side_by_side
from training.optimizers import adamw, apply_step, check_finite, cosine_schedule
from training.report import SAMPLES
from training.run_settings import RunSettings
from training.trackers import open_log

CONTINUED_TOKENS = 64
"""Tokens of a continuation in the report, at most, and of the plain text before it."""


@dataclass(frozen=True)
class Config(RunSettings):
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
    compile: bool = option(
        False, help="compile the layers with torch.compile (minutes at the start; sampling stays eager)"
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        super().validate()
        for name in (
            "documents",
            "width",
            "layers",
            "heads",
            "mlp_width",
            "init_std",
            "steps",
            "batch_rows",
            "row_tokens",
            "log_every",
            "checkpoint_every",
            "valid_documents",
        ):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.vocab_size >= 300, "vocab_size", "must hold the 256 bytes and the special tokens: at least 300")
        require(
            self.width % (2 * self.heads) == 0,
            "width",
            "must be an even multiple of heads: rotary positions pair a head's numbers",
        )
        require(self.row_tokens <= self.max_tokens, "row_tokens", "must not exceed max_tokens")
        require(self.learning_rate > 0, "learning_rate", "must be positive")
        require_warmup(self, "warmup_steps", self.steps)


def run(config: Config) -> Path:
    """Train and publish the base model; returns its folder. Resumes from checkpoints of the same run."""
    state = RunState(config.out, "pretrain", to_dict(config), {}, None, config.text)
    if not config.dry_run and state.is_published(config.overwrite):
        return Path(config.out)
    device = config.set_up()
    documents = list(corpus.read_documents(config.text, config.documents + config.valid_documents, config.seed))
    tokenizer = models.train_tokenizer(corpus.plain_texts(documents), config.vocab_size, config.max_tokens)
    counts: Counter[str] = Counter()
    text = corpus.build(
        tokenizer,
        documents,
        row_tokens=config.row_tokens,
        valid_documents=config.valid_documents,
        on_too_long=config.on_too_long,
        counts=counts,
        path=config.text,
    )
    torch.manual_seed(config.seed)
    sizes = {"width": config.width, "layers": config.layers, "heads": config.heads, "mlp_width": config.mlp_width}
    model: torch.nn.Module = models.new_model(
        tokenizer, **sizes, max_tokens=config.max_tokens, init_std=config.init_std
    )
    model.to(device)
    if config.compile:
        compiling.compile_layers(model)
    if config.dry_run:
        rows = corpus.rows_at(len(text.train.ids_BT), config.batch_rows, config.seed, 0)
        plan.show_and_stop(
            "pretrain",
            counts={"documents": text.documents, "packed_rows": len(text.train.ids_BT), **counts},
            steps=config.steps,
            unit="step",
            models={"model": model},
            trained=["model"],
            step=lambda: corpus.backward_mean(model, text.train, rows, device),
            device=device,
        )
    looked_at = beginnings(tokenizer, documents[: config.valid_documents], longest=config.max_tokens // 2)
    tokens = min(CONTINUED_TOKENS, config.max_tokens // 2)
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 1.0, "seed": config.seed}
    before = sample_texts(model, tokenizer, looked_at, **sampling)[0]  # a resumed run comes by here too
    parallel.spread(model, config.parallel)
    log = train_model(config, state, model, text.train, device)
    model = parallel.collect(model)
    metrics = {
        "valid_loss": corpus.mean_loss(model, text.valid, config.batch_rows, device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": text.documents,
        **state.text_facts,
        "epochs": round(config.steps * config.batch_rows / len(text.train.ids_BT), 3),
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "pretrain",
        "parents": {},
        "export": None,
        "config": to_dict(config),
        "seed": config.seed,
    }
    after = sample_texts(model, tokenizer, looked_at, **sampling)[0]
    samples = side_by_side(tokenizer, looked_at, before, after)
    models.publish(config.out, model.cpu(), tokenizer, metrics=metrics, log=log, samples=samples, **lineage)
    state.clear()
    return Path(config.out)


def beginnings(tokenizer, held_out: Sequence[corpus.Document], longest: int) -> list[list[int]]:
    """What the report shows the model go on from: of the first held-out documents that are not too long, dialogues up to their last
    message, plain texts up to their middle, or less."""
    found = (_beginning(tokenizer, document) for document in held_out)
    return list(itertools.islice((ids for ids in found if 0 < len(ids) <= longest), SAMPLES))


def _beginning(tokenizer, document: corpus.Document) -> list[int]:
    if not isinstance(document, str):
        return encode_prompt(tokenizer, document[:-1]) if len(document) > 1 else []
    ids = tokenizer.encode(document, add_special_tokens=False)
    return ids[: min(len(ids) // 2, CONTINUED_TOKENS)]


def train_model(config: Config, state: RunState, model, train: packing.PackedRows, device: torch.device) -> list[dict]:
    """The loop: one packed batch a step, loss averaged over its tokens. Returns the log."""
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    first, log = restore(state.load(), model=model, optimizer=optimizer)
    log = open_log(log, config.track, config.out, to_dict(config))
    model.train()
    with (
        stop_request() as stop,
        tqdm(total=config.steps, initial=first, desc="pretrain", unit="step", disable=processes.bar_is_off()) as bar,
    ):
        for step in range(first, config.steps):
            rows = corpus.rows_at(len(train.ids_BT), config.batch_rows, config.seed, step)
            processes.reseed(config.seed, step)
            with parallel.step(model):
                loss = corpus.backward_mean(model, train, rows, device)
            factor = cosine_schedule(step, config.steps, warmup_steps=config.warmup_steps)
            norm = apply_step(optimizer, model, config.learning_rate * factor, config.clip_norm)
            check_finite(f"step {step}", {"the gradients' norm": norm})
            if step % config.log_every == 0 or step == config.steps - 1:
                row = processes.total({"loss": loss.item()})
                log.append({"step": step, **row})
                bar.set_postfix(loss=f"{row['loss']:.3f}")
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, model=model, optimizer=optimizer))
            if stop.is_set:
                raise KeyboardInterrupt
    return log
