"""The gradients of one PPO step: its minibatch of episodes, in parts and shares that change nothing but rounding, and ptx beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training import parallel, processes, ptx
from training.episodes import pack, response_logprobs, response_values
from training.experience import Experience, parts_of, rows_of
from training.losses import policy_loss, value_loss
from training.players import Players

if TYPE_CHECKING:
    from training.ppo import Config


def minibatches(config: Config, generator: torch.Generator) -> list[torch.Tensor]:
    """Rows of each optimiser step: every episode once per inner epoch, in a new order each."""
    orders = [torch.randperm(config.episodes, generator=generator) for _ in range(config.inner_epochs)]
    return [rows for order in orders for rows in order.split(config.minibatch)]


def add_gradients(
    config: Config,
    players: Players,
    experience: Experience | None,
    rows: torch.Tensor,
    extra: ptx.Ptx | None,
    step: int,
) -> dict[str, float]:
    """The gradients of one optimiser step: PPO's on these episodes, then γ times that on text; returns the losses."""
    losses: dict[str, float] = {}
    if experience is not None:
        with parallel.step(players.policy, players.critic):
            losses = backward_losses(config, players, rows_of(experience, rows))
        losses = processes.total(losses)
    if extra is not None:
        losses |= ptx.add_gradient(players.policy, extra, step, next(players.policy.parameters()).device)
    return losses


def backward_losses(config: Config, players: Players, batch: Experience) -> dict[str, float]:
    """Gradients of the policy loss and of the value loss on one minibatch, each a mean over its kept tokens.

    Every part divides by the kept tokens of the whole minibatch, so the number of parts changes nothing but rounding. Of
    several processes each runs its share of the episodes: gradients and figures are terms of a sum.
    """
    count = batch.sequences.response_keep_BR.sum()
    mine = processes.share(batch.sequences.keep_BT.sum(1).tolist())
    totals = dict.fromkeys(("policy_loss", "value_loss", "clip_share", "ratio", "ratio_gap"), 0.0)
    for part in parts_of(rows_of(batch, torch.tensor(mine)), config.parts) if mine else ():
        keep_BR = part.sequences.response_keep_BR
        packed = pack(part.sequences, players.policy, players.critic)
        live_BR = part.live_values_BR  # of the critic as it is still, where the rollout is one minibatch
        values_BR = response_values(players.critic, packed) if live_BR is None else live_BR
        value = value_loss(values_BR, part.values_BR, part.returns_BR, keep_BR, config.value_clip, count)
        value.backward()  # before the policy's pass: never are the activations of both held
        logprobs_BR = response_logprobs(players.policy, packed, config.temperature)
        policy = policy_loss(logprobs_BR, part.logprobs_BR, part.advantages_BR, keep_BR, config.clip, count)
        policy.loss.backward()
        figures = {"policy_loss": policy.loss, "value_loss": value}
        figures |= {"clip_share": policy.clip_share, "ratio": policy.ratio, "ratio_gap": policy.ratio_gap}
        for name, figure in figures.items():
            totals[name] += figure.item()
    return totals
