"""The console's dashboards: how far batches are, what is done per day and by whom, who agrees, which policy wins.

What is counted over many labels comes from statistics that a job has computed (actions/statistics.py); the page says when.
The same figures as CSV: views/dashboard_files.py.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.db.models import Exists, OuterRef, Subquery
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_POST

from labeling import charts, forecast, jobs
from labeling.actions import looks, statistics
from labeling.models import Batch, Group, Kind, ModelVersion, Revision, Statistic, Submission, TaskResponse, User
from labeling.models.batches import Progress
from labeling.views import batches
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, newest_first, prompt_preview
from labeling.win_rates import Apart

PAIRS_PER_PAGE = 50


class Scope(FilterForm):
    """Over which labels."""

    batch = forms.ModelChoiceField(
        Batch.objects.defer("query", "instructions", "counts").order_by("-id"),
        label=gettext_lazy("Batch"),
        required=False,
        empty_label=gettext_lazy("all"),
    )
    group = forms.ChoiceField(
        label=gettext_lazy("Labelers"), required=False, choices=[("", gettext_lazy("all")), *Group.choices]
    )
    simulated = forms.ChoiceField(
        label=gettext_lazy("Simulated labels"),
        required=False,
        choices=[("", gettext_lazy("left out")), ("yes", gettext_lazy("counted too"))],
    )

    def statistic(self, kind: str) -> Statistic:
        """The statistic of this scope. One that is not there yet is ordered."""
        chosen = self.chosen
        batch = chosen.get("batch")
        found = statistics.ask(
            kind=kind,
            batch_id=batch.pk if batch else None,
            group=chosen.get("group", ""),
            simulated="simulated" in chosen,
        )
        if found.content is None:
            order_refresh()
        return found

    def rows_url(self, **filters: Any) -> str:
        """The submissions of this scope, narrowed by these filters of the list."""
        chosen = self.chosen
        query = {
            "status": "any",
            "batch": chosen["batch"].pk if "batch" in chosen else "",
            "group": chosen.get("group"),
        }
        query |= {"origin": "" if "simulated" in chosen else "person"} | filters
        return f"{reverse('reviews')}?{urlencode({name: value for name, value in query.items() if value})}"

    def query(self) -> str:
        return urlencode({name: getattr(value, "pk", value) for name, value in self.chosen.items()})


def order_refresh() -> None:
    """Have the worker compute what is out of date."""
    jobs.order(jobs.refresh_statistics)


@role_required("reviewer", "researcher")
@require_POST
def dashboard_refresh(request: Request) -> HttpResponse:
    """Compute now what labels have come since, and back to the page."""
    order_refresh()
    messages.info(request, _("The figures are being computed again."))
    back = request.POST.get("next", "")
    is_ours = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
    return redirect(back if is_ours else "dashboards")


# Progress ------------------------------------------------------------------------------------------------------


@dataclass
class Outlook:
    """A batch, how far it is, and when it will be done."""

    batch: Batch
    progress: Progress
    bar: list[batches.Segment]
    forecast: forecast.Forecast

    @property
    def remaining(self) -> int:
        return self.progress.open + self.progress.leased


def outlooks(rows, now: datetime) -> list[Outlook]:
    """In three queries for progress and two for pace, however many batches."""
    found = list(rows)
    ours = Batch.objects.filter(pk__in=[batch.pk for batch in found])
    progress, paces = ours.progress(), ours.paces(now)
    return [
        Outlook(
            batch=batch,
            progress=progress[batch.pk],
            bar=batches.segments(progress[batch.pk]),
            forecast=forecast.forecast(progress[batch.pk].open + progress[batch.pk].leased, paces[batch.pk], now),
        )
        for batch in found
    ]


@role_required("reviewer", "researcher")
@require_GET
def dashboards(request: Request) -> HttpResponse:
    """What is under way: active batches with their forecasts, and what is done per day."""
    scope = Scope({})
    statistic = scope.statistic(Statistic.Kind.THROUGHPUT)
    context = {
        "outlooks": outlooks(active_batches(), timezone.now()),
        "statistic": statistic,
        "figure": _throughput_figure(statistic.content, scope) if statistic.content is not None else None,
    }
    return render(request, "dashboards/overview.html", context)


def active_batches():
    rows = Batch.objects.filter(status=Batch.Status.ACTIVE).defer("query", "instructions", "counts")
    return rows.order_by("-priority", "id")[:50]


# Throughput ----------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def throughput(request: Request) -> HttpResponse:
    """Submissions per day by kind, and by labeler."""
    scope = Scope(request.GET)
    statistic = scope.statistic(Statistic.Kind.THROUGHPUT)
    context = {"scope": scope, "statistic": statistic, "query": scope.query()}
    if statistic.content is not None:
        context |= {
            "figure": _throughput_figure(statistic.content, scope),
            "labelers": labeler_rows(statistic.content, scope),
        }
    return render(request, "dashboards/throughput.html", context)


def days_of(content: dict) -> list[date]:
    first = date.fromisoformat(content["first"])
    return [first + timedelta(days=i) for i in range(len(next(iter(content["days"].values()))))]


def _throughput_figure(content: dict, scope: Scope) -> charts.Figure:
    """The last ten weeks; the CSV holds all days."""
    days = days_of(content)[-70:]
    series = [charts.Series(str(kind.label), content["days"][kind][-len(days) :]) for kind in Kind]
    urls = [scope.rows_url(since=day.isoformat(), until=day.isoformat()) for day in days]
    total = sum(sum(content["days"][kind][-len(days) :]) for kind in Kind)
    return charts.Figure(
        title=_("Submissions per day"),
        svg=charts.bars([f"{day:%m-%d}" for day in days], series, urls),
        columns=[_("Day"), *(one.name for one in series)],
        rows=[
            charts.Row(day.isoformat(), [charts.number_of(one.values[i]) for one in series], urls[i])
            for i, day in reversed(list(enumerate(days)))
        ],
        summary=ngettext("%(n)s in %(days)d day.", "%(n)s in %(days)d days.", len(days))
        % {"n": charts.number_of(total), "days": len(days)},
        series=[one.name for one in series],
        csv_url=f"{reverse('dashboard_csv', args=['throughput'])}?{scope.query()}",
    )


def labeler_rows(content: dict, scope: Scope) -> list[dict]:
    rows = content["labelers"]
    people = User.objects.only("name", "email").in_bulk([row["id"] for row in rows])
    return [
        row
        | {
            "person": people[row["id"]],
            "hours": row["seconds"] / 3600,
            "spark": charts.spark(row["recent"]),
            "recent_sum": sum(row["recent"]),
            "url": scope.rows_url(labeler=row["id"]),
        }
        for row in rows
        if row["id"] in people
    ]


# Agreement -----------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def agreement(request: Request) -> HttpResponse:
    """Share of comparisons that two labelers agree on, week by week."""
    scope = Scope(request.GET)
    statistic = scope.statistic(Statistic.Kind.AGREEMENT)
    context = {"scope": scope, "statistic": statistic, "query": scope.query()}
    if statistic.content is not None:
        context["figure"] = _agreement_figure(statistic.content, scope)
    return render(request, "dashboards/agreement.html", context)


def agreement_names() -> dict[str, str]:
    return {
        "all": _("all"),
        "training": _("among training labelers"),
        "held_out": _("among held-out labelers"),
        "between": _("between the groups"),
    }


def _agreement_figure(content: dict, scope: Scope) -> charts.Figure:
    weeks = [date.fromisoformat(week) for week in content["weeks"]]
    shown = {key: name for key, name in agreement_names().items() if any(f["value"] is not None for f in content[key])}
    series = [
        charts.Series(name, *([_percent(f[end]) for f in content[key]] for end in ("value", "low", "high")))
        for key, name in shown.items()
    ]
    rows = [
        charts.Row(
            _("week of %(day)s") % {"day": week.isoformat()},
            [_figure_text(content[key][i]) for key in shown],
            scope.rows_url(kind="ranking", since=week.isoformat(), until=(week + timedelta(days=6)).isoformat()),
        )
        for i, week in reversed(list(enumerate(weeks)))
    ]
    return charts.Figure(
        title=_("Agreement by week"),
        svg=charts.lines([f"{week:%m-%d}" for week in weeks], series, low=0, high=100),
        columns=[_("Week"), *shown.values()],
        rows=rows,
        summary=_("Share of comparisons on which two labelers agree, in hundredths; with 95 % intervals."),
        series=[one.name for one in series],
        csv_url=f"{reverse('dashboard_csv', args=['agreement'])}?{scope.query()}",
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _figure_text(figure: dict) -> str:
    if figure["value"] is None:
        return "–"
    said = f"{100 * figure['value']:.1f} %"
    if figure["low"] is not None:
        said += f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    return f"{said} (n = {figure['tasks']})"


# Policies ------------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def policies(request: Request) -> HttpResponse:
    """Which policy's responses are preferred: scores with intervals, and every pair with its counts."""
    scope = Scope(request.GET)
    statistic = scope.statistic(Statistic.Kind.POLICIES)
    context = {"scope": scope, "statistic": statistic, "query": scope.query()}
    if statistic.content is not None:
        context |= policy_tables(statistic.content)
    return render(request, "dashboards/policies.html", context)


# Why a policy has no score while others have.
APART = {
    Apart.UNBEATEN: gettext_lazy("apart: never lost against those with a score"),
    Apart.WINLESS: gettext_lazy("apart: never won against those with a score"),
    Apart.UNCOMPARED: gettext_lazy("apart: never compared with those that have a score"),
}


def policy_tables(content: dict) -> dict:
    models = ModelVersion.objects.only("name").in_bulk(content["models"])
    ordered = [models[pk] for pk in content["models"]]
    ends = [end for s in content["scores"] for end in (s["low"], s["high"], s["score"]) if end is not None]
    reach = max((abs(end) for end in ends), default=1) or 1
    table = [
        {"model": model, "apart": None, **score, "percent": _percent(score["share"]), "svg": score["score"] is not None and charts.interval(
            score["score"], score["low"], score["high"], least=-reach, most=reach), "why": APART.get(score.get("apart"))}
        for model, score in zip(ordered, content["scores"], strict=True)
    ]  # fmt: skip
    is_split = bool(table) and table[0]["score"] is not None and table[-1]["score"] is None
    return {
        "is_split": is_split,
        "table": table,
        "models": ordered,
        "matrix": _matrix(content, ordered),
        "content": content,
    }


def _matrix(content: dict, models: list[ModelVersion]) -> list[dict]:
    """Row against column: share of points, over how many comparisons."""
    rows = []
    for i, model in enumerate(models):
        cells = []
        for j, other in enumerate(models):
            won, lost = content["points"][i][j], content["points"][j][i]
            count = round(won + lost)
            share = won / count if count else None
            cells.append(
                {"other": other, "is_self": i == j, "count": count, "percent": _percent(share), "shade": charts.shade(share),
                 "ties": content["ties"][i][j]}
            )  # fmt: skip
        rows.append({"model": model, "cells": cells})
    return rows


@role_required("reviewer", "researcher")
@require_GET
def policy_pair(request: Request, first: int, second: int) -> HttpResponse:
    """The rankings behind one cell of the matrix, newest first; `?before=` goes on behind one."""
    scope = Scope(request.GET)
    one, other = (get_object_or_404(ModelVersion.objects.only("name"), pk=pk) for pk in (first, second))
    statistic = scope.statistic(Statistic.Kind.POLICIES)
    rows = statistics.labels(statistic.scope).filter(kind=Kind.RANKING).exclude(status=Submission.Status.REJECTED)
    for model in (one, other):
        rows = rows.filter(
            Exists(TaskResponse.objects.filter(task=OuterRef("task_id"), response__model_version_id=model.pk))
        )
    newest = Revision.objects.filter(submission=OuterRef("pk"), number=OuterRef("revision_count")).values("tiers")[:1]
    rows = rows.select_related("labeler", "batch").defer("batch__query", "batch__instructions")
    rows = rows.annotate(tiers=Subquery(newest), prompt_preview=prompt_preview("task__prompt__"))
    shown, more = newest_first(request, rows, PAIRS_PER_PAGE)
    may = looks.look_many(tasks=[row.task_id for row in shown], by=request.user)
    context = {"first": one, "second": other, "rows": _outcomes([row for row in shown if row.task_id in may], one, other),
               "more": more,
               "scope": scope, "query": scope.query()}  # fmt: skip
    return render(request, "dashboards/pair.html", context)


def _outcomes(page: list, one: ModelVersion, other: ModelVersion) -> list[dict]:
    """Each submission with the places that it gave the two."""
    responses = TaskResponse.objects.filter(
        task__in=[row.task_id for row in page], response__model_version__in=[one.pk, other.pk]
    ).values_list("task_id", "response__model_version_id", "response__uuid")
    names: dict[tuple[int, int], list[str]] = {}
    for task, model, name in responses:
        names.setdefault((task, model), []).append(str(name))
    made = []
    for row in page:
        place_of = {name: place for place, tier in enumerate(row.tiers or [], start=1) for name in tier}
        a, b = ([place_of[name] for name in names.get((row.task_id, model.pk), [])] for model in (one, other))
        made.append({"submission": row, "first": a, "second": b})
    return made
