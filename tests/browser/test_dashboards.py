"""The dashboards before a real browser: accessible, no wider than the page, and what is pending appears by itself."""

import pytest
from playwright.sync_api import expect

from labeling.actions import statistics
from labeling.models import Statistic
from tests.browser.test_pages import check
from tests.labeling import rows

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PATHS = ["", "throughput/", "agreement/", "policies/"]


@pytest.fixture
def ranked(open_browser, labeler, labeler2):
    """Two people's rankings of two tasks."""
    batch = rows.make_ranking_batch(k=3, overlap=2, prompts=2)
    first, second = batch.tasks.all()
    for task, labels in ((first, "abc"), (second, "bca")):
        ids = dict(zip(labels, rows.response_ids(task), strict=True))
        rows.submit(task, labeler, tiers=[[ids[x]] for x in "abc"])
        rows.submit(task, labeler2, tiers=[[ids["a"], ids["b"]], [ids["c"]]])
    return batch


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (2560, "light")])
def test_dashboards_fit_and_are_accessible(open_page, ranked, reviewer, width, scheme):
    for kind in Statistic.Kind.values:
        statistics.refresh(statistic=statistics.ask(kind=kind))
    page = open_page(reviewer, "/console/dashboards/", width=width, color_scheme=scheme)
    for path in PATHS:
        page.goto(f"/console/dashboards/{path}")
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        check(page, f"{path} at {width} px, {scheme}")
        for chart in page.locator("svg.chart").all():
            assert chart.bounding_box()["width"] > 250
    page.get_by_role("region", name="Table of pairs").get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("against")
    check(page, f"a pair at {width} px, {scheme}")


def test_what_is_pending_appears_by_itself(open_page, ranked, reviewer):
    page = open_page(reviewer, "/console/dashboards/policies/")
    expect(page.get_by_role("heading", name="Being computed")).to_be_visible()
    check(page, "pending")
    [waiting] = statistics.outdated()
    statistics.refresh(statistic=waiting)
    expect(page.get_by_role("heading", name="Pairs")).to_be_visible()
