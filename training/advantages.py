"""Rewards, advantages and KL of PPO as pure functions. Shapes: B episodes, T response tokens. Masks True = keep.

Kept tokens stand first in a row (responses are padded on the right); the last kept token is EOS, or the token at which the
length limit cut the response off. Nothing here looks at a token id.
"""

from __future__ import annotations

from typing import Literal

import torch


def shape_scores(
    scores_B: torch.Tensor, finished_B: torch.Tensor, penalty: float, mode: Literal["replace", "subtract"]
) -> torch.Tensor:
    """Scores with the explicit penalty for episodes that never produced EOS: put in their place, or subtracted → (B,)."""
    unfinished_B = torch.full_like(scores_B, -penalty) if mode == "replace" else scores_B - penalty
    return torch.where(finished_B, scores_B, unfinished_B)


def token_rewards(
    scores_B: torch.Tensor, logprobs_BT: torch.Tensor, reference_BT: torch.Tensor, keep_BT: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """−kl_coef · (log π − log π_ref) on each kept token, plus the score on the last one → (B, T); 0 on padding.

    Raises ValueError if a row keeps no token. Source: InstructGPT, eq. 2; Stiennon et al. 2020, section 3.4.
    """
    lengths_B = keep_BT.sum(1)
    if (lengths_B == 0).any():
        raise ValueError(f"row {int((lengths_B == 0).nonzero()[0])} keeps no token, so it has nowhere to put its score")
    rewards_BT = torch.where(keep_BT, -kl_coef * (logprobs_BT - reference_BT), 0.0)
    rewards_BT[torch.arange(len(scores_B), device=scores_B.device), lengths_B - 1] += scores_B
    return rewards_BT


def gae(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, keep_BT: torch.Tensor, *, discount: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages_BT, returns_BT), both 0 on padding. The value after the last kept token is 0: an episode ends there.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", eq. 16.
    """
    values_BT = torch.where(keep_BT, values_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    running_B = torch.zeros_like(values_BT[:, 0])
    next_B = torch.zeros_like(running_B)
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + discount * next_B - values_BT[:, t]
        running_B = torch.where(keep_BT[:, t], delta_B + discount * gae_lambda * running_B, 0.0)
        next_B = values_BT[:, t]
        advantages_BT[:, t] = running_B
    return advantages_BT, torch.where(keep_BT, advantages_BT + values_BT, 0.0)


def whiten(values_BT: torch.Tensor, keep_BT: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale the kept entries to mean 0 and variance 1 (biased); padding is neither read nor kept (0 there)."""
    kept = values_BT[keep_BT]
    variance, mean = torch.var_mean(kept, correction=0)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened_BT = whitened_BT + mean
    return torch.where(keep_BT, whitened_BT, 0.0)


def kl_estimates(
    logprobs_BT: torch.Tensor, reference_BT: torch.Tensor, keep_BT: torch.Tensor, kind: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Per-episode estimate of KL(π ‖ π_ref), summed over the kept tokens → (B,).

    k1 = log π − log π_ref is unbiased and may be negative; k2 = k1²/2 is biased, k3 = exp(−k1) − 1 + k1 unbiased, neither
    ever negative. Source: Schulman, "Approximating KL divergence" (2020).
    """
    k1_BT = logprobs_BT - reference_BT
    if kind == "k2":
        k1_BT = 0.5 * k1_BT**2
    elif kind == "k3":
        k1_BT = torch.expm1(-k1_BT) + k1_BT
    return torch.where(keep_BT, k1_BT, 0.0).sum(1)
