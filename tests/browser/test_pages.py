"""The other pages in a real browser: writing a demonstration, working without scripts, widths, colours, accessibility."""

import uuid

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from labeling.actions import submissions, tasks, writings
from labeling.models import Draft, Review, Slot, Submission
from tests import builders
from tests.conftest import PASSWORD

TEXTS = {"gpt": "Apple", "sft": "Pear\n\n```\ncode that is quite long " + "x" * 200 + "\n```", "ppo": "Apple"}
CHAT = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "An apple."},
    {"role": "user", "content": "Another one: " + "a-very-long-word-without-a-break" * 10},
]


@pytest.fixture
def demonstration(transactional_db):
    batch = builders.batch(instructions="Write what the **best** assistant would answer.")
    return builders.task(batch, builders.prompt(CHAT))


@pytest.fixture
def ranking(transactional_db):
    return builders.task(builders.batch("ranking", name="ranks", overlap=2), builders.prompt("Rank fruit."), TEXTS)


def open_task(page: Page, kind: str = "demonstration") -> None:
    page.goto("/tasks/")
    button = page.get_by_role("button", name=f"Next {kind}")
    (button if button.count() else page.get_by_role("button", name="Next task")).click()
    expect(page.locator("#task-form")).to_be_visible()
    page.wait_for_load_state()  # scripts included


def test_log_in_write_submit_and_correct(open_page, demonstration, labeler, reviewer):
    page = open_page(path="/")
    page.get_by_label("Email").fill(labeler.email)
    page.locator("[name=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks/")
    page.get_by_role("button", name="Next task").click()
    box = page.get_by_label("Your response")
    box.fill("\n\nA pear.")  # HTML drops a first line break; we do not
    expect(page.locator("#text-count")).to_have_text("2 words")
    expect(page.locator("#save-state")).to_have_attribute("data-state", "saved")
    page.reload()
    expect(box).to_have_value("\n\nA pear.")
    box.fill("A pear.")
    box.press("Control+Enter")
    page.wait_for_url("**/tasks/")
    submission = Submission.objects.get()
    comment = {"verdict": "returned", "comment": "Say which kind, please", "reviewer": reviewer}
    Review.objects.create(submission=submission, revision=submission.current, **comment)
    Submission.objects.update(status="returned")
    page.reload()
    expect(page.get_by_text("Say which kind, please")).to_be_visible()
    page.get_by_role("button", name="Correct it").click()
    expect(page.get_by_text("Say which kind, please")).to_be_visible()
    expect(box).to_have_value("A pear.")
    box.fill("A Conference pear.")
    page.get_by_role("button", name="Submit the correction").click()
    page.wait_for_url("**/tasks/")
    assert [r.text for r in submission.revisions.all()] == ["A pear.", "A Conference pear."]
    submission.refresh_from_db()
    assert submission.status == "submitted"
    page.get_by_role("link", name="See it").click()
    expect(page.get_by_text("Revision 2")).to_be_visible()


def test_what_was_typed_before_the_script_came_is_saved(open_page, demonstration, labeler):
    page = open_page(labeler)
    page.route("**/js/task.js", lambda route: (page.get_by_label("Your response").fill("quick"), route.continue_()))
    open_task(page)
    expect(page.locator("#save-state")).to_have_attribute("data-state", "saved")
    assert Draft.objects.get().content["text"] == "quick"


def test_skip_with_a_reason(open_page, demonstration, labeler):
    page = open_page(labeler)
    open_task(page)
    page.get_by_text("Skip this task").click()
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#problems")).to_contain_text("Reason is missing")
    page.get_by_label("Reason", exact=True).select_option("unclear")
    page.get_by_role("button", name="Skip").click()
    page.wait_for_url("**/tasks/")
    expect(page.get_by_text("Skipped.")).to_be_visible()


def test_enter_in_a_field_neither_puts_back_nor_submits(open_page, demonstration, labeler):
    page = open_page(labeler)
    open_task(page)
    page.get_by_text("Skip this task").click()
    page.get_by_label("Reason", exact=True).select_option("other")
    page.get_by_label("More about it").fill("because")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert page.get_by_label("More about it").input_value() == "because"
    assert Slot.objects.get().status == "leased"


def test_put_back_keeps_what_was_just_typed(open_page, demonstration, labeler):
    page = open_page(labeler)
    open_task(page)
    page.get_by_label("Your response").fill("not finished")
    page.get_by_role("button", name="Put back").click()
    page.wait_for_url("**/tasks/")
    assert Draft.objects.get().content["text"] == "not finished"
    page.get_by_role("link", name="Another one").click()
    expect(page.get_by_label("Your response")).to_have_value("not finished")


def test_everything_can_be_submitted_without_javascript(open_page, demonstration, ranking, labeler):
    page = open_page(labeler, java_script_enabled=False)
    open_task(page, "demonstration")
    page.get_by_role("button", name="Submit and stop").click()
    expect(page.locator("#problems")).to_contain_text("is empty")
    page.get_by_label("Your response").fill("Without a script.")
    page.get_by_role("button", name="Submit and stop").click()
    open_task(page, "ranking")
    expect(page.locator("#board")).to_be_hidden()
    for place, card in enumerate(page.locator(".response").all(), start=1):
        letter = card.get_attribute("data-letter")
        page.locator(f"#place-{letter}").select_option(str(place))
        page.locator(f'[name="quality-{letter}"][value="3"]').check()
    page.get_by_role("button", name="Submit and stop").click()
    expect(page.get_by_text("Submitted.")).to_be_visible()
    assert Submission.objects.get(kind="demonstration").current.text == "Without a script."
    assert sorted(map(len, Submission.objects.get(kind="ranking").current.tiers)) == [1, 2]


def labelers_pages(page: Page, demonstration, ranking, labeler) -> dict[str, str]:
    """Every page of a labeler: name → path; there is something to show on each."""
    slot = tasks.claim_next(kind="ranking", by=labeler)
    tasks.claim_next(kind="demonstration", by=labeler)
    done = builders.task(demonstration.batch, builders.prompt("Done."))
    tasks.release(task=demonstration, by=labeler)
    tasks.claim_next(batch_id=done.batch_id, by=labeler)
    submission = submissions.submit(task=done, submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler)
    return {
        "queue": "/tasks/",
        "demonstration": f"/tasks/{demonstration.uuid}/",
        "ranking": f"/tasks/{slot.task.uuid}/",
        "history": "/history/",
        "submission": f"/history/{submission.uuid}/",
        "playground": "/playground/",
        "prompts": "/prompts/",
        "few-shot prompt": f"/prompts/{writings.begin(kind='few_shot', by=labeler).uuid}/",
        "not found": "/nothing/",
    }


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark"), (1280, "light"), (2560, "light")]
)
def test_pages_fit_and_are_accessible(open_page, demonstration, ranking, labeler, width, scheme):
    page = open_page(labeler, width=width, color_scheme=scheme)
    for name, path in labelers_pages(page, demonstration, ranking, labeler).items():
        page.goto(path)
        check(page, f"{name} at {width} px, {scheme}")
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        check(page, f"{name} unfolded at {width} px, {scheme}")
    for path in ("/accounts/login/", "/accounts/signup/", "/accounts/password/reset/"):
        page.context.clear_cookies()
        page.goto(path)
        check(page, f"{path} at {width} px, {scheme}")


def check(page: Page, where: str) -> None:
    """axe-core finds nothing, and nothing sticks out at the side."""
    results = Axe().run(page)
    found = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"]]
    assert not found, f"{where}: {found}"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{where}: {width} px wide"


def test_the_dialogs_are_accessible(open_page, ranking, labeler):
    page = open_page(labeler)
    open_task(page, "ranking")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    check(page, "keys")


def test_focus_is_seen_and_reaches_everything(open_page, ranking, labeler):
    page = open_page(labeler)
    open_task(page, "ranking")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        style = page.evaluate("(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle })()")
        name = page.evaluate(
            "(() => { const a = document.activeElement; return a.name || a.id || a.className || a.tagName })()"
        )
        if not name.startswith(("quality", "flag")):  # there the outline is on the number beside the hidden radio
            assert style != "none", f"no visible focus on {name}"
        reached.add(name.split("-")[0])
    assert {"quality", "place", "comment", "chip", "all_bad", "next"} <= reached
