"""The cost of pages: as many queries with three times the rows. Time at full size: `make bench PART=labeling`."""

import pytest

from labeling.actions import evaluations
from tests.bench import load, pages

pytestmark = pytest.mark.django_db
LABELERS = {"home", "tasks", "task", "history", "submission", "questions", "question"}
CONSOLE = {
    "reviews",
    "review",
    "batches",
    "batch",
    "batch_new",
    "batch_evaluation",
    "batch_evaluation_rows",
    "question_queue",
    "question_review",
    "imports",
    "exports",
}
ALWAYS = LABELERS | CONSOLE | {"export", "model_versions", "model_version", "people", "person"}


def queries() -> dict[str, int]:
    """Of every page: its name and query string → queries."""
    site = pages.Site()
    evaluations.current(site.evaluation)
    found = {}
    for number, visit in enumerate(site.visits()):
        query = visit.path.partition("?")[2].split("=")[0]
        found[f"{visit.name} {number} {query}"] = site.open(visit, runs=0).queries
    assert not set(site.unopened) & ALWAYS, site.unopened
    return found


def test_pages_need_as_many_queries_for_three_times_the_rows():
    load.fill(submissions=60, labelers=8)
    before = queries()
    for more in (16, 24):
        load.fill(submissions=60, labelers=more)
    after = queries()
    assert before.keys() == after.keys()
    grown = {name: (before[name], after[name]) for name in before if after[name] > before[name]}
    assert not grown, f"(queries before, with three times the rows): {grown}"
    assert max(after.values()) <= 40, after


def test_every_kind_of_page_is_opened():
    """The list is found by itself: this holds that it finds what it should, and leaves out what only takes forms."""
    names = {name for name, _route, _needed in pages.routes()}
    assert names >= ALWAYS
    assert not names & {"task_skip", "review_decide", "batch_status", "task_draft", "export_zip"}
