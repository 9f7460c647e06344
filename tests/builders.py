"""Rows that tests begin with: prompts, responses, batches, tasks with their seats. Real data is read from ../shared/data."""

import csv
import os
from collections import defaultdict
from pathlib import Path

import pytest

from labeling.models import Batch, Intake, LabelSchema, ModelVersion, Prompt, Response, Slot, Task, TaskResponse

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("HEED_SHARED_DATA") or ROOT.parent / "shared" / "data")


def shared_file(name: str) -> Path:
    """A file of real data; the test is skipped where it is absent, except in CI, where it must not be."""
    path = SHARED_DATA / name
    if not path.exists() and not os.environ.get("CI"):
        pytest.skip(f"{path} is absent (set HEED_SHARED_DATA)")
    return path


def label_schema() -> LabelSchema:
    """Version 1 of the label schema, made again if a transactional test's flush took it away."""
    from importlib import import_module

    content = import_module("labeling.migrations.0002_invariants").FIRST_SCHEMA
    return LabelSchema.objects.get_or_create(version=1, defaults={"content": content})[0]


def prompt(text: str | list[dict] = "Name a fruit.", **fields) -> Prompt:
    """A saved prompt of one user message (or of these messages)."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    made = Prompt.from_messages(messages, **{"intake": Intake.OPEN} | fields)
    made.save()
    return made


def batch(kind: str = "demonstration", *, name: str = "first", k: int | None = None, **fields) -> Batch:
    """An active batch."""
    k = k or (3 if kind == "ranking" else None)
    return Batch.objects.create(name=name, kind=kind, responses_per_task=k, schema=label_schema(), **fields)


def task(batch: Batch, prompt: Prompt, texts: dict[str, str] | None = None) -> Task:
    """A task of the batch with its open seats; `texts`: model name → response, for a ranking."""
    made = Task.objects.create(batch=batch, prompt=prompt, kind=batch.kind)
    for model, text in (texts or {}).items():
        version = ModelVersion.objects.get_or_create(name=model, defaults={"stage": "external"})[0]
        response = Response.objects.create(prompt=prompt, text=text, model_version=version, external_id=model)
        TaskResponse.objects.create(task=made, response=response)
    for seat in range(1, batch.overlap + 1):
        Slot.objects.create(task=made, seat=seat, batch=batch, kind=batch.kind, turn=0)
    return made


def tldr_posts() -> dict[str, dict[str, str]]:
    """The 100 TL;DR posts: post → model → its summary."""
    posts: dict[str, dict[str, str]] = defaultdict(dict)
    with shared_file("instructgpt_tldr.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            posts[row["context"]][row["model_type"]] = row["sample"]
    return posts


def nine(samples: dict[str, str]) -> dict[str, str]:
    """The outputs of the gpt, sft and ppo-ptx models (1.3B, 6B, 175B) among a post's twelve."""
    return {model: text for model, text in samples.items() if not model.startswith("ppo-noptx")}


def ranking_answer(tiers: list[list[str]], quality: int = 4, **fields) -> dict:
    """A complete ranking of these tiers of response UUIDs."""
    ratings = {uuid: {"quality": quality, "flags": {}} for tier in tiers for uuid in tier}
    return {"tiers": tiers, "ratings": ratings, "all_bad": False, "prompt_flags": {}, "comment": ""} | fields
