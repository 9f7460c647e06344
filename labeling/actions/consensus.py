"""Consensus of a task's rankings, kept beside them as a derived row."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from labeling import agreement, consensus
from labeling.actions.agreement import Ranked
from labeling.consensus import USUAL_RELIABILITY
from labeling.models import Consensus, Origin


def voters(rows: list[Ranked]) -> list[Ranked]:
    """Whose rankings a consensus is made of: people's; simulated labelers' where no people have ranked."""
    return [row for row in rows if row.origin == Origin.PERSON] or rows


def of(rows: list[Ranked], reliabilities: Mapping[int, float]) -> list[list[str]]:
    """The consensus of these rankings; `reliabilities` by labeler, the usual one for who has none."""
    weights = [reliabilities.get(row.labeler_id, USUAL_RELIABILITY) for row in rows]
    return consensus.consensus([row.tiers for row in rows], weights)


def replace(
    task_ids: Iterable[int], rankings: Mapping[int, list[Ranked]], reliabilities: Mapping[int, float], now: datetime
) -> None:
    """Make the tasks' consensus anew, of two rankings or more. `rankings` by task. Inside the caller's transaction."""
    made = []
    for task_id, rows in rankings.items():
        chosen = voters(rows)
        if len(chosen) > 1:
            tiers = of(chosen, reliabilities)
            shares = [agreement.compare(row.tiers, tiers).share or 0.0 for row in chosen]
            support = sum(shares) / len(shares)
            made.append(Consensus(task_id=task_id, tiers=tiers, rankings=len(chosen), support=support, computed_at=now))
    Consensus.objects.filter(task__in=list(task_ids)).delete()
    Consensus.objects.bulk_create(made)
