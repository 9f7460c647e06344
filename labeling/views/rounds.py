"""The rounds of the loop: what each night's labels brought, from what the nightly command records with its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Subquery
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from labeling import charts
from labeling.models import Evaluation, Kind, ModelVersion
from labeling.views.access import Request, role_required
from labeling.views.evaluations import finite

RECORDED_AS = "night"
MOST_ROUNDS = 120
NO_RATE: dict[str, Any] = {"rate": None, "low": None, "high": None, "n": None, "by": ""}


@dataclass
class Round:
    """One night's figures. They came over the API, so whatever is no number counts as not there."""

    model: ModelVersion
    recorded_at: datetime
    metrics: dict[str, Any]

    @property
    def night(self) -> str:
        return str(self.metrics.get("night", "–"))[:20]

    @property
    def is_promoted(self) -> bool:
        return self.metrics.get("outcome") == "promoted"

    @property
    def reason(self) -> str:
        return str(self.metrics.get("reason", ""))[:2000]

    def number(self, name: str) -> float | None:
        return finite(self.metrics.get(name))

    def labels(self, kind: str) -> float:
        """Labels of a kind that were new to this night; never fewer than none."""
        return max(0, finite(part(self.metrics, "new_labels").get(f"{kind}s")) or 0)

    @property
    def new_labels(self) -> float:
        return sum(self.labels(kind) for kind in Kind.values)

    def rate(self, name: str) -> dict[str, Any]:
        """A win rate with its interval and what measured it."""
        found = part(self.metrics, name)
        by = found.get("by")
        numbers = {key: finite(found.get(key)) for key in ("rate", "low", "high", "n")}
        return NO_RATE | numbers | {"by": by[:50] if isinstance(by, str) else ""}

    @property
    def against_last(self) -> dict[str, Any]:
        return self.rate("win_rate_vs_last")

    @property
    def against_round0(self) -> dict[str, Any]:
        return self.rate("win_rate_vs_round0")

    @property
    def accuracy(self) -> float | None:
        return self.number("rm_accuracy_fixed")

    @property
    def kl(self) -> float | None:
        return self.number("kl")

    @property
    def tax_of(self) -> str:
        return str(self.metrics.get("tax_of") or "")[:100]

    @property
    def tax(self) -> float | None:
        return self.number("tax")


def part(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    found = metrics.get(name)
    return found if isinstance(found, dict) else {}


def rounds_of() -> list[Round]:
    """The last rounds, oldest first: the newest record of each candidate."""
    newest = Evaluation.objects.filter(model_version=OuterRef("model_version"), name=RECORDED_AS).order_by("-id")
    rows = Evaluation.objects.filter(name=RECORDED_AS, pk=Subquery(newest.values("pk")[:1]))
    rows = rows.select_related("model_version__export").defer("model_version__manifest").order_by("-id")[:MOST_ROUNDS]
    found = [Round(row.model_version, row.created_at, row.metrics) for row in rows]
    return found[::-1]


@role_required("reviewer", "researcher")
@require_GET
def rounds(request: Request) -> HttpResponse:
    """Labels spent, accuracy of the reward model, win rates, KL and tax, night by night."""
    found = rounds_of()
    return render(
        request, "dashboards/rounds.html", {"rounds": found[::-1], "figures": figures(found) if found else []}
    )


def figures(found: Sequence[Round]) -> list[charts.Figure]:
    """The drawings, each with its table."""
    kl = _("Nats per response, to the policy that PPO started from.")
    tax = _("How much harder plain text became to predict, in thousandths of what the table above says: 0 is none.")
    drawn = [_labels(found), _win_rates(found), _accuracy(found)]
    return [*drawn, _line(found, _("KL"), "kl", kl), _line(found, _("Tax"), "tax", tax, times=1000)]


def _labels(found: Sequence[Round]) -> charts.Figure:
    series = [charts.Series(str(kind.label), [each.labels(kind.value) for each in found]) for kind in Kind]
    total = sum(sum(value or 0 for value in one.values) for one in series)
    summary = _("%(n)s labels in %(rounds)s rounds.") % {"n": charts.number_of(total), "rounds": len(found)}
    return _figure(found, _("Labels spent"), charts.bars(_nights(found), series), series, summary)


def _win_rates(found: Sequence[Round]) -> charts.Figure:
    names = {"win_rate_vs_round0": _("against round 0"), "win_rate_vs_last": _("against what served")}
    series = [
        charts.Series(name, *([_percent(each.rate(key)[end]) for each in found] for end in ("rate", "low", "high")))
        for key, name in names.items()
    ]
    summary = _("Share of prompts on which the candidate is preferred, in hundredths; with 95 % intervals.")
    return _figure(found, _("Win rates"), charts.lines(_nights(found), series, low=0, high=100), series, summary)


def _accuracy(found: Sequence[Round]) -> charts.Figure:
    names = {
        "rm_accuracy_fixed": _("on the same rankings every night"),
        "rm_accuracy": _("on the night's validation rankings"),
    }
    series = [charts.Series(name, [_percent(each.number(key)) for each in found]) for key, name in names.items()]
    summary = _("Share of comparisons that the reward model orders as labelers did, in hundredths.")
    svg = charts.lines(_nights(found), series, low=0, high=100)
    return _figure(found, _("Accuracy of the reward model"), svg, series, summary)


def _line(found: Sequence[Round], title: str, name: str, summary: str, *, times: float = 1) -> charts.Figure:
    values = [each.number(name) for each in found]
    series = [charts.Series(title, [None if value is None else round(value * times, 2) for value in values])]
    least = min((value for value in series[0].values if value is not None), default=0)
    return _figure(found, title, charts.lines(_nights(found), series, low=min(0, least)), series, summary)


def _figure(
    found: Sequence[Round], title: str, svg: Any, series: Sequence[charts.Series], summary: str
) -> charts.Figure:
    rows = [
        charts.Row(f"{_('Night')} {each.night}", [charts.number_of(one.values[i]) for one in series])
        for i, each in reversed(list(enumerate(found)))
    ]
    return charts.Figure(
        title=title,
        svg=svg,
        columns=[_("Night"), *(one.name for one in series)],
        rows=rows,
        summary=summary,
        series=[one.name for one in series],
        csv_url=reverse("dashboard_csv", args=["rounds"]),
    )


def _nights(found: Sequence[Round]) -> list[str]:
    return [each.night for each in found]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def csv_rows() -> list[list[Any]]:
    """All of it as rows, the heading first."""
    head = ["night", "candidate", "outcome", "recorded_at", "export", "demonstrations", "rankings", "rm_accuracy", "rm_accuracy_held_out",
            "rm_accuracy_fixed", *(f"{name}_{end}" for name in ("vs_last", "vs_round0") for end in ("rate", "low", "high", "n", "by")),
            "kl", "tax", "tax_of"]  # fmt: skip
    rows: list[list[Any]] = [head]
    for each in rounds_of():
        export = each.model.export.name if each.model.export else ""
        rates = [
            rate[end] for rate in (each.against_last, each.against_round0) for end in ("rate", "low", "high", "n", "by")
        ]
        accuracies = [each.number(name) for name in ("rm_accuracy", "rm_accuracy_held_out", "rm_accuracy_fixed")]
        outcome = "promoted" if each.is_promoted else "refused"
        rows.append([each.night, each.model.name, outcome, each.recorded_at.isoformat(timespec="minutes"), export,
                     each.labels("demonstration"), each.labels("ranking"), *accuracies, *rates,
                     each.kl, each.tax, each.tax_of])  # fmt: skip
    return [["" if cell is None else cell for cell in row] for row in rows]
