"""Prompts to answer, and other rows of JSON Lines files: what is wrong in one is told by file, line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from training.errors import StageError


def read_prompts(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows {messages, prompt_id?, external_id?} of a JSON Lines file. Raises StageError naming file, line and field."""
    for number, row in enumerate(read_rows(path), start=1):
        place = f"{path} line {number}"
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str) and messages is None:
            row["messages"] = [{"role": "user", "content": prompt}]
        elif not (isinstance(messages, list) and messages and all(_is_message(message) for message in messages)):
            raise StageError(f"{place}: field messages: expected a list of {{role, content}}, or prompt: text")
        yield to_answer(row)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def to_answer(row: dict[str, Any]) -> dict[str, Any]:
    """What sampling needs of a prompt, and what its responses name it by."""
    named = {name: row[name] for name in ("prompt_id", "external_id") if row.get(name)}
    return named | {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, one by one. Raises StageError naming file and line."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StageError(f"{path} line {number}: {error}") from None
            if not isinstance(row, dict):
                raise StageError(f"{path} line {number}: expected an object")
            yield row
