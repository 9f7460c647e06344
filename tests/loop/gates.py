"""What a loop must show, in one place: thresholds, and pure functions that hold a report against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RM_GOLD_ACCURACY = 0.75
SFT_WINS = 0.65
PPO_WINS = 0.65
PPO_WINS_PER_USE_CASE = 0.50
KL_BOUND = 6.0
"""Nats, summed over a response's tokens, mean over episodes. The one trial past it (7.0) had lost an item of its stories."""
DISTINCT_RESPONSES = 0.5
PROMPT_DEPENDENCE = 0.3
PROMPTS = 500


@dataclass(frozen=True)
class Gate:
    """One condition: what was seen, what it is held against, and whether it holds."""

    name: str
    value: float
    bound: float
    is_ceiling: bool = False

    @property
    def is_passed(self) -> bool:
        """NaN never passes."""
        return self.value <= self.bound if self.is_ceiling else self.value >= self.bound

    def __str__(self) -> str:
        verdict = "pass" if self.is_passed else "FAIL"
        return f"{verdict}  {self.name:<40} {self.value:8.3f}  {'≤' if self.is_ceiling else '≥'} {self.bound}"


def check(report: dict) -> list[Gate]:
    """Every gate of a loop's report (as tests.loop.world.report gives it)."""
    by_case = report["ppo_vs_sft"]["by_use_case"]
    return [
        Gate("prompts evaluated", report["prompts"], PROMPTS),
        Gate("reward model agrees with gold", report["rm"]["gold_accuracy"], RM_GOLD_ACCURACY),
        Gate("SFT beats base", report["sft_vs_base"]["rate"], SFT_WINS),
        Gate("PPO beats SFT", report["ppo_vs_sft"]["rate"], PPO_WINS),
        *(Gate(f"PPO beats SFT, {case}", by_case[case]["rate"], PPO_WINS_PER_USE_CASE) for case in sorted(by_case)),
        Gate("KL to the reference (nats)", report["kl"], KL_BOUND, is_ceiling=True),
        Gate("distinct responses", report["distinct_responses"]["ppo"], DISTINCT_RESPONSES),
        Gate("dependence on the prompt", report["prompt_dependence"]["ppo"], PROMPT_DEPENDENCE),
    ]


def win_rates(ours: Sequence[float], theirs: Sequence[float], cases: Sequence[str]) -> dict:
    """How often ours scores higher than theirs on the same prompt, overall and by use case; a tie counts half."""
    points = [(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)]
    by_case = {
        case: rate_with_interval([point for point, of in zip(points, cases, strict=True) if of == case])
        for case in sorted(set(cases))
    }
    return rate_with_interval(points) | {"by_use_case": by_case}


def rate_with_interval(points: Sequence[float]) -> dict:
    """Mean of points in [0, 1] with a 95 % Wilson interval (conservative where ties count half)."""
    n, rate, z = len(points), sum(points) / len(points), 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"rate": rate, "low": centre - half, "high": centre + half, "n": n}
