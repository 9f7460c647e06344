"""Supervised fine-tuning on an export's demonstrations (InstructGPT, section 3.5 and appendix C.1).

Loss on the response only, EOS included. With R the response tokens, W all tokens but each first one, and P the pretraining
tokens of a step's whole batch, each L the mean of −log p over its tokens, in nats:

    loss = (1 − pretraining_mix) · (L_R + lm_coef · L_W) + pretraining_mix · L_P

However the batch is split into parts or packed, that stays the same but for rounding. Cosine to 10 %, no warm-up. With a
reward model the epoch whose samples score best on validation prompts is published, else the last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from training import compiling, corpus, models, parallel, plan, processes
from training.adapters import Adapter, AdapterSettings, Method, apply_adapter_step, attach
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, to_dict
from training.contract import Export, read_export
from training.data import (
    Example,
    LengthLimits,
    OnTooLong,
    batch_at,
    batch_facts,
    check_some,
    encode_demonstrations,
    longest,
    optimizer_steps,
    read_demonstrations,
    read_prompts,
)
from training.dropout import residual_dropout
from training.generation import sample_texts, side_by_side
from training.optimizers import adamw, check_finite, cosine_schedule
from training.report import SAMPLES
from training.response_loss import backward_mean, mean_loss
from training.run_settings import RunSettings
from training.selection import Best, Judge, epoch_ended
from training.trackers import open_log


@dataclass(frozen=True)
class Config(RunSettings):
    """Fine-tune a base model on an export's demonstrations."""

    out: str = option(help="model folder to write")
    base_model: str = option(help="model to start from: a folder, or a Hugging Face name")
    export: str = option(help="export folder with demonstrations")
    epochs: int = option(16, help="passes over the demonstrations (paper: 16)")
    batch_size: int = option(32, help="demonstrations per step (paper: 32 at 1.3B)")
    parts: int = option(0, help="passes a step is split into, by length; 0: as save time; the gradient stays the same")
    packing: bool = option(False, help="put several demonstrations in a row, without leaks, instead of padding them")
    packed_tokens: int = option(0, help="tokens per packed row; 0: the longest demonstration of the batch")
    learning_rate: float = option(9.65e-6, help="peak learning rate (paper: 9.65e-6 at 1.3B)")
    weight_decay: float = option(0.0, help="AdamW weight decay, on matrices only")
    adam_epsilon: float = option(1e-8, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping")
    residual_dropout: float | None = option(
        None, help="dropout of residual branches (paper: 0.2); none: as the model has it"
    )
    lm_coef: float = option(0.0, help="λ: weight of the language-model loss on whole texts (GPT-1: 0.5)")
    pretraining_mix: float = option(
        0.0, help="share of pretraining text in the loss (paper, for RL: 0.1, with 2 epochs)"
    )
    pretraining_text: str | None = option(
        None, help='JSONL of {"text"} rows for the mix; none: the tiny world writes it'
    )
    pretraining_documents: int = option(40_000, help="documents of the tiny world to write for the mix")
    pretraining_valid_documents: int = option(200, help="documents of the mix's text held out, to measure on")
    pretraining_row_tokens: int = option(256, help="tokens per packed row of the mix; longer documents: on_too_long")
    reward_model: str | None = option(None, help="reward model folder to choose the epoch by; none: the last is kept")
    selection_prompts: int = option(256, help="validation prompts answered and scored after each epoch, at most")
    selection_temperature: float = option(1.0, help="sampling temperature for those answers; 0: the likeliest tokens")
    adapter: Method = option("none", help="train an adapter instead of all weights; its kind")
    adapter_rank: int = option(8, help="rank of LoRA and AdaLoRA, tokens of a prefix")
    adapter_alpha: int = option(16, help="LoRA's and AdaLoRA's α: the update is scaled by α/rank")
    merge: bool = option(False, help="publish the base with the adapter merged in, instead of the adapter alone")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a text past these limits")
    seed: int = option(0, help="seed of order, dropout and selection")
    log_every: int = option(10, help="steps between log rows")
    checkpoint_every: int = option(200, help="steps between checkpoints")
    compile: bool = option(
        False, help="compile the layers with torch.compile (minutes at the start; sampling stays eager)"
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        super().validate()
        for name in ("epochs", "batch_size", "prompt_tokens", "response_tokens", "log_every", "checkpoint_every"):
            require(getattr(self, name) > 0, name, "must be positive")
        for name in ("parts", "packed_tokens", "lm_coef", "selection_temperature"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        require(self.parts <= self.batch_size, "parts", "must not exceed batch_size")
        require(self.learning_rate > 0, "learning_rate", "must be positive")
        require(0 <= (self.residual_dropout or 0) < 1, "residual_dropout", "must lie from 0 to below 1")
        require(0 <= self.pretraining_mix < 1, "pretraining_mix", "must lie from 0 to below 1")
        require(self.pretraining_valid_documents > 0, "pretraining_valid_documents", "must be positive")
        require(self.pretraining_row_tokens > 1, "pretraining_row_tokens", "must be more than 1")
        require(self.adapter_rank > 0, "adapter_rank", "must be positive")
        require(self.adapter != "none" or not self.merge, "merge", "needs an adapter")
        if self.adapter == "prefix":
            require(not self.packing, "packing", "does not go with adapter prefix: its rows need 4-D masks")
            require(
                not self.pretraining_mix, "pretraining_mix", "does not go with adapter prefix: its rows need 4-D masks"
            )
            require(
                self.reward_model is None,
                "reward_model",
                "does not go with adapter prefix: Heed does not sample from it",
            )
            require(not self.merge, "merge", "does not go with adapter prefix: it changes no weight matrix")
        require(self.selection_prompts > 0, "selection_prompts", "must be positive")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Train and publish the SFT model; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"base": models.parent_of(config.base_model)}
    if config.reward_model is not None:
        parents["rm"] = models.parent_of(config.reward_model)
    text = config.pretraining_text if config.pretraining_mix else None
    state = RunState(config.out, "sft", to_dict(config), parents, export.ref, text)
    if not config.dry_run and state.is_published(config.overwrite):
        return Path(config.out)
    device = config.set_up()
    tokenizer = models.load_tokenizer(config.base_model)
    counts: Counter[str] = Counter()
    train = encode_demonstrations(tokenizer, read_demonstrations(export, "train", counts), config.limits, counts)
    check_some(train, "demonstrations", counts)
    rows = read_demonstrations(export, "valid", Counter())
    valid = encode_demonstrations(tokenizer, rows, config.limits, counts, "dropped_too_long_valid")
    counts.update(batch_facts(len(train), config.epochs, config.batch_size))
    models.check_context(config.base_model, longest([*train, *valid]), "the longest demonstration with its prompt")
    mix = make_mix(config, tokenizer, train, counts)
    judge = make_judge(config, export, tokenizer, counts, device)
    torch.manual_seed(config.seed)
    model = models.load_policy(config.base_model, device)
    adapter = attach_adapter(config, model, len(train))
    model = adapter.model if adapter else model
    if config.compile:
        compiling.compile_layers(model)
    if config.dry_run:
        first = [train[i] for i in batch_at(len(train), min(config.batch_size, len(train)), config.seed, 0)]
        plan.show_and_stop(
            "sft",
            counts={"demonstrations": len(train), **counts},
            steps=optimizer_steps(len(train), config.epochs, config.batch_size),
            unit="step",
            models={"policy": model},
            trained=["policy"],
            step=lambda: backward_losses(config, model, first, mix, 0, tokenizer.pad_token_id, device),
            device=device,
        )
    before = mean_loss(model, valid, tokenizer.pad_token_id, config.batch_size, device)
    can_sample = config.adapter != "prefix"
    looked_at = [example.ids[: example.prompt_tokens] for example in valid[:SAMPLES]] if can_sample else []
    room = (models.context_of(config.base_model) or math.inf) - max(map(len, looked_at), default=0)
    sampling: dict[str, Any] = {"max_new_tokens": int(min(config.response_tokens, room)), "temperature": 1.0}
    sampling["seed"] = config.seed
    answers = sample_texts(model, tokenizer, looked_at, **sampling)[0] if looked_at else []
    parallel.spread(model, config.parallel)
    with residual_dropout(model, config.residual_dropout):
        best, log = train_model(config, state, model, train, mix, judge, tokenizer.pad_token_id, device, adapter)
    model = parallel.collect(model)
    metrics = {
        "valid_loss_before": before,
        "valid_loss": mean_loss(model, valid, tokenizer.pad_token_id, config.batch_size, device),
        "demonstrations": len(train),
        "demonstrations_valid": len(valid),
        **state.text_facts,
        **counts,
    }
    if judge is not None:
        metrics |= {"selected_epoch": best.epoch, "selected_score": best.score}
    if mix is not None:
        metrics["text_valid_loss"] = corpus.mean_loss(model, mix.text.valid, config.batch_size, device)
    lineage: dict[str, Any] = {
        "stage": "sft",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    after = sample_texts(model, tokenizer, looked_at, **sampling)[0] if looked_at else []
    samples = side_by_side(tokenizer, looked_at, answers, after)
    published = adapter.finish() if adapter else model
    models.publish(config.out, published.cpu(), tokenizer, metrics=metrics, log=log, samples=samples, **lineage)
    state.clear()
    return Path(config.out)


def attach_adapter(config: Config, model, demonstrations: int) -> Adapter | None:
    """The adapter that is trained instead of the model; None where all weights are."""
    settings = AdapterSettings(config.adapter, config.adapter_rank, config.adapter_alpha, config.merge)
    steps = optimizer_steps(demonstrations, config.epochs, config.batch_size)
    return attach(model, settings, stage="sft", steps=steps, seed=config.seed, base=config.base_model)


class Mix(NamedTuple):
    """Pretraining text beside the demonstrations: `rows` packed rows a step, so that `share` of the loss tokens are text."""

    text: corpus.Corpus
    rows: int
    share: float


def make_mix(config: Config, tokenizer, train: list[Example], counts: Counter[str]) -> Mix | None:
    """The pretraining mix; None without one. What is dropped of its text is counted as `text_dropped_too_long`."""
    share = config.pretraining_mix
    if not share:
        return None
    text = corpus.load(
        tokenizer,
        config.pretraining_text,
        row_tokens=config.pretraining_row_tokens,
        valid_documents=config.pretraining_valid_documents,
        documents=config.pretraining_documents,
        seed=config.seed,
        on_too_long=config.on_too_long,
        counts=counts,
        prefix="pretraining_",
    )
    responses = min(config.batch_size, len(train)) * sum(e.response_tokens for e in train) / len(train)
    rows = max(1, round(share / (1 - share) * responses / config.pretraining_row_tokens))
    counts["text_rows_per_step"] = rows
    return Mix(text, rows, share)


def make_judge(config: Config, export: Export, tokenizer, counts: Counter[str], device: torch.device) -> Judge | None:
    """Who chooses the epoch; None without a reward model. Its prompts are the first of the export's validation split."""
    if config.reward_model is None:
        return None
    prompts = read_prompts(export, tokenizer, "valid", config.limits, counts, "selection_dropped_too_long")
    prompts = prompts[: config.selection_prompts]
    tokens = max(map(len, prompts), default=0) + config.response_tokens
    for folder in (config.base_model, config.reward_model):
        models.check_context(folder, tokens, "the longest prompt to choose the epoch by, and response_tokens")
    return Judge(
        config.reward_model,
        tokenizer,
        prompts,
        response_tokens=config.response_tokens,
        temperature=config.selection_temperature,
        seed=config.seed,
        batch=256,
        device=device,
    )


def train_model(
    config: Config,
    state: RunState,
    model,
    train: list[Example],
    mix: Mix | None,
    judge: Judge | None,
    pad_id: int,
    device: torch.device,
    adapter: Adapter | None = None,
) -> tuple[Best, list[dict]]:
    """The loop: one batch of demonstrations a step. Returns the best epoch, its weights put back, and the log."""
    optimizer = adamw(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        epsilon=config.adam_epsilon,
        fused=True,
    )
    size, steps = min(config.batch_size, len(train)), optimizer_steps(len(train), config.epochs, config.batch_size)
    best = Best(model, adapter)
    parts = {"model": adapter or model, "optimizer": optimizer, "best": best}
    first, log = restore(state.load(), **parts)
    log = open_log(log, config.track, config.out, to_dict(config))
    model.train()
    with (
        stop_request() as stop,
        tqdm(total=steps, initial=first, desc="sft", unit="step", disable=processes.bar_is_off()) as bar,
    ):
        for step in range(first, steps):
            chosen = [train[i] for i in batch_at(len(train), size, config.seed, step)]
            processes.reseed(config.seed, step)
            with parallel.step(model):
                losses = backward_losses(config, model, chosen, mix, step, pad_id, device)
            rate = config.learning_rate * cosine_schedule(step, steps)
            norm = apply_adapter_step(adapter, optimizer, model, rate, config.clip_norm, step)
            check_finite(f"step {step}", {"the gradients' norm": norm})
            if step % config.log_every == 0 or step == steps - 1:
                row = processes.total({name: loss.item() for name, loss in losses.items()})
                log.append({"step": step, **row})
                bar.set_postfix(loss=f"{row['loss']:.3f}")
            epoch = epoch_ended(step, size, len(train)) or (config.epochs if step == steps - 1 else 0)
            if judge is not None and epoch:
                with parallel.whole(model):
                    best.offer(score := judge.score(model), epoch)
                log.append({"step": step, "epoch": epoch, "reward_model_score": score})
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, **parts))
            if stop.is_set:
                raise KeyboardInterrupt
    best.put_back()
    return best, log


def backward_losses(
    config: Config,
    model,
    examples: list[Example],
    mix: Mix | None,
    step: int,
    pad_id: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """Accumulate the gradient of one step's loss (the formula on top). Returns `loss` on responses, and `text_loss` in a mix."""
    loss = backward_mean(
        model,
        examples,
        config.parts,
        pad_id,
        device,
        lm_coef=config.lm_coef,
        share=1 - config.pretraining_mix,
        packed_tokens=packed_tokens(config, examples),
    )
    if mix is None:
        return {"loss": loss}
    text = mix.text.train
    rows = corpus.rows_at(len(text.ids_BT), mix.rows, config.seed, step)
    return {"loss": loss, "text_loss": corpus.backward_mean(model, text, rows, device, mix.share)}


def packed_tokens(config: Config, examples: Sequence[Example]) -> int:
    """Tokens per packed row of a batch; 0 without packing."""
    longest = max(len(example.ids) for example in examples)
    return max(config.packed_tokens, longest) if config.packing else 0
