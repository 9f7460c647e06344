"""Accuracies on rankings: the share of non-tied pairs that a score orders as the labelers did, split in every way that is asked.

Ties are never counted here: a pair that labelers hold equal has no order to get right.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import torch

from training.data import Comparison
from training.errors import StageError


class Tally:
    """Counts pairs and hits of one split: in all, by labeler group, by use case, by K, and by which two policies wrote the pair."""

    def __init__(self, split: str):
        self.split = split
        self.right: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.policy_right: Counter[str] = Counter()
        self.policy_pairs: Counter[str] = Counter()

    def add(self, comparison: Comparison, scores_K: Sequence[float]) -> None:
        """Count one ranking's pairs under these scores of its K responses; an equal score is no hit."""
        keys = ("", f"_{comparison.group}", f"_{comparison.use_case}", f"_k{len(comparison.examples)}")
        for better, worse in comparison.pairs:
            is_right = scores_K[better] > scores_K[worse]
            for key in keys:
                self.pairs[key] += 1
                self.right[key] += is_right
            names = sorted(comparison.models[i] or "unnamed" for i in (better, worse))
            self.policy_pairs[" vs ".join(names)] += 1
            self.policy_right[" vs ".join(names)] += is_right

    def metrics(self) -> dict:
        """`accuracy_SPLIT…` by group, use case and K; under `accuracy_by_policies_SPLIT` for "A vs B" its accuracy and pairs."""
        figures: dict = {f"accuracy_{self.split}{key}": self.right[key] / self.pairs[key] for key in sorted(self.pairs)}
        if self.policy_pairs:
            figures[f"accuracy_by_policies_{self.split}"] = {
                names: {"accuracy": self.policy_right[names] / count, "pairs": count}
                for names, count in sorted(self.policy_pairs.items())
            }
        return figures


def fold_labelers(comparisons: Sequence[Comparison], folds: int, seed: int) -> list[set[str | None]]:
    """The labelers of these rankings in `folds` shares of like size, a function of who they are and the seed.

    Rankings without a pseudonym count as one labeler's, so that none can stand on both sides. Raises StageError when there are
    fewer labelers than folds.
    """
    labelers = sorted({comparison.labeler for comparison in comparisons}, key=lambda name: (name is None, name))
    if len(labelers) < folds:
        raise StageError(f"labeler_folds: {len(labelers)} labelers have rankings to train on, fewer than {folds} folds")
    order = torch.randperm(len(labelers), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{labelers[i] for i in order[fold::folds]} for fold in range(folds)]


def summarize_folds(accuracies: Sequence[float]) -> dict:
    """Mean over the folds and its standard error, s/√k, as the paper reports (section 3.5), with each fold's figure."""
    return {
        "accuracy_labeler_folds": statistics.fmean(accuracies),
        "accuracy_labeler_folds_standard_error": statistics.stdev(accuracies) / len(accuracies) ** 0.5,
        "accuracy_of_each_labeler_fold": list(accuracies),
    }
