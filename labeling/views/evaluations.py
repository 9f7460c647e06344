"""A model version's evaluations made ready to be read: by what measured them, the newest of each name, as lines and tables."""

import math
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Evaluation, ModelVersion
from labeling.templatetags.console import figure, words

NOTES = {
    "people": gettext_lazy("What people preferred, blind to which model wrote what."),
    "model": gettext_lazy("What a reward model or a judge preferred: no people's numbers, and not averaged with them."),
    "task": gettext_lazy("Perplexity, tasks and probes."),
    "labels": gettext_lazy("Against the labels of an export."),
    "simulation": gettext_lazy("What simulated labelers preferred."),
}
LEADING = ("win_rate", "agreement", "rate", "accuracy", "bits_per_byte", "mean", "difference")
"""The figure of a group that its interval, low to high, is about: the first of these that it has."""
COUNTS = ("words", "describing")
"""What holds words with how often each was counted, most frequent first: one cell."""
COLUMNS = ("name", "figure", "task", "model", "base", "base_value", "value", "agreement", "win_rate", "accuracy", "score",
           "difference", "low", "high", "n")  # fmt: skip
"""Columns of tables that come first, in this order: the database does not keep an object's."""
EARLIER = 50


@dataclass
class Figures:
    """The metrics of one evaluation: (name, value) to read, and what comes as rows."""

    evaluation: Evaluation
    lines: list[tuple[str, str]] = field(default_factory=list)
    tables: list[tuple[str, list[list[str]]]] = field(default_factory=list)


@dataclass
class Measured:
    """What one kind of measurement last showed. `agreement`: beside people's numbers, how often models agree with people."""

    label: str
    note: str
    figures: list[Figures]
    agreement: list[tuple[str, str]] = field(default_factory=list)

    @property
    def has_tables(self) -> bool:
        """Tables take the page's width; lines alone stand side by side."""
        return any(figures.tables for figures in self.figures)


def measured(model: ModelVersion) -> list[Measured]:
    """The newest evaluations of a model version by what measured them, people first; never summed up across kinds."""
    newest = list(model.evaluations.newest())
    found = []
    for kind in Evaluation.MeasuredBy:
        figures = [figures_of(one) for one in newest if one.measured_by == kind]
        if figures:
            found.append(Measured(str(kind.label), str(NOTES.get(kind.value, "")), figures))
            if kind == Evaluation.MeasuredBy.PEOPLE:
                found[-1].agreement = agreement_with_people(newest)
    return found


def finite(value: Any) -> float | None:
    """The value if it is a finite number, else None: manifests, logs and evaluations come from outside and may hold anything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def earlier(model: ModelVersion) -> list[Evaluation]:
    """What the newest of each name replaced, newest first."""
    newest = model.evaluations.newest().values("pk")
    return list(model.evaluations.exclude(pk__in=newest).defer("metrics", "config").order_by("-id")[:EARLIER])


def agreement_with_people(evaluations: list[Evaluation]) -> list[tuple[str, str]]:
    """How often a judge or a reward model agrees with people's comparisons, by who that is, from evaluations by a model."""
    by_model = [one for one in evaluations if one.measured_by == Evaluation.MeasuredBy.MODEL]
    return [
        (_("%(who)s, in %(evaluation)s") % {"who": words(who), "evaluation": one.name}, with_interval(figures))
        for one in by_model
        for who, figures in (one.metrics.get("agreement") or {}).items()
        if isinstance(figures, dict) and "agreement" in figures
    ]


def figures_of(evaluation: Evaluation) -> Figures:
    """An evaluation's metrics as lines and tables. `by` is left out: the heading says it."""
    found = Figures(evaluation)
    _collect(found, "", {name: value for name, value in evaluation.metrics.items() if name != "by"})
    return found


def _collect(found: Figures, prefix: str, values: dict[str, Any]) -> None:
    leading = leading_figure(values)
    for name, value in sorted(values.items(), key=lambda item: item[0] != leading):
        label = f"{prefix} · {words(name)}" if prefix else words(name)
        if isinstance(value, dict) and value and name not in COUNTS:
            if all(_is_row(row) for row in value.values()):
                found.tables.append((label, table([{"name": key, **row} for key, row in value.items()])))
            else:
                _collect(found, label, value)
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            found.tables.append((label, table(value)))
        elif name == leading:
            found.lines.append((label, with_interval(values)))
        elif leading is None or name not in ("low", "high"):
            found.lines.append((label, shown(value)))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in COUNTS or not isinstance(cell, dict | list) for name, cell in value.items()
    )


def leading_figure(values: dict[str, Any]) -> str | None:
    """The name of the figure that has an interval here; None where there is no interval."""
    if values.get("low") is None or values.get("high") is None:
        return None
    return next((name for name in LEADING if values.get(name) is not None), None)


def with_interval(values: dict[str, Any]) -> str:
    """The leading figure with its interval: "0.62 (0.55 to 0.69)"."""
    name = leading_figure(values)
    if name is None:
        return shown(next((values[name] for name in LEADING if name in values), None))
    parts = {"figure": shown(values[name]), "low": shown(values["low"]), "high": shown(values["high"])}
    return _("%(figure)s (%(low)s to %(high)s)") % parts


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows as lines of cells, the heading first."""
    there = dict.fromkeys(column for row in rows for column in row)
    columns = [*(column for column in COLUMNS if column in there), *(name for name in there if name not in COLUMNS)]
    return [[words(column) for column in columns], *([shown(row.get(column)) for column in columns] for row in rows)]


def shown(value: Any) -> str:
    """A figure to read; nothing as a dash; counts as "kind 3, small 2"."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, dict) and all(isinstance(count, int | float) for count in value.values()):
        most = sorted(value.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{word} {count}" for word, count in most) or "–"
    return "–" if value is None else figure(value)
