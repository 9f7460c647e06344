"""What is in sight without scrolling: submitting beside a long ranking, the way to the board, the whole navigation."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests import builders

TEXTS = {f"model-{n}": f"Response number {n} says something of its own. " * 8 for n in range(12)}


@pytest.fixture
def ranking(transactional_db):
    return builders.task(builders.batch("ranking", name="ranks", k=12), builders.prompt("Rank twelve fruits."), TEXTS)


def open_ranking(page: Page) -> None:
    page.goto("/tasks/")
    page.get_by_role("button", name="Next task").click()
    expect(page.locator("#board .chip")).to_have_count(12)
    page.wait_for_load_state()


def edges(found: Locator) -> tuple[float, float]:
    """Top and bottom in the window, in pixels."""
    box = found.bounding_box()
    assert box
    return box["y"], box["y"] + box["height"]


def keep(page: Page, name: str) -> None:
    """A picture, where HEED_SHOTS names a folder: to look at."""
    if folder := os.environ.get("HEED_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


def assert_fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_submitting_stays_in_sight_beside_twelve_responses(open_page, ranking, labeler, scheme):
    page = open_page(labeler, color_scheme=scheme)
    open_ranking(page)
    assert_fits(page)
    keep(page, f"ranking-1280-{scheme}")
    submit = page.get_by_role("button", name="Submit and next")
    for position in (0, 400, 100_000):
        page.evaluate(f"scrollTo(0, {position})")
        page.wait_for_timeout(100)
        assert edges(submit)[1] <= 900, f"scrolled to {position}"
        assert 0 < edges(page.locator("#progress"))[0] < edges(submit)[0]
        assert edges(page.locator(".deciding-parts"))[1] <= edges(page.locator(".deciding-foot"))[0] + 4, (
            "board covered"
        )
    keep(page, f"ranking-1280-{scheme}-end")
    page.locator("#tray .chip").last.scroll_into_view_if_needed()
    assert edges(page.locator("#tray .chip").last)[1] <= edges(page.locator(".deciding-foot"))[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_a_link_leads_to_the_board(open_page, ranking, labeler, scheme):
    page = open_page(labeler, width=390, height=844, color_scheme=scheme)
    open_ranking(page)
    assert_fits(page)
    keep(page, f"ranking-390-{scheme}")
    assert edges(page.locator("#board"))[0] > 844
    page.get_by_role("link", name="To the ranking").click()
    page.wait_for_timeout(300)
    assert 0 <= edges(page.locator("#board"))[0] < 200
    keep(page, f"ranking-390-{scheme}-board")


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_the_whole_navigation_is_in_sight(open_page, admin_user, width):
    admin_user.grant("labeler")
    page = open_page(admin_user, "/console/batches/", width=width)
    links = page.locator(".site-nav a")
    assert links.count() >= 11
    for link in links.all():
        box = link.bounding_box()
        assert box
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width, link.inner_text()
    assert page.evaluate("[...document.querySelectorAll('.site-nav')].every(n => n.scrollWidth <= n.clientWidth)")
    keep(page, f"nav-{width}")


def test_two_responses_beside_each_other(open_page, labeler, transactional_db):
    texts = {"one": "The cat sat on the mat.", "two": "The dog sat on the mat.", "three": "Fish swim."}
    builders.task(builders.batch("ranking", name="pairs", k=3), builders.prompt("Say something."), texts)
    page = open_page(labeler)
    page.goto("/tasks/")
    page.get_by_role("button", name="Next task").click()
    expect(page.locator("#board .chip")).to_have_count(3)
    letters = {
        card.locator(".response-text").inner_text(): card.get_attribute("data-letter")
        for card in page.locator(".response").all()
    }
    page.keyboard.press(letters[texts["one"]].lower())
    page.keyboard.press(letters[texts["two"]].lower())
    page.keyboard.press("w")
    expect(page.locator("#comparison mark")).to_have_text(["cat", "dog"])
    page.get_by_label("The other").select_option(letters[texts["three"]])
    expect(page.locator("#comparison")).to_contain_text("swim")
    assert_fits(page)
    keep(page, "compare-1280")
    page.keyboard.press("Escape")
    expect(page.locator("#compare")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark"), (2560, "light")])
def test_from_right_to_left(open_page, ranking, labeler, settings, width, scheme):
    """In Hebrew, whose catalogue Django brings; our own strings stay as they are: what matters is where things stand."""
    settings.LANGUAGES = [("en", "English"), ("he", "עברית")]
    page = open_page(labeler, width=width, color_scheme=scheme, locale="he")
    open_ranking(page)
    assert page.locator("html").get_attribute("dir") == "rtl"
    assert_fits(page)
    keep(page, f"rtl-{width}-{scheme}")
    if width > 1000:
        reading, board = page.locator(".reading").bounding_box(), page.locator("#board").bounding_box()
        assert board["x"] + board["width"] <= reading["x"]
    page.locator(".menu").click()
    panel = page.locator("#menu").bounding_box()
    assert panel["x"] >= 0 and panel["x"] + panel["width"] <= width and panel["x"] < width / 2
