"""The way of a demonstration between labeler and reviewer, in real browsers, down to the bytes of the export."""

import subprocess
import sys
import zipfile

import pytest
from playwright.sync_api import Page, expect

from labeling.actions import gateway_keys
from labeling.models import Review, Submission
from tests.conftest import ROOT
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, submit
from training.contract import read_export

pytestmark = pytest.mark.django_db(transaction=True)


def write_demonstration(page: Page, text: str) -> None:
    page.get_by_role("button", name="Next task").click()
    page.get_by_label("Your response").fill(text)
    page.get_by_role("button", name="Submit and stop").click()
    expect(page.get_by_text("Submitted.")).to_be_visible()


def run_worker(environment: dict[str, str]) -> None:
    """What the worker of the Procfile does, until no job is left."""
    command = [sys.executable, "manage.py", "procrastinate", "worker", "--one-shot"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60)


def test_returned_corrected_accepted_exported(open_page, labeler, reviewer, researcher, environment, tmp_path):
    make_demonstration_batch("demos", prompts=1)
    write_demonstration(open_page(labeler, "/tasks/"), "Bees fly.")

    review = open_page(reviewer, "/console/submissions/")
    review.get_by_role("link", name="Review the next").click()
    review.get_by_role("button", name="Return").click()  # without a comment: nothing is sent, the comment is asked for
    expect(review.get_by_label("Comment to the labeler")).to_be_focused()
    review.get_by_label("Comment to the labeler").fill("Say *why* they fly.")
    review.get_by_role("button", name="Return").click()
    expect(review.get_by_text("Returned to the labeler")).to_be_visible()

    labeling = open_page(labeler, "/history/")
    labeling.get_by_role("link", name="demos").first.click()
    expect(labeling.get_by_text("Say *why* they fly.")).to_be_visible()
    labeling.get_by_role("button", name="Correct it").click()
    labeling.get_by_label("Your response").fill("Bees fly to gather nectar.")
    labeling.get_by_role("button", name="Submit the correction").click()
    expect(labeling.get_by_text("Correction submitted.")).to_be_visible()

    review.goto("/console/submissions/next")
    expect(review.locator("ins").first).to_contain_text("to gather nectar")
    review.keyboard.press("a")
    expect(review.get_by_text("Accepted.")).to_be_visible()
    assert Submission.objects.get().status == "accepted"

    exporting = open_page(researcher, "/console/exports/")
    exporting.get_by_label("not reviewed yet").uncheck()
    exporting.get_by_role("button", name="Build").click()
    expect(exporting.get_by_role("heading", name="Being built")).to_be_visible()
    run_worker(environment)
    with exporting.expect_download() as download:  # the page has looked again by itself
        exporting.get_by_role("link", name="Download all").click()
    row = read_zip(download.value.path(), tmp_path)
    assert (row.response, row.review, row.revision) == ("Bees fly to gather nectar.", "accepted", 2)
    assert [r.response for r in row.earlier_revisions] == ["Bees fly."]
    assert [(r.revision, r.verdict, r.comment) for r in row.reviews] == [
        (1, "returned", "Say *why* they fly."),
        (2, "accepted", ""),
    ]


def read_zip(path, tmp_path):
    """The one demonstration of a downloaded export, read as the trainer reads it."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.glob("v*")
    (row,) = read_export(folder).demonstrations()
    return row


def test_a_row_of_rankings_reviewed_by_keys_alone(open_page, labeler, reviewer):
    for task in make_ranking_batch(prompts=3).tasks.all():
        submit(task, labeler)
    page = open_page(reviewer, "/console/submissions/next")
    first = page.url
    page.keyboard.press("n")
    expect(page).not_to_have_url(first)
    page.keyboard.press("a")
    expect(page.get_by_text("Accepted.")).to_be_visible()
    page.keyboard.press("c")
    page.keyboard.type("racing through")  # letters in the comment are text, not commands
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    expect(page.get_by_text("Returned to the labeler")).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("x")
    expect(page.get_by_text("Rejected.")).to_be_visible()
    expect(page.get_by_role("heading", name="Nothing waits for review")).to_be_visible()
    verdicts = Review.objects.order_by("id").values_list("verdict", "comment")
    assert list(verdicts) == [("accepted", ""), ("returned", "racing through"), ("rejected", "")]


def test_ticked_rows_are_accepted_and_filters_narrow(open_page, labeler, labeler2, reviewer):
    for n, task in enumerate(make_ranking_batch(prompts=4).tasks.all()):
        submit(task, labeler if n < 3 else labeler2)
    page = open_page(reviewer, "/console/submissions/")
    page.get_by_label("Labeler", exact=True).select_option(label="Lena Labeler")
    expect(page.locator("tbody tr")).to_have_count(3)
    assert "origin" not in page.url  # what was left empty is not in the address
    page.get_by_label("Tick all that wait").check()
    page.get_by_role("button", name="Accept the ticked").click()
    expect(page.get_by_text("3 submissions accepted.")).to_be_visible()
    assert Submission.objects.filter(status="accepted", labeler=labeler).count() == 3
    assert Submission.objects.get(labeler=labeler2).status == "submitted"


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_of_the_console_is_wider_than_the_screen(open_page, labeler, admin_user, width):
    submission = submit(make_ranking_batch(prompts=1, k=12).tasks.get(), labeler)
    page = open_page(admin_user, width=width)
    key, _ = gateway_keys.create(organization="An organization", name="an application", may_train=True, by=admin_user)
    paths = ["submissions/?status=any", f"submissions/{submission.uuid}/?models=1", "batches/", "batches/new/", "imports/",
             f"batches/{submission.task.batch_id}/", "exports/", "models/", "people/", f"people/{labeler.pk}/",
             "keys/", f"keys/{key.pk}/"]  # fmt: skip
    for path in paths:
        page.goto(f"/console/{path}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
