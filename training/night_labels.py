"""Whether there are enough new labels for a night: what an export would hold, beyond what the last decided night's held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.contract import read_export
from training.night_state import Night

if TYPE_CHECKING:
    from training.nightly import Config


def last_decided(root: Path) -> Night | None:
    """The last night that came to a decision: what its export held is not new any more."""
    nights = Night.all(root) if root.is_dir() else []
    return next((night for night in reversed(nights) if night.outcome in ("promoted", "refused")), None)


def new_labels(root: Path, labels: Mapping[str, int]) -> dict[str, int]:
    """Labels by kind beyond those that the last decided night's export held. Fewer than none where some were rejected since."""
    last = last_decided(root)
    before = (last.output("export") or {})["labels"] if last else {}
    return {kind: count - before.get(kind, 0) for kind, count in labels.items()}


def too_few(config: Config, root: Path, labels: Mapping[str, int]) -> str:
    """Why no night begins, in a line; empty when there are enough new labels of either kind."""
    new = new_labels(root, labels)
    has_demonstrations = config.base_model is not None and new["demonstrations"] >= config.min_demonstrations
    if has_demonstrations or new["rankings"] >= config.min_rankings:
        return ""
    return (
        f"nothing to do: {max(0, new['rankings'])} of {config.min_rankings} new rankings and "
        f"{max(0, new['demonstrations'])} of {config.min_demonstrations} new demonstrations so far"
    )


def count_labels(folder: Path) -> dict[str, int]:
    """An export's labels, as the web half counts them: those that may be trained on by kind, and held-out labelers'."""
    counts = {"demonstrations": 0, "rankings": 0, "held_out": 0}
    opened = read_export(folder, verify=False)
    for row in opened.demonstrations():
        counts["demonstrations" if row.labeler_group == "training" else "held_out"] += 1
    for task in opened.rankings():
        counts["rankings" if task.labeler_group == "training" else "held_out"] += len(task.rankings)
    return counts
