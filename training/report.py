"""One self-contained HTML page per run: curves, samples before and after, what was dropped, settings and lineage; and per evaluation.

It stands as `report.html` in the model folder, needs neither network nor script, and prints well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

STEP_NAMES = ("step", "iteration", "epoch")
"""The column of the log that curves are drawn over: the first of these that it has."""

WIDTH, HEIGHT = 320, 130  # of a curve, in SVG units
MOST_POINTS = 400  # of a curve: more would only thicken the line
SAMPLES = 6
"""Prompts that a stage shows the answers to, before and after; and rankings that a reward model's report shows."""
CANDIDATES = 64
"""Rankings of the validation split that those are chosen from: the first, so that scoring them before training costs little."""
CLIP = 600  # characters of a text in a ranking: K long responses each would bury the rest of the page
DROPPED = ("dropped_", "skipped_")
"""What is in the names of metrics that count what was left out."""


@dataclass(frozen=True)
class Sample:
    """What a model said to one prompt before and after training; of pretraining, how it went on from one beginning."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class ScoredResponse:
    """A response, the labeler's rank of it (1 is best, equal ranks tie) and its reward before and after training."""

    text: str
    rank: int
    before: float
    after: float


@dataclass(frozen=True)
class RankingSample:
    """A ranking, best response first, and of its pairs without ties how many rewards ordered as the labeler did."""

    prompt: str
    responses: list[ScoredResponse]
    pairs: int
    right_before: int
    right_after: int


Samples = Sequence[Sample] | Sequence[RankingSample]


@dataclass(frozen=True)
class Curve:
    """One column of the log as an SVG polyline, with its first, lowest, highest and last value."""

    name: str
    points: str
    first: str
    last: str
    low: str
    high: str
    start: str
    end: str


def write_report(
    path: Path, *, facts: Mapping[str, Any], log: Sequence[Mapping[str, Any]], samples: Samples = ()
) -> None:
    """Write the page. `facts` are the manifest's fields as plain values, without its files, which hold this page too."""
    template = environment().get_template("report.html")
    metrics = facts.get("metrics", {})
    tables = {name: value for name, value in metrics.items() if _is_table(value)}
    left_out = {name: value for name, value in metrics.items() if any(word in name for word in DROPPED)}
    page = template.render(
        facts=facts,
        curves=curves(log),
        samples=[sample for sample in samples if isinstance(sample, Sample)],
        rankings=[_ranking(sample) for sample in samples if isinstance(sample, RankingSample)],
        first=SAMPLES // 2,
        candidates=CANDIDATES,
        clip=CLIP,
        left_out={name: shown(value) for name, value in sorted(left_out.items())},
        metrics={name: shown(value) for name, value in sorted(metrics.items()) if name not in left_out | tables},
        tables={name: table(rows) for name, rows in sorted(tables.items())},
        config={name: shown(value) for name, value in facts.get("config", {}).items()},
        manifest=json.dumps(facts, indent=2, ensure_ascii=False, default=str),
        width=WIDTH,
        height=HEIGHT,
    )
    path.write_text(page.translate(CONTROLS), encoding="utf-8")


def _ranking(sample: RankingSample) -> dict[str, Any]:
    """A ranking as the page shows it: each reward with the place that it gives among its ranking's."""
    before, after = ([getattr(one, name) for one in sample.responses] for name in ("before", "after"))
    lines = [
        (one.rank, _placed(one.before, before), _placed(one.after, after), clipped(one.text))
        for one in sample.responses
    ]
    return {"prompt": clipped(sample.prompt), "lines": lines, "sample": sample}


def _placed(reward: float, rewards: Sequence[float]) -> str:
    return f"{reward:.3g} ({1 + sum(other > reward for other in rewards)})"


def clipped(text: str) -> str:
    """The first CLIP characters, with a sign that there are more."""
    return text if len(text) <= CLIP else f"{text[:CLIP].rstrip()} …"


CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
"""Control characters, which an untrained model writes and HTML forbids, as the signs that stand for them."""


@dataclass(frozen=True)
class Section:
    """A part of an evaluation: figures by name, or as rows (the heading first)."""

    title: str
    lines: list[tuple[str, str]]
    table: list[list[str]]


NO_SECTION = ("by", "model", "models", "against", "export", "config", "tax", "compared")
SPANS = {
    **dict.fromkeys(("win_rate", "agreement", "rate", "bits_per_byte"), ("low", "high")),
    "difference": ("difference_low", "difference_high"),
    "first_shown_rate": ("first_shown_low", "first_shown_high"),
    "any_rate": ("any_low", "any_high"),
}
"""Which figures have an interval, and the names of its ends."""


def write_evaluation(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of an evaluation's result (by a model, by tasks): one file that needs no network."""
    found = [
        part for name, value in _beside(result).items() if name not in NO_SECTION for part in sections(name, value)
    ]
    page = (
        environment()
        .get_template("evaluation.html")
        .render(
            result={"against": (), "export": None} | dict(result),
            tax=tax_table(result.get("tax", [])),
            sections=found,
            config={name: shown(value) for name, value in result.get("config", {}).items()},
        )
    )
    path.write_text(page, encoding="utf-8")


def tax_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the regression against the base model as HTML, for any page in this style; nothing without rows."""
    return environment().get_template("report_tax.html").render(tax=tax_table(rows))


def tax_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows of alignment_tax.py as a table: a line for each figure, a column for each model."""
    if not rows:
        return None
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for figure in dict.fromkeys(row["figure"] for row in rows):
        own = {row["model"]: row for row in rows if row["figure"] == figure}
        first = next(iter(own.values()))
        cells = [_tax_cell(own[name]) if name in own else None for name in names]
        lines.append(
            {
                "figure": figure,
                "higher_is_better": first["higher_is_better"],
                "base": shown(first["base_value"]),
                "cells": cells,
            }
        )
    return {"base": rows[0]["base"], "models": names, "rows": lines}


def _tax_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["low"], row["high"]
    span = "" if low is None or high is None else f" ({low:+.3g} to {high:+.3g})"
    difference = "" if row["difference"] is None else f"{row['difference']:+.3g}{span}"
    return {"value": shown(row["value"]), "difference": difference, "is_worse": row["is_worse"]}


def sections(title: str, value: Any) -> list[Section]:
    """A figure or nested figures as sections: plain ones as lines, rows as a table, what is nested under its own title."""
    title = title[:1].upper() + title[1:].replace("_", " ")
    if not isinstance(value, Mapping):
        return [Section(title, [(title, shown(value))], [])]
    if _is_table(value) and not any(isinstance(cell, dict) and _is_table(cell) for cell in value.values()):
        return [Section(title, [], table(value))]
    plain = {name: one for name, one in value.items() if not isinstance(one, Mapping) or not one}
    found = [Section(title, _lines(plain), [])] if plain else []
    return found + [
        part for name, one in value.items() if name not in plain for part in sections(f"{title} · {name}", one)
    ]


def _lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figures by name, each with its interval where it has one."""
    ends = {end for name, span in SPANS.items() if name in values for end in span}
    return [(name.replace("_", " "), _with_span(name, values)) for name in values if name not in ends]


def _with_span(name: str, values: Mapping[str, Any]) -> str:
    low, high = (values.get(end) for end in SPANS.get(name, ("", "")))
    if values[name] == []:
        return "none"
    span = "" if low is None or high is None else f" ({shown(low)} to {shown(high)})"
    return shown(values[name]) + span


def _beside(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with what was measured of the models it is compared with as further rows, under each kind of figure."""
    compared = result.get("compared") or {}
    found = dict(result)
    for name in ("perplexity", "toxicity") if compared else ():
        everyone = {result["model"]: result, **compared}
        if name in result:
            found[name] = {who: own[name] for who, own in everyone.items() if name in own}
    for who, own in compared.items():
        if "tasks" in own:
            found["tasks"] = found.get("tasks", {}) | {f"{key}, {who}": row for key, row in own["tasks"].items()}
    return found


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(isinstance(row, dict) for row in value.values())


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows by name as lines of cells, the heading first."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[name, *(shown(row.get(column)) for column in columns)] for name, row in rows.items()]
    return [["", *columns], *lines]


def environment() -> Environment:
    """Where the pages' templates are."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def curves(log: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """A curve for each numeric column of the log that has at least two finite values; the step's own is left out."""
    step_name = next((name for name in STEP_NAMES if log and name in log[0]), None)
    columns: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(log):
        at = float(row[step_name]) if step_name else float(number)
        for name, value in row.items():
            if name not in STEP_NAMES and _is_number(value):
                columns.setdefault(name, []).append((at, float(value)))
    return [_curve(name, points) for name, points in columns.items() if len(points) > 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve(name: str, points: list[tuple[float, float]]) -> Curve:
    stride = math.ceil(len(points) / MOST_POINTS)
    kept = points[::stride] if points[-1] in points[::stride] else [*points[::stride], points[-1]]
    left, right = points[0][0], points[-1][0]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    if low == high:  # a constant, which is neither high nor low
        low, high = low - 1, high + 1
    across, up = right - left or 1.0, high - low
    drawn = " ".join(f"{(at - left) / across * WIDTH:.1f},{(high - value) / up * HEIGHT:.1f}" for at, value in kept)
    figures = [_brief(value) for value in (values[0], values[-1], min(values), max(values))]
    return Curve(name, drawn, *[*figures, shown(round(left)), shown(round(right))])


def _brief(value: float) -> str:
    """A figure of a curve, in three digits; those before the point are all there, up to a million."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 10**6 else f"{value:.3g}"


def shown(value: object) -> str:
    """A value as people read it: five significant digits, lists and tables as JSON, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Mapping) and value and all(_is_number(one) for one in value.values()):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
