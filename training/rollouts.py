"""What PPO's policy answers to prompts: to train on, to measure on validation prompts, and to show in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from training import corpus, generation, processes
from training.experience import gain_experience
from training.generation import Rollout, end_scores, sample, sample_texts
from training.players import Players

if TYPE_CHECKING:
    from training.ppo import Config


def respond(config: Config, players: Players, prompts: Sequence[list[int]], generator: torch.Generator) -> Rollout:
    """One response of the policy per prompt, at the run's temperature; each of several processes samples its share."""
    mine = processes.share([len(prompt) for prompt in prompts])
    settings: dict[str, Any] = {
        "eos_id": players.tokenizer.eos_token_id,
        "pad_id": players.tokenizer.pad_token_id,
        "max_new_tokens": config.response_tokens,
        "temperature": config.temperature,
        "generator": generator,
    }
    if processes.count() == 1:
        return sample(players.policy, prompts, **settings)
    part = sample(players.policy, prompts, rows=mine, **settings) if mine else None
    return generation.put_together(part, mine, prompts, settings["pad_id"], players.policy)


def answers_to(config: Config, players: Players, prompts: list[list[int]]) -> list[str]:
    """The policy's answers as the report shows them, drawn with the same random numbers each time."""
    settings: dict[str, Any] = {"max_new_tokens": config.response_tokens, "temperature": config.temperature}
    return sample_texts(players.policy, players.tokenizer, prompts, seed=config.seed, **settings)[0]


@torch.no_grad()
def measure(
    config: Config, players: Players, prompts: list[list[int]], text: corpus.Corpus | None, when: str
) -> dict[str, float]:
    """On validation prompts: reward (mean, deviation), KL (sum over tokens, mean over episodes), length; and loss on text."""
    figures: dict[str, float] = {}
    if text is not None:
        device = next(players.policy.parameters()).device
        figures["lm_loss"] = corpus.mean_loss(players.policy, text.valid, config.minibatch, device)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 999_983)
    rewards: list[torch.Tensor] = []
    for start in range(0, len(prompts), config.episodes):
        rollout = respond(config, players, prompts[start : start + config.episodes], generator)
        rewards.append(end_scores(players.reward_model, rollout))
        _, stats = gain_experience(players, rollout, config.shaping(config.kl_coef), config.rows_per_pass)
        share = len(rollout.lengths_B) / len(prompts)
        for name in ("kl", "kl_k3", "length", "finished"):
            figures[name] = figures.get(name, 0.0) + stats[name] * share
    if rewards:
        reward = torch.cat(rewards)
        figures["reward_mean"] = float(reward.mean())
        if len(reward) > 1:
            figures["reward_std"] = float(reward.std())
    return {f"{name}_{when}": value for name, value in figures.items()}
