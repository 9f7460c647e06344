"""Pretraining text as packed rows: for pretraining itself, for SFT's pretraining mix and for PPO-ptx.

    text = corpus.load(tokenizer, "text.jsonl", row_tokens=128, valid_documents=500)
    rows = corpus.rows_at(len(text.train.ids_BT), batch=8, seed=0, step=17)      # the same rows whenever it is asked
    loss_sum, tokens = corpus.loss_sum(model, text.train, rows, device)          # nats, and what to divide them by
    before = corpus.mean_loss(model, text.valid, batch=32, device=device)        # held-out nats per token

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from training import packing, processes, tinyworld
from training.data import TOO_LONG, OnTooLong, TooLongError, batch_at
from training.errors import StageError
from training.precision import in_precision
from training.unembedding import CHUNK_LOGITS, loss_sum_at

Document = list[dict[str, str]] | str
"""A plain text, or the messages of a dialogue."""


class Corpus(NamedTuple):
    """Packed rows to train on and rows held out, of `documents` documents together."""

    train: packing.PackedRows
    valid: packing.PackedRows
    documents: int


def load(
    tokenizer,
    path: str | None,
    *,
    row_tokens: int,
    valid_documents: int,
    documents: int = 40_000,
    seed: int = 0,
    on_too_long: OnTooLong = "raise",
    counts: Counter[str] | None = None,
    prefix: str = "",
) -> Corpus:
    """The corpus of a JSONL file of {"text"} or {"messages"} rows, or, without one, `documents` of the tiny world.

    The first `valid_documents` are held out (of the tiny world they come on top). The rest is `build`'s.
    """
    found = list(read_documents(path, documents + valid_documents, seed))
    counts = Counter() if counts is None else counts
    return build(
        tokenizer,
        found,
        row_tokens=row_tokens,
        valid_documents=valid_documents,
        on_too_long=on_too_long,
        counts=counts,
        path=path,
        prefix=prefix,
    )


def build(
    tokenizer,
    documents: Sequence[Document],
    *,
    row_tokens: int,
    valid_documents: int,
    on_too_long: OnTooLong,
    counts: Counter[str],
    path: str | None = None,
    prefix: str = "",
) -> Corpus:
    """Documents as packed rows, the first `valid_documents` of those kept apart. Raises StageError when none are left, or nothing in
    either part can be predicted.

    What is dropped is counted in `counts`. Of a text beside what a stage trains on, `prefix` is how its settings begin ("ptx_"), and
    it is counted as the text's. `path` is where the documents were read, for messages.
    """
    encoded = encode_documents(tokenizer, documents, row_tokens, on_too_long, counts, path=path, prefix=prefix)
    place, setting = f"{path}: " if path else "", f"{prefix}valid_documents"
    if len(encoded) <= valid_documents:
        raise StageError(
            f"{place}{len(encoded)} documents of text, of which {valid_documents} are held out: none to train on; lower {setting}"
        )
    for part, what in (
        (encoded[:valid_documents], f"held out ({setting})"),
        (encoded[valid_documents:], "to train on"),
    ):
        if not any(len(ids) > 1 for ids in part):
            raise StageError(f"{place}the {len(part)} documents {what} are of one token each: nothing to predict")
    valid = packing.pack(encoded[:valid_documents], row_tokens, tokenizer.pad_token_id)
    train = packing.pack(encoded[valid_documents:], row_tokens, tokenizer.pad_token_id)
    return Corpus(train, valid, len(encoded))


def read_documents(path: str | None, count: int, seed: int, *, allow_empty: bool = False) -> Iterator[Document]:
    """All documents of a JSONL file, or `count` of the tiny world. Raises StageError naming file and line, also where one or the whole
    file is empty, unless that is allowed."""
    if path is None:
        yield from tinyworld.documents(count, seed)
        return
    number = 0
    for number, line in _lines(path):
        try:
            document = _document(json.loads(line.decode("utf-8-sig")))
            if not (document or allow_empty):
                raise ValueError("field text: empty")
            yield document
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StageError(f"{path} line {number}: not JSON: {error}") from None
        except ValueError as error:
            raise StageError(f"{path} line {number}: {error}") from None
    if not (number or allow_empty):
        raise StageError(f"{path}: holds no text")


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number among all."""
    with Path(path).open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _document(row: Any) -> Document:
    """The document of a row. Raises ValueError saying what is wrong with it."""
    if isinstance(row, dict) and "text" in row:
        return _checked(row["text"], "text")
    messages = row.get("messages") if isinstance(row, dict) else None
    if not (isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)):
        raise ValueError("needs text or messages: a text, or a list of {role, content}")
    return [
        {name: _checked(message.get(name), f"messages[{number}].{name}") for name in ("role", "content")}
        for number, message in enumerate(messages)
    ]


def _checked(value: Any, field: str) -> str:
    """The value if it is a text that can be encoded; JSON lets half of a surrogate pair through."""
    if not isinstance(value, str):
        raise ValueError(f"field {field}: expected text, got {json.dumps(value)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {field}: half of a surrogate pair at character {error.start}, which is no text"
        ) from None
    return value


def read_text(path: str | Path) -> str:
    """The text of a file. Raises StageError where it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def plain_texts(documents: Iterable[Document]) -> Iterator[str]:
    """What a tokenizer learns its merges from: the texts without the template."""
    for document in documents:
        yield from [document] if isinstance(document, str) else [message["content"] for message in document]


def encode_documents(
    tokenizer,
    documents: Sequence[Document],
    row_tokens: int,
    on_too_long: OnTooLong,
    counts: Counter[str],
    *,
    path: str | None = None,
    prefix: str = "",
) -> list[list[int]]:
    """Token ids, each ending in EOS, dialogues by the chat template; documents longer than a row raise or are dropped and counted."""
    texts = [d if isinstance(d, str) else tokenizer.apply_chat_template(d, tokenize=False) for d in documents]
    encoded = []
    for number, ids in enumerate(tokenizer(texts, add_special_tokens=False)["input_ids"], start=1):
        ids = ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
        if len(ids) <= row_tokens:
            encoded.append(ids)
        elif on_too_long == "drop":
            counts[f"text_{TOO_LONG}" if prefix else TOO_LONG] += 1
        else:
            place = f"{path} line {_line_of(path, number)}" if path else f"document {number}"
            raise TooLongError(
                f"{place}: {len(ids)} tokens, more than a row's {row_tokens}; raise {prefix}row_tokens or set on_too_long to drop"
            )
    return encoded


def _line_of(path: str, number: int) -> int:
    """Where the file's document of this number stands, blank lines counted too."""
    return next(itertools.islice(_lines(path), number - 1, None))[0]


def rows_at(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The rows of one step, a pure function of its arguments: a resumed run needs no cursor but its step number."""
    return batch_at(count, batch, seed, step)


@in_precision
def loss_sum(
    model, rows: packing.PackedRows, chosen: Sequence[int], device: torch.device | str
) -> tuple[torch.Tensor, int]:
    """(sum of −log p over next tokens of the same document, their number) for the chosen rows.

    The first token of a document is no target: it has nothing before it.
    """
    batch = packing.PackedRows(*(tensor[list(chosen)].to(device) for tensor in rows))
    labels_BT, loss_BT = packing.targets(batch)
    mask, tokens = packing.mask_for(model, batch.segments_BT), int(loss_BT.sum())
    if batch.ids_BT.numel() * model.config.get_text_config().vocab_size > CHUNK_LOGITS["cpu"]:
        return loss_sum_at(model, batch.ids_BT, mask, batch.positions_BT, labels_BT, loss_BT), tokens
    # So few logits that chunks would save nothing; kept as it was, so that tiny models keep their numbers bit for bit.
    output = model(input_ids=batch.ids_BT, attention_mask=mask, position_ids=batch.positions_BT, use_cache=False)
    labels = torch.where(loss_BT, labels_BT, -100).flatten()
    return F.cross_entropy(output.logits.flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum"), tokens


def backward_mean(
    model, rows: packing.PackedRows, chosen: Sequence[int], device: torch.device | str, weight: float = 1.0
) -> torch.Tensor:
    """Accumulate the gradient of weight · mean loss over the chosen rows' target tokens; returns that mean (nats, detached).

    Of several processes each takes its share of the rows and divides by the tokens of all: its gradient, and the mean it
    returns, are terms of a sum.
    """
    tokens = target_count(rows, chosen)
    mine = [chosen[i] for i in processes.share([1] * len(chosen))]
    if not mine:
        return torch.zeros((), device=device)
    loss, _ = loss_sum(model, rows, mine, device)
    (weight * loss / tokens).backward()
    return loss.detach() / tokens


def target_count(rows: packing.PackedRows, chosen: Sequence[int]) -> int:
    """How many tokens of the chosen rows have one before them in the same document: what a loss sum is to be divided by."""
    _, loss_BT = packing.targets(packing.PackedRows(*(tensor[list(chosen)] for tensor in rows)))
    return int(loss_BT.sum())


@torch.no_grad()
def mean_loss(model, rows: packing.PackedRows, batch: int, device: torch.device | str) -> float:
    """Language-model loss over all rows, in nats per token. Leaves the model in evaluation mode."""
    model.eval()
    indices = processes.share([1] * len(rows.ids_BT))
    parts = [loss_sum(model, rows, indices[i : i + batch], device) for i in range(0, len(indices), batch)]
    sums = processes.total({"loss": sum(loss.item() for loss, _ in parts), "tokens": sum(n for _, n in parts)})
    return sums["loss"] / sums["tokens"]
