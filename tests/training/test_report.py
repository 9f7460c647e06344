"""The page of a run: everything that the run knew is in it, and nothing has to be fetched to read it."""

import re

import pytest

from training.report import Sample, curves, write_report

FACTS = {
    "name": "sft-1",
    "stage": "sft",
    "parents": {"base": {"name": "base-0", "manifest_sha256": "0" * 64}},
    "export": {"name": "v0007", "data_sha256": "1" * 64},
    "config": {"epochs": 3, "export": "var/exports/v0007", "text": None},
    "metrics": {
        "valid_loss": 1.25,
        "demonstrations": 12345,
        "dropped_too_long": 4,
        "skipped_held_out": 0,
        "text_dropped_too_long": 7,
    },
    "seed": 0,
    "code_version": "abc",
    "created_at": "2026-11-21T00:00:00Z",
}


@pytest.fixture
def page(tmp_path):
    log = [{"step": step, "loss": 2.0 - step / 10, "rate": 0.1} for step in range(5)]
    samples = [Sample("Tell <me>", "no & no", "</pre><script>alert(1)</script>")]
    write_report(tmp_path / "report.html", facts=FACTS, log=log, samples=samples)
    return (tmp_path / "report.html").read_text()


def test_it_tells_everything(page):
    for text in ("sft-1", "base-0", "v0007", "valid_loss", "1.25", "12,345", "dropped_too_long", "epochs", "2 → 1.6"):
        assert text in page, text
    assert page.index("dropped_too_long") > page.index("Left out")
    assert page.index("text_dropped_too_long") > page.index("Left out"), "whatever was dropped"


def test_it_is_self_contained_and_safe(page):
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "Tell &lt;me&gt;" in page and "no &amp; no" in page and "&lt;script&gt;" in page


def test_a_metric_of_rows_is_a_table(tmp_path):
    rows = {"a vs b": {"accuracy": 0.75, "pairs": 4}, "a vs c": {"accuracy": 0.5}}
    write_report(tmp_path / "r.html", facts=FACTS | {"metrics": {"by_policies": rows}}, log=[])
    page = (tmp_path / "r.html").read_text()
    assert "by_policies: 2 rows" in page
    assert '<th scope="row">a vs c</th><td>0.5</td><td>–</td>' in page


def test_curves_are_drawn_to_scale():
    log = [{"iteration": 0, "kl": 0.0, "note": "x"}, {"iteration": 10, "kl": 4.0}, {"iteration": 20, "kl": 1.0}]
    [curve] = curves(log)
    assert curve.points == "0.0,130.0 160.0,0.0 320.0,97.5"
    assert (curve.first, curve.last, curve.low, curve.high, curve.start, curve.end) == ("0", "1", "0", "4", "0", "20")
    rates = [
        {"step": 1000 * step, "rate": 1.71954e-12 + 8.15e-7 * step, "held": 0.1, "tokens": 7219.6} for step in (0, 10)
    ]
    rate, held, tokens = curves(rates)
    assert (rate.first, rate.last, rate.start, rate.end) == ("1.72e-12", "8.15e-06", "0", "10,000")
    assert (held.points, held.low, held.high) == ("0.0,65.0 320.0,65.0", "0.1", "0.1"), "a constant runs in the middle"
    assert tokens.first == "7,220"


def test_what_is_no_number_is_left_out_of_curves():
    nothing = [{"step": 0, "a": float("nan"), "b": True, "c": 1.0}, {"step": 1, "a": 2.0, "b": False}]
    assert curves(nothing) == [] and curves([]) == []


def test_a_long_log_keeps_its_last_point():
    [curve] = curves([{"step": step, "loss": float(step)} for step in range(10_001)])
    assert len(curve.points.split()) <= 402 and curve.points.endswith("320.0,0.0")


def test_a_run_without_curves_or_losses(tmp_path):
    write_report(tmp_path / "r.html", facts=FACTS | {"parents": {}, "export": None, "metrics": {}}, log=[])
    page = (tmp_path / "r.html").read_text()
    assert "too short for a curve" in page and "Nothing was dropped" in page and "from nothing" in page
