"""What stops a PPO run beside a figure that is not a finite number: a first ratio that is not 1, a first KL that is not 0."""

from __future__ import annotations

from training import precision
from training.errors import StageError

RATIO_TOLERANCE = 1e-3
RATIO_TOLERANCE_BF16 = 5e-2
"""Of the ratio's mean distance from 1, not of the mean ratio: tokens that another distribution drew have a mean ratio of 1 to it,
whatever it was, so that the mean alone sees neither a wrong temperature nor older weights.

An episode is scored and trained on in rows of other shapes, and bfloat16 rounds to 8 bits: wide of a wrong temperature all the same."""

KL_TOLERANCE = 1e-3


class PpoCheckError(StageError):
    """The first minibatch's ratio is not 1, or the KL at step 0 is not 0: what is trained is not what was sampled."""


def check_kl_is_zero(stats: dict[str, float]) -> None:
    """Raise PpoCheckError unless policy and reference agree before the first step."""
    if not (abs(stats["kl"]) < KL_TOLERANCE and stats["kl_k3"] < KL_TOLERANCE):
        raise PpoCheckError(
            f"KL to the reference is {stats['kl']:.4f} nats (k3 {stats['kl_k3']:.4f}) before the first step, not 0"
        )


def check_ratio_is_one(losses: dict[str, float], iteration: int) -> None:
    """Raise PpoCheckError unless the first minibatch reproduces the log-probabilities that were stored, token by token."""
    if not losses["ratio_gap"] < precision.tolerance(RATIO_TOLERANCE, RATIO_TOLERANCE_BF16):
        raise PpoCheckError(
            f"iteration {iteration}: the first minibatch's ratios are not 1: "
            f"{losses['ratio_gap']:.5f} away on average, with a mean of {losses['ratio']:.5f}"
        )
