"""Direct preference optimisation on an export's rankings: a policy from labels, without a reward model or sampling.

Rafailov et al. 2023, eq. 7, with the paper's ranking loss around it: a response's implicit reward is β · (log π(y|x) − log
π_ref(y|x)), summed over its tokens, and all C(K,2) comparisons of a ranking are one batch element. The reference is the policy as
it starts; its log-probabilities are computed once and kept. Dropout is off throughout, so that before the first step every
implicit reward is 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from training import generation, models, parallel, plan, processes, rankings
from training.adapters import Adapter, AdapterSettings, Method, apply_adapter_step, attach
from training.advantages import kl_estimates
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, require_warmup, to_dict
from training.contract import read_export
from training.data import (
    Comparison,
    LengthLimits,
    OnTooLong,
    batch_facts,
    check_some,
    longest,
    optimizer_steps,
    read_comparisons,
    read_measured,
    read_prompts,
    shuffled_batches,
)
from training.errors import StageError
from training.losses import ranking_loss
from training.optimizers import adamw, check_finite, cosine_schedule
from training.ranking_metrics import Tally
from training.rankings import Runner
from training.report import SAMPLES, Sample
from training.run_settings import RunSettings
from training.trackers import open_log
from training.unembedding import unembedding_of


@dataclass(frozen=True)
class Config(RunSettings):
    """Optimise a policy on an export's rankings directly (DPO)."""

    out: str = option(help="model folder to write")
    policy: str = option(help="SFT model folder: the policy to start from, and the reference")
    export: str = option(help="export folder with rankings")
    beta: float = option(0.1, help="β: implicit reward per nat of log-ratio to the reference (usual: 0.1 to 0.5)")
    epochs: int = option(1, help="passes over the rankings")
    batch_size: int = option(64, help="rankings per step, all their pairs together")
    parts: int = option(1, help="forward passes a step is split into, to save memory; the gradient stays the same")
    learning_rate: float = option(1e-6, help="peak learning rate (DPO paper: 1e-6), cosine to 10 %")
    warmup_steps: int = option(0, help="steps of linear warm-up (DPO paper: 150)")
    weight_decay: float = option(0.0, help="AdamW weight decay, on matrices only")
    adam_epsilon: float = option(1e-8, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping")
    encoding: rankings.Encoding = option(
        "auto", help="how a ranking runs: all pairs, one pass per response, a shared prompt, or shared where it pays"
    )
    adapter: Method = option("none", help="train an adapter instead of all weights; its kind")
    adapter_rank: int = option(8, help="rank of LoRA and AdaLoRA")
    adapter_alpha: int = option(16, help="LoRA's and AdaLoRA's α: the update is scaled by α/rank")
    merge: bool = option(False, help="publish the policy with the adapter merged in, instead of the adapter alone")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a ranking that holds a response past these limits")
    valid_episodes: int = option(512, help="validation prompts answered afterwards to estimate the KL, at most")
    seed: int = option(0, help="seed of the order, and of the answers that the KL is estimated on")
    log_every: int = option(5, help="steps between log rows")
    checkpoint_every: int = option(100, help="steps between checkpoints")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        super().validate()
        for name in ("epochs", "batch_size", "parts", "prompt_tokens", "response_tokens", "log_every"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.checkpoint_every > 0, "checkpoint_every", "must be positive")
        require(self.parts <= self.batch_size, "parts", "must not exceed batch_size")
        require(self.adapter_rank > 0, "adapter_rank", "must be positive")
        require(self.adapter != "none" or not self.merge, "merge", "needs an adapter")
        require(self.beta > 0, "beta", "must be positive")
        require(self.learning_rate > 0, "learning_rate", "must be positive")
        require(self.valid_episodes >= 0, "valid_episodes", "must not be negative")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Train and publish the policy; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"policy": models.parent_of(config.policy)}
    state = RunState(config.out, "dpo", to_dict(config), parents, export.ref)
    if not config.dry_run and state.is_published(config.overwrite):
        return Path(config.out)
    device = config.set_up()
    tokenizer = models.load_tokenizer(config.policy)
    torch.manual_seed(config.seed)
    counts: Counter[str] = Counter()
    train = read_comparisons(export, tokenizer, "train", config.limits, counts, for_training=True)
    check_some(train, "rankings", counts)
    measured = read_measured(export, tokenizer, config.limits, counts)
    prompts = read_prompts(export, tokenizer, "valid", config.limits, counts, "dropped_too_long_prompts")
    counts.update(batch_facts(len(train), config.epochs, config.batch_size))
    steps = optimizer_steps(len(train), config.epochs, config.batch_size)
    require_warmup(config, "warmup_steps", steps)
    ranked = [e for rows in (train, *measured.values()) for comparison in rows for e in comparison.examples]
    models.check_context(config.policy, longest(ranked), "the longest response with its prompt")
    tokens = max(map(len, prompts), default=0) + config.response_tokens
    models.check_context(config.policy, tokens, "the longest validation prompt and response_tokens")
    reference = policy_runner(config, tokenizer.pad_token_id, device)
    if config.dry_run:
        show_plan(config, reference, train, counts, tokenizer.pad_token_id, device)
    saved = state.load()
    kept = state.part("reference")
    if (reference_logprobs := kept.read_result()) is None:
        reference_logprobs = logprobs_of(reference, train, config.batch_size)
        kept.write_result(reference_logprobs)
    runner, adapter = start_policy(config, len(train), tokenizer.pad_token_id, device)
    ran = rankings.what_runs(runner, train)
    parallel.spread(runner.model, config.parallel)
    log = train_policy(config, state, saved, runner, train, reference_logprobs, adapter)
    runner = dataclasses.replace(runner, model=parallel.collect(runner.model))
    metrics = {
        **measure(config, runner, reference, measured),
        **estimate_kl(config, runner.model, reference.model, prompts[: config.valid_episodes], tokenizer),
        "beta": config.beta,
        "rankings": len(train),
        "pairs": sum(len(comparison.pairs) for comparison in train),
        **ran,
        **counts,
    }
    lineage: dict[str, Any] = {
        "stage": "dpo",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    samples = samples_of(config, reference.model, runner.model, prompts[:SAMPLES], tokenizer)
    published = adapter.finish() if adapter else runner.model
    models.publish(config.out, published.cpu(), tokenizer, metrics=metrics, log=log, samples=samples, **lineage)
    state.clear()
    return Path(config.out)


def show_plan(
    config: Config,
    reference: Runner,
    train: list[Comparison],
    counts: Counter[str],
    pad_id: int,
    device: torch.device,
) -> NoReturn:
    """Raise DryRun with what this run would train."""
    (runner, _), batch = start_policy(config, len(train), pad_id, device), train[: config.batch_size]
    known = logprobs_of(reference, batch, config.batch_size)
    plan.show_and_stop(
        "dpo",
        counts={"rankings": len(train), "pairs": sum(len(comparison.pairs) for comparison in train), **counts},
        steps=optimizer_steps(len(train), config.epochs, config.batch_size),
        unit="step",
        models={"policy": runner.model, "reference": reference.model},
        trained=["policy"],
        step=lambda: backward_mean(runner, batch, known, config.beta, config.parts),
        device=device,
    )


def policy_runner(config: Config, pad_id: int, device: torch.device) -> Runner:
    """The policy as it starts, in evaluation mode. Raises StageError where its logits are not a linear layer's."""
    model = models.load_policy(config.policy, device)
    if unembedding_of(model) is None:
        raise StageError(f"{config.policy}: DPO needs a model whose logits come straight from a linear unembedding")
    return rankings.runner_for(model, config.encoding, pad_id)


def start_policy(config: Config, count: int, pad_id: int, device: torch.device) -> tuple[Runner, Adapter | None]:
    """The policy that a run over `count` rankings begins with, and its adapter, if it has one."""
    runner = policy_runner(config, pad_id, device)
    settings = AdapterSettings(config.adapter, config.adapter_rank, config.adapter_alpha, config.merge)
    steps = optimizer_steps(count, config.epochs, config.batch_size)
    return runner, attach(runner.model, settings, stage="dpo", steps=steps, seed=config.seed, base=config.policy)


def train_policy(
    config: Config,
    state: RunState,
    saved: dict[str, Any] | None,
    runner: Runner,
    train: list[Comparison],
    reference_logprobs: list[list[float]],
    adapter: Adapter | None = None,
) -> list[dict]:
    """The loop: one batch of rankings a step. Returns the log."""
    model = runner.model
    optimizer = adamw(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
    )
    steps = optimizer_steps(len(train), config.epochs, config.batch_size)
    parts = {"model": adapter or model, "optimizer": optimizer}
    first, log = restore(saved, **parts)
    log = open_log(log, config.track, config.out, to_dict(config))
    batches = itertools.islice(
        shuffled_batches(len(train), min(config.batch_size, len(train)), config.seed), first, None
    )
    with (
        stop_request() as stop,
        tqdm(total=steps, initial=first, desc="dpo", unit="step", disable=processes.bar_is_off()) as bar,
    ):
        for step in range(first, steps):
            chosen = next(batches)
            batch, reference = [train[i] for i in chosen], [reference_logprobs[i] for i in chosen]
            with parallel.step(model):
                figures = backward_mean(runner, batch, reference, config.beta, config.parts)
            figures = processes.total(figures)
            check_finite(f"step {step}", figures)
            rate = config.learning_rate * cosine_schedule(step, steps, warmup_steps=config.warmup_steps)
            norm = apply_adapter_step(adapter, optimizer, model, rate, config.clip_norm, step)
            check_finite(f"step {step}", {"the gradients' norm": norm})
            if step % config.log_every == 0 or step == steps - 1:
                log.append({"step": step, **figures, "gradient_norm": norm})
                bar.set_postfix(loss=f"{figures['loss']:.3f}", accuracy=f"{figures['accuracy']:.2f}")
            bar.update()
            if stop.is_set or (step + 1) % config.checkpoint_every == 0:
                state.save(step + 1, capture(step + 1, log, **parts))
            if stop.is_set:
                raise KeyboardInterrupt
    return log


def backward_mean(
    runner: Runner, batch: Sequence[Comparison], reference: Sequence[Sequence[float]], beta: float, parts: int
) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over the batch's rankings. Returns loss, accuracy and margin over its pairs.

    Of several processes each runs its share of the rankings: gradient and figures are terms of a sum.
    """
    mine = processes.share([comparison.tokens for comparison in batch])
    size = max(1, -(-len(mine) // parts))
    total, right, margin = 0.0, 0, 0.0
    for start in range(0, len(mine), size):
        chosen = mine[start : start + size]
        part, known = [batch[i] for i in chosen], [reference[i] for i in chosen]
        rewards_N, indexed = implicit_rewards(runner, part, known, beta)
        loss = ranking_loss(rewards_N, indexed) * len(part) / len(batch)
        loss.backward()
        total += loss.item()
        rewards = rewards_N.tolist()
        margins = [rewards[w] - rewards[l] for ranking in indexed for w, l in ranking.pairs]
        right += sum(value > 0 for value in margins)
        margin += sum(margins)
    pairs = sum(len(comparison.pairs) for comparison in batch)
    return {"loss": total, "accuracy": right / pairs, "reward_margin": margin / pairs}


def implicit_rewards(
    runner: Runner, batch: Sequence[Comparison], reference: Sequence[Sequence[float]], beta: float
) -> tuple[torch.Tensor, list]:
    """(β · (log π − log π_ref) of the batch's responses, each ranking's pairs as indices into them).

    `reference[i][k]` is log π_ref of response k of ranking i, summed over its tokens (nats).
    """
    flat = rankings.flatten(batch, runner.encoding)
    reference_N = torch.tensor([reference[i][k] for i, k in flat.origins], device=runner.device)
    return beta * (runner.response_logprobs(flat.examples) - reference_N), flat.rankings


def logprobs_of(runner: Runner, comparisons: Sequence[Comparison], batch: int) -> list[list[float]]:
    """Σ log π over each response's tokens (nats), ranking by ranking, `batch` rankings at a time."""
    costs = [comparison.tokens for comparison in comparisons]
    return processes.in_shares(comparisons, costs, lambda mine: _logprobs_of(runner, mine, batch))


@torch.no_grad()
def _logprobs_of(runner: Runner, comparisons: Sequence[Comparison], batch: int) -> list[list[float]]:
    logprobs: list[list[float]] = []
    for start in tqdm(
        range(0, len(comparisons), batch), desc="log-probabilities", unit="batch", disable=processes.bar_is_off()
    ):
        part = comparisons[start : start + batch]
        values = iter(runner.response_logprobs([example for c in part for example in c.examples]).tolist())
        logprobs += [list(itertools.islice(values, len(c.examples))) for c in part]
    return logprobs


def measure(config: Config, runner: Runner, reference: Runner, measured: Mapping[str, Sequence[Comparison]]) -> dict:
    """How the implicit rewards order the labelers' non-tied pairs, as `rm` measures; and margin and loss per split.

    Held-out labelers are measured here and nowhere trained on.
    """
    figures: dict = {}
    for split, comparisons in measured.items():
        if not comparisons:
            continue
        ours, theirs = (logprobs_of(player, comparisons, config.batch_size) for player in (runner, reference))
        tally, rewards, margins = Tally(split), [], []
        for comparison, policy_K, reference_K in zip(comparisons, ours, theirs, strict=True):
            rewards_K = [config.beta * (p - r) for p, r in zip(policy_K, reference_K, strict=True)]
            tally.add(comparison, rewards_K)
            rewards += rewards_K
            margins += [rewards_K[w] - rewards_K[l] for w, l in comparison.pairs]
        loss = ranking_loss(torch.tensor(rewards), rankings.flatten(comparisons, "responses").rankings)
        figures |= tally.metrics()
        figures |= {f"reward_margin_{split}": sum(margins) / len(margins), f"{split}_loss": loss.item()}
    return figures


def samples_of(config: Config, before, after, prompts: Sequence[list[int]], tokenizer) -> list[Sample]:
    """What both models say to the same prompts, with the same random numbers."""
    settings: dict[str, Any] = {"max_new_tokens": config.response_tokens, "temperature": 1.0, "seed": config.seed}
    texts = [generation.sample_texts(model, tokenizer, prompts, **settings)[0] for model in (before, after)]
    return generation.side_by_side(tokenizer, prompts, *texts)


@torch.no_grad()
def estimate_kl(config: Config, policy, reference, prompts: Sequence[list[int]], tokenizer) -> dict[str, float]:
    """KL(policy ‖ reference) on one answer of the policy to each prompt: nats summed over tokens, mean over answers.

    `kl_after` is the plain estimate (k1, may come out negative), `kl_k3_after` cannot be negative; `length_after` in tokens.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 999_983)
    totals = {"kl": 0.0, "kl_k3": 0.0, "length": 0.0}
    for start in range(0, len(prompts), config.batch_size):
        rollout = generation.sample(
            policy,
            prompts[start : start + config.batch_size],
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=config.response_tokens,
            temperature=1.0,
            generator=generator,
        )
        inputs = (*generation.sequence_of(rollout), rollout.responses_BR, 1.0)
        ours_BR, theirs_BR = (generation.response_logprobs(model, *inputs) for model in (policy, reference))
        keep_BR = rollout.response_keep_BR
        totals["kl"] += kl_estimates(ours_BR, theirs_BR, keep_BR, "k1").sum().item()
        totals["kl_k3"] += kl_estimates(ours_BR, theirs_BR, keep_BR, "k3").sum().item()
        totals["length"] += int(rollout.lengths_B.sum())
    return {f"{name}_after": total / len(prompts) for name, total in totals.items() if prompts}
