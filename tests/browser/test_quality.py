"""Labelers, agreement, gold and rules before a real browser: accessible and no wider than the page, empty and full."""

import os

import pytest
from playwright.sync_api import expect

from labeling.actions import gold, numbers, pauses
from tests.browser.test_pages import check
from tests.labeling import rows

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PATHS = [
    "labelers/", "labelers/?sort=agreement", "labelers/rules/", "agreement/", "agreement/report/", "agreement/rows/",
    "agreement/rows/?measure=quality", "gold/",
]  # fmt: skip


@pytest.fixture
def measured(open_browser, labeler, labeler2, heldout_labeler, researcher):
    """Three people's rankings of four tasks, one of them gold; one person paused by a rule."""
    batch = rows.make_ranking_batch(k=3, overlap=3, prompts=4)
    for task in batch.tasks.all():
        ids = rows.response_ids(task)
        for who, order in ((labeler, ids), (labeler2, ids), (heldout_labeler, ids[::-1])):
            ratings = {pk: {"quality": 3 + i, "flags": {"hallucination": i == 0}} for i, pk in enumerate(order)}
            rows.submit(task, who, tiers=[[pk] for pk in order], ratings=ratings)
    task = batch.tasks.first()
    gold.make(task=task, tiers=[[pk] for pk in rows.response_ids(task)], explanation="So it is.", by=researcher)
    pauses.make_rule(metric="agreement", threshold=0.3, minimum=2, window_days=14, by=researcher)
    numbers.measure()
    pauses.apply_rules()
    return batch


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_pages_fit_and_are_accessible(open_page, measured, researcher, labeler, width, scheme):
    page = open_page(researcher, "/console/labelers/", width=width, color_scheme=scheme)
    free = measured.tasks.filter(is_gold=False).first()
    for path in [*PATHS, f"labelers/{labeler.pk}/", f"tasks/{free.uuid}/gold", f"batches/{measured.pk}/"]:
        page.goto(f"/console/{path}")
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        check(page, f"{path} at {width} px, {scheme}")
        if folder := os.environ.get("HEED_SCREENSHOTS"):
            name = path.partition(free.uuid.hex[:4])[0].replace("/", "-").replace("?", "-")
            page.screenshot(path=f"{folder}/{name}{width}-{scheme}.png", full_page=True)


def test_empty_pages_and_who_is_paused(open_page, researcher, heldout_labeler, reviewer):
    page = open_page(researcher, "/console/labelers/")
    for path in PATHS:
        page.goto(f"/console/{path}")
        check(page, f"{path}, empty")
    pauses.set_paused(labeler=heldout_labeler, is_paused=True, reason="To look.", by=reviewer)
    theirs = open_page(heldout_labeler, "/tasks/")
    expect(theirs.get_by_role("heading", name="You are paused")).to_be_visible()
    check(theirs, "paused")


def test_what_is_pasted_is_counted(open_page, transactional_db, labeler):
    task = rows.make_demonstration_batch(prompts=1).tasks.get()
    page = open_page(labeler, "/tasks/")
    page.get_by_role("button", name="Next task").click()
    box = page.get_by_label("Your response")
    box.fill("typed ")
    box.evaluate(
        "(box) => { const data = new DataTransfer(); data.setData('text', 'pasted text');"
        "box.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true })) }"
    )
    box.press("End")
    page.keyboard.type("pasted text")
    page.get_by_role("button", name="Submit and stop").click()
    page.wait_for_url("**/tasks/")
    assert task.submissions.get().paste_chars == len("pasted text")
