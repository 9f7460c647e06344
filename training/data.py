"""From text to token ids: one chat template for training and serving, lengths by count, and which labels may be trained on.

Shapes: B rows, T tokens. Masks are boolean, True = keep. Padding never says where a text ends: lengths do, so pad may be
the same token as EOS.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Literal, NamedTuple

import torch

from training.contract import DemonstrationRow, Export, Message, Ranking, RankingRow
from training.errors import StageError

OnTooLong = Literal["raise", "drop"]

TOO_LONG = "dropped_too_long"
"""What records are counted as that are dropped for their length and would have been trained on; others get a name that says which."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""The template of models pretrained here. It begins with no BOS, so no door can add a second one."""


class TooLongError(StageError):
    """A record exceeds the token limit and the run was told to raise rather than to drop."""


@dataclass(frozen=True)
class LengthLimits:
    """Tokens allowed in a prompt and in a response (EOS included), and what happens past them."""

    prompt_tokens: int
    response_tokens: int
    on_too_long: OnTooLong = "raise"

    def admits(
        self, place: str, prompt_tokens: int, response_tokens: int, counts: Counter[str], counted_as: str = TOO_LONG
    ) -> bool:
        """True when the record fits. Else counts it as dropped, or raises TooLongError naming `place`."""
        if prompt_tokens <= self.prompt_tokens and response_tokens <= self.response_tokens:
            return True
        if self.on_too_long == "raise":
            raise TooLongError(
                f"{place}: {prompt_tokens} prompt + {response_tokens} response tokens, more than the limit of "
                f"{self.prompt_tokens} + {self.response_tokens}; raise prompt_tokens or response_tokens, or set on_too_long to drop"
            )
        counts[counted_as] += 1
        return False


@dataclass(frozen=True)
class Example:
    """A prompt with one response: token ids, of which the first `prompt_tokens` carry no loss."""

    ids: list[int]
    prompt_tokens: int

    @property
    def response_tokens(self) -> int:
        """Tokens of the response, EOS included where it was finished."""
        return len(self.ids) - self.prompt_tokens


class Batch(NamedTuple):
    """Right-padded rows. `loss_BT[b, t]`: token t of row b is one the model is trained to produce."""

    ids_BT: torch.Tensor
    keep_BT: torch.Tensor
    positions_BT: torch.Tensor
    loss_BT: torch.Tensor
    lengths_B: torch.Tensor


def encode_prompt(tokenizer, messages: Sequence[Message | dict[str, str]]) -> list[int]:
    """Ids up to where the response begins, by the tokenizer's own chat template: what serving feeds the model, exactly."""
    turns = [m if isinstance(m, dict) else {"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)


def encode_response(tokenizer, text: str, *, finished: bool = True) -> list[int]:
    """Ids of a response; EOS is its last token when it was finished, and absent when it was cut off by length."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [*ids, tokenizer.eos_token_id] if finished else ids


def encode_dialogue(
    tokenizer, messages: Sequence[Message | dict[str, str]], response: str, finished: bool = True
) -> Example:
    """A prompt and its response as one sequence; prompt ids are the serving ids, never re-tokenised with the response."""
    prompt = encode_prompt(tokenizer, messages)
    return Example(prompt + encode_response(tokenizer, response, finished=finished), len(prompt))


def collate(examples: Sequence[Example], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Right-pad examples to the longest. The EOS label is trained even when pad is the same token."""
    lengths_B = torch.tensor([len(example.ids) for example in examples])
    prompt_B = torch.tensor([example.prompt_tokens for example in examples])
    steps_T = torch.arange(int(lengths_B.max()))
    ids_BT = torch.full((len(examples), len(steps_T)), pad_id)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
    keep_BT = steps_T < lengths_B[:, None]
    loss_BT = keep_BT & (steps_T >= prompt_B[:, None])
    positions_BT = steps_T.expand_as(ids_BT)
    return Batch(*(tensor.to(device) for tensor in (ids_BT, keep_BT, positions_BT, loss_BT, lengths_B)))


def length_groups(lengths: Sequence[int], parts: int, part_cost: int) -> list[list[int]]:
    """Indices of rows in groups of like length, longest first, so that a batch pads little.

    `parts` groups of equal count; 0: as many as make the padded tokens, plus `part_cost` tokens for each group, fewest.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if parts:
        size = -(-len(order) // parts)
        return [order[start : start + size] for start in range(0, len(order), size)]
    stride = -(-len(order) // 64)  # at most 64 places to cut: the search is quadratic in them
    ends = [*range(stride, len(order), stride), len(order)]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # end of a group → (cost so far, where that group starts)
    for end in ends:
        costs = ((cost + part_cost + lengths[order[start]] * (end - start), start) for start, (cost, _) in best.items())
        best[end] = min(costs)
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BP, keep_BP) with the prompts flush right, so that all responses begin in the same column."""
    width = max(len(prompt) for prompt in prompts)
    ids_BP = torch.full((len(prompts), width), pad_id)
    keep_BP = torch.zeros((len(prompts), width), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
        keep_BP[row, width - len(prompt) :] = True
    return ids_BP.to(device), keep_BP.to(device)


def optimizer_steps(count: int, epochs: int, batch: int) -> int:
    """Steps of `epochs` passes over `count` records, in batches of `batch` or, where there are fewer records, of all of them."""
    return count * epochs // min(batch, count)


def check_some(records: Sequence[object], what: str, counts: Counter[str]) -> None:
    """Raise StageError, with the reasons that were counted, when there is nothing to train on."""
    if not records:
        reasons = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise StageError(f"the export has no {what} to train on in its train split{reasons and f' ({reasons})'}")


def longest(examples: Iterable[Example]) -> int:
    """Tokens of the longest, prompt included; 0 for none."""
    return max((len(example.ids) for example in examples), default=0)


def batch_facts(count: int, epochs: int, batch: int) -> dict[str, int]:
    """What a run's report says of its batches, where there is something to say.

    `batch_size_lowered_to`: all records, where they are fewer than a batch. `skipped_incomplete_batch`: records that the last of
    `optimizer_steps` leaves for one more, smaller batch.
    """
    facts = {"batch_size_lowered_to": min(batch, count), "skipped_incomplete_batch": count * epochs % min(batch, count)}
    return {name: number for name, number in facts.items() if number not in (0, batch)}


def shuffled_batches(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices, a new order each epoch; the last batch of an epoch takes from the next.

    A pure function of its arguments: after a kill, skipping as many batches as were done gives the same data again.
    """
    for step in itertools.count():
        yield batch_at(count, batch, seed, step)


def batch_at(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The batch that `shuffled_batches` gives at one step, without the ones before it."""
    if count == 0:
        raise StageError("nothing to train on: the selection is empty")
    epoch, start = divmod(step * batch, count)
    pending = list(_order(count, seed, epoch)[start : start + batch])
    while len(pending) < batch:
        epoch += 1
        pending += _order(count, seed, epoch)[: batch - len(pending)]
    return pending


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return tuple(torch.randperm(count, generator=generator).tolist())


# ---- which labels count ---------------------------------------------------------------------------------------------


def is_trainable(label: DemonstrationRow | Ranking, group: str, counts: Counter[str]) -> bool:
    """Whether a label may be trained on; why not is counted. Held-out labelers' labels never are (section 3.4)."""
    if group != "training":
        counts["skipped_held_out"] += 1
    elif label.review in ("returned", "rejected"):
        counts["skipped_not_accepted"] += 1
    elif label.is_surplus:
        counts["skipped_surplus"] += 1
    else:
        return True
    return False


def read_demonstrations(export: Export, split: str, counts: Counter[str]) -> list[DemonstrationRow]:
    """The split's demonstrations that may be trained on, in the export's order."""
    rows = (row for row in export.demonstrations() if row.split == split)
    return [row for row in rows if is_trainable(row, row.labeler_group, counts)]


def encode_demonstrations(
    tokenizer, rows: Iterable[DemonstrationRow], limits: LengthLimits, counts: Counter[str], counted_as: str = TOO_LONG
) -> list[Example]:
    """Demonstrations as examples; those over the limits raise or are dropped and counted."""
    examples = []
    for row in rows:
        example = encode_dialogue(tokenizer, row.messages, row.response)
        place = f"demonstration {row.demonstration_id}"
        if limits.admits(place, example.prompt_tokens, example.response_tokens, counts, counted_as):
            examples.append(example)
    return examples


@dataclass(frozen=True)
class Comparison:
    """One labeler's ranking of K responses: examples, their (better, worse) pairs without ties, and C(K, 2).

    `ties` are the tied pairs; `models[i]` names the policy that wrote response i; `labeler` is the pseudonym of who ranked.
    One Comparison is one batch element of the reward model.
    """

    examples: list[Example]
    pairs: list[tuple[int, int]]
    pair_count: int
    models: list[str | None]
    group: str
    use_case: str | None
    ties: list[tuple[int, int]] = field(default_factory=list)
    labeler: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of its responses, each with its prompt."""
        return sum(len(example.ids) for example in self.examples)


def pairs_of(tiers: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """All (better, worse) pairs that tiers imply, best tier first; members of one tier are ties and make none."""
    return [(w, l) for high, low in combinations(tiers, 2) for w in high for l in low]


def ties_of(tiers: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """All pairs of members of one tier."""
    return [pair for tier in tiers for pair in combinations(tier, 2)]


def encode_ranking(tokenizer, row: RankingRow, ranking: Ranking) -> Comparison:
    """A ranking as one batch element. A response that its sampler cut off by length carries no EOS."""
    index = {response.response_id: i for i, response in enumerate(row.responses)}
    prompt = encode_prompt(tokenizer, row.messages)
    examples = [
        Example(prompt + encode_response(tokenizer, r.text, finished=r.finish_reason != "length"), len(prompt))
        for r in row.responses
    ]
    tiers = [[index[i] for i in tier] for tier in ranking.tiers]
    models = [response.model for response in row.responses]
    k = len(examples)
    return Comparison(
        examples,
        pairs_of(tiers),
        k * (k - 1) // 2,
        models,
        row.labeler_group,
        row.use_case,
        ties_of(tiers),
        ranking.labeler,
    )


def read_comparisons(
    export: Export,
    tokenizer,
    split: str,
    limits: LengthLimits,
    counts: Counter[str],
    *,
    for_training: bool,
    with_all_tied: bool = False,
) -> list[Comparison]:
    """The split's rankings with at least one pair. `for_training` leaves out held-out labelers' (and counts them).

    `with_all_tied` keeps those whose responses all tie, for a loss that has a term for ties.
    """
    comparisons = []
    for row in export.rankings():
        if row.split != split:
            continue
        for ranking in row.rankings:
            group = row.labeler_group if for_training else "training"
            if not is_trainable(ranking, group, counts):
                continue
            comparison = encode_ranking(tokenizer, row, ranking)
            largest = max(comparison.examples, key=lambda example: len(example.ids))
            place = f"ranking {ranking.ranking_id} of task {row.task_id}"
            if not comparison.pairs and not (with_all_tied and comparison.ties):
                counts["skipped_all_tied"] += 1
            elif limits.admits(place, largest.prompt_tokens, largest.response_tokens, counts):
                comparisons.append(comparison)
    return comparisons


def read_measured(export: Export, tokenizer, limits: LengthLimits, counts: Counter[str]) -> dict[str, list[Comparison]]:
    """Each split's rankings to measure on, held-out labelers' too; what is dropped is counted as `dropped_too_long_SPLIT`.

    To be read before training: a record that is too long must not end a run that has all its steps behind it.
    """
    measured = {}
    for split in ("train", "valid", "test"):
        dropped: Counter[str] = Counter()
        measured[split] = read_comparisons(export, tokenizer, split, limits, dropped, for_training=False)
        if dropped[TOO_LONG]:  # what else is counted is not of records to train on
            counts[f"{TOO_LONG}_{split}"] += dropped[TOO_LONG]
    return measured


def read_prompts(
    export: Export, tokenizer, split: str, limits: LengthLimits, counts: Counter[str], counted_as: str = TOO_LONG
) -> list[list[int]]:
    """Token ids of the split's prompts; those over the limit raise or are dropped and counted."""
    prompts = []
    for row in export.prompts():
        if row.split == split:
            ids = encode_prompt(tokenizer, row.messages)
            if limits.admits(f"prompt {row.prompt_id}", len(ids), 0, counts, counted_as):
                prompts.append(ids)
    return prompts
