"""Rankings as pairs of a better and a worse response: what trainers of other libraries read (`prompt`, `chosen`, `rejected`)."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec

from training.contract import Message, PairRow, Ranking, RankingRow

_decode = msgspec.json.Decoder(RankingRow).decode


def pairs_in(rankings: Path, split: str) -> Iterator[PairRow]:
    """The pairs of a rankings.jsonl that belong to `split`, in the order of its rows: "held_out" are those of held-out labelers,
    the others are the training labelers' on prompts of train, valid and test."""
    held_out = b'"labeler_group":"held_out"'  # unescaped quotes: no text can hold these bytes
    of_split = held_out if split == "held_out" else f'"split":"{split}"'.encode()
    with rankings.open("rb") as file:
        for line in file:
            if of_split in line and (split == "held_out" or held_out not in line):
                yield from pairs_of(_decode(line))


def pairs_of(row: RankingRow) -> Iterator[PairRow]:
    """Every two responses that a ranking puts in different tiers; a tie makes no pair. Sorted by ranking, chosen, rejected."""
    for ranking in sorted(row.rankings, key=lambda one: one.ranking_id):
        better_and_worse = (
            (chosen, rejected)
            for above, below in combinations(ranking.tiers, 2)
            for chosen in above
            for rejected in below
        )
        for chosen, rejected in sorted(better_and_worse):
            yield _pair(row, ranking, chosen, rejected)


def _pair(row: RankingRow, ranking: Ranking, chosen: str, rejected: str) -> PairRow:
    texts = {response.response_id: response.text for response in row.responses}
    return PairRow(
        task_id=row.task_id,
        labeler_group=row.labeler_group,
        ranking_id=ranking.ranking_id,
        chosen_id=chosen,
        rejected_id=rejected,
        prompt_id=row.prompt_id,
        split=row.split,
        use_case=row.use_case,
        labeler=ranking.labeler,
        origin=ranking.origin,
        review=ranking.review,
        prompt=row.messages,
        chosen=[Message(role="assistant", content=texts[chosen])],
        rejected=[Message(role="assistant", content=texts[rejected])],
    )
