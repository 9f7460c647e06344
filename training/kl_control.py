"""The coefficient of PPO's KL penalty: fixed, or steered towards a KL (Ziegler et al. 2019, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

GAIN = 0.1
"""K_β of Ziegler et al. 2019: the most that the coefficient moves in an iteration is GAIN · MOST_ERROR, 2 %."""
MOST_ERROR = 0.2


class KlController:
    """β, and how it follows the KL that was seen: β ← β · (1 + 0.1 · clip(KL / target − 1, −0.2, 0.2)), once per iteration.

    KL in nats per response (k1: summed over tokens, mean over episodes). Without a target β stays what it was.
    """

    def __init__(self, coef: float, target: float | None):
        self.coef, self.target = coef, target

    def update(self, kl: float) -> None:
        """Take in the KL of the iteration just done."""
        if self.target is not None:
            error = max(-MOST_ERROR, min(MOST_ERROR, kl / self.target - 1))
            self.coef *= 1 + GAIN * error

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps of it."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` gave."""
        self.coef = state["coef"]
