"""A whole day's work as a screen reader does it: what has no accessible name is not there, there is no mouse, single keys are off."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from labeling.models import Submission
from tests import builders

pytestmark = pytest.mark.django_db(transaction=True)


def press(what: Locator, *keys: str) -> None:
    """Go to it as a screen reader does, and press keys there."""
    what.focus()
    for key in keys:
        what.page.keyboard.press(key)


def write(what: Locator, text: str) -> None:
    what.focus()
    what.page.keyboard.type(text)


def hears(page: Page, said: str | re.Pattern, role: str = "status") -> None:
    """A live region says this."""
    expect(page.get_by_role(role).filter(has_text=said)).to_be_visible()


def next_task(page: Page, title: str) -> None:
    press(page.get_by_role("button", name="Next task"), "Enter")
    expect(page.get_by_role("heading", level=1, name=title)).to_be_visible()


def test_a_ranking_with_a_tie(open_page, labeler):
    texts = {"m0": "Bees make honey.", "m1": "Wasps do.", "m2": "Honey is made by bees."}
    batch = builders.batch("ranking", k=3)
    builders.task(batch, builders.prompt("Who makes honey?"), texts)
    page = open_page(labeler, "/tasks/")
    next_task(page, "Rate and rank 3 responses")
    expect(page.get_by_role("region", name="Prompt", exact=True)).to_contain_text("Who makes honey?")

    press(page.get_by_role("button", name="Keys"), "Enter")
    keys = page.get_by_role("dialog", name="Keys")
    press(keys.get_by_role("checkbox", name="Single-key shortcuts on"), "Space")
    press(keys.get_by_role("button", name="Close"), "Enter")
    expect(page.get_by_role("button", name="Keys")).to_be_focused()

    of = {}
    for letter in "ABC":
        response = page.get_by_role("article", name=f"Response {letter}")
        of[letter] = next(model for model, text in texts.items() if text in response.inner_text())
        rating = response.get_by_role("group", name=re.compile(f"^Overall quality of {letter}, from 1 .* to 7 "))
        press(rating.get_by_role("radio", name=re.compile("^1" if letter == "C" else "^5")), "Space")
        expect(rating.get_by_role("radio", checked=True)).to_have_count(1)
    expect(page.get_by_role("list", name="Not ranked yet").get_by_role("button")).to_have_count(3)
    press(page.get_by_role("button", name="Submit and stop"), "Enter")
    hears(page, "Not submitted yet", role="alert")
    expect(page.get_by_role("alert")).to_be_focused()

    press(page.get_by_role("combobox", name="Place of A"), "2")
    hears(page, "A: place 1 of 1")
    press(page.get_by_role("combobox", name="Place of B"), "1")
    hears(page, "B: place 1 of 2")
    ranking = page.get_by_role("region", name="Ranking", exact=True)
    press(ranking.get_by_role("button", name="C: not ranked"), "Enter")
    hears(page, "C: place 3 of 3")
    press(ranking.get_by_role("button", name=re.compile("^C: place 3 of 3. C: rated 1")), "ArrowUp")
    hears(page, "C: place 2 of 2, tied with A")
    expect(page.get_by_text("All rated and ranked.")).to_have_attribute("aria-live", "polite")

    flags = page.get_by_role("article", name="Response C")
    press(flags.get_by_text("Flags"), "Enter")
    press(flags.get_by_role("group", name=re.compile("^Hallucination")).get_by_role("radio", name="Yes"), "Space")
    write(page.get_by_role("textbox", name="Comment to the reviewer"), "Wasps do not.")
    hears(page, re.compile("^Saved"))
    press(page.get_by_role("button", name="Submit and stop"), "Enter")
    hears(page, "Submitted.")
    made = Submission.objects.get().current
    rows = batch.tasks.get().task_responses.values_list("response__uuid", "response__external_id")
    model_of = {str(uuid): model for uuid, model in rows}
    said = [{model_of[uuid] for uuid in tier} for tier in made.tiers]
    assert said == [{of["B"]}, {of["A"], of["C"]}] and made.comment == "Wasps do not."
    assert [each["quality"] for each in made.ratings.values()].count(1) == 1
    assert sum(each["flags"]["hallucination"] is True for each in made.ratings.values()) == 1


def test_a_demonstration(open_page, labeler):
    builders.task(builders.batch(), builders.prompt("Who makes honey?"))
    page = open_page(labeler, "/tasks/")
    next_task(page, "Write the best response")
    expect(page.get_by_role("region", name="Prompt", exact=True)).to_contain_text("Who makes honey?")
    press(page.get_by_role("button", name="Submit and stop"), "Enter")
    hears(page, "Not submitted yet", role="alert")
    press(page.get_by_role("alert").get_by_role("link"), "Enter")
    expect(page.get_by_role("textbox", name="Your response")).to_be_focused()
    page.keyboard.type("Bees do.")
    hears(page, re.compile("^Saved"))
    press(page.get_by_role("button", name="Submit and stop"), "Enter")
    hears(page, "Submitted.")
    assert Submission.objects.get().current.text == "Bees do."
