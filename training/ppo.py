"""PPO against a reward model (InstructGPT, section 3.5 and appendix C.4; Stiennon et al. 2020).

A bandit: one prompt, one response, the reward at its end; a per-token KL penalty to the policy it started from. The critic
starts as the reward model. Not in the paper, from lm-human-preferences' code: GAE λ 0.95, value clipping, whitened
advantages. Sampling is from the full distribution only: the KL under top-p or top-k is not defined.

Shapes: B episodes, P prompt tokens, R response tokens. Masks True = keep.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from training import advantages, models
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, to_dict
from training.contract import read_export
from training.data import LengthLimits, OnTooLong, read_prompts, shuffled_batches
from training.errors import StageError
from training.generation import Rollout, end_scores, response_logprobs, sample, sequence_of
from training.losses import policy_loss, value_loss
from training.optimizers import adamw, apply_step

RATIO_TOLERANCE = 1e-3
KL_TOLERANCE = 1e-3


class PpoCheckError(StageError):
    """The first minibatch's ratio is not 1, or the KL at step 0 is not 0: what is trained is not what was sampled."""


@dataclass(frozen=True)
class Config:
    """Optimise a policy against a reward model with PPO."""

    out: str = option(help="model folder to write")
    policy: str = option(help="policy folder to start from; also the KL reference")
    reward_model: str = option(help="reward model folder; the critic starts from it too")
    export: str = option(help="export folder whose prompts are used")
    iterations: int = option(500, help="rollouts (paper: 500 of 512 episodes)")
    episodes: int = option(512, help="episodes per iteration (paper: 512)")
    minibatch: int = option(64, help="episodes per optimiser step (paper: 64)")
    inner_epochs: int = option(1, help="passes over each rollout (paper: 1)")
    kl_coef: float = option(0.02, help="β: per-token KL penalty in units of reward per nat (paper: 0.02)")
    clip: float = option(0.2, help="PPO clipping range of the ratio (paper: 0.2)")
    value_clip: float = option(0.0, help="clipping range of the value; 0: off (not in the paper)")
    discount: float = option(1.0, help="discount per token (paper: none)")
    gae_lambda: float = option(0.95, help="GAE λ (lm-human-preferences: 0.95)")
    temperature: float = option(1.0, help="sampling temperature (paper: 1)")
    no_eos_penalty: float = option(1.0, help="penalty for a response that never ends (reward units)")
    no_eos_mode: Literal["replace", "subtract"] = option(
        "replace", help="replace: its score is −penalty; subtract: score − penalty"
    )
    learning_rate: float = option(9.65e-6, help="learning rate of the policy (ours; the paper does not say)")
    value_learning_rate: float = option(9e-6, help="learning rate of the critic (paper: 9e-6)")
    warmup_iterations: int = option(10, help="iterations over which rates grow from 0.1× (paper: 10)")
    adam_epsilon: float = option(1e-5, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping, of policy and critic each")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a prompt past this limit")
    valid_episodes: int = option(512, help="validation prompts sampled before and after, at most")
    seed: int = option(0, help="seed of order and sampling")
    checkpoint_every: int = option(10, help="iterations between checkpoints")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")
    overwrite: bool = option(False, help="replace an existing output of another run")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        for name in ("iterations", "episodes", "minibatch", "inner_epochs", "response_tokens", "checkpoint_every"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.episodes % self.minibatch == 0, "episodes", "must be a multiple of minibatch")
        require(self.kl_coef >= 0, "kl_coef", "must not be negative")
        require(self.temperature > 0, "temperature", "must be positive")
        require(0 < self.clip < 1, "clip", "must lie between 0 and 1")
        require(0 < self.discount <= 1, "discount", "must lie above 0 and at most at 1")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", "must lie between 0 and 1")
        require(self.no_eos_penalty >= 0, "no_eos_penalty", "must not be negative")
        for name in ("learning_rate", "value_learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, "must be positive")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


class Players(NamedTuple):
    """The four models of PPO and the tokenizer they share. Only policy and critic are trained."""

    policy: torch.nn.Module
    critic: torch.nn.Module
    reference: torch.nn.Module
    reward_model: torch.nn.Module
    tokenizer: Any


class Experience(NamedTuple):
    """What one rollout gave, ready to train on. Everything but ids, mask and positions has one column per response token."""

    ids_BT: torch.Tensor
    keep_BT: torch.Tensor
    positions_BT: torch.Tensor
    responses_BR: torch.Tensor
    response_keep_BR: torch.Tensor
    logprobs_BR: torch.Tensor
    values_BR: torch.Tensor
    advantages_BR: torch.Tensor
    returns_BR: torch.Tensor


def run(config: Config) -> Path:
    """Train and publish the policy; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"policy": models.parent_of(config.policy), "rm": models.parent_of(config.reward_model)}
    parents["reference"] = parents["policy"]
    state = RunState(config.out, "ppo", to_dict(config), parents, export.ref)
    if state.is_published(config.overwrite):
        return Path(config.out)
    models.use_threads(config.threads)
    device = models.pick_device(config.device)
    torch.manual_seed(config.seed)
    players = load_players(config, device)
    counts: Counter[str] = Counter()
    train = read_prompts(export, players.tokenizer, "train", config.limits, counts)
    valid = read_prompts(export, players.tokenizer, "valid", config.limits, Counter())[: config.valid_episodes]
    before = measure(config, players, valid, "before")
    log = train_policy(config, state, players, train)
    metrics = {
        **before,
        **measure(config, players, valid, "after"),
        "kl_coef": config.kl_coef,
        "episodes": config.iterations * config.episodes,
        "prompts": len(train),
        **counts,
    }
    if before:
        metrics["kl_coef_per_reward_std"] = config.kl_coef / before["reward_std_before"]
    lineage: dict[str, Any] = {
        "stage": "ppo",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    models.publish(config.out, players.policy.cpu(), players.tokenizer, metrics=metrics, log=log, **lineage)
    state.clear()
    return Path(config.out)


def load_players(config: Config, device: torch.device) -> Players:
    """Policy and reference from the same folder, critic and reward model from the same folder, all in evaluation mode.

    Evaluation mode throughout, training included: dropout would make two forward passes differ and the ratio meaningless.
    """
    tokenizer = models.load_tokenizer(config.policy)
    if models.load_tokenizer(config.reward_model).get_vocab() != tokenizer.get_vocab():
        raise StageError(f"{config.reward_model}: its tokenizer differs from that of {config.policy}")
    reference = models.load_policy(config.policy, device).requires_grad_(False)
    reward_model = models.load_reward_model(config.reward_model, device).requires_grad_(False)
    policy, critic = models.load_policy(config.policy, device), models.load_reward_model(config.reward_model, device)
    return Players(policy, critic, reference, reward_model, tokenizer)


def train_policy(config: Config, state: RunState, players: Players, prompts: list[list[int]]) -> list[dict]:
    """The loop: query → respond → score → KL reward → advantages → clipped steps → log. Returns the log."""
    rates = {"weight_decay": 0.0, "epsilon": config.adam_epsilon}
    policy_adam = adamw(players.policy, learning_rate=config.learning_rate, **rates)
    critic_adam = adamw(players.critic, learning_rate=config.value_learning_rate, **rates)
    parts = {"policy": players.policy, "critic": players.critic, "policy_adam": policy_adam, "critic_adam": critic_adam}
    first, log = restore(state.load(), **parts)
    queries = itertools.islice(shuffled_batches(len(prompts), config.episodes, config.seed), first, None)
    with (
        stop_request() as stop,
        tqdm(total=config.iterations, initial=first, desc="ppo", unit="it", disable=None) as bar,
    ):
        for iteration in range(first, config.iterations):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + iteration)
            rollout = respond(config, players, [prompts[i] for i in next(queries)], generator)
            experience, stats = gain_experience(config, players, rollout)
            if iteration == 0:
                check_kl_is_zero(stats)
            order = minibatches(config, generator)
            for number, rows in enumerate(order):
                part = Experience(*(tensor[rows] for tensor in experience))
                losses = backward_losses(config, players, part)
                if number == 0:
                    check_ratio_is_one(losses["ratio"], iteration)
                factor = min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup_iterations))
                apply_step(policy_adam, players.policy, config.learning_rate * factor, config.clip_norm)
                apply_step(critic_adam, players.critic, config.value_learning_rate * factor, config.clip_norm)
            log.append({"iteration": iteration, **stats, **losses})
            bar.set_postfix(score=f"{stats['score']:.2f}", kl=f"{stats['kl']:.2f}")
            bar.update()
            if stop.is_set or (iteration + 1) % config.checkpoint_every == 0:
                state.save(iteration + 1, capture(iteration + 1, log, **parts))
            if stop.is_set:
                raise KeyboardInterrupt
    return log


def respond(config: Config, players: Players, prompts: Sequence[list[int]], generator: torch.Generator) -> Rollout:
    """One response of the policy per prompt, at the run's temperature."""
    return sample(
        players.policy,
        prompts,
        eos_id=players.tokenizer.eos_token_id,
        pad_id=players.tokenizer.pad_token_id,
        max_new_tokens=config.response_tokens,
        temperature=config.temperature,
        generator=generator,
    )


@torch.no_grad()
def gain_experience(config: Config, players: Players, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
    """Score a rollout, and turn scores and KL into whitened advantages and returns; with the figures for the log."""
    ids_BT, keep_BT, positions_BT = sequence_of(rollout)
    responses_BR, response_keep_BR = rollout.responses_BR, rollout.response_keep_BR
    inputs = (ids_BT, keep_BT, positions_BT, responses_BR)
    logprobs_BR = response_logprobs(players.policy, *inputs, config.temperature)
    reference_BR = response_logprobs(players.reference, *inputs, config.temperature)
    values_BR = response_values(players.critic, *inputs)
    raw_B = end_scores(players.reward_model, rollout)
    scores_B = advantages.shape_scores(raw_B, rollout.finished_B, config.no_eos_penalty, config.no_eos_mode)
    rewards_BR = advantages.token_rewards(scores_B, logprobs_BR, reference_BR, response_keep_BR, config.kl_coef)
    advantages_BR, returns_BR = advantages.gae(
        rewards_BR, values_BR, response_keep_BR, discount=config.discount, gae_lambda=config.gae_lambda
    )
    advantages_BR = advantages.whiten(advantages_BR, response_keep_BR)
    k1_B, k3_B = (advantages.kl_estimates(logprobs_BR, reference_BR, response_keep_BR, kind) for kind in ("k1", "k3"))
    stats = {
        "score": scores_B.mean().item(),
        "kl": k1_B.mean().item(),
        "kl_k3": k3_B.mean().item(),
        "length": rollout.lengths_B.float().mean().item(),
        "finished": rollout.finished_B.float().mean().item(),
        "entropy": -(logprobs_BR * response_keep_BR).sum().item() / int(response_keep_BR.sum()),
    }
    experience = Experience(*inputs, response_keep_BR, logprobs_BR, values_BR, advantages_BR, returns_BR)
    return experience, stats


def response_values(critic, ids_BT, keep_BT, positions_BT, responses_BR) -> torch.Tensor:
    """The critic's value of the state in which each response token was chosen, so one position before it → (B, R)."""
    values_BT = models.token_scores(critic, ids_BT, keep_BT, positions_BT)
    return values_BT[:, -responses_BR.shape[1] - 1 : -1]


def minibatches(config: Config, generator: torch.Generator) -> list[torch.Tensor]:
    """Rows of each optimiser step: every episode once per inner epoch, in a new order each."""
    orders = [torch.randperm(config.episodes, generator=generator) for _ in range(config.inner_epochs)]
    return [rows for order in orders for rows in order.split(config.minibatch)]


def backward_losses(config: Config, players: Players, part: Experience) -> dict[str, float]:
    """Gradients of the policy loss and of the value loss on one minibatch, each a mean over its kept tokens."""
    inputs = (part.ids_BT, part.keep_BT, part.positions_BT, part.responses_BR)
    logprobs_BR = response_logprobs(players.policy, *inputs, config.temperature)
    policy = policy_loss(logprobs_BR, part.logprobs_BR, part.advantages_BR, part.response_keep_BR, config.clip)
    policy.loss.backward()
    values_BR = response_values(players.critic, *inputs)
    value = value_loss(values_BR, part.values_BR, part.returns_BR, part.response_keep_BR, config.value_clip)
    value.backward()
    return {
        "policy_loss": policy.loss.item(),
        "value_loss": value.item(),
        "clip_share": policy.clip_share.item(),
        "ratio": policy.ratio.item(),
    }


def check_kl_is_zero(stats: dict[str, float]) -> None:
    """Raise PpoCheckError unless policy and reference agree before the first step."""
    if not (abs(stats["kl"]) < KL_TOLERANCE and stats["kl_k3"] < KL_TOLERANCE):
        raise PpoCheckError(
            f"KL to the reference is {stats['kl']:.4f} nats (k3 {stats['kl_k3']:.4f}) before the first step, not 0"
        )


def check_ratio_is_one(ratio: float, iteration: int) -> None:
    """Raise PpoCheckError unless the first minibatch reproduces the log-probabilities that were stored."""
    if not abs(ratio - 1) < RATIO_TOLERANCE:
        raise PpoCheckError(f"iteration {iteration}: the first minibatch's mean ratio is {ratio:.5f}, not 1")


@torch.no_grad()
def measure(config: Config, players: Players, prompts: list[list[int]], when: str) -> dict[str, float]:
    """Reward (mean, deviation), KL (sum over tokens, mean over episodes) and length on validation prompts."""
    if not prompts:
        return {}
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 999_983)
    rewards: list[torch.Tensor] = []
    figures: dict[str, float] = {}
    for start in range(0, len(prompts), config.episodes):
        rollout = respond(config, players, prompts[start : start + config.episodes], generator)
        rewards.append(end_scores(players.reward_model, rollout))
        _, stats = gain_experience(config, players, rollout)
        share = len(rollout.lengths_B) / len(prompts)
        for name in ("kl", "kl_k3", "length", "finished"):
            figures[name] = figures.get(name, 0.0) + stats[name] * share
    reward = torch.cat(rewards)
    figures |= {"reward_mean": float(reward.mean()), "reward_std": float(reward.std())}
    return {f"{name}_{when}": value for name, value in figures.items()}
