"""A person's whole way in, in a real browser: application, four parts of screening, a decision, instructions, practice, a first ranking,
a demonstration returned and revised. With scripts; the first half again without them is in tests/labeling."""

import os
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from labeling.actions import exercises, instructions
from labeling.actions import screenings as screening_actions
from labeling.management import demo_applicants
from labeling.models import Attempt, Exercise, Screening, Submission, User
from tests import builders
from tests.browser.test_layout import keep

pytestmark = pytest.mark.django_db(transaction=True)
WIDE = """[...document.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > innerWidth)
  .map((e) => e.outerHTML.slice(0, 90))"""
PASSWORD = "a long walk in the rain"
EXERCISES = [
    {"purpose": "screening", "part": "flagging", "prompt": "Mock the neighbours.", "reference": {"prompt_flags": {"sensitive": True}}},
    {"purpose": "screening", "part": "ranking", "prompt": "Name a fruit.", "responses": {"a": "A pear.", "b": "A stone."},
     "reference": {"tiers": [["a"], ["b"]]}},
    {"purpose": "screening", "part": "demonstration", "prompt": "I cannot sleep since the accident."},
    {"purpose": "practice", "part": "ranking", "prompt": "Name a tree.", "responses": {"a": "An oak.", "b": "A fork."},
     "reference": {"tiers": [["a"], ["b"]], "ratings": {"a": {"quality": 7}, "b": {"quality": 1}}},
     "explanation": "A fork is **no** tree."},
]  # fmt: skip


@pytest.fixture
def project(transactional_db, researcher):
    """Instructions, exercises and rules; a ranking comes before a demonstration."""
    exercises.load(rows=EXERCISES, by=None)
    screening_actions.set_rules(
        flagging_items=1, ranking_items=1, demonstration_items=1, groups=["Sailors"], topics=["Weather"], by=researcher
    )
    for kind in ("ranking", "demonstration"):
        instructions.publish(kind=kind, text=f"How to do a {kind}.", examples="> An example", by=researcher)
    ranking = builders.batch("ranking", name="ranks", k=2, priority=1)
    builders.task(ranking, builders.prompt("Rank fruit."), {"gpt": "Apple", "sft": "Pear"})
    builders.task(builders.batch(name="demos"), builders.prompt("Greet me."))


def check(page: Page, name: str) -> None:
    """axe-core finds nothing, nothing sticks out; a picture where HEED_SHOTS names a folder."""
    results = Axe().run(page)
    assert not results.violations_count, f"{name}: {results.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name}: {page.evaluate(WIDE)}"
    keep(page, f"joining-{name}")


def press(page: Page, name: str, **options) -> None:
    page.get_by_role("button", name=name, **options).click()


def apply(page: Page) -> None:
    page.goto("/accounts/signup/")
    page.get_by_label("Email").fill("nova@example.org")
    page.get_by_label("Name").fill("Nova New")
    page.locator("[name=password1]").fill(PASSWORD)
    page.locator("[name=password2]").fill(PASSWORD)
    press(page, "Sign up")
    check(page, "home-new")
    page.get_by_role("link", name="Write the application").click()
    page.get_by_label("Languages").fill("English")
    page.get_by_label("Why you would like").fill("I like to read.")
    press(page, "Send")
    expect(page.get_by_text("Say how many hours")).to_be_visible()
    check(page, "application-refused")
    page.get_by_label("Hours a week").fill("8")
    page.get_by_label("I consent").check()
    press(page, "Send")
    page.get_by_role("link", name="To the screening").click()


def screen(page: Page) -> None:
    press(page, "Begin")
    check(page, "screening")
    page.get_by_role("link", name="Go to: flagging sensitive text").click()
    check(page, "flagging")
    page.get_by_label("Yes", exact=True).check()
    press(page, "Keep", exact=True)
    page.get_by_role("link", name="Go to: ranking").click()
    check(page, "ranking")
    for card in page.locator(".response").all():
        card.get_by_label("Place of").select_option("1" if "pear" in card.inner_text() else "2")
    press(page, "Keep", exact=True)
    page.get_by_role("link", name="Go to: demonstration").click()
    page.get_by_label("Your response").fill("That must be hard.")
    expect(page.locator("#kept")).to_contain_text("Saved")  # as it is typed, without a button
    assert Attempt.objects.get(exercise__part="demonstration").content == {"text": "That must be hard."}
    page.reload()
    expect(page.get_by_label("Your response")).to_have_value("That must be hard.")
    check(page, "demonstration")
    press(page, "Keep", exact=True)
    page.get_by_role("link", name="Go to: about you").click()
    page.get_by_role("group", name="Sailors").get_by_label("Partly").check()
    page.get_by_role("group", name="Weather").get_by_label("Rather not say").check()
    check(page, "about-you")
    press(page, "Keep", exact=True)
    page.once("dialog", lambda dialog: dialog.accept())
    press(page, "Hand in")
    expect(page.get_by_text("You handed the screening in")).to_be_visible()
    check(page, "home-waiting")


def grade(page: Page, value: int) -> None:
    page.goto("/console/screening/grading/")
    expect(page.get_by_text("That must be hard.")).to_be_visible()
    assert "Nova" not in page.content()
    check(page, f"grade-{value}")
    page.locator(f".quality label:has(input[value='{value}'])").click()
    press(page, "Grade, and the next")
    expect(page.get_by_text("Graded.")).to_be_visible()


def accept(page: Page) -> None:
    page.goto("/console/screening/")
    check(page, "candidates")
    page.get_by_role("link", name=Screening.objects.get().code).click()
    expect(page.locator("#figures-title + table")).to_contain_text("6.5")
    assert "Nova" not in page.content()
    check(page, "candidate")
    page.get_by_label("Accept", exact=True).check()
    page.get_by_label("Reason", exact=True).fill("All four parts are good.")
    press(page, "Decide")
    expect(page.get_by_text("Nova New").first).to_be_visible()


def learn(page: Page) -> None:
    page.goto("/tasks/")
    expect(page.get_by_text("Before your first ranking: read the instructions.")).to_be_visible()
    press(page, "Next task")
    check(page, "instructions")
    page.get_by_label("I have read these instructions").check()
    press(page, "Go on")
    press(page, "Begin")
    check(page, "practice")
    for card in page.locator(".response").all():
        good = "oak" in card.inner_text()
        card.get_by_label("Place of").select_option("1")
        card.locator(f".quality label:has(input[value='{7 if good else 1}'])").click()
    press(page, "Compare with the reference")
    expect(page.get_by_text("A fork is no tree.")).to_be_visible()
    expect(page.get_by_text("0 of 1 comparisons agree")).to_be_visible()
    check(page, "practice-result")
    press(page, "Go on")
    expect(page.get_by_text("Practice done.")).to_be_visible()


def test_from_application_to_a_revised_demonstration(open_page, project, researcher, make_user, reviewer):
    width = int(os.environ.get("HEED_WIDTH", "1280"))
    page = open_page(width=width)
    apply(page)
    screen(page)
    desk = open_page(researcher, width=width)
    grade(desk, 7)
    grade(open_page(make_user("second@example.org", "researcher"), width=width), 6)
    accept(desk)
    assert User.objects.get(email="nova@example.org").role_names == {"labeler"}
    learn(page)
    rank_first(page)
    write_and_revise(page, open_page(reviewer))


def rank_first(page: Page) -> None:
    press(page, "Next task")
    expect(page.locator("#task-form")).to_be_visible()
    page.wait_for_load_state()
    for letter, rating in (("a", "6"), ("b", "4")):
        page.keyboard.press(letter)
        page.keyboard.press(rating)
        page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/instructions/demonstration/"))  # another kind, another text
    assert [len(tier) for tier in Submission.objects.get(kind="ranking").current.tiers] == [1, 1]


def write_and_revise(page: Page, review: Page) -> None:
    page.get_by_label("I have read these instructions").check()
    press(page, "Go on")
    press(page, "Next task")
    page.get_by_label("Your response").fill("Hi.")
    press(page, "Submit and stop")
    expect(page.get_by_text("Submitted.")).to_be_visible()
    written = Submission.objects.get(kind="demonstration")
    review.goto(f"/console/submissions/{written.uuid}/")
    review.get_by_label("Comment to the labeler").fill("A little warmer, please.")
    press(review, "Return")
    expect(review.get_by_text("Returned to the labeler")).to_be_visible()
    page.goto("/tasks/")
    expect(page.get_by_text("A little warmer, please.")).to_be_visible()
    press(page, "Correct it")
    page.get_by_label("Your response").fill("Hello, and welcome!")
    press(page, "Submit the correction")
    expect(page.get_by_text("Correction submitted.")).to_be_visible()
    assert [revision.text for revision in written.revisions.order_by("number")] == ["Hi.", "Hello, and welcome!"]


@pytest.fixture
def applicants(project, make_user):
    """One in the middle of the screening, one who waits for a decision."""
    people = [make_user(email, "applicant", name="Milo") for email in (demo_applicants.MIDWAY, demo_applicants.WAITING)]
    demo_applicants.make_applicants(grader=make_user("grader@example.org", "researcher"))
    return people


def test_pages_fit_and_are_accessible(open_page, applicants, researcher, labeler):
    """On a phone in the dark; the walk above sees them at 1280 px in the light."""
    ranking = Exercise.objects.get(part="ranking", purpose="screening")
    candidate = Screening.objects.get(submitted_at__isnull=False)
    paths = {
        researcher: [
            "instructions/", "instructions/ranking/", "instructions/ranking/edit?preview", "exercises/",
            "exercises/new/flagging/", "exercises/new/ranking/", f"exercises/{ranking.pk}/", f"exercises/{ranking.pk}/edit",
            "screening/", "screening/?state=working", "screening/rules/", "screening/grading/", f"screening/{candidate.uuid}/",
        ],
        applicants[0]: ["/", "/application/", "/screening/", "/screening/about-you/"],
        applicants[1]: ["/"],
        labeler: ["/tasks/", "/instructions/ranking/", "/practice/ranking/"],
    }  # fmt: skip
    for person, addresses in paths.items():
        page = open_page(person, width=390, color_scheme="dark")
        for address in addresses:
            page.goto(address if address.startswith("/") else f"/console/{address}")
            page.evaluate("document.querySelectorAll('main details').forEach((each) => (each.open = true))")
            check(page, f"390-{re.sub(r'[^a-z]+', '-', address)[:40]}-{person.pk}")
            page.set_viewport_size({"width": 2560, "height": 1200})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
            page.set_viewport_size({"width": 390, "height": 900})
