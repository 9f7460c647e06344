"""From a rollout to what PPO trains on: log-probabilities, KL, values, rewards, advantages, returns.

Shapes: B episodes, P prompt tokens, R response tokens, T = P + R. Masks True = keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from training import advantages, precision, processes
from training.episodes import Sequences, last_scores, pack, response_logprobs, response_values, sequences_of
from training.generation import Rollout
from training.players import Players


class Experience(NamedTuple):
    """What one rollout gave, ready to train on: its sequences, and four figures per response token.

    `live_values_BR` are the values once more, with their graph, where the critic is trained on them as they are.
    """

    sequences: Sequences
    logprobs_BR: torch.Tensor
    values_BR: torch.Tensor
    advantages_BR: torch.Tensor
    returns_BR: torch.Tensor
    live_values_BR: torch.Tensor | None = None


class Shaping(NamedTuple):
    """How scores become rewards, and rewards advantages."""

    temperature: float
    kl_coef: float
    no_eos_penalty: float
    no_eos_mode: Literal["replace", "subtract"]
    discount: float
    gae_lambda: float


class Scored(NamedTuple):
    """What the four models say of a rollout; 0 on padding."""

    logprobs_BR: torch.Tensor
    reference_BR: torch.Tensor
    values_BR: torch.Tensor
    scores_B: torch.Tensor


@torch.no_grad()
def gain_experience(
    players: Players,
    rollout: Rollout,
    shaping: Shaping,
    rows_per_pass: int | None = None,
    keep_graph: bool = False,
) -> tuple[Experience, dict[str, float]]:
    """Score a rollout, and turn scores and KL into whitened advantages and returns; with the figures for the log.

    `score` is shaped (the no-EOS penalty is in it), `reward` is the reward model's own. With `keep_graph` the values can be
    trained on without another pass.
    """
    sequences = sequences_of(rollout)
    keep_BR = rollout.response_keep_BR
    scored, live_BR = score_rollout(players, rollout, sequences, shaping.temperature, rows_per_pass, keep_graph)
    scores_B = advantages.shape_scores(scored.scores_B, rollout.finished_B, shaping.no_eos_penalty, shaping.no_eos_mode)
    rewards_BR = advantages.token_rewards(scores_B, scored.logprobs_BR, scored.reference_BR, keep_BR, shaping.kl_coef)
    advantages_BR, returns_BR = advantages.gae(
        rewards_BR, scored.values_BR, keep_BR, discount=shaping.discount, gae_lambda=shaping.gae_lambda
    )
    advantages_BR = advantages.whiten(advantages_BR, keep_BR)
    stats = {
        "score": scores_B.mean().item(),
        "reward": scored.scores_B.mean().item(),
        **kl_stats(scored, keep_BR),
        "length": rollout.lengths_B.float().mean().item(),
        "finished": rollout.finished_B.float().mean().item(),
        "entropy": -(scored.logprobs_BR * keep_BR).sum().item() / int(keep_BR.sum()),
    }
    gained = Experience(sequences, scored.logprobs_BR, scored.values_BR, advantages_BR, returns_BR)
    return gained._replace(live_values_BR=live_BR), stats


def kl_stats(scored: Scored, keep_BR: torch.Tensor) -> dict[str, float]:
    """KL to the reference by each estimator, in nats per response, mean over episodes; `kl` is k1."""
    kinds: dict[str, Literal["k1", "k2", "k3"]] = {"kl": "k1", "kl_k2": "k2", "kl_k3": "k3"}
    return {
        name: advantages.kl_estimates(scored.logprobs_BR, scored.reference_BR, keep_BR, kind).mean().item()
        for name, kind in kinds.items()
    }


def score_rollout(
    players: Players,
    rollout: Rollout,
    sequences: Sequences,
    temperature: float,
    rows_per_pass: int | None,
    keep_graph: bool,
) -> tuple[Scored, torch.Tensor | None]:
    """What the models say of the very tokens that were sampled; in passes of that many episodes, or (None) all in one.

    The policy said it as it sampled; where bfloat16 rounds a cached pass and a whole one apart, it is asked again. Each of
    several processes asks about its share of the episodes and is told of the others'. Beside it, with `keep_graph` (one
    process, one pass), the values with their graph.
    """
    mine = processes.share(sequences.keep_BT.sum(1).tolist())
    none_BR = torch.zeros_like(sequences.response_keep_BR[:0], dtype=torch.float32)
    parts = [] if mine else [Scored(none_BR, none_BR, none_BR, none_BR[:, 0])]
    live_BR: torch.Tensor | None = None
    for rows in torch.tensor(mine, device=sequences.ids_BT.device).split(rows_per_pass or len(mine)) if mine else ():
        packed = pack(Sequences(*(tensor[rows] for tensor in sequences)), players.policy, players.critic)
        with torch.set_grad_enabled(keep_graph):
            live_BR = response_values(players.critic, packed)
        sampled_BR = rollout.logprobs_BR[rows]
        parts.append(
            Scored(
                sampled_BR if precision.is_full() else response_logprobs(players.policy, packed, temperature),
                response_logprobs(players.reference, packed, temperature),
                live_BR.detach(),
                last_scores(players.reward_model, packed),
            )
        )
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    scored = Scored(*(processes.gather_rows(mine, column) for column in columns))
    return scored, live_BR if keep_graph else None


def rows_of(experience: Experience, rows: torch.Tensor) -> Experience:
    """The experience of these episodes."""
    sequences, logprobs_BR, values_BR, advantages_BR, returns_BR, live_BR = experience
    chosen = Sequences(*(tensor[rows] for tensor in sequences))
    figures = (logprobs_BR[rows], values_BR[rows], advantages_BR[rows], returns_BR[rows])
    return Experience(chosen, *figures, None if live_BR is None else live_BR[rows])


def parts_of(experience: Experience, parts: int) -> Iterator[Experience]:
    """A minibatch in `parts` parts."""
    count = len(experience.logprobs_BR)
    for rows in torch.arange(count, device=experience.logprobs_BR.device).split(-(-count // parts)):
        yield rows_of(experience, rows)
