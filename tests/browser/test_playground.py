"""The playground in a real browser, before a real gateway: an answer that grows, with HTMX and without; the pages of keys."""

import threading

import pytest
from playwright.sync_api import expect

from labeling.actions import gateway_keys
from labeling.models import GatewayUsage
from labeling.models.gateway_keys import Amounts
from tests.browser.test_pages import check
from tests.labeling.gateways import policy, promote_stub, running_gateway  # noqa: F401 a fixture
from tests.labeling.policy_server import END

# ruff: noqa: F811 (fixtures that are imported)


@pytest.fixture
def gateway(transactional_db, policy, settings):
    """A gateway with connections of its own."""
    promote_stub()
    with running_gateway() as made:
        settings.GATEWAY_URL = made.url
        yield made


def test_an_answer_grows_while_the_next_question_is_typed(open_page, gateway, policy, labeler):
    go_on = threading.Event()

    def script(body):
        yield "Fruit:\n\n- an **apple**\n"
        assert go_on.wait(60)
        yield "- a pear"
        yield END

    policy.script = script
    page = open_page(labeler, "/playground/", width=390, color_scheme="dark")
    box = page.get_by_label("Your message")
    box.fill("Name fruit.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#pending strong")).to_have_text("apple")
    expect(box).to_have_value("")
    expect(box).to_be_focused()
    box.fill("And vegetables?")
    check(page, "while it is written")
    go_on.set()
    expect(page.locator("#pending")).to_have_count(0)
    expect(page.locator("#conversation li")).to_have_text(["an apple", "a pear"])
    expect(box).to_have_value("And vegetables?")
    policy.script = lambda body: [500]
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The model could not answer this.")).to_be_visible()
    check(page, "after a failure")
    policy.script = lambda body: ["A carrot.", END]
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("A carrot.")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("Ask anything.")).to_be_visible()


def test_it_works_without_a_script_and_says_what_is_wrong(open_page, gateway, labeler, settings):
    page = open_page(labeler, "/playground/", java_script_enabled=False)
    page.get_by_label("Your message").fill("Say hello.")
    page.get_by_role("button", name="Send").click()
    for _ in range(20):
        if page.get_by_text("Hello.", exact=True).count():
            break
        page.wait_for_timeout(200)
        page.reload()
    expect(page.get_by_text("Hello.", exact=True)).to_be_visible()


def test_what_cannot_be_said_stays_in_the_box(open_page, transactional_db, labeler, settings):
    settings.GATEWAY_URL = "http://127.0.0.1:9"
    page = open_page(labeler, "/playground/")
    page.get_by_label("Your message").fill("Kept.")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer just now")
    expect(page.get_by_label("Your message")).to_have_value("Kept.")
    check(page, "refused")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_pages_of_keys_are_accessible(open_page, transactional_db, admin_user, width, scheme):
    key, _ = gateway_keys.create(organization="An organization", name="an application", may_train=True, by=admin_user)
    GatewayUsage.objects.add(key_id=key.pk, day=key.created_at.date(), amounts=Amounts(requests=12_000))
    page = open_page(admin_user, "/console/keys/", width=width, color_scheme=scheme)
    check(page, "keys")
    page.goto(f"/console/keys/{key.pk}/")
    check(page, "key")
    page.goto("/console/keys/")
    page.get_by_label("Organization").fill("Another")
    page.get_by_label("Name", exact=True).fill("app")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#secret")).to_contain_text("heedgw_")
    check(page, "new key")
