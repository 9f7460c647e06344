"""Loss functions, pure. Shapes: B rows, T tokens, V vocabulary. Masks True = keep. Every reduction is in the name or stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


class IndexedRanking(NamedTuple):
    """A ranking as indices into a batch's responses: (better, worse) pairs, its C(K,2), and the tied pairs that count."""

    pairs: Sequence[tuple[int, int]]
    pair_count: int
    ties: Sequence[tuple[int, int]] = ()


def ranking_loss(
    rewards_N: torch.Tensor, rankings: Sequence[tuple[Sequence[tuple[int, int]], int] | IndexedRanking]
) -> torch.Tensor:
    """−1/C(K,2) · Σ log σ(r_better − r_worse) per ranking, averaged over rankings (InstructGPT, section 3.5, eq. 1).

    `rewards_N` holds the responses of all rankings; `rankings` has, for each, its (better, worse) indices into rewards_N and
    its C(K,2). Ties make no pair and still count in C(K,2), so a ranking full of ties weighs little. Tied pairs that are given
    (ours, not the paper's) each add −½ · [log σ(r_a − r_b) + log σ(r_b − r_a)], the cross-entropy to even odds: least, log 2,
    where the rewards are equal.
    """
    entries = [IndexedRanking(*ranking) for ranking in rankings]
    total = _log_odds(rewards_N, [(a, b, 1 / e.pair_count) for e in entries for a, b in e.pairs])
    ties = [(a, b, 0.5 / e.pair_count) for e in entries for a, b in e.ties]
    if ties:
        total = total + _log_odds(rewards_N, ties + [(b, a, weight) for a, b, weight in ties])
    return -total / len(entries)


def _log_odds(scores_N: torch.Tensor, weighted: Sequence[tuple[int, int, float]]) -> torch.Tensor:
    """Σ weight · log σ(score_a − score_b)."""
    a, b = (torch.tensor([entry[i] for entry in weighted], dtype=torch.long, device=scores_N.device) for i in (0, 1))
    weights_P = torch.tensor([entry[2] for entry in weighted], dtype=scores_N.dtype, device=scores_N.device)
    return (weights_P * F.logsigmoid(scores_N[a] - scores_N[b])).sum()


class PolicyLoss(NamedTuple):
    """Clipped policy loss; and over kept tokens the share clipped, the mean ratio, and the ratio's mean distance from 1."""

    loss: torch.Tensor
    clip_share: torch.Tensor
    ratio: torch.Tensor
    ratio_gap: torch.Tensor


def policy_loss(
    logprobs_BT: torch.Tensor,
    old_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    keep_BT: torch.Tensor,
    clip: float,
    count: torch.Tensor | int | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate, mean over kept tokens (Schulman et al. 2017, eq. 7).

    For a part of a minibatch, `count` is the number of kept tokens of the whole: the parts' figures then add up to the whole's.
    """
    ratio_BT = torch.exp(logprobs_BT - old_BT)
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip)
    kept = keep_BT.sum() if count is None else count
    loss = (torch.maximum(plain_BT, clipped_BT) * keep_BT).sum() / kept
    clip_share = ((clipped_BT > plain_BT) & keep_BT).sum() / kept
    ratio_gap = ((ratio_BT - 1).abs() * keep_BT).sum() / kept
    return PolicyLoss(loss, clip_share, (ratio_BT * keep_BT).sum() / kept, ratio_gap)


def value_loss(
    values_BT: torch.Tensor,
    old_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    keep_BT: torch.Tensor,
    clip: float,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Half the squared error, the worse of clipped and unclipped, mean over kept tokens; clip ≤ 0 switches clipping off.

    Value clipping is not in the paper; it follows lm-human-preferences. `count` as in `policy_loss`.
    """
    error_BT = (values_BT - returns_BT) ** 2
    if clip > 0:
        clipped_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (clipped_BT - returns_BT) ** 2)
    return 0.5 * (error_BT * keep_BT).sum() / (keep_BT.sum() if count is None else count)
