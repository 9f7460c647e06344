"""Every address that shows a page, in a real browser with rows to show: axe-core finds nothing, on a phone in the dark and on a desk in
the light. Pages are found by their addresses (tests/bench/pages.py): a new one is walked, or fails this test until it can be."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.urls import get_resolver, reverse
from playwright.sync_api import Page

from labeling.actions import (
    evaluations,
    exercises,
    gateway_keys,
    imports,
    instructions,
    numbers,
    pauses,
    people,
    statistics,
    webhooks,
    writings,
)
from labeling.actions import screenings as screening_actions
from labeling.management import demo_applicants
from labeling.models import Attempt, Erasure, Export, LabelSchema, User
from tests.bench import load, pages
from tests.browser.test_joining import EXERCISES, WIDE

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
# Answered with a file, a part of a page, or by leading on to another page.
NO_PAGES = {
    "account_inactive", "agreement_csv", "agreement_labelers_csv", "batch_evaluation_csv",
    "dashboard_csv", "hours_all_csv", "hours_csv", "labelers_csv",
    "playground_answer", "reviews_next",
    "second_review_next", "set_language", "task_compare", "task_submit", "writing_submit",
}  # fmt: skip
OWN_ACCOUNT = {"account_change_password", "account_email", "account_logout", "account_reauthenticate"}
GRADER = "grader@example.org"
OPEN = "document.querySelectorAll('details').forEach((each) => (each.open = true))"
# What another width and other colours can change; axe-core is there from the first look.
AGAIN = """axe.run({runOnly: ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]})
  .then(({violations}) => violations.map((one) => one.id + ": " + one.nodes[0].html.slice(0, 200)))"""


@pytest.fixture
def site(open_browser, make_user, researcher) -> pages.Site:
    """A small installation in which every page has something to show."""
    exercises.load(rows=EXERCISES, by=None)
    screening_actions.set_rules(
        flagging_items=1, ranking_items=1, demonstration_items=1, groups=["Sailors"], topics=["Weather"], by=researcher
    )
    load.fill(submissions=60, labelers=8)
    found = pages.Site()
    writings.add_use_case(name="Letters", description="To an office.", by=researcher)
    for kind in ("plain", "few_shot", "user_based"):
        writings.begin(kind=kind, by=found.labeler)
    webhooks.try_out(
        webhook=webhooks.create(url="https://example.org/", events=["export.ready"], by=found.chief), by=found.chief
    )
    gateway_keys.create(organization="A school", name="Pilot", may_train=True, by=researcher)
    for kind in ("ranking", "demonstration"):
        instructions.publish(kind=kind, text=f"How to do a {kind}.", examples="> An example", by=researcher)
    exercises.next_practice(kind="ranking", by=found.labeler)
    for email in (demo_applicants.MIDWAY, demo_applicants.WAITING):
        make_user(email, "applicant", name="Milo")
    demo_applicants.make_applicants(grader=make_user(GRADER, "researcher"))
    people.invite(email="new@example.org", role="labeler", group="training", by=found.chief)
    pauses.make_rule(metric="agreement", threshold=0.3, minimum=2, window_days=14, by=researcher)
    numbers.measure()
    for kind in ("throughput", "policies", "agreement"):
        statistics.refresh(statistic=statistics.ask(kind=kind))
    evaluations.current(found.evaluation)
    private = [{"prompt": "Write to jo@mail.example or call (415) 555-0132."}, {"prompt": "name a fruit " * 20}]
    imports.import_rows(kind="prompts", rows=[*private, {"prompt": "NAME a fruit " * 20}], by=researcher)
    Erasure.objects.create(pseudonym="p-0123456789abcdef", reason="Request 7").exports.set(Export.objects.all()[:1])
    return found


def wanted() -> set[str]:
    """Names of the addresses that show a page: the console's, labelers', applicants', and those of accounts."""
    accounts = {name for name in get_resolver().reverse_dict if isinstance(name, str) and name.startswith("account_")}
    return ({name for name, _route, _needed in pages.routes()} | accounts) - NO_PAGES


def visits(site: pages.Site) -> Iterator[tuple[User | None, str, str]]:
    """(who, name, path): each page once."""
    midway = User.objects.get(email=demo_applicants.MIDWAY)
    item = Attempt.objects.filter(user=midway, screening__isnull=False).first()
    yield from ((midway, name, reverse(name)) for name in ("home", "application", "screening", "screening_self"))
    yield midway, "screening_item", reverse("screening_item", args=[item.uuid])
    yield site.labeler, "account_set_password", reverse("account_set_password")
    yield site.chief, "label_schema", reverse("label_schema", args=[LabelSchema.latest().version])
    seen = {"home"}
    for visit in site.visits():
        if visit.name not in seen:
            yield (site.labeler if visit.is_labelers else site.chief), visit.name, visit.path
        seen.add(visit.name)
    keys = {"uidb36": "0", "key": "0-0"}
    for name in sorted(wanted() - {each for each, _route, _needed in pages.routes()} - {"account_set_password"}):
        needed = get_resolver().reverse_dict[name][0][0][1]
        who = User.objects.get(email=GRADER) if name in OWN_ACCOUNT else None
        yield who, name, reverse(name, kwargs={each: keys[each] for each in needed})


def test_every_page_is_accessible(site, open_page):
    looked, walked, found = {}, set(), []
    for person, name, path in visits(site):
        if name in NO_PAGES:
            continue
        page = looked.get(person) or looked.setdefault(person, open_page(person))
        page.set_viewport_size({"width": 390, "height": 900})
        page.emulate_media(color_scheme="dark")
        answer = page.goto(path)
        if answer.ok:
            walked.add(name)
        page.evaluate(OPEN)
        found += look(page, name)
    assert not found, "\n".join(found)
    assert walked >= wanted(), f"no way to open: {sorted(wanted() - walked)}"


def look(page: Page, name: str) -> list[str]:
    """What axe-core finds, and what sticks out at the side, on a phone in the dark and on a desk in the light."""
    found = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in Axe().run(page).response["violations"]]
    found += sticking_out(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    return [f"{name}: {one}" for one in found + page.evaluate(AGAIN) + sticking_out(page)]


def sticking_out(page: Page) -> list[str]:
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return [] if fits else [f"wider than the window: {page.evaluate(WIDE)}"]
