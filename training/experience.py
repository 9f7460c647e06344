"""From a rollout to what PPO trains on: log-probabilities, KL, values, rewards, advantages, returns.

Shapes: B episodes, P prompt tokens, R response tokens, T = P + R. Masks True = keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch

from training import advantages, models
from training.generation import Rollout, response_logprobs, sequence_of


class Players(NamedTuple):
    """The four models of PPO and the tokenizer they share. Only policy and critic are trained."""

    policy: torch.nn.Module
    critic: torch.nn.Module
    reference: torch.nn.Module
    reward_model: torch.nn.Module
    tokenizer: Any


class Sequences(NamedTuple):
    """Prompts, left-padded, and right-padded responses side by side; `responses_BR` are the last R columns of `ids_BT`."""

    ids_BT: torch.Tensor
    keep_BT: torch.Tensor
    positions_BT: torch.Tensor
    responses_BR: torch.Tensor
    response_keep_BR: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `response_logprobs` and `response_values` take."""
        return self.ids_BT, self.keep_BT, self.positions_BT, self.responses_BR


class Experience(NamedTuple):
    """What one rollout gave, ready to train on: its sequences, and four figures per response token."""

    sequences: Sequences
    logprobs_BR: torch.Tensor
    values_BR: torch.Tensor
    advantages_BR: torch.Tensor
    returns_BR: torch.Tensor


class Shaping(NamedTuple):
    """How scores become rewards, and rewards advantages."""

    temperature: float
    kl_coef: float
    no_eos_penalty: float
    no_eos_mode: Literal["replace", "subtract"]
    discount: float
    gae_lambda: float


class Scored(NamedTuple):
    """What the four models say of a rollout; 0 on padding where it was scored in several passes."""

    logprobs_BR: torch.Tensor
    reference_BR: torch.Tensor
    values_BR: torch.Tensor
    scores_B: torch.Tensor


@torch.no_grad()
def gain_experience(
    players: Players, rollout: Rollout, shaping: Shaping, rows_per_pass: int | None = None
) -> tuple[Experience, dict[str, float]]:
    """Score a rollout, and turn scores and KL into whitened advantages and returns; with the figures for the log.

    `score` is shaped (the no-EOS penalty is in it), `reward` is the reward model's own.
    """
    sequences = Sequences(*sequence_of(rollout), rollout.responses_BR, rollout.response_keep_BR)
    keep_BR = rollout.response_keep_BR
    scored = score_rollout(players, sequences, shaping.temperature, rows_per_pass)
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
    return Experience(sequences, scored.logprobs_BR, scored.values_BR, advantages_BR, returns_BR), stats


def kl_stats(scored: Scored, keep_BR: torch.Tensor) -> dict[str, float]:
    """KL to the reference by each estimator, in nats per response, mean over episodes; `kl` is k1."""
    kinds: dict[str, Literal["k1", "k2", "k3"]] = {"kl": "k1", "kl_k2": "k2", "kl_k3": "k3"}
    return {
        name: advantages.kl_estimates(scored.logprobs_BR, scored.reference_BR, keep_BR, kind).mean().item()
        for name, kind in kinds.items()
    }


def score_rollout(players: Players, sequences: Sequences, temperature: float, rows_per_pass: int | None) -> Scored:
    """What the models say of the very tokens that were sampled; in passes of that many rows, or (None) all in one."""
    like = torch.zeros(sequences.responses_BR.shape, device=sequences.ids_BT.device)
    scored = Scored(like, like.clone(), like.clone(), like[:, 0].clone())
    for rows, part in passes(sequences, rows_per_pass):
        width = part.responses_BR.shape[1]
        scored.logprobs_BR[rows, :width] = response_logprobs(players.policy, *part.inputs, temperature)
        scored.reference_BR[rows, :width] = response_logprobs(players.reference, *part.inputs, temperature)
        scored.values_BR[rows, :width] = response_values(players.critic, *part.inputs)
        scored.scores_B[rows] = last_scores(players.reward_model, part)
    return scored


def last_scores(reward_model, sequences: Sequences) -> torch.Tensor:
    """The reward model's score at each response's last token, by length → (B,)."""
    scores_BT = models.token_scores(reward_model, *sequences.inputs[:3])
    ends_B = scores_BT.shape[1] - sequences.responses_BR.shape[1] + sequences.response_keep_BR.sum(1)
    return models.scores_at_end(scores_BT, ends_B)


def response_values(critic, ids_BT, keep_BT, positions_BT, responses_BR) -> torch.Tensor:
    """The critic's value of the state in which each response token was chosen, so one position before it → (B, R)."""
    values_BT = models.token_scores(critic, ids_BT, keep_BT, positions_BT)
    return values_BT[:, -responses_BR.shape[1] - 1 : -1]


# ---- rows and parts --------------------------------------------------------------------------------------------------


def passes(sequences: Sequences, rows_per_pass: int | None) -> Iterator[tuple[torch.Tensor, Sequences]]:
    """(row numbers, their sequences) with rows of like length together, and no column that is padding in all of them.

    With None: all rows at once, in their order and as wide as they are.
    """
    rows = len(sequences.ids_BT)
    if rows_per_pass is None or rows_per_pass >= rows:
        yield torch.arange(rows, device=sequences.ids_BT.device), sequences
        return
    for chosen in sequences.keep_BT.sum(1).argsort(stable=True).split(rows_per_pass):
        yield chosen, trimmed(Sequences(*(tensor[chosen] for tensor in sequences)))


def trimmed(sequences: Sequences) -> Sequences:
    """The same rows without columns that are padding in all of them; what is kept is unchanged."""
    width = sequences.responses_BR.shape[1]
    prompt_width = sequences.ids_BT.shape[1] - width
    first = int(sequences.keep_BT.int().argmax(1).min())
    longest = int(sequences.response_keep_BR.sum(1).max())
    columns = slice(first, prompt_width + longest)
    return Sequences(
        *(tensor[:, columns] for tensor in sequences[:3]), *(tensor[:, :longest] for tensor in sequences[3:])
    )


def rows_of(experience: Experience, rows: torch.Tensor) -> Experience:
    """The experience of these episodes."""
    sequences = Sequences(*(tensor[rows] for tensor in experience.sequences))
    return Experience(sequences, *(tensor[rows] for tensor in experience[1:]))


def parts_of(experience: Experience, parts: int) -> Iterator[Experience]:
    """A minibatch in `parts` parts of like length, each trimmed; one part is the minibatch as it is."""
    size = -(-len(experience.logprobs_BR) // parts)
    for rows, sequences in passes(experience.sequences, size):
        width = sequences.responses_BR.shape[1]
        yield Experience(sequences, *(tensor[rows, :width] for tensor in experience[1:]))
