"""A model's evaluations before a real browser: accessible and no wider than the page, tables opened."""

import pytest
from playwright.sync_api import expect

from labeling.actions import model_versions
from tests.browser.test_pages import check
from tests.labeling.test_model_versions import make_policy

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

JUDGE = {"win_rate": 0.5833, "low": 0.3195, "high": 0.8067, "n": 12, "first_shown_rate": 0.8333, "position_bias": True}
AGREEMENT = {"judge": {"agreement": 0.71, "low": 0.65, "high": 0.77, "n": 200, "ties": 12, "people_ties": 5}}
TASK = {"accuracy": 0.229, "stderr": 0.061, "low": 0.133, "high": 0.365, "n": 48, "shots": 0, "task": "tiny_facts"}
TAX = {
    "figure": "tiny_facts_0shot",
    "model": "ppo",
    "base": "base",
    "base_value": 0.23,
    "value": 0.21,
    "difference": -0.02,
}
GROUP = {"n": 100, "describing": {"kind": 31, "tall": 4}, "words": {"kind": 40, "tall": 9, "strong": 7}}
MEASURED = [
    ("blind comparison with sft-1", {"by": "people", "win_rate": {"rate": 0.62, "low": 0.55, "high": 0.69}, "n": 180}),
    ("by model", {"by": "model", "against": ["sft-1"], "judge": JUDGE, "agreement": AGREEMENT, "counts": {"prompts": 12}}),
    ("by task", {"by": "task", "perplexity": {"per_token": 379.11, "bits_per_byte": 3.5, "low": 3.1, "high": 3.9},
                 "tasks": {"tiny_facts_0shot": TASK}, "bias": {"gender": {"man": GROUP, "woman": GROUP}}, "tax": [TAX]}),
]  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_evaluations_fit_and_are_accessible(open_page, researcher, width, scheme):
    policy = make_policy("ppo")
    for name, metrics in [("by task", {"by": "task", "old": 1}), *MEASURED]:
        model_versions.record_evaluation(model_version=policy, name=name, metrics=metrics, by=None)
    page = open_page(researcher, f"/console/models/{policy.pk}/", width=width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    expect(page.get_by_role("heading", name="Measured by: people")).to_be_visible()
    expect(page.get_by_text("judge, in by model 0.71 (0.65 to 0.77)")).to_be_visible()
    check(page, f"a model's evaluations at {width} px, {scheme}")
    page.screenshot(path=f"/tmp/heed/m6/model-{width}.png", full_page=True)
