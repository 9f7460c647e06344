"""Charts as SVG, drawn on the server: bars, lines with a band, a value with its interval, a shaded table cell.

A chart is what eyes take in at once; what it says stands beside it as a table (templates/charts/figure.html puts both together), so
the drawing itself is hidden from screen readers and its links from the keyboard. Colours are classes of static/css/charts.css,
light and dark. Widths are shares of the page: text keeps its size on a narrow one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

HEIGHT, TOP, BOTTOM = 190, 14, 24  # pixels: of all, above the plot, and below it for the labels
PLOT = HEIGHT - TOP - BOTTOM
LABELS = 5  # on the horizontal axis: as many as fit on a phone
COLOURS = 6  # .series-1 … .series-6


@dataclass(frozen=True)
class Series:
    """One value per label; None where there is none. `low` and `high`: an interval around each, drawn as a band by `lines`."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def bars(labels: Sequence[str], series: Sequence[Series], links: Sequence[str] = ()) -> SafeString:
    """A column per label, the series stacked in it; a click on one leads to its link. Counts: values are 0 or more."""
    totals = [sum(one.values[i] or 0 for one in series) for i in range(len(labels))]
    top, ticks = scale(0, max(totals, default=0))
    step = 100 / max(1, len(labels))
    columns = []
    for i, label in enumerate(labels):
        parts, below = [], 0.0
        for number, one in enumerate(series, start=1):
            value = one.values[i] or 0
            y, height = _y(below + value, 0, top), PLOT * value / top
            parts.append((_n(i * step + step * 0.1), _n(y), _n(step * 0.8), _n(height), (number - 1) % COLOURS + 1))
            below += value
        rects = format_html_join(
            "", '<rect x="{}%" y="{}" width="{}%" height="{}" class="series-{}"/>', (p for p in parts if p[3] != "0")
        )
        said = ", ".join(f"{one.name} {number_of(one.values[i])}" for one in series)
        inner = format_html("<title>{}: {}</title>{}", label, said, rects)
        columns.append(_linked(inner, links[i] if i < len(links) else ""))
    return _chart(mark_safe("".join(columns)), labels, ticks, 0, top)  # noqa: S308 - joined of escaped parts


def lines(labels: Sequence[str], series: Sequence[Series], *, low: float = 0, high: float | None = None) -> SafeString:
    """A line per series with its band, from `low` to `high` (the largest value, if not given)."""
    values = [v for one in series for v in (*one.values, *one.high) if v is not None]
    top, ticks = scale(low, max(values, default=low) if high is None else high)
    top = top if high is None else high
    step = 100 / max(1, len(labels))
    drawn = []
    for number, one in enumerate(series, start=1):
        colour = (number - 1) % COLOURS + 1
        if one.low:
            drawn += [_band(run, one, step, low, top, colour) for run in _runs(one.low, one.high)]
        for run in _runs(one.values):
            points = " ".join(f"{_n(step * (i + 0.5))},{_n(100 - _share(one.values[i], low, top))}" for i in run)
            drawn.append(format_html('<polyline points="{}" class="line series-{}"/>', points, colour))
    plot = format_html(
        '<svg y="{}" width="100%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>',
        TOP, PLOT, mark_safe("".join(drawn)),  # noqa: S308
    )  # fmt: skip
    dots = format_html_join(
        "",
        '<circle cx="{}%" cy="{}" r="3" class="series-{}"><title>{}: {} {}</title></circle>',
        (
            (_n(step * (i + 0.5)), _n(_y(value, low, top)), k % COLOURS + 1, labels[i], one.name, number_of(value))
            for k, one in enumerate(series)
            for i, value in enumerate(one.values)
            if value is not None
        ),
    )
    return _chart(plot + dots, labels, ticks, low, top)


def interval(value: float, low: float | None, high: float | None, *, least: float, most: float) -> SafeString:
    """A dot with its interval on a line from `least` to `most`, for a cell of a table that says the numbers too."""

    def x(number: float) -> str:
        return _n(2 + 0.96 * min(100, max(0, _share(number, least, most))))

    whisker: SafeString | str = ""
    if low is not None and high is not None:
        whisker = format_html('<line x1="{}%" x2="{}%" y1="10" y2="10" class="whisker"/>', x(low), x(high))
    zero: SafeString | str = ""
    if least < 0 < most:
        zero = format_html('<line x1="{0}%" x2="{0}%" y1="0" y2="20" class="gridline"/>', x(0))
    return format_html(
        '<svg class="interval" width="100%" height="20" aria-hidden="true" focusable="false">'
        '{}{}<circle cx="{}%" cy="10" r="4.5" class="series-1"/></svg>',
        zero, whisker, x(value),
    )  # fmt: skip


def spark(values: Sequence[float]) -> SafeString:
    """Small columns without an axis, for a cell of a table that says the numbers too."""
    top, step = max(values, default=0) or 1, 100 / max(1, len(values))
    columns = (
        (_n(i * step), _n(20 - 20 * value / top), _n(step * 0.75), _n(20 * value / top))
        for i, value in enumerate(values)
    )
    rects = format_html_join("", '<rect x="{}%" y="{}" width="{}%" height="{}" class="series-1"/>', columns)
    return format_html(
        '<svg class="spark" width="100%" height="20" aria-hidden="true" focusable="false">{}</svg>', rects
    )


def shade(share: float | None) -> str:
    """The class that shades a table's cell by a share from 0 to 1: shade-0 (least) to shade-10; none for no share."""
    return "" if share is None else f"shade-{round(10 * min(1, max(0, share)))}"


def scale(low: float, most: float) -> tuple[float, list[float]]:
    """The upper end of an axis that holds `most`, and its ticks: three to six round numbers, `low` left out."""
    span = most - low
    if span <= 0:
        return low + 1, [low + 1]
    raw = span / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw)
    count = math.ceil(round(span / step, 6))
    return low + count * step, [low + step * i for i in range(1, count + 1)]


def number_of(value: float | None) -> str:
    """A figure as it is written on a chart: whole numbers with separators, others with two decimals; – for none."""
    if value is None:
        return "–"
    return number_format(value, 0 if float(value).is_integer() else 2, use_l10n=True, force_grouping=True)


# How it is drawn -----------------------------------------------------------------------------------------------


def _chart(inner: SafeString, labels: Sequence[str], ticks: Sequence[float], low: float, top: float) -> SafeString:
    grid = format_html_join(
        "",
        '<line x1="0" x2="100%" y1="{0}" y2="{0}" class="gridline"/><text x="0" y="{1}" class="tick">{2}</text>',
        ((_n(_y(tick, low, top)), _n(_y(tick, low, top) - 3), number_of(tick)) for tick in ticks),
    )
    every = max(1, math.ceil(len(labels) / LABELS))
    named = range(0, len(labels), every)
    texts = format_html_join(
        "",
        '<text x="{}%" y="{}" class="label {}">{}</text>',
        ((_n(100 * (i + 0.5) / len(labels)), HEIGHT - 6, _anchor((i + 0.5) / len(labels)), labels[i]) for i in named),
    )
    base = format_html('<line x1="0" x2="100%" y1="{0}" y2="{0}" class="baseline"/>', TOP + PLOT)
    return format_html(
        '<svg class="chart" width="100%" height="{}" aria-hidden="true" focusable="false">{}{}{}{}</svg>',
        HEIGHT, inner, grid, base, texts,
    )  # fmt: skip


def _anchor(share: float) -> str:
    return "at-start" if share < 0.08 else "at-end" if share > 0.92 else ""


def _linked(inner: SafeString, link: str) -> SafeString:
    return format_html('<a href="{}" tabindex="-1">{}</a>', link, inner) if link else format_html("<g>{}</g>", inner)


def _band(run: Sequence[int], one: Series, step: float, low: float, top: float, colour: int) -> SafeString:
    def point(i: int, value: float | None) -> str:
        return f"{_n(step * (i + 0.5))},{_n(100 - _share(value, low, top))}"

    points = [point(i, one.high[i]) for i in run] + [point(i, one.low[i]) for i in reversed(run)]
    return format_html('<polygon points="{}" class="band series-{}"/>', " ".join(points), colour)


def _runs(*columns: Sequence[float | None]) -> list[list[int]]:
    """Stretches of neighbours where every column has a value: a line is broken where there is none."""
    runs: list[list[int]] = [[]]
    for i in range(len(columns[0])):
        if all(column[i] is not None for column in columns):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _share(value: float | None, low: float, top: float) -> float:
    return 100 * ((value or 0) - low) / (top - low)


def _y(value: float, low: float, top: float) -> float:
    return TOP + PLOT * (1 - (value - low) / (top - low))


def _n(number: float) -> str:
    """A coordinate: two decimals at most, a point whatever the language."""
    return f"{number:.2f}".rstrip("0").rstrip(".") or "0"


# With its table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the table beside a chart; `url` leads to what it was counted from."""

    name: str
    cells: list[str]
    url: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart, what it says in a sentence, and its rows: what templates/charts/figure.html shows."""

    title: str
    svg: SafeString
    columns: list[str]
    rows: list[Row]
    summary: str = ""
    series: Sequence[str] = ()
    csv_url: str = ""
