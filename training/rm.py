"""The reward model, trained on an export's rankings (InstructGPT, section 3.5 and appendix C.2).

All C(K,2) comparisons of a ranking are one batch element; the prompt runs once for all its responses where that pays
(rankings.py); ties are dropped, or on request pull their rewards together; after training a bias makes labelers'
demonstrations score 0 on average.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from tqdm import tqdm

from training import models, parallel, plan, processes, rankings
from training.adapters import Adapter, AdapterSettings, Method, apply_adapter_step, attach
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, require_warmup, to_dict
from training.contract import Export, read_export
from training.data import (
    Comparison,
    Example,
    LengthLimits,
    OnTooLong,
    batch_facts,
    check_some,
    encode_demonstrations,
    longest,
    optimizer_steps,
    read_comparisons,
    read_demonstrations,
    read_measured,
    shuffled_batches,
)
from training.errors import StageError
from training.losses import IndexedRanking, ranking_loss
from training.optimizers import adamw, check_finite, cosine_schedule
from training.precision import in_precision
from training.ranking_metrics import Tally, fold_labelers, summarize_folds
from training.ranking_samples import ranking_samples
from training.rankings import Runner
from training.report import CANDIDATES
from training.run_settings import RunSettings
from training.trackers import open_log


@dataclass(frozen=True)
class Config(RunSettings):
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
    adapter: Method = option(
        "none", help="train an adapter instead of all weights; its kind; always merged in the end, beside the head"
    )
    adapter_rank: int = option(8, help="rank of LoRA and AdaLoRA")
    adapter_alpha: int = option(16, help="LoRA's and AdaLoRA's α: the update is scaled by α/rank")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    encoding: rankings.Encoding = option(
        "auto", help="how a ranking runs: all pairs, one pass per response, a shared prompt, or shared where it pays"
    )
    ties: Literal["drop", "equal"] = option(
        "drop", help="tied pairs: left out (paper), or pulled to equal rewards by the cross-entropy to even odds"
    )
    labeler_folds: int = option(
        0, help="also train this many models, each without one share of the labelers, and measure on them (paper: 5)"
    )
    on_too_long: OnTooLong = option("raise", help="what to do with a ranking that holds a response past these limits")
    seed: int = option(0, help="seed of head and order")
    log_every: int = option(5, help="steps between log rows")
    checkpoint_every: int = option(100, help="steps between checkpoints")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        super().validate()
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
        require(self.adapter_rank > 0, "adapter_rank", "must be positive")
        require(self.labeler_folds == 0 or self.labeler_folds > 1, "labeler_folds", "must be 0, or at least 2")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Train and publish the reward model; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"sft": models.parent_of(config.sft_model)}
    state = RunState(config.out, "rm", to_dict(config), parents, export.ref)
    if not config.dry_run and state.is_published(config.overwrite):
        return Path(config.out)
    device = config.set_up()
    tokenizer = models.load_tokenizer(config.sft_model)
    counts: Counter[str] = Counter()
    train = read_comparisons(
        export,
        tokenizer,
        "train",
        config.limits,
        counts,
        for_training=True,
        with_all_tied=config.ties == "equal",
    )
    check_some(train, "rankings", counts)
    measured = read_measured(export, tokenizer, config.limits, counts)
    demonstrations = {
        split: own_demonstrations(export, split, tokenizer, config.limits, counts) for split in ("train", "valid")
    }
    counts.update(batch_facts(len(train), config.epochs, config.batch_size))
    steps = optimizer_steps(len(train), config.epochs, config.batch_size)
    require_warmup(config, "warmup_steps", steps)
    labelers = check_folds(config, train)
    ranked = [e for rows in (train, *measured.values()) for comparison in rows for e in comparison.examples]
    tokens = longest([*ranked, *demonstrations["train"], *demonstrations["valid"]])
    models.check_context(config.sft_model, tokens, "the longest response or demonstration with its prompt")
    if config.dry_run:
        show_plan(config, train, counts, tokenizer.pad_token_id, device)
    saved = state.load()
    folds = train_folds(config, state, train, labelers, tokenizer.pad_token_id, device) if labelers else {}
    looked_at = measured["valid"][:CANDIDATES]
    runner, adapter = start_runner(config, len(train), tokenizer.pad_token_id, device)
    ran = rankings.what_runs(runner, train)
    before = score_rankings(runner, looked_at, config.batch_size)  # a resumed run comes by here too
    runner, log = train_model(config, state, saved, runner, adapter, train)
    centre = demonstration_mean(runner, demonstrations["train"], config.batch_size)
    runner.model.config.reward_bias -= centre or 0.0
    metrics = {
        **accuracies(runner.model, measured, tokenizer.pad_token_id, config.batch_size, device, runner.encoding),
        "rankings": len(train),
        "pairs": sum(len(comparison.pairs) for comparison in train),
        "ties": sum(len(comparison.ties) for comparison in train),
        "demonstrations_valid_mean": demonstration_mean(runner, demonstrations["valid"], config.batch_size),
        **ran,
        **folds,
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "rm",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    samples = ranking_samples(tokenizer, looked_at, before, score_rankings(runner, looked_at, config.batch_size))
    models.publish(config.out, runner.model.cpu(), tokenizer, metrics=metrics, log=log, samples=samples, **lineage)
    state.clear()
    return Path(config.out)


def show_plan(
    config: Config, train: list[Comparison], counts: Counter[str], pad_id: int, device: torch.device
) -> NoReturn:
    """Raise DryRun with what this run would train."""
    runner, _ = start_runner(config, len(train), pad_id, device)
    batch = train[: config.batch_size]
    plan.show_and_stop(
        "rm",
        counts={"rankings": len(train), "pairs": sum(len(comparison.pairs) for comparison in train), **counts},
        steps=optimizer_steps(len(train), config.epochs, config.batch_size) * (1 + config.labeler_folds),
        unit="step",
        models={"reward model": runner.model},
        trained=["reward model"],
        step=lambda: backward_mean(runner, batch, config.parts, with_ties=config.ties == "equal"),
        device=device,
    )


def start_runner(config: Config, count: int, pad_id: int, device: torch.device) -> tuple[Runner, Adapter | None]:
    """The reward model that a run over `count` rankings begins with, and its adapter, if it has one."""
    torch.manual_seed(config.seed)
    model = models.reward_model_from(config.sft_model, config.seed).to(device)
    settings = AdapterSettings(config.adapter, config.adapter_rank, config.adapter_alpha, merge=True)
    steps = optimizer_steps(count, config.epochs, config.batch_size)
    adapter = attach(model, settings, stage="rm", steps=steps, seed=config.seed, base=config.sft_model)
    models.head_of(model).requires_grad_(True)  # the head is new: it is trained whole, whatever the body's adapter
    return rankings.runner_for(model, config.encoding, pad_id), adapter


def train_model(
    config: Config,
    state: RunState,
    saved: dict[str, Any] | None,
    runner: Runner,
    adapter: Adapter | None,
    train: list[Comparison],
    name: str = "rm",
) -> tuple[Runner, list[dict]]:
    """The loop: one batch of rankings a step, from the checkpoint `saved` if there is one. Returns the trained model and the log."""
    model = runner.model
    steps = optimizer_steps(len(train), config.epochs, config.batch_size)
    parallel.spread(model, config.parallel)
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    parts = {"model": adapter or model, "optimizer": optimizer}
    first, log = restore(saved, **parts)
    if name == "rm":
        log = open_log(log, config.track, config.out, to_dict(config))
    batches = itertools.islice(
        shuffled_batches(len(train), min(config.batch_size, len(train)), config.seed), first, None
    )
    model.train()
    with (
        stop_request() as stop,
        tqdm(total=steps, initial=first, desc=name, unit="step", disable=processes.bar_is_off()) as bar,
    ):
        for step in range(first, steps):
            chosen = [train[i] for i in next(batches)]
            processes.reseed(config.seed, step)
            with parallel.step(model):
                loss, accuracy = backward_mean(runner, chosen, config.parts, with_ties=config.ties == "equal")
            rate = config.learning_rate * cosine_schedule(step, steps, warmup_steps=config.warmup_steps)
            norm = apply_adapter_step(adapter, optimizer, model, rate, config.clip_norm, step)
            check_finite(f"step {step}", {"the gradients' norm": norm})
            if step % config.log_every == 0 or step == steps - 1:
                row = processes.total({"loss": loss, "accuracy": accuracy})
                log.append({"step": step, **row})
                bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()})
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, **parts))
            if stop.is_set:
                raise KeyboardInterrupt
    runner = dataclasses.replace(runner, model=parallel.collect(model))
    if adapter is not None:
        adapter.finish()
    return runner, log


def check_folds(config: Config, train: list[Comparison]) -> list[set[str | None]]:
    """The labelers in shares; none unless asked for. Raises StageError or FieldError where not each can be left out and measured on."""
    if not config.labeler_folds:
        return []
    folds = fold_labelers(train, config.labeler_folds, config.seed)
    fewest = min(sum(comparison.labeler not in labelers for comparison in train) for labelers in folds)
    steps = optimizer_steps(fewest, config.epochs, config.batch_size)
    require_warmup(config, "warmup_steps", steps, "a labeler fold's")
    for number, labelers in enumerate(folds, start=1):
        if not any(comparison.pairs for comparison in train if comparison.labeler in labelers):
            raise StageError(f"labeler fold {number}: its labelers ordered nothing, so it would have no accuracy")
    return folds


def train_folds(
    config: Config,
    state: RunState,
    train: list[Comparison],
    folds: list[set[str | None]],
    pad_id: int,
    device: torch.device,
) -> dict:
    """One model per share of the labelers, trained on the others' rankings and measured on theirs (section 3.5).

    The models are not kept. Each fold's accuracy is, in OUT.run/, so that a killed run goes on with the fold it was at, and in that
    from its own checkpoint.
    """
    figures = []
    for number, labelers in enumerate(folds, start=1):
        fold = state.part(f"fold-{number}")
        if (done := fold.read_result()) is None:
            kept = [comparison for comparison in train if comparison.labeler not in labelers]
            held_out = [comparison for comparison in train if comparison.labeler in labelers]
            title = f"rm, fold {number} of {config.labeler_folds}"
            saved, start = fold.load(), start_runner(config, len(kept), pad_id, device)
            runner, _ = train_model(config, fold, saved, *start, kept, title)
            tally = Tally("fold")
            for comparison, rewards_K in zip(
                held_out, score_rankings(runner, held_out, config.batch_size), strict=True
            ):
                tally.add(comparison, rewards_K)
            done = tally.metrics()["accuracy_fold"]
            fold.write_result(done)
        figures.append(done)
    return summarize_folds(figures)


def backward_mean(
    runner: Runner, batch: list[Comparison], parts: int, *, with_ties: bool = False
) -> tuple[float, float]:
    """Accumulate the gradient of the mean loss over the batch's rankings; returns (loss, accuracy on its pairs).

    Of several processes each runs its share of the rankings: gradient, loss and accuracy are terms of a sum.
    """
    mine = [batch[i] for i in processes.share([comparison.tokens for comparison in batch])]
    size = max(1, -(-len(mine) // parts))
    total, right = 0.0, 0
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        rewards_N, indexed = rewards_of(runner, part, with_ties=with_ties)
        loss = ranking_loss(rewards_N, indexed) * len(part) / len(batch)
        loss.backward()
        total += loss.item()
        rewards = rewards_N.tolist()
        right += sum(rewards[w] > rewards[l] for ranking in indexed for w, l in ranking.pairs)
    return total, right / max(1, sum(len(comparison.pairs) for comparison in batch))


def rewards_of(
    runner: Runner, batch: Sequence[Comparison], *, with_ties: bool = False
) -> tuple[torch.Tensor, list[IndexedRanking]]:
    """(rewards of the batch's responses, bias included; each ranking's pairs as indices into them)."""
    flat = rankings.flatten(batch, runner.encoding, with_ties=with_ties)
    return rewards_at_end(runner, flat.examples), flat.rankings


@in_precision
def rewards_at_end(runner: Runner, examples: Sequence[Example]) -> torch.Tensor:
    """The reward of each example, read at its last token alone → (N,)."""
    return models.score_hidden(runner.model, runner.last_hidden(examples))


def score_rankings(runner: Runner, comparisons: Sequence[Comparison], batch: int) -> list[list[float]]:
    """The rewards of each ranking's responses, `batch` rankings at a time. Leaves the model in evaluation mode."""
    runner.model.eval()
    costs = [comparison.tokens for comparison in comparisons]
    return processes.in_shares(comparisons, costs, lambda mine: _score_rankings(runner, mine, batch))


def _score_rankings(runner: Runner, comparisons: Sequence[Comparison], batch: int) -> list[list[float]]:
    scored: list[list[float]] = []
    for start in range(0, len(comparisons), batch):
        part = comparisons[start : start + batch]
        examples = [example for comparison in part for example in comparison.examples]
        rewards = iter(score_examples(runner, examples, len(examples)))
        scored += [list(itertools.islice(rewards, len(comparison.examples))) for comparison in part]
    return scored


@torch.no_grad()
def score_examples(runner: Runner, examples: Sequence[Example], batch: int) -> list[float]:
    """The rewards of any examples, `batch` at a time. Leaves the model in evaluation mode."""
    runner.model.eval()
    starts = range(0, len(examples), batch)
    return [reward for i in starts for reward in rewards_at_end(runner, examples[i : i + batch]).tolist()]


@torch.no_grad()
def score_all(model, examples: Sequence[Example], pad_id: int, batch: int, device: torch.device) -> torch.Tensor:
    """The rewards of any number of examples, `batch` at a time, on the CPU → (N,). Leaves the model in evaluation mode."""
    model.to(device).eval()
    runner = Runner(model, "responses", pad_id)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    parts = [[examples[i] for i in order[start : start + batch]] for start in range(0, len(order), batch)]
    rewards_N = torch.cat([rewards_at_end(runner, part).cpu() for part in parts])
    return rewards_N[torch.tensor(order).argsort()]


def own_demonstrations(
    export: Export, split: str, tokenizer, limits: LengthLimits, counts: Counter[str]
) -> list[Example]:
    """The split's demonstrations by training labelers, to centre and measure on; those dropped are counted as such."""
    rows = read_demonstrations(export, split, Counter())
    return encode_demonstrations(tokenizer, rows, limits, counts, "dropped_too_long_demonstrations")


def demonstration_mean(runner: Runner, examples: Sequence[Example], batch: int) -> float | None:
    """Mean reward of demonstrations; None when there are none."""
    if not examples:
        return None
    return float(score_all(runner.model, examples, runner.pad_id, batch * 4, runner.device).mean())


def accuracies(
    model,
    measured: Mapping[str, Sequence[Comparison]],
    pad_id: int,
    batch: int,
    device: torch.device,
    encoding: rankings.Encoding = "auto",
) -> dict:
    """Share of non-tied pairs that the model orders as the labelers did: by split, labeler group, use case, K and policies.

    `measured` is `data.read_measured`'s: held-out labelers are scored here and nowhere trained on. Also the rewards' mean and
    deviation per split.
    """
    runner = rankings.runner_for(model.to(device), encoding, pad_id)
    figures: dict = {}
    spread: dict = {}
    for split, comparisons in measured.items():
        tally, rewards = Tally(split), score_rankings(runner, comparisons, batch)
        for comparison, rewards_K in zip(comparisons, rewards, strict=True):
            tally.add(comparison, rewards_K)
        figures |= tally.metrics()
        if rewards:
            flat = torch.tensor([reward for rewards_K in rewards for reward in rewards_K])
            spread |= {f"reward_mean_{split}": float(flat.mean()), f"reward_std_{split}": float(flat.std())}
    return figures | spread
