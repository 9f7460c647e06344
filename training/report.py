"""One self-contained HTML page per run: curves, samples before and after, what was dropped, settings and lineage.

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
"""Prompts that a stage shows the answers to, before and after."""
DROPPED = ("dropped_", "skipped_")
"""How the names of metrics begin that count what was left out."""


@dataclass(frozen=True)
class Sample:
    """What a model said to one prompt before and after training; for a reward model, how it scored one response."""

    prompt: str
    before: str
    after: str


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
    path: Path, *, facts: Mapping[str, Any], log: Sequence[Mapping[str, Any]], samples: Sequence[Sample] = ()
) -> None:
    """Write the page. `facts` are the manifest's fields as plain values, without its files, which hold this page too."""
    template = environment().get_template("report.html")
    metrics = facts.get("metrics", {})
    tables = {name: value for name, value in metrics.items() if _is_table(value)}
    left_out = {name: value for name, value in metrics.items() if name.startswith(DROPPED)}
    page = template.render(
        facts=facts,
        curves=curves(log),
        samples=samples,
        left_out={name: shown(value) for name, value in sorted(left_out.items())},
        metrics={name: shown(value) for name, value in sorted(metrics.items()) if name not in left_out | tables},
        tables={name: table(rows) for name, rows in sorted(tables.items())},
        config={name: shown(value) for name, value in facts.get("config", {}).items()},
        manifest=json.dumps(facts, indent=2, ensure_ascii=False, default=str),
        width=WIDTH,
        height=HEIGHT,
    )
    path.write_text(page, encoding="utf-8")


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
    across, up = right - left or 1.0, high - low or 1.0
    drawn = " ".join(f"{(at - left) / across * WIDTH:.1f},{(high - value) / up * HEIGHT:.1f}" for at, value in kept)
    ends = (values[0], values[-1], low, high, left, right)
    return Curve(name, drawn, *(shown(value) for value in ends))


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
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
