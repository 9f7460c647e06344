"""How often a reward model or a judge agrees with people: on the comparisons that their rankings imply, ties left out and counted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import torch

from training import intervals, rankings, rm
from training.contract import Export, Ranking, RankingRow
from training.data import encode_ranking, pairs_of
from training.errors import StageError
from training.judge import Judge, Pair, point


class People(NamedTuple):
    """The rankings of an export that count: each with its row. `ties` pairs were held equal and have no order to agree with."""

    rankings: list[tuple[RankingRow, Ranking]]
    ties: int


def read_people(export: Export, split: str, origins: Sequence[str]) -> People:
    """Rankings of the split ("all": of every one), of training and held-out labelers alike; none that was returned or rejected."""
    found, ties = [], 0
    for row in export.rankings():
        if split not in ("all", row.split):
            continue
        for ranking in row.rankings:
            if ranking.origin in origins and ranking.review not in ("returned", "rejected"):
                found.append((row, ranking))
                ties += sum(len(tier) * (len(tier) - 1) // 2 for tier in ranking.tiers)
    return People(found, ties)


def judge_agreement(judge: Judge, people: People, limit: int, seed: int) -> dict[str, Any]:
    """{"agreement", "low", "high", "n", "ties", …}: the judge's verdicts on at most `limit` of people's comparisons, drawn by the seed.

    A judge's tie (or a verdict that turned with the order) is half an agreement; `agreement_decided` is among those it decided.
    """
    pairs = list(_comparisons(people))
    if len(pairs) > limit:
        pairs = random.Random(seed).sample(pairs, limit)
    points = [point(said) for said in judge.verdicts(pairs)]
    known = [(value, pair.cluster) for value, pair in zip(points, pairs, strict=True) if value is not None]
    return figures(known, people.ties) | {"no_verdict": len(points) - len(known)}


def reward_agreement(model, tokenizer, people: People, batch: int, device: torch.device) -> dict[str, Any]:
    """The same of a reward model, on all of people's comparisons. Equal scores are ties; rankings past its context are counted."""
    runner = rankings.runner_for(model.to(device), "auto", tokenizer.pad_token_id)
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    chosen, dropped = [], 0
    for row, ranking in people.rankings:
        comparison = encode_ranking(tokenizer, row, ranking)
        fits = max(len(example.ids) for example in comparison.examples) <= context
        dropped += not fits
        if comparison.pairs and fits:
            chosen.append((row.task_id, comparison))
    scores = rm.score_rankings(runner, [comparison for _, comparison in chosen], batch)
    known = []
    for (task, comparison), rewards_K in zip(chosen, scores, strict=True):
        for better, worse in comparison.pairs:
            gap = rewards_K[better] - rewards_K[worse]
            known.append((0.5 if gap == 0 else float(gap > 0), task))
    return figures(known, people.ties) | {"dropped_too_long": dropped}


def figures(known: Sequence[tuple[float, str]], people_ties: int) -> dict[str, Any]:
    """Points with the task that each is from, as figures. The interval takes comparisons of one task as one piece of evidence."""
    points, tasks = [value for value, _ in known], [task for _, task in known]
    rate = intervals.share(points, tasks)
    decided = [value for value in points if value != 0.5]
    return {
        "agreement": rate["rate"],
        "low": rate["low"],
        "high": rate["high"],
        "n": rate["n"],
        "tasks": len(set(tasks)),
        "ties": points.count(0.5),
        "agreement_decided": sum(decided) / len(decided) if decided else None,
        "people_ties": people_ties,
    }


def _comparisons(people: People) -> Iterator[Pair]:
    """Each comparison that is no tie, people's better answer as ours."""
    for row, ranking in people.rankings:
        texts = {response.response_id: response.text for response in row.responses}
        ids = [response.response_id for response in row.responses]
        numbers = {response_id: i for i, response_id in enumerate(ids)}
        messages = [msgspec.structs.asdict(message) for message in row.messages]
        for better, worse in pairs_of([[numbers[one] for one in tier] for tier in ranking.tiers]):
            yield Pair(messages, texts[ids[better]], texts[ids[worse]], row.task_id)


def check_there_are(people: People, export: Export, split: str) -> None:
    """Raise StageError where there is no comparison to agree with."""
    if not any(len(ranking.tiers) > 1 for _, ranking in people.rankings):
        where = "in any split" if split == "all" else f"in split {split}"
        raise StageError(f"{export.ref.name}: no rankings by people {where} that put one response before another")
