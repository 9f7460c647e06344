"""One answer of each model to each prompt, to be compared: sampled from folders, or read from a file that `sample` wrote.

A folder's few-shot prefix stands before the first user turn while it answers, and nowhere else: who judges sees the prompt as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training import models
from training.contract import Export, read_model_manifest
from training.data import LengthLimits, encode_prompt
from training.errors import StageError
from training.generation import sample_texts
from training.prompt_files import read_rows
from training.writers import digest, with_prefix

Messages = list[dict[str, str]]


class Answers(NamedTuple):
    """A model's answers, in the prompts' order, and whether each ended by itself. `chosen_by`: reward models that chose them."""

    name: str
    texts: list[str]
    finished: list[bool]
    chosen_by: frozenset[str] = frozenset()


def prompts_of(export: Export, split: str, most: int) -> list[Messages]:
    """The split's prompts in the export's order, at most so many."""
    rows = (row for row in export.prompts() if row.split == split)
    found = [[{"role": m.role, "content": m.content} for m in row.messages] for row in rows]
    if not found:
        raise StageError(f"{export.ref.name}: no prompts in split {split}")
    return found[:most]


def few_shot_prefix(folder: str | Path) -> str:
    """What the folder's manifest puts before the first user turn; nothing for a model from elsewhere."""
    path = Path(folder)
    return read_model_manifest(path, verify=False).few_shot_prefix if (path / "manifest.json").exists() else ""


def fitting(
    sources: Sequence[str], prompts: Sequence[Messages], limits: LengthLimits, counts: Counter[str]
) -> list[Messages]:
    """The prompts that every folder among the sources can take, so that all answer the same; others raise or are counted."""
    kept = list(prompts)
    for source in sources:
        if not is_file(source):
            tokenizer, prefix = models.load_tokenizer(source), few_shot_prefix(source)
            lengths = [len(encode_prompt(tokenizer, with_prefix(prompt, prefix))) for prompt in kept]
            kept = [
                prompt
                for number, (prompt, length) in enumerate(zip(kept, lengths, strict=True), start=1)
                if limits.admits(f"{source}: prompt {number}", length, 0, counts)
            ]
    if not kept:
        raise StageError("no prompts are left: all are longer than the limit")
    return kept


def is_file(source: str) -> bool:
    """Whether a source is a file of answers; a folder, or a name on a hub, is a model."""
    return Path(source).is_file()


def answers_of(
    source: str,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    device: torch.device,
) -> Answers:
    """One answer to each prompt. Every folder draws the same random numbers, so equal models give equal answers."""
    if is_file(source):
        return read_answers(source, prompts)
    tokenizer, prefix = models.load_tokenizer(source), few_shot_prefix(source)
    texts, reasons = sample_texts(
        models.load_policy(source, device),
        tokenizer,
        [encode_prompt(tokenizer, with_prefix(prompt, prefix)) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
    )
    return Answers(name_of(source), texts, [reason == "stop" for reason in reasons])


def name_of(source: str) -> str:
    """What a model calls itself in its manifest; else its folder's name."""
    path = Path(source)
    return read_model_manifest(path, verify=False).name if (path / "manifest.json").exists() else path.name or source


def read_answers(path: str, prompts: Sequence[Messages]) -> Answers:
    """The first answer to each prompt of a file of one model's responses. Raises StageError for several models, or a prompt without."""
    found: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for number, row in enumerate(read_rows(path), start=1):
        is_whole = row.keys() >= {"messages", "model", "response", "finish_reason"}
        if not (is_whole and isinstance(row["model"], str) and isinstance(row["response"], str)):
            raise StageError(f"{path} line {number}: needs messages, model, response (a text) and finish_reason")
        names.add(row["model"])
        found.setdefault(digest(row["messages"]), row)
    if len(names) != 1:
        raise StageError(f"{path}: answers of {len(names)} models, expected those of one")
    missing = sum(digest(prompt) not in found for prompt in prompts)
    if missing:
        raise StageError(f"{path}: no answer to {missing} of {len(prompts)} prompts")
    rows = [found[digest(prompt)] for prompt in prompts]
    sampled = [row["sampling"] for row in rows if isinstance(row.get("sampling"), dict)]
    chosen_by = frozenset(str(sampling.get("reward_model") or "") for sampling in sampled) - {""}
    return Answers(
        names.pop(), [r["response"] for r in rows], [r["finish_reason"] != "length" for r in rows], chosen_by
    )
