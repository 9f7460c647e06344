"""A training stage with a fault put in, for the nights of sabotage.py: `python -m tests.loop.faults FAULT STAGE --flag value …`.

A fault touches the stage that it is about; the others run as they are.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import msgspec

from training.__main__ import main as run_stage
from training.contract import Export, Ranking, RankingRow

LARGEST_FILE = 200_000  # bytes: less than any model has


def shuffled_labels(arguments: list[str]) -> int:
    """Every labeler's tiers hold responses at random."""
    rng = random.Random(0)

    def shuffle(ranking: Ranking, _group: str) -> list[list[Any]]:
        ids = [each for tier in ranking.tiers for each in tier]
        rng.shuffle(ids)
        return [[ids.pop() for _ in tier] for tier in ranking.tiers]

    return _with_other_tiers(arguments, shuffle)


def reversed_rankings(arguments: list[str]) -> int:
    """What the reward model learns from is worst first; held-out labelers' rankings are as they were."""
    return _with_other_tiers(
        arguments, lambda ranking, group: ranking.tiers[::-1] if group == "training" else ranking.tiers
    )


def _with_other_tiers(arguments: list[str], tiers: Callable[[Ranking, str], list[list[Any]]]) -> int:
    read = Export.rankings

    def rankings(self: Export) -> Iterator[RankingRow]:
        for row in read(self):
            changed = [msgspec.structs.replace(each, tiers=tiers(each, row.labeler_group)) for each in row.rankings]
            yield msgspec.structs.replace(row, rankings=changed)

    with patch.object(Export, "rankings", rankings):
        return run_stage(arguments)


def kl_off(arguments: list[str]) -> int:
    """PPO without its leash."""
    return run_stage([*arguments, "--kl-coef", "0"])


def nan_in_the_optimiser(arguments: list[str]) -> int:
    """The third step of any optimiser makes a weight that is not a number."""
    import torch

    step, steps = torch.optim.AdamW.step, 0

    def poisoned(self: torch.optim.AdamW, *rest: Any, **more: Any) -> Any:
        nonlocal steps
        result = step(self, *rest, **more)
        if (steps := steps + 1) == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("nan")
        return result

    with patch.object(torch.optim.AdamW, "step", poisoned):
        return run_stage(arguments)


def full_disk(arguments: list[str]) -> int:
    """No file takes more than LARGEST_FILE bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    return run_stage(arguments)


def impatient(arguments: list[str]) -> int:
    """A server that does not answer is given up at once; else it is waited for, a quarter of an hour."""
    from training import client

    with patch.dict(client.HttpClient.__init__.__kwdefaults__, patience_seconds=1.0):
        return run_stage(arguments)


FAULTS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "labels shuffled": ("rm", shuffled_labels),
    "rankings reversed": ("rm", reversed_rankings),
    "KL off": ("ppo", kl_off),
    "NaN in the optimiser": ("ppo", nan_in_the_optimiser),
    "disk full": ("rm", full_disk),
    "policy server down": ("sample", impatient),
}
"""By name: the stage that it is put in, and how."""


if __name__ == "__main__":
    _, name, *given = sys.argv
    stage, fault = FAULTS[name]
    sys.exit(fault(given) if given[0] == stage else run_stage(given))
