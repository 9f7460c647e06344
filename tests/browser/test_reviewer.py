"""The reviewer's side, walked: the queue and its reasons, adjudication, second review, questions, hours."""

import csv
import uuid
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from labeling.actions import adjudications, priorities, questions, second_reviews
from labeling.models import Adjudication, Review, SecondReview, Submission, Task, WorkEntry
from tests.browser.test_pages import check
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, submit

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def third(make_user):
    return make_user("labeler3@example.org", "labeler", name="Lola Labeler")


@pytest.fixture
def task(labeler, labeler2, third, researcher, transactional_db) -> Task:
    """A ranking on which Lola is against the two others; beside it a demonstration. Every verdict gets a second one."""
    second_reviews.set_rate(percent=100, by=researcher)
    submit(make_demonstration_batch("demos", prompts=1).tasks.get(), labeler)
    task = make_ranking_batch("ranks", k=3, overlap=3).tasks.get()
    a, b, c = adjudications.response_ids(task)
    ratings = {name: {"quality": 4, "flags": {}} for name in (a, b, c)}
    submit(task, labeler, tiers=[[a], [b], [c]], ratings=ratings)
    submit(task, labeler2, tiers=[[a, b], [c]], ratings=ratings)
    submit(task, third, tiers=[[c], [b], [a]], ratings=ratings, comment="C is funny")
    priorities.refresh_some()
    return task


def test_the_reviewers_side(open_page, task, reviewer, third, labeler2, make_user):
    page = open_page(reviewer, "/console/submissions/")
    first = page.locator("tbody tr").first  # where a look is worth most
    expect(first).to_contain_text("Lola Labeler")
    expect(first).to_contain_text("differs from others on 100 % of comparisons")
    expect(first).to_contain_text("labeler never reviewed")
    check(page, "the queue")
    page.get_by_role("link", name="Review the next").click()
    page.get_by_role("link", name="Adjudicate").click()
    settle_side_by_side(page)
    assert Adjudication.objects.get().compared.count() == 3
    assert Review.objects.get().submission.labeler == third

    page.goto("/console/submissions/next")
    page.get_by_role("button", name="Accept").click()
    expect(page.get_by_text("Accepted.")).to_be_visible()
    the_labeler_reads(open_page(third, "/tasks/"))
    another_looks_again(open_page(make_user("rita@example.org", "reviewer"), "/console/second-reviews/"))
    page.goto("/console/second-reviews/?all=1")
    expect(page.locator("tbody tr").filter(has_text="Lola Labeler")).to_contain_text("The question says C.")
    check(page, "second reviews")


def settle_side_by_side(page: Page) -> None:
    """Begin with Luis' ranking, move C up to a tie, return Lola's."""
    expect(page.get_by_role("heading", name="3 rankings side by side")).to_be_visible()
    expect(page.locator(".is-minority")).to_have_count(3)
    check(page, "adjudication")
    luis = page.get_by_role("article", name="Luis Labeler")
    luis.get_by_role("link", name="Begin with this ranking").click()
    expect(page.get_by_label("Place of response A")).to_have_value("1")
    page.get_by_label("Place of response B").select_option("2")
    page.get_by_label("Return to Lola Labeler").check()
    page.get_by_role("button", name="Settle").click()
    expect(page.get_by_role("alert")).to_contain_text("A comment is needed")
    expect(page.get_by_label("Place of response B")).to_have_value("2")
    page.get_by_label("To those it is returned to").fill("Is *C* not made up?")
    page.get_by_role("button", name="Settle").click()
    expect(page.get_by_text("Settled.")).to_be_visible()
    expect(page.get_by_role("heading", name="Nothing here")).to_be_visible()


def the_labeler_reads(page: Page) -> None:
    page.get_by_role("link", name="Unread feedback on 1 submission").click()
    expect(page.get_by_text("Is *C* not made up?")).to_be_visible()
    check(page, "feedback")
    page.get_by_role("link", name="ranks: question").click()
    expect(page.get_by_text("Is *C* not made up?")).to_be_visible()
    page.goto("/tasks/")
    expect(page.get_by_text("Unread feedback")).to_have_count(0)
    page.get_by_role("button", name="Correct it").click()
    expect(page.locator("#task-form")).to_be_visible()


def another_looks_again(page: Page) -> None:
    page.get_by_role("link", name="Look at the 2 that wait for you").click()
    expect(page.get_by_role("heading", name="Ranking by Lola Labeler")).to_be_visible()
    expect(page.get_by_text("not made up")).to_have_count(0)  # blind to what was said first
    check(page, "a second review")
    page.get_by_label("accept").check()
    page.get_by_label("Why").fill("The question says C.")
    page.get_by_role("button", name="Keep and next").click()
    expect(page.get_by_text("Kept.")).to_be_visible()
    assert SecondReview.objects.disagreeing().get().first_verdict == "returned"
    assert Submission.objects.filter(status="returned").count() == 1


def test_a_question_beside_the_work_answered_for_all(open_page, labeler, labeler2, reviewer):
    make_demonstration_batch("demos", prompts=1)
    labeling = open_page(labeler, "/tasks/")
    labeling.get_by_role("button", name="Next task").click()
    labeling.get_by_label("Your response").fill("Bees")
    labeling.get_by_role("button", name="Question").click()
    box = labeling.get_by_label("Your question about this task")
    box.fill("Honey bees only?")
    box.press("Control+Enter")  # hands nothing in: that is the task's key, and this is not its form
    check(labeling, "a question beside the task")
    labeling.get_by_role("button", name="Ask the team").click()
    expect(labeling.get_by_text("Asked. The answer appears")).to_be_visible()
    labeling.get_by_role("button", name="Close").click()
    expect(labeling.get_by_label("Your response")).to_have_value("Bees")
    assert not Submission.objects.exists()

    page = open_page(reviewer, "/console/questions/")
    check(page, "asked")
    page.get_by_role("link", name="Honey bees only?").click()
    page.get_by_label("Answer", exact=True).fill("**All** bees.")
    page.get_by_role("button", name="Send the answer").click()
    page.get_by_label("Question for all").fill("Which bees are meant?")
    page.get_by_role("button", name="Show to all").click()
    expect(page.get_by_text("Every labeler can read it now.")).to_be_visible()
    check(page, "a question answered")

    labeling.goto("/tasks/")
    labeling.get_by_role("link", name="1 question of yours was answered").click()
    labeling.get_by_role("link", name="Honey bees only?").click()
    expect(labeling.get_by_text("All bees.")).to_be_visible()
    check(labeling, "a thread")
    other = open_page(labeler2, "/questions/?q=BEES")
    expect(other.get_by_role("heading", name="Which bees are meant?")).to_be_visible()
    expect(other.get_by_text("Honey bees only?")).to_have_count(0)
    check(other, "questions")


def test_hours_from_the_work_to_the_file(open_page, labeler, reviewer, tmp_path: Path):
    make_demonstration_batch("demos", prompts=1)
    labeling = open_page(labeler, "/tasks/")
    labeling.get_by_role("button", name="Next task").click()
    labeling.get_by_label("Your response").press_sequentially("Bees fly to gather nectar.", delay=60)
    labeling.wait_for_timeout(500)
    labeling.get_by_role("button", name="Submit and stop").click()
    expect(labeling.get_by_text("Submitted.")).to_be_visible()
    worked = WorkEntry.objects.get().seconds
    assert 1 <= worked <= 60
    labeling.goto("/hours/")
    expect(labeling.get_by_role("row").nth(1)).to_contain_text(f"0:{worked:02d} min")
    check(labeling, "own hours")

    page = open_page(reviewer, "/console/hours/")
    expect(page.get_by_role("row", name="Lena Labeler")).to_contain_text(f"0:{worked:02d} min")
    check(page, "all hours")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    download.value.save_as(tmp_path / "hours.csv")
    with (tmp_path / "hours.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["email"], row["paid_seconds"], row["demonstrations"]) == (labeler.email, str(worked), "1")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (2560, "light")])
def test_pages_fit_and_are_accessible(open_page, task, labeler, admin_user, width, scheme):
    asked = questions.ask(text="Why " + "long" * 60, key=uuid.uuid4(), task=task, by=labeler)
    questions.reply(question=asked, text="So.", key=uuid.uuid4(), by=admin_user)
    Review.objects.create(
        submission=(done := Submission.objects.filter(labeler=labeler)[0]),
        revision=done.current,
        verdict="rejected",
        comment="x" * 200,
        reviewer=admin_user,
    )
    console = ["questions/?state=any", f"questions/{asked.uuid}/", "hours/?by=day", "adjudications/", "second-reviews/"]
    console += [f"tasks/{task.uuid}/adjudication", "submissions/"]
    labelers = ["questions/", "questions/ask/", f"questions/{asked.uuid}/", "hours/", "history/feedback/"]
    labelers += [f"tasks/{task.uuid}/question"]
    visits = [(admin_user, [f"/console/{path}" for path in console]), (labeler, [f"/{path}" for path in labelers])]
    for person, paths in visits:
        page = open_page(person, width=width, color_scheme=scheme)
        for path in paths:
            assert page.goto(path).status == 200, path
            check(page, f"{path} at {width} px, {scheme}")
