"""Ranking real summaries of real posts in a real browser: by keyboard alone, by drag, interrupted, offline, twice, late."""

import re
from contextlib import suppress
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Error, Page, expect

from labeling.models import Draft, DraftCopy, Revision, Slot, Submission
from tests import builders


@pytest.fixture
def posts(transactional_db):
    """The TL;DR posts as (prompt text, model → summary); the label schema is there."""
    builders.label_schema()
    return list(builders.tldr_posts().items())


def make_task(post, overlap: int = 2, name: str = "TL;DR"):
    """A ranking task of nine summaries: gpt, sft and ppo-ptx in three sizes."""
    text, samples = post
    batch = builders.batch("ranking", name=name, k=9, overlap=overlap, instructions="Helpful comes **first**.")
    return builders.task(batch, builders.prompt(text), builders.nine(samples))


def open_task(page: Page) -> None:
    page.goto("/tasks/")
    page.get_by_role("button", name="Next task").click()
    expect(page.locator("#board")).to_be_visible()


def tiers_of(page: Page) -> list[list[str]]:
    """The board as drawn: labels per place."""
    rows = page.locator("#tiers .tier").all()
    return [[chip.inner_text() for chip in row.locator(".chip strong").all()] for row in rows]


def uuids_of(person, labels: list[list[str]]) -> list[set[str]]:
    """Tiers of labels as sets of response UUIDs, by the person's shown order."""
    order = (Draft.objects.filter(labeler=person).first() or Submission.objects.get(labeler=person)).shown_order
    return [{order["ABCDEFGHIJKL".index(letter)] for label in tier for letter in label.split(" = ")} for tier in labels]


def saved(page: Page) -> None:
    expect(page.locator("#save-state")).to_have_attribute("data-state", "saved")


def crash(page: Page) -> None:
    """End a page without its last words: one that is closed may still send them, offline or not."""
    with suppress(Error):
        page.goto("chrome://crash")
    page.close()


def rate_all(page: Page, keys: str = "4") -> None:
    """Rate every response and rank them by rating, by keys."""
    for card in page.locator(".response").all():
        page.keyboard.press(card.get_attribute("data-letter").lower())
        page.keyboard.press(keys)
    page.keyboard.press("o")


def lose_answer(page: Page, address: str) -> None:
    """The next request there reaches the server, and the page never hears of it."""
    page.route(address, lambda route: (route.fetch(), route.abort("internetdisconnected")), times=1)


# The main job --------------------------------------------------------------------------------------------------


def test_nine_summaries_by_keyboard_alone_with_two_ties(open_page, posts, labeler):
    make_task(posts[0])
    page = open_page(labeler, "/tasks/")
    presses = 0

    def press(*keys):
        nonlocal presses
        for key in keys:
            page.keyboard.press(key)
            presses += 1

    while not page.get_by_role("button", name="Next task").evaluate("node => node === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_have_text("0 of 9 rated, 0 of 9 ranked")
    order = "CAIEBHDGF"
    for place, letter in enumerate(order):
        press(letter.lower(), str(7 - place // 2), "t" if letter in "HF" else "Enter")
    assert presses <= 3 * 9  # three keys per response
    expected = [["C"], ["A"], ["I"], ["E"], ["B", "H"], ["D"], ["F", "G"]]
    assert tiers_of(page) == expected
    expect(page.locator("#announce")).to_have_text("F: place 7 of 7, tied with G")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/tasks/")
    expect(page.get_by_text("Submitted.")).to_be_visible()
    revision = Submission.objects.get(labeler=labeler).current
    assert [set(tier) for tier in revision.tiers] == uuids_of(labeler, expected)
    qualities = {rating["quality"] for rating in revision.ratings.values()}
    assert qualities == {3, 4, 5, 6, 7}
    assert all(flag is None for rating in revision.ratings.values() for flag in rating["flags"].values())


def drag(page: Page, letter: str, target) -> None:
    chip = page.locator(f'.chip[data-letter="{letter}"]')
    chip.scroll_into_view_if_needed()
    box = chip.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + box["height"] / 2 + 8, steps=4)
    for _ in range(2):  # the board makes room as the card passes: follow the target
        to = target.bounding_box()
        page.mouse.move(to["x"] + to["width"] / 2, to["y"] + to["height"] * 0.4, steps=6)
        page.wait_for_timeout(120)  # while cards slide, none is taken in
    page.mouse.up()
    expect(page.locator("#announce")).to_contain_text(f"{letter}: place")  # said once the board is drawn again


def test_nine_summaries_by_drag(open_page, posts, labeler2):
    make_task(posts[0])
    page = open_page(labeler2, height=1300)
    open_task(page)
    for letter in "ABCDEFGHI":
        page.locator(f'[name="quality-{letter}"][value="5"]').check()
    for letter in "ABCDEFGH":
        drag(page, letter, page.locator("#tiers .gap .tier-cards").last)
    drag(page, "I", page.locator("#tiers .tier .tier-cards").nth(2))  # onto C: a tie
    assert tiers_of(page) == [["A"], ["B"], ["C", "I"], ["D"], ["E"], ["F"], ["G"], ["H"]]
    drag(page, "H", page.locator("#tiers .gap .tier-cards").first)  # to the top, a place of its own
    expected = [["H"], ["A"], ["B"], ["C", "I"], ["D"], ["E"], ["F"], ["G"]]
    assert tiers_of(page) == expected
    page.get_by_role("button", name="Submit and stop").click()
    page.wait_for_url("**/tasks/")
    tiers = Submission.objects.get(labeler=labeler2).current.tiers
    assert [set(tier) for tier in tiers] == uuids_of(labeler2, expected)


@pytest.mark.parametrize("number", [27, 42, 53, 79])
def test_identical_outputs_are_one_card(open_page, posts, labeler, number):
    samples = builders.nine(posts[number][1])
    twins = len(samples) - len(set(samples.values())) + 1
    make_task(posts[number])
    page = open_page(labeler)
    open_task(page)
    cards = page.locator(".response")
    expect(cards).to_have_count(len(set(samples.values())))
    [twin] = [label for label in (card.get_attribute("data-label") for card in cards.all()) if "=" in label]
    assert len(twin.split(" = ")) == twins
    expect(page.locator(".message-info")).to_contain_text(twin)
    last = twin.split(" = ")[-1]
    page.keyboard.press(last.lower())  # each of its letters selects it
    expect(page.locator(".response.is-selected")).to_have_attribute("data-label", twin)
    rate_all(page)
    page.keyboard.press(last.lower())
    page.keyboard.press("Shift+ArrowUp")  # all tied: it leaves them, to the top
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/tasks/")
    revision = Submission.objects.get(labeler=labeler).current
    assert len(revision.tiers[0]) == twins and sum(map(len, revision.tiers)) == 9 == len(revision.ratings)


def test_every_move_by_keys_and_undo(open_page, posts, labeler):
    make_task(posts[1])
    page = open_page(labeler)
    open_task(page)
    for letter in "abc":
        page.keyboard.press(letter)
        page.keyboard.press("Enter")
    page.keyboard.press("c")
    steps = [
        ("Shift+ArrowUp", [["A"], ["B", "C"]]),
        ("Shift+ArrowUp", [["A"], ["C"], ["B"]]),
        ("Shift+ArrowUp", [["A", "C"], ["B"]]),
        ("Shift+ArrowUp", [["C"], ["A"], ["B"]]),
        ("Shift+ArrowUp", [["C"], ["A"], ["B"]]),
        ("Shift+ArrowDown", [["A", "C"], ["B"]]),
        ("Shift+ArrowDown", [["A"], ["C"], ["B"]]),
        ("r", [["A"], ["C"], ["B"]]),  # to its chip, where the arrows alone move it
        ("ArrowDown", [["A"], ["B", "C"]]),
        ("Backspace", [["A"], ["B"]]),
        ("u", [["A"], ["B", "C"]]),
        ("Control+z", [["A"], ["C"], ["B"]]),
    ]
    for key, expected in steps:
        page.keyboard.press(key)
        assert tiers_of(page) == expected, key
    page.keyboard.press("a")
    page.keyboard.press("6")
    page.keyboard.press("0")
    expect(page.locator('[name="quality-A"]:checked')).to_have_count(0)
    page.keyboard.press("x")
    expect(page.locator("#all_bad")).to_be_checked()
    page.keyboard.press("v")
    page.keyboard.press("ArrowLeft")  # in the flag's radio buttons: from "not answered" to "no"
    expect(page.locator('[name="flag-A-fails_instruction"][value="no"]')).to_be_checked()
    page.keyboard.press("m")
    page.keyboard.type("a7? no shortcuts in a text")
    expect(page.locator("#comment")).to_have_value("a7? no shortcuts in a text")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    expect(page.locator("#reason")).to_be_focused()


def test_order_by_rating_puts_each_where_its_rating_belongs(open_page, posts, labeler):
    make_task(posts[1])
    page = open_page(labeler)
    open_task(page)
    for letter, quality in zip("abcdefgh", "62425617", strict=True):  # I stays unrated
        page.keyboard.press(letter)
        page.keyboard.press(quality)
    for letter in "cai":  # by hand against their ratings: C (4) before A (6), and I without one
        page.keyboard.press(letter)
        page.keyboard.press("Enter")
    page.keyboard.press("o")
    assert tiers_of(page) == [["H"], ["E"], ["C"], ["A", "F"], ["B", "D"], ["G"], ["I"]]
    page.keyboard.press("o")  # all are ranked now, so all that is rated is put in order
    assert tiers_of(page) == [["H"], ["A", "F"], ["E"], ["C"], ["B", "D"], ["G"], ["I"]]
    page.keyboard.press("u")
    assert tiers_of(page) == [["H"], ["E"], ["C"], ["A", "F"], ["B", "D"], ["G"], ["I"]]


# Nothing is lost -----------------------------------------------------------------------------------------------


def test_a_reload_in_the_middle_restores_everything(open_page, posts, labeler):
    make_task(posts[2])
    page = open_page(labeler)
    open_task(page)
    texts = page.locator(".response-text").all_inner_texts()
    for keys in ("b5", "d3", "a7"):
        page.keyboard.press(keys[0])
        page.keyboard.press(keys[1])
        page.keyboard.press("Enter")
    page.locator("#response-D .flags summary").click()
    page.locator('#response-D [name="flag-D-hallucination"][value="yes"]').check()
    page.locator("#prompt-flags summary").click()
    page.locator('[name="prompt-ambiguous"][value="no"]').check()
    page.locator("#comment").fill("Half way. ümläut 🙂")
    saved(page)
    for reload in range(2):
        page.reload()
        assert page.locator(".response-text").all_inner_texts() == texts  # the same order under the same letters
        assert tiers_of(page) == [["B"], ["D"], ["A"]]
        expect(page.locator('[name="quality-A"][value="7"]')).to_be_checked()
        expect(page.locator('[name="flag-D-hallucination"][value="yes"]')).to_be_checked()
        expect(page.locator('[name="prompt-ambiguous"][value="no"]')).to_be_checked()
        expect(page.locator("#comment")).to_have_value("Half way. ümläut 🙂")
        if reload == 0:  # a change in the very moment of leaving
            page.locator("#comment").press_sequentially("")
            page.keyboard.press("Escape")
    page.locator("#comment").fill("changed and left at once")
    page.reload()
    expect(page.locator("#comment")).to_have_value("changed and left at once")


def test_a_double_submit_counts_once(open_page, posts, labeler):
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    address = page.url
    rate_all(page)
    page.get_by_role("button", name="Submit and stop").dblclick()
    page.wait_for_url("**/tasks/")
    page.go_back()
    page.wait_for_load_state()
    assert page.url != address  # what is handed in is shown in the history
    assert Submission.objects.count() == Revision.objects.count() == 1


def test_submitting_twice_from_two_tabs_counts_once(open_browser, posts, labeler):
    make_task(posts[3])
    browser = open_browser(labeler)
    first = browser.new_page()
    open_task(first)
    rate_all(first)
    saved(first)
    second = browser.new_page()
    second.goto(first.url)
    for page in (first, second):
        page.get_by_role("button", name="Submit and stop").click()
        page.wait_for_url("**/tasks/")
    assert Submission.objects.count() == Revision.objects.count() == 1


def test_a_stale_tab_cannot_submit_over_newer_work(open_browser, posts, labeler):
    make_task(posts[3])
    browser = open_browser(labeler)
    first = browser.new_page()
    open_task(first)
    rate_all(first)
    saved(first)
    second = browser.new_page()
    second.goto(first.url)
    expect(second.locator("#board")).to_be_visible()
    first.locator("#comment").fill("improved in the first tab")
    saved(first)
    first.close()
    second.keyboard.press("Control+Enter")
    expect(second.locator("#notice-elsewhere")).to_be_in_viewport()
    assert not Submission.objects.exists()
    second.keyboard.press("Control+Enter")  # asking again is no choice
    expect(second.locator("#notice-elsewhere")).to_be_in_viewport()
    assert not Submission.objects.exists()
    second.get_by_role("button", name="Take the other").click()
    expect(second.locator("#comment")).to_have_value("improved in the first tab")
    second.keyboard.press("Control+Enter")
    second.wait_for_url("**/tasks/")
    assert Submission.objects.get().current.comment == "improved in the first tab"


def test_changed_after_a_submit_whose_answer_was_lost(open_page, posts, labeler):
    """The server has the first answer, the page does not know; the change must count, and only when it is asked for."""
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    rate_all(page)
    saved(page)
    lose_answer(page, "**/submit")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#problems")).to_contain_text("there is no connection")
    assert Revision.objects.get().comment == ""
    page.locator("#comment").fill("a second thought")
    saved(page)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#problems")).to_contain_text("You have handed this in already")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/tasks/")
    assert [each.comment for each in Revision.objects.order_by("number")] == ["", "a second thought"]
    assert not Draft.objects.exists()


def test_left_while_an_earlier_save_was_on_its_way(open_page, posts, labeler):
    """That save's answer must not throw away what was typed after it: the last save may never arrive."""
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    held = []
    page.route("**/draft", lambda route: held.append(route))
    stored = "JSON.parse(Object.entries(localStorage).find(([name]) => name.startsWith('heed-draft-'))[1]).stored"
    page.locator("#comment").fill("first")
    page.wait_for_timeout(1000)
    page.locator("#comment").fill("first, and second")
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")  # what leaving does first
    page.wait_for_timeout(200)
    assert len(held) == 2
    held[0].continue_()
    saved(page)
    assert page.evaluate(stored) == 0
    held[1].continue_()
    page.wait_for_function(f"() => {stored} === 2")
    assert Draft.objects.get().content["comment"] == "first, and second"


def test_a_lost_answer_to_a_submit_is_found_out(open_page, posts, labeler):
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    rate_all(page)
    saved(page)
    lose_answer(page, "**/submit")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#problems")).to_contain_text("there is no connection")
    page.wait_for_url("**/tasks/")  # the next save tells that it arrived
    assert Revision.objects.count() == 1 and not Draft.objects.exists()


def test_a_lost_answer_to_put_back_is_not_undone(open_page, posts, labeler):
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    page.locator("#comment").fill("begun")
    saved(page)
    lose_answer(page, "**/release")
    page.get_by_role("button", name="Put back").click()
    expect(page.locator("#problems")).to_contain_text("Not done: there is no connection")
    page.wait_for_timeout(6000)
    assert not Slot.objects.filter(status="leased").exists()
    page.get_by_role("button", name="Put back").click()
    page.wait_for_url("**/tasks/")


def test_nothing_can_be_typed_while_a_submit_is_on_its_way(open_page, posts, labeler):
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    rate_all(page)
    page.locator("#comment").fill("sent")
    saved(page)
    held = []
    page.route("**/submit", lambda route: held.append(route))
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(300)
    page.keyboard.type(" and lost")
    page.keyboard.press("a")
    page.keyboard.press("1")
    assert page.locator("#comment").input_value() == "sent" and len(held) == 1
    held[0].continue_()
    page.wait_for_url("**/tasks/")
    revision = Revision.objects.get()
    assert revision.comment == "sent" and {rating["quality"] for rating in revision.ratings.values()} == {4}


def test_a_page_that_takes_up_anothers_work_is_another_page(open_browser, posts, labeler):
    """The second tab goes on with what the first could not send; the first must not think itself saved afterwards."""
    make_task(posts[7])
    browser = open_browser(labeler)
    first = browser.new_page()
    open_task(first)
    first.route("**/draft", lambda route: route.abort("internetdisconnected"))
    first.locator("#comment").fill("in the tunnel")
    expect(first.locator("#save-state")).to_have_attribute("data-state", "offline")
    second = browser.new_page()
    second.goto(first.url)
    expect(second.locator("#comment")).to_have_value("in the tunnel")
    for word in ("one", "two", "three"):
        second.locator("#comment").fill(f"in the tunnel {word}")
        saved(second)
    first.unroute("**/draft")
    first.locator("#comment").fill("in the tunnel, later")
    expect(first.locator("#notice-elsewhere")).to_be_visible()
    assert Draft.objects.get().content["comment"] == "in the tunnel three"
    assert DraftCopy.objects.get().content["comment"] == "in the tunnel, later"


def test_all_that_two_tabs_kept_offline_is_found(open_browser, posts, labeler):
    make_task(posts[7])
    browser = open_browser(labeler)
    first = browser.new_page()
    open_task(first)
    second = browser.new_page()
    second.goto(first.url)
    address = first.url
    browser.set_offline(True)
    for page, text in ((first, "kept by the first"), (second, "kept by the second")):
        page.locator("#comment").fill(text)
        expect(page.locator("#save-state")).to_have_attribute("data-state", "offline")
    crash(first)
    crash(second)
    browser.set_offline(False)
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("#comment")).to_have_value("kept by the second")
    saved(page)
    expect(page.locator("#messages")).to_contain_text("is now kept here")
    assert DraftCopy.objects.get().content["comment"] == "kept by the first"
    page.reload()
    page.get_by_text("Another version of your work").click()
    page.get_by_role("button", name="Go on with this version").click()
    expect(page.locator("#comment")).to_have_value("kept by the first")
    assert DraftCopy.objects.filter(content__comment="kept by the second").exists()


def test_work_kept_offline_is_found_after_the_seat_went(open_browser, posts, labeler, labeler2):
    task = make_task(posts[7], overlap=1)
    browser = open_browser(labeler)
    page = browser.new_page()
    open_task(page)
    address = page.url
    browser.set_offline(True)
    page.locator("#comment").fill("typed in a tunnel")
    expect(page.locator("#save-state")).to_have_attribute("data-state", "offline")
    crash(page)
    Slot.objects.filter(task=task).update(labeler=labeler2, lease_expires_at=timezone.now() + timedelta(hours=1))
    browser.set_offline(False)
    page = browser.new_page()
    page.goto(address)
    page.wait_for_url("**/tasks/")
    page.evaluate("""() => Object.entries(localStorage).filter(([name]) => name.startsWith("heed-draft")).forEach(
        ([name, kept]) => localStorage.setItem(name, JSON.stringify({ ...JSON.parse(kept), at: Date.now() - 120000 })))""")
    page.reload()  # a minute later
    page.locator("#messages").get_by_role("link", name="see it").click()
    page.get_by_text("Another version of your work").click()
    expect(page.get_by_text("typed in a tunnel")).to_be_visible()


def test_a_page_never_saves_as_another_person(open_browser, posts, labeler, labeler2, live_server):
    from tests.browser.conftest import log_in

    make_task(posts[6])
    browser = open_browser(labeler)
    page = browser.new_page()
    open_task(page)
    other = open_browser(labeler2).new_page()
    open_task(other)
    other.close()
    log_in(browser, labeler2, live_server.url)
    page.locator("#comment").fill("by the first")
    expect(page.locator("#notice-logged-out")).to_be_visible()
    assert {draft.version for draft in Draft.objects.all()} == {0}
    log_in(browser, labeler, live_server.url)
    page.locator("#comment").fill("by the first, again")
    saved(page)
    assert Draft.objects.get(labeler=labeler).content["comment"] == "by the first, again"


def test_reloading_again_and_again_while_saves_are_stuck_is_no_conflict(open_page, posts, labeler):
    """The server has the first save, whose answer nobody heard; each loading takes up what the one before had taken up."""
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    count, held = [0], []

    def slow(route):
        count[0] += 1
        if count[0] == 1:
            route.fetch()
        held.append(route) if count[0] < 4 else route.continue_()

    page.route("**/draft", slow)
    for words in ("first", "first and second", "first, second and third"):
        page.locator("#comment").fill(words)
        page.wait_for_timeout(900 if words == "first" else 100)
        page.reload()
        expect(page.locator("#comment")).to_have_value(words)
    count[0] = 9
    page.reload()
    expect(page.locator("#comment")).to_have_value("first, second and third")
    page.wait_for_timeout(1500)
    expect(page.locator("#notice-elsewhere")).to_be_hidden()
    assert Draft.objects.get().content["comment"] == "first, second and third"


def test_an_answer_that_is_not_the_servers_leaves_the_page_usable(open_page, posts, labeler):
    make_task(posts[3])
    page = open_page(labeler)
    open_task(page)
    page.route(
        "**/draft", lambda route: route.fulfill(status=200, content_type="text/html", body="Log in to the network")
    )
    page.locator("#comment").fill("captive")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#problems")).to_contain_text("is not ranked yet")
    assert not page.evaluate("document.getElementById('task-form').inert")
    page.unroute("**/draft")
    page.locator("#comment").fill("captive no more")
    saved(page)
    assert Draft.objects.get().content["comment"] == "captive no more"


def test_what_is_missing_is_named_and_nothing_is_lost(open_page, posts, labeler):
    make_task(posts[4])
    page = open_page(labeler)
    open_task(page)
    rate_all(page)
    page.keyboard.press("g")
    page.keyboard.press("Backspace")
    page.locator("#comment").fill("kept")
    page.keyboard.press("Control+Enter")
    problems = page.locator("#problems")
    expect(problems).to_be_focused()
    expect(problems.locator("li")).to_have_text(["Response G is not ranked yet"])
    problems.get_by_role("link", name="Response G").click()
    expect(page.locator("#place-G")).to_be_focused()
    expect(page.locator("#comment")).to_have_value("kept")
    page.locator("#place-G").select_option("1")
    expect(problems).to_be_hidden()
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/tasks/")
    assert Submission.objects.get().current.comment == "kept"


def test_a_lost_connection_loses_nothing(open_browser, posts, labeler):
    make_task(posts[5])
    browser = open_browser(labeler)
    page = browser.new_page()
    open_task(page)
    page.keyboard.press("a")
    page.keyboard.press("5")
    saved(page)
    browser.set_offline(True)
    page.keyboard.press("Enter")
    page.locator("#comment").fill("typed on a train")
    expect(page.locator("#save-state")).to_have_text("Offline – kept on this computer")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#problems")).to_contain_text("there is no connection")
    assert not Submission.objects.exists() and Draft.objects.get().content["comment"] == ""
    browser.set_offline(False)
    saved(page)
    assert Draft.objects.get().content["comment"] == "typed on a train"
    expect(page.locator("#problems")).to_contain_text("The connection is back: submit again.")


def test_what_was_typed_offline_survives_closing_the_page(open_browser, posts, labeler):
    make_task(posts[5])
    browser = open_browser(labeler)
    page = browser.new_page()
    open_task(page)
    address = page.url
    browser.set_offline(True)
    page.keyboard.press("b")
    page.keyboard.press("6")
    page.locator("#comment").fill("closed in the tunnel")
    expect(page.locator("#save-state")).to_have_attribute("data-state", "offline")
    page.close()
    browser.set_offline(False)
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("#comment")).to_have_value("closed in the tunnel")
    expect(page.locator('[name="quality-B"][value="6"]')).to_be_checked()
    # "kept" where the page's last words, sent as it closed, came through before this one was made
    expect(page.locator("#save-state")).to_have_attribute("data-state", re.compile("saved|kept"))
    assert Draft.objects.get().content["comment"] == "closed in the tunnel"


def test_a_lost_session_loses_nothing(open_browser, posts, labeler, live_server):
    from django.contrib.sessions.models import Session

    from tests.conftest import PASSWORD

    make_task(posts[6])
    browser = open_browser(labeler)
    page = browser.new_page()
    open_task(page)
    Session.objects.all().delete()
    page.locator("#comment").fill("typed while logged out")
    expect(page.locator("#notice-logged-out")).to_be_visible()
    with browser.expect_page() as opened:
        page.get_by_role("link", name="Log in again").click()
    login = opened.value
    login.get_by_label("Email").fill(labeler.email)
    login.get_by_label("Password", exact=False).first.fill(PASSWORD)
    login.get_by_role("button", name="Log in").click()
    login.wait_for_url("**/tasks/")
    page.bring_to_front()
    page.locator("#comment").press("End")
    page.keyboard.type(", and after")
    saved(page)
    expect(page.locator("#notice-logged-out")).to_be_hidden()
    assert Draft.objects.get().content["comment"] == "typed while logged out, and after"


def test_two_tabs_never_overwrite_each_other_unasked(open_browser, posts, labeler):
    make_task(posts[7])
    browser = open_browser(labeler)
    first = browser.new_page()
    open_task(first)
    second = browser.new_page()
    second.goto(first.url)
    first.locator("#comment").fill("from the first")
    saved(first)
    second.locator("#comment").fill("from the second")
    expect(second.locator("#notice-elsewhere")).to_be_visible()
    assert Draft.objects.get().content["comment"] == "from the first"
    second.get_by_role("button", name="Keep what is here").click()
    saved(second)
    assert Draft.objects.get().content["comment"] == "from the second"
    first.locator("#comment").fill("from the first again")
    expect(first.locator("#notice-elsewhere")).to_be_visible()
    first.get_by_role("button", name="Take the other").click()
    expect(first.locator("#comment")).to_have_value("from the second")
    first.get_by_text("2 other versions of your work").click()
    for text in ("from the first", "from the first again"):
        expect(first.locator("#copies").get_by_text(text, exact=True)).to_be_visible()


def test_a_retaken_seat_counts_one_and_keeps_the_other(open_page, posts, labeler, labeler2):
    make_task(posts[8], overlap=1)
    late, other = open_page(labeler), open_page(labeler2)
    open_task(late)
    rate_all(late)
    saved(late)
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    open_task(other)
    rate_all(other)
    other.get_by_role("button", name="Submit and stop").click()
    other.wait_for_url("**/tasks/")
    late.locator("#comment").fill("a word more")
    expect(late.locator("#notice-lost")).to_be_visible()
    late.get_by_role("button", name="Submit and stop").click()
    late.wait_for_url("**/tasks/")
    expect(late.get_by_text("counts as extra work")).to_be_visible()
    assert Submission.objects.get(labeler=labeler).is_surplus
    assert not Submission.objects.get(labeler=labeler2).is_surplus
    for page, is_surplus in ((late, True), (other, False)):
        page.goto("/history/")
        expect(page.locator(".list-lines li")).to_have_count(1)
        expect(page.get_by_text("surplus")).to_have_count(int(is_surplus))


def test_signs_of_work_renew_the_lease(open_page, posts, labeler):
    make_task(posts[9])
    page = open_page(labeler)
    page.clock.install()
    open_task(page)
    Slot.objects.filter(labeler=labeler).update(lease_expires_at=timezone.now() + timedelta(minutes=1))
    with page.expect_response("**/renew") as renewed:
        for _ in range(30):  # reading: only the mouse moves
            page.mouse.move(300, 300)
            page.mouse.move(310, 320)
            page.clock.run_for(20_000)
    assert renewed.value.json() == {"seat": "held"}
    left = Slot.objects.get(labeler=labeler).lease_expires_at - timezone.now()
    assert left > timedelta(minutes=25)
