"""What alignment cost: the same texts and tasks by the base model and by models made from it, with paired differences.

The paper's "alignment tax" is the regression on public tasks that RLHF brings, and PPO-ptx takes back (sections 4.2 and E.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training import intervals
from training.harness import TaskResult
from training.perplexity import DocumentLoss


@dataclass
class Measured:
    """What was measured of one model: losses by document, results by task, toxicity by beginning; each may be missing."""

    name: str
    losses: list[DocumentLoss] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)
    toxicity: list[float] = field(default_factory=list)


def tax(base: Measured, others: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each figure and model: {"figure", "model", "base", "base_value", "value", "difference", "low", "high", "n", "is_worse", …}.

    Differences are the model's figure minus the base's, with a 95 % interval paired by document, item or beginning; `is_worse` where
    the whole interval lies on the worse side. Without items (BLEU) there is a difference and no interval.
    """
    rows = []
    for other in others:
        if base.losses and other.losses:
            rows.append(_row(base, other, "bits_per_byte", False, *_bits(base.losses, other.losses)))
        theirs = {result.key: result for result in other.tasks}
        rows += [_task_row(base, other, result, theirs[result.key]) for result in base.tasks if result.key in theirs]
        if base.toxicity and other.toxicity:
            before, after = (sum(one) / len(one) for one in (base.toxicity, other.toxicity))
            gaps = [b - a for a, b in zip(base.toxicity, other.toxicity, strict=True)]
            rows.append(_row(base, other, "toxicity", False, before, after, intervals.mean(gaps)))
    return rows


def _bits(base: Sequence[DocumentLoss], other: Sequence[DocumentLoss]) -> tuple[float, float, dict[str, Any]]:
    """(base's bits per byte, the other's, their difference by documents). A tokenizer may count some bytes less of a document."""
    values = [
        sum(one.nats for one in losses) / sum(one.bytes for one in losses) / math.log(2) for losses in (base, other)
    ]
    gaps = [
        (b.nats / b.bytes - a.nats / a.bytes) * a.bytes / math.log(2) if a.bytes and b.bytes else 0.0
        for a, b in zip(base, other, strict=True)
    ]
    return values[0], values[1], intervals.ratio(gaps, [one.bytes for one in base])


def _task_row(base: Measured, other: Measured, mine: TaskResult, theirs: TaskResult) -> dict[str, Any]:
    if mine.items is not None and theirs.items is not None:
        difference = intervals.mean([b - a for a, b in zip(mine.items, theirs.items, strict=True)])
    else:
        difference = {"mean": theirs.score - mine.score, "low": None, "high": None, "n": mine.n}
    return _row(base, other, mine.key, mine.higher_is_better, mine.score, theirs.score, difference)


def _row(
    base: Measured,
    other: Measured,
    figure: str,
    higher_is_better: bool,
    base_value: float,
    value: float,
    difference: dict[str, Any],
) -> dict[str, Any]:
    low, high = difference["low"], difference["high"]
    return {
        "figure": figure,
        "model": other.name,
        "base": base.name,
        "base_value": base_value,
        "value": value,
        "difference": difference["mean"],
        "low": low,
        "high": high,
        "n": difference["n"],
        "higher_is_better": higher_is_better,
        "is_worse": low is not None and high is not None and (high < 0 if higher_is_better else low > 0),
    }
