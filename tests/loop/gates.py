"""What a loop must show, in one place: thresholds as rules of the promotion gate, and the win rates that they look at."""

from __future__ import annotations

import json
from collections.abc import Sequence

from training import gate, intervals

RM_GOLD_ACCURACY = 0.75
SFT_WINS = 0.65
PPO_WINS = 0.65
PPO_WINS_PER_USE_CASE = 0.50
KL_BOUND = 6.0
"""Nats, summed over a response's tokens, mean over episodes. The one trial past it (7.0) had lost an item of its stories."""
DISTINCT_RESPONSES = 0.5
PROMPT_DEPENDENCE = 0.3
PROMPTS = 500


RULES = (
    gate.Rule("prompts evaluated", "prompts", floor=PROMPTS),
    gate.Rule("reward model agrees with gold", "rm.gold_accuracy", floor=RM_GOLD_ACCURACY),
    gate.Rule("SFT beats base", "sft_vs_base.rate", floor=SFT_WINS),
    gate.Rule("PPO beats SFT", "ppo_vs_sft.rate", floor=PPO_WINS),
    gate.Rule("PPO beats SFT", "ppo_vs_sft.by_use_case.*.rate", floor=PPO_WINS_PER_USE_CASE),
    gate.Rule("KL to the reference (nats)", "kl", ceiling=KL_BOUND),
    gate.Rule("distinct responses", "distinct_responses.ppo", floor=DISTINCT_RESPONSES),
    gate.Rule("dependence on the prompt", "prompt_dependence.ppo", floor=PROMPT_DEPENDENCE),
)
"""What the gate of `training/gate.py` holds a loop's report (as tests.loop.world.report gives it) against."""


NOT_WORSE = gate.Rule("gold reward against what serves: the paired interval reaches 0", "gain_vs_last.high", floor=0.0)
"""Of several nights in a row: none is significantly worse than the one before."""


def as_toml(rules: Sequence[gate.Rule], where: str) -> str:
    """Rules as a file of the gate, for figures that lie below `where`."""
    tables = []
    for rule in rules:
        values = {"name": rule.name, "figure": f"{where}.{rule.figure}", "floor": rule.floor, "ceiling": rule.ceiling}
        lines = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None
        ]
        tables.append("\n".join(["[[rule]]", *lines]))
    return "\n\n".join(tables) + "\n"


def check(report: dict) -> list[gate.GateVerdict]:
    """Every gate of a loop's report."""
    return gate.check(report, RULES)


def line(verdict: gate.GateVerdict) -> str:
    """A verdict, to print."""
    return f"{'pass' if verdict.holds else 'FAIL'}  {verdict.name:<40} {verdict.reason}"


def win_rates(ours: Sequence[float], theirs: Sequence[float], cases: Sequence[str]) -> dict:
    """How often ours scores higher than theirs on the same prompt, overall and by use case; a tie counts half."""
    each = points(ours, theirs)
    by_case = {
        case: intervals.share([point for point, of in zip(each, cases, strict=True) if of == case])
        for case in sorted(set(cases))
    }
    return intervals.share(each) | {"by_use_case": by_case}


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict:
    """Mean of the differences on the same prompts, with a 95 % interval by the normal approximation."""
    return intervals.mean([a - b for a, b in zip(ours, theirs, strict=True)])


def points(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Per prompt: 1 for a win, a half for a tie, 0 for a loss."""
    return [(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)]
