"""Figures about a policy and a reward model on an export, as one JSON file; nothing is trained.

Of a policy: language-model loss on the split's demonstrations; and of one sample per prompt: how many are distinct, how much they
depend on their prompt, how long they are and how many ended, how many are empty or repeat themselves, the KL to a reference, the
reward. Of a reward model: accuracy on the rankings by split, labeler group and use case. What people prefer is not known here:
only labels are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training import advantages, cpu, degeneration, models, response_loss, rm
from training.config import option, require, require_out, require_seed, to_dict
from training.contract import Export, read_export, write_atomically
from training.data import (
    LengthLimits,
    OnTooLong,
    encode_demonstrations,
    read_demonstrations,
    read_measured,
    read_prompts,
)
from training.generation import Rollout, decode, end_scores, response_logprobs, sample, sequence_of


@dataclass(frozen=True)
class Config:
    """Measure a policy, a reward model, or both, on an export."""

    out: str = option(help="JSON file to write (replaced)")
    export: str = option(help="export folder")
    policy: str | None = option(None, help="policy folder to measure")
    reward_model: str | None = option(None, help="reward model folder to measure, and to score the policy's samples by")
    reference: str | None = option(None, help="policy folder that the KL is measured to")
    split: str = option("valid", help="split whose prompts and demonstrations are used: train, valid or test")
    max_prompts: int = option(500, help="prompts sampled, at most")
    temperature: float = option(1.0, help="sampling temperature")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a record past these limits")
    batch_size: int = option(256, help="rows per forward pass")
    seed: int = option(0, help="seed of sampling")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require_out(self.out, "file")
        require_seed(self.seed)
        require(bool(self.policy or self.reward_model), "policy", "give a policy, a reward_model, or both")
        require(self.reference is None or self.policy is not None, "reference", "needs a policy to compare with it")
        require(self.split in ("train", "valid", "test"), "split", "must be train, valid or test")
        require(self.temperature > 0, "temperature", "must be positive")
        for name in ("max_prompts", "batch_size", "prompt_tokens", "response_tokens"):
            require(getattr(self, name) > 0, name, "must be positive")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Measure, write the JSON file and return its path."""
    cpu.use(config.threads)
    device = models.pick_device(config.device)
    export = read_export(config.export)
    reward_model = models.load_reward_model(config.reward_model, device) if config.reward_model else None
    counts: Counter[str] = Counter()
    metrics: dict[str, Any] = {}
    if config.policy:
        metrics["policy"] = measure_policy(config, export, reward_model, counts, device)
    if config.reward_model:
        tokenizer = models.load_tokenizer(config.reward_model)
        measured = read_measured(export, tokenizer, config.limits, counts)
        batch = max(1, config.batch_size // 4)
        metrics["reward_model"] = rm.accuracies(reward_model, measured, tokenizer.pad_token_id, batch, device)
    folders = {"policy": config.policy, "reward_model": config.reward_model, "reference": config.reference}
    subjects = {role: vars_of(models.parent_of(folder)) for role, folder in folders.items() if folder}
    result = {
        "models": subjects,
        "export": vars_of(export.ref),
        "config": to_dict(config),
        "counts": dict(counts),
        "metrics": metrics,
    }
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(result, indent=2).encode() + b"\n")
    return out


def vars_of(ref) -> dict[str, str]:
    """A reference of the contract as a plain dict."""
    return {name: getattr(ref, name) for name in ref.__struct_fields__}


def measure_policy(
    config: Config, export: Export, reward_model, counts: Counter[str], device: torch.device
) -> dict[str, float | None]:
    """All figures of a policy: on demonstrations, and on one sample per prompt of the split."""
    assert config.policy is not None  # noqa: S101 the caller asks only then
    policy, tokenizer = models.load_policy(config.policy, device), models.load_tokenizer(config.policy)
    reference = models.load_policy(config.reference, device) if config.reference else None
    rows = read_demonstrations(export, config.split, counts)
    examples = encode_demonstrations(tokenizer, rows, config.limits, counts)
    loss = response_loss.mean_loss(policy, examples, tokenizer.pad_token_id, config.batch_size, device)
    figures: dict[str, float | None] = {"lm_loss": loss, "perplexity": None if loss is None else math.exp(loss)}
    prompts = read_prompts(export, tokenizer, config.split, config.limits, counts)[: config.max_prompts]
    columns: dict[str, list] = {}
    for rollout in rollouts(config, policy, tokenizer, prompts):
        for name, values in measure_rollout(config, policy, reference, reward_model, tokenizer, rollout).items():
            columns.setdefault(name, []).extend(values)
    texts = columns.pop("text", [])
    figures |= {name: sum(values) / len(values) for name, values in columns.items()}
    figures |= {"prompts": len(prompts), "distinct_responses": len(set(texts)) / max(1, len(texts))}
    if texts:
        figures |= degeneration.figures(texts)
    if len(columns.get("reward", ())) > 1:
        figures["reward_std"] = float(torch.tensor(columns["reward"]).std())
    return figures


def rollouts(config: Config, policy, tokenizer, prompts: list[list[int]]) -> Iterator[Rollout]:
    """One sample per prompt, batch by batch."""
    generator = torch.Generator().manual_seed(config.seed)
    for start in tqdm(range(0, len(prompts), config.batch_size), desc="evaluate", unit="batch", disable=None):
        yield sample(
            policy,
            prompts[start : start + config.batch_size],
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=config.response_tokens,
            temperature=config.temperature,
            generator=generator,
        )


@torch.no_grad()
def measure_rollout(
    config: Config, policy, reference, reward_model, tokenizer, rollout: Rollout
) -> dict[str, list[float] | list[str]]:
    """One value per episode of each figure.

    `prompt_dependence` is log π(y | x) − log π(y | x') in nats, x' being the next prompt of the batch: 0 for a policy that says the
    same to everything, whatever the prompt.
    """
    keep_BR = rollout.response_keep_BR
    logprobs_BR = response_logprobs(policy, *sequence_of(rollout), rollout.responses_BR, config.temperature)
    other = rollout._replace(
        prompts_BP=rollout.prompts_BP.roll(1, dims=0), prompt_keep_BP=rollout.prompt_keep_BP.roll(1, dims=0)
    )
    elsewhere_BR = response_logprobs(policy, *sequence_of(other), rollout.responses_BR, config.temperature)
    values: dict[str, list] = {
        "text": decode(tokenizer, rollout),
        "length": rollout.lengths_B.tolist(),
        "finished": [float(value) for value in rollout.finished_B.tolist()],
        "prompt_dependence": advantages.kl_estimates(logprobs_BR, elsewhere_BR, keep_BR, "k1").tolist(),
    }
    if reference is not None:
        reference_BR = response_logprobs(reference, *sequence_of(rollout), rollout.responses_BR, config.temperature)
        # k1 may come out negative on a few prompts, k3 cannot
        values["kl"] = advantages.kl_estimates(logprobs_BR, reference_BR, keep_BR, "k1").tolist()
        values["kl_k3"] = advantages.kl_estimates(logprobs_BR, reference_BR, keep_BR, "k3").tolist()
    if reward_model is not None:
        values["reward"] = end_scores(reward_model, rollout).tolist()
    return values
