"""Perplexity on held-out text: per token, and per byte, which alone compares models of different tokenizers.

    losses = document_losses(model, tokenizer, read_texts("heldout/"), context=1024, batch=16, device=device)
    figures(losses)["per_byte"]

A document longer than the context runs in windows that overlap by half, so that each token but those of the first window has at least half
a context before it, and each is counted once. The first token has nothing before it and is not counted, unless it is the
tokenizer's own BOS, which is never counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training import corpus, intervals
from training.data import Example, collate
from training.errors import StageError
from training.unembedding import logprobs_at

TINY_WORLD = "tinyworld"
SUFFIXES = (".txt", ".md", ".jsonl")


class DocumentLoss(NamedTuple):
    """−log p of a document's counted tokens in nats, how many they are, and how many bytes of text they stand for."""

    nats: float
    tokens: int
    bytes: int


def read_texts(path: str, documents: int, seed: int = 1) -> list[str]:
    """Texts of a file or of a folder's files, at most so many: a .txt or .md is one document, a .jsonl has one in each row (`text`, or
    the contents of `messages`). "tinyworld": of the project's own text, by a seed that pretraining does not use."""
    if path == TINY_WORLD:
        return list(corpus.plain_texts(corpus.read_documents(None, documents, 1_000_003 + seed)))[:documents]
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES) if root.is_dir() else [root]
    texts = list(itertools.islice(itertools.chain.from_iterable(_texts_of(file) for file in files), documents))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise StageError(f"{path}: no text here ({', '.join(SUFFIXES)})")
    return texts


def _texts_of(file: Path):
    if file.suffix == ".jsonl":
        return corpus.plain_texts(corpus.read_documents(str(file), 0, 0, allow_empty=True))
    return [corpus.read_text(file)]


def windows(length: int, context: int) -> list[tuple[int, int, int]]:
    """(start, end, first counted) of the windows that a document of so many tokens runs in; its first token is never counted."""
    found, counted = [], 1
    while counted < length:
        start = 0 if counted == 1 else counted - context // 2
        end = min(length, start + context)
        found.append((start, end, counted))
        counted = end
    return found


@torch.no_grad()
def document_losses(
    model, tokenizer, texts: Sequence[str], *, context: int, batch: int, device: torch.device
) -> list[DocumentLoss]:
    """The loss of each text, in order. Leaves the model in evaluation mode."""
    model.eval()
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    parts = [
        (number, Example(ids[start:end], first - start))
        for number, ids in enumerate(encoded)
        for start, end, first in windows(len(ids), context)
    ]
    parts.sort(key=lambda part: -len(part[1].ids))
    nats = [0.0] * len(texts)
    for start in range(0, len(parts), batch):
        chosen = parts[start : start + batch]
        for (number, _), loss in zip(chosen, _losses(model, tokenizer, chosen, device), strict=True):
            nats[number] += loss
    return [
        DocumentLoss(loss, max(0, len(ids) - 1), _counted_bytes(tokenizer, text, ids))
        for loss, ids, text in zip(nats, encoded, texts, strict=True)
    ]


def _losses(model, tokenizer, chosen: Sequence[tuple[int, Example]], device: torch.device) -> list[float]:
    rows = collate([example for _, example in chosen], tokenizer.pad_token_id or 0, device)
    next_BT = rows.loss_BT.roll(-1, 1)
    next_BT[:, -1] = False
    # Padded on the right, so a causal model needs no mask for the kept tokens.
    logprobs_N = logprobs_at(model, rows.ids_BT, None, None, rows.ids_BT.roll(-1, 1), next_BT)
    return [-float(part.double().sum()) for part in logprobs_N.split(next_BT.sum(1).tolist())]


def _counted_bytes(tokenizer, text: str, ids: Sequence[int]) -> int:
    """Bytes of UTF-8 that the counted tokens stand for: all but the first token's, all where that is a BOS."""
    first = 0 if not ids or ids[0] == tokenizer.bos_token_id else len(tokenizer.decode(ids[:1]).encode())
    return max(0, len(text.encode()) - first)


def figures(losses: Sequence[DocumentLoss]) -> dict[str, Any]:
    """{"per_token", "per_byte", "bits_per_byte", "low", "high", "loss", "tokens", "bytes", "documents"}: low and high of bits per byte."""
    nats, tokens, size = (sum(column) for column in zip(*losses, strict=True))
    if not tokens:
        raise StageError("perplexity: no document has more than one token")
    bits = intervals.ratio([loss.nats / math.log(2) for loss in losses], [loss.bytes for loss in losses])
    return {
        "per_token": _exp(nats / tokens),
        "per_byte": _exp(nats / size),
        "bits_per_byte": bits["mean"],
        "low": bits["low"],
        "high": bits["high"],
        "loss": nats / tokens,
        "tokens": tokens,
        "bytes": size,
        "documents": len(losses),
    }


def _exp(value: float) -> float | None:
    """None past what a float holds: JSON has no infinity."""
    return math.exp(value) if value < 700 else None
