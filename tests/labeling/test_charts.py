"""Charts: what is drawn where, whole and escaped."""

import re
from xml.etree import ElementTree

import pytest

from labeling import charts


def drawn(svg):
    return ElementTree.fromstring(f"<div>{svg}</div>")


def test_bars_are_as_high_as_their_counts_and_lead_on():
    svg = charts.bars(
        ["Mon", "Tue"], [charts.Series("a", [2, 0]), charts.Series("b", [2, 8])], ["/mon", "/tue?x=1&y=2"]
    )
    links = drawn(svg).findall(".//a")
    assert [link.get("href") for link in links] == ["/mon", "/tue?x=1&y=2"]
    heights = [[float(rect.get("height")) for rect in link.findall("rect")] for link in links]
    assert heights == [[charts.PLOT / 4, charts.PLOT / 4], [charts.PLOT]]  # the axis ends at 8; no bar for nothing
    assert links[0].find("title").text == "Mon: a 2, b 2"
    assert all(link.get("tabindex") == "-1" for link in links) and drawn(svg)[0].get("aria-hidden") == "true"


def test_a_line_breaks_where_there_is_no_value_and_has_its_band():
    svg = charts.lines(
        ["1", "2", "3", "4"], [charts.Series("a", [0, 50, None, 100], [0, 40, None, 90], [10, 60, None, 100])]
    )
    lines = [line.get("points") for line in drawn(svg).findall(".//polyline")]
    assert lines == ["12.5,100 37.5,50", "87.5,0"]
    assert len(drawn(svg).findall(".//polygon")) == 2 and len(drawn(svg).findall(".//circle")) == 3


def test_names_are_escaped():
    hostile = "<script>alert(1)</script>"
    made = charts.bars([hostile], [charts.Series(hostile, [1])], ['"><b>']) + charts.lines(
        [hostile], [charts.Series(hostile, [1])]
    )
    assert "<script>" not in made and "<b>" not in made and drawn(made) is not None


@pytest.mark.parametrize(
    ("low", "most", "ticks"),
    [(0, 8, [2, 4, 6, 8]), (0, 0, [1]), (0, 1, [0.25, 0.5, 0.75, 1]), (0, 1720, [500, 1000, 1500, 2000])],
)  # fmt: skip
def test_axes_end_at_round_numbers(low, most, ticks):
    assert charts.scale(low, most) == (ticks[-1], pytest.approx(ticks))


def test_coordinates_have_points_and_empty_charts_are_drawn(settings):
    from django.utils import translation

    with translation.override("de"):
        svg = charts.bars(["a", "b", "c"], [charts.Series("n", [1, 2, 3])]) + charts.interval(
            0.5, 0.1, 0.9, least=-1, most=1
        )
    assert not re.search(r'(?:x|y|width|height|x1|cx)="[^"]*,', svg)
    assert drawn(charts.bars([], [])) is not None and drawn(charts.lines([], [])) is not None
    assert drawn(charts.spark([])) is not None and charts.number_of(None) == "–"


def test_shades():
    assert [charts.shade(x) for x in (0, 0.04, 0.5, 1, None)] == ["shade-0", "shade-0", "shade-5", "shade-10", ""]
