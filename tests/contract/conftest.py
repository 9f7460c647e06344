"""One small export that holds every kind of field: the rows behind the golden files."""

import pytest

from training import contract as c

MESSAGES = [
    c.Message(role="system", content="Be brief."),
    c.Message(role="user", content="Naïve “quotes” — 你好\n\t\\ \U0001f642"),
]
EARLY, LATE, LATEST = "2026-01-01T00:00:00Z", "2026-01-02T10:20:30Z", "2026-01-03T00:00:00.123456Z"


def uid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def prompt(number: int, **fields) -> c.PromptRow:
    defaults = {
        "external_id": None, "kind": "plain", "use_case": None, "source": "import", "split": "train", "author": None,
        "organization": None, "messages": MESSAGES, "metadata": "{}",
    }  # fmt: skip
    return c.PromptRow(prompt_id=uid(number), **defaults | fields)


def demonstration(number: int, **fields) -> c.DemonstrationRow:
    revisions = [
        c.RevisionRow(revision=1, response="First try", submitted_at=EARLY),
    ]
    review = c.ReviewRow(revision=1, verdict="returned", comment="Shorter", reviewer="r-1", reviewed_at=LATE)
    defaults = {
        "prompt_id": uid(1), "split": "train", "use_case": None, "messages": MESSAGES, "response": "Better",
        "labeler": "l-1", "labeler_group": "training", "origin": "person", "review": "unreviewed", "is_surplus": False,
        "schema_version": 1, "revision": 2, "submitted_at": LATE, "earlier_revisions": revisions, "reviews": [review],
    }  # fmt: skip
    return c.DemonstrationRow(demonstration_id=uid(number), **defaults | fields)


def ranking(number: int, tiers: list[list[str]], **fields) -> c.Ranking:
    ids = sorted(i for tier in tiers for i in tier)
    flags = c.Flags(yes=[], no=["opinion"], unanswered=["hallucination"])
    ratings = [c.Rating(response_id=i, quality=q, flags=flags) for i, q in zip(ids, [7, None, 1], strict=False)]
    content = {
        "tiers": tiers,
        "all_bad": False,
        "ratings": ratings,
        "prompt_flags": flags,
        "comment": "",
        "schema_version": 1,
    }
    defaults = {
        "labeler": f"l-{number}", "origin": "person", "review": "accepted", "is_surplus": False,
        "shown_order": ids[::-1], "revision": 1, "submitted_at": LATEST, "earlier_revisions": [], "reviews": [],
    }  # fmt: skip
    return c.Ranking(ranking_id=uid(number), **defaults | content | fields)


def ranking_row(number: int, rankings: list[c.Ranking], **fields) -> c.RankingRow:
    responses = [
        c.RankedResponse(response_id=uid(100), text="A", model="ppo-1", origin="model", finish_reason="stop",
                         sampling='{"temperature":1.0,"seed":7}'),
        c.RankedResponse(response_id=uid(101), text="", model=None, origin="person", finish_reason=None, sampling="{}"),
        c.RankedResponse(response_id=uid(102), text="C", model="sft-1", origin="model", finish_reason="length",
                         sampling="{}"),
    ]  # fmt: skip
    defaults = {
        "prompt_id": uid(1), "batch": "first", "split": "train", "use_case": "open_qa", "messages": MESSAGES,
        "labeler_group": "training", "responses": responses,
    }  # fmt: skip
    return c.RankingRow(task_id=uid(number), rankings=rankings, **defaults | fields)


def example_rows() -> dict:
    """prompts, demonstrations and rankings, sorted."""
    rankings = [
        ranking(10, [[uid(101)], [uid(100), uid(102)]]),
        ranking(11, [[uid(100), uid(101), uid(102)]], all_bad=False),
    ]
    return {
        "prompts": [prompt(1), prompt(2, external_id="x-2", author="a-1", metadata='{"k":[1,null]}', kind="few_shot")],
        "demonstrations": [demonstration(20), demonstration(21, labeler_group="held_out", review="accepted")],
        "rankings": [
            ranking_row(5, [ranking(12, [[uid(102)], [uid(101)], [uid(100)]])], labeler_group="held_out"),
            ranking_row(5, rankings),
        ],
    }


def write_example(path, **fields) -> c.ExportManifest:
    options = {"version": 7, "query": {"split": "all"}, "created_at": EARLY, "code_version": "abc123"}
    return c.write_export(path, **options | example_rows() | fields)


@pytest.fixture
def export_folder(tmp_path):
    write_example(tmp_path / "v0007")
    return tmp_path / "v0007"
