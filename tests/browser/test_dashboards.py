"""The dashboards before a real browser: accessible, no wider than the page, and what is pending appears by itself."""

import pytest
from playwright.sync_api import expect

from labeling.actions import model_versions, statistics
from tests.browser.test_pages import check
from tests.labeling import rows

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PATHS = ["", "throughput/", "agreement/", "policies/", "rounds/"]


@pytest.fixture
def ranked(open_browser, labeler, labeler2):
    """Two people's rankings of two tasks."""
    batch = rows.make_ranking_batch(k=3, overlap=2, prompts=2)
    first, second = batch.tasks.all()
    for task, labels in ((first, "abc"), (second, "bca")):
        ids = dict(zip(labels, rows.response_ids(task), strict=True))
        rows.submit(task, labeler, tiers=[[ids[x]] for x in "abc"])
        rows.submit(task, labeler2, tiers=[[ids["a"], ids["b"]], [ids["c"]]])
    for number in (1, 2, 3):
        rate = {
            "rate": 0.5 + number / 20,
            "low": 0.45 + number / 20,
            "high": 0.55 + number / 20,
            "n": 300,
            "by": "people",
        }
        reason = (
            "KL to the policy it started from (nats per response): 12 lies above the ceiling of 10."
            if number == 2
            else ""
        )
        facts = {"night": number, "outcome": "refused" if reason else "promoted", "reason": reason, "kl": 2.5 * number,
                 "new_labels": {"rankings": 40 * number, "demonstrations": 12}, "rm_accuracy_fixed": 0.65 + number / 50,
                 "rm_accuracy": 0.7, "tax": 0.02 - number / 100, "win_rate_vs_round0": rate, "win_rate_vs_last": rate}  # fmt: skip
        model = rows.make_model(f"night-000{number}-ppo")
        model_versions.record_evaluation(model_version=model, name="night", metrics=facts, by=None)
    return batch


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (2560, "light")])
def test_dashboards_fit_and_are_accessible(open_page, ranked, reviewer, width, scheme):
    for kind in ("throughput", "policies", "agreement"):
        statistics.refresh(statistic=statistics.ask(kind=kind))
    page = open_page(reviewer, "/console/dashboards/", width=width, color_scheme=scheme)
    for path in PATHS:
        page.goto(f"/console/dashboards/{path}")
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        check(page, f"{path} at {width} px, {scheme}")
        for chart in page.locator("svg.chart").all():
            assert chart.bounding_box()["width"] > 250
    page.goto("/console/dashboards/policies/")
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
