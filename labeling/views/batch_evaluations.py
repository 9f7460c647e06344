"""The console's evaluations by people: who is preferred to whom, ratings and flags, the rows behind each figure; the same as CSV.

Figures come from a statistic that a job has computed (actions/evaluations.py); the page says when, and whose answers they are.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.expressions import RawSQL
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from labeling import charts
from labeling.actions import batch_rows, evaluations, statistics
from labeling.actions.evaluation_figures import ALL, GROUP, USE_CASE, counted
from labeling.models import Batch, Group, ModelVersion, Origin, Revision, Statistic, Submission, TaskResponse
from labeling.views.access import Request, role_required
from labeling.views.csv_files import csv_file
from labeling.views.dashboards import order_refresh
from labeling.views.listing import FilterForm, newest_first, prompt_preview, set_choices

ROWS_PER_PAGE = 50
# Submissions in which this model's response was flagged with this flag.
FLAGGED = """
SELECT v.submission_id FROM labeling_revision v JOIN labeling_submission s ON s.id = v.submission_id AND s.revision_count = v.number
  JOIN labeling_taskresponse tr ON tr.task_id = s.task_id
  JOIN labeling_response r ON r.id = tr.response_id AND r.model_version_id = %s
 WHERE s.batch_id = %s AND v.ratings #> ARRAY[r.uuid::text, 'flags', %s] = 'true'
"""


class Filters(FilterForm):
    """Whose answers, over which part of them, and which two policies are set against each other."""

    origin = forms.ChoiceField(
        label=gettext_lazy("Answers of"),
        required=False,
        choices=[
            ("", gettext_lazy("people")),
            ("simulated", gettext_lazy("simulated labelers")),
            ("both", gettext_lazy("both, mixed")),
        ],
    )
    part = forms.ChoiceField(label=gettext_lazy("Over"), required=False)
    first = forms.ChoiceField(label=gettext_lazy("Policy"), required=False)
    second = forms.ChoiceField(label=gettext_lazy("Against"), required=False)

    def __init__(self, data, slices: list[dict], models: list[ModelVersion]):
        forms.Form.__init__(self, data, auto_id="filter_%s")  # the choices first, then the check
        set_choices(self, "part", [(part_of(each), part_name(each)) for each in slices] or [("", _("all prompts"))])
        named = [(str(model.pk), model.name) for model in models]
        set_choices(self, "first", named)
        set_choices(self, "second", named[1:] + named[:1])  # what stands first is what the page shows unasked
        self.is_valid()


def part_of(one: dict) -> str:
    """A slice as an address names it."""
    return "" if one["kind"] == ALL else f"{one['kind']}:{one['name']}"


def part_name(one: dict) -> str:
    """A slice as people read it."""
    if one["kind"] == ALL:
        return _("all prompts")
    if one["kind"] == USE_CASE:
        return _("use case %(name)s") % {"name": one["name"]} if one["name"] else _("without a use case")
    return _("labelers: %(group)s") % {"group": Group(one["name"]).label}


def find(pk: int) -> Batch:
    """An evaluation batch. Raises Http404 for any other."""
    return get_object_or_404(Batch.objects.select_related("schema"), pk=pk, purpose=Batch.Purpose.EVALUATION)


def origin_of(request: Request) -> str:
    """Whose answers the address asks for; people's, if it makes no sense."""
    asked = request.GET.get("origin", "")
    return asked if asked in evaluations.ORIGINS else Origin.PERSON.value


def statistic_of(batch: Batch, origin: str) -> Statistic:
    """The batch's figures. Those that nobody has computed yet are ordered."""
    statistic = evaluations.ask(batch, origin)
    if statistic.content is None:
        order_refresh()
    return statistic


def versions_of(batch: Batch) -> list[ModelVersion]:
    """The policies compared, in the order in which they were named."""
    found = {
        model.name: model for model in ModelVersion.objects.filter(name__in=evaluations.models_of(batch)).only("name")
    }
    return [found[name] for name in evaluations.models_of(batch)]


# The page ------------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def batch_evaluation(request: Request, pk: int) -> HttpResponse:
    """What an evaluation says: pairs, ratings, flags; of all prompts, of a use case or of a group of labelers."""
    batch, origin = find(pk), origin_of(request)
    statistic, models = statistic_of(batch, origin), versions_of(batch)
    slices = evaluations.slices_of(statistic)
    filters = Filters(request.GET, slices, models)
    chosen = next((each for each in slices if part_of(each) == filters.chosen.get("part", "")), None)
    context: dict[str, Any] = {
        "batch": batch,
        "origin": origin,
        "statistic": statistic,
        "filters": filters,
        "query": urlencode({"origin": origin}),
        "result": evaluations.extent(batch, statistic),
        "left_out": [(batch.counts[r], words) for r, words in batch_rows.LEFT_OUT.items() if batch.counts.get(r)],
        "models": models,
    }
    if chosen:
        page = Page(batch, origin, models, chosen)
        pair = _pair(filters, models)
        context |= {
            "chosen": chosen,
            "chosen_name": part_name(chosen),
            "policies": page.policies(),
            "flags": page.flags(),
            "matrix": page.matrix(),
            "pair": pair,
            "parts": [Page(batch, origin, models, each).part(*pair) for each in slices],
        }
    return render(request, "batch_evaluations/detail.html", context)


def _pair(filters: Filters, models: list[ModelVersion]) -> tuple[ModelVersion, ModelVersion]:
    """The two policies asked for; the first two that are not the same where the address leaves it open."""
    of = {str(model.pk): model for model in models}
    first = of.get(filters.chosen.get("first", ""), models[0])
    second = of.get(filters.chosen.get("second", ""))
    if second is None or second == first:
        second = next(model for model in models if model != first)
    return first, second


class Page:
    """A slice of an evaluation, as tables whose figures lead to their rows."""

    def __init__(self, batch: Batch, origin: str, models: list[ModelVersion], chosen: dict):
        self.batch, self.origin, self.models, self.chosen = batch, origin, models, chosen
        self.of = {each["model"]: each for each in chosen["policies"]}
        self.won = {(each["first"], each["second"]): each for each in chosen["pairs"]}

    def rows_url(self, **more: Any) -> str:
        query = {"origin": self.origin, "part": part_of(self.chosen)} | more
        where = reverse("batch_evaluation_rows", args=[self.batch.pk])
        return f"{where}?{urlencode({name: value for name, value in query.items() if value})}"

    def policies(self) -> list[dict]:
        """Each policy's mean rating, drawn on the scale of the rating form."""
        scale = self.batch.schema.quality_range
        made = []
        for model in self.models:
            rating = self.of[model.name]["rating"] if model.name in self.of else evaluations.NOTHING
            drawn = _drawn(rating, least=scale[0], most=scale[-1])
            made.append({"model": model, "rating": rating, "svg": drawn, "url": self.rows_url(first=model.pk)})
        return made

    def flags(self) -> list[dict]:
        """Each flag that was answered: its rate in every policy's responses."""
        named = {flag["name"]: flag["label"] for flag in self.batch.schema.response_flags}
        answered = sorted(
            {flag for each in self.of.values() for flag in each["flags"]}, key=lambda f: (f not in named, f)
        )
        rows = []
        for flag in answered:
            rates = [
                (model, self.of.get(model.name, {}).get("flags", {}).get(flag, evaluations.NOTHING))
                for model in self.models
            ]
            cells = [
                {"share": percent(rate["value"]), "ends": ends_text(rate), "count": rate["count"],
                 "url": rate["value"] and self.rows_url(first=model.pk, flag=flag)}
                for model, rate in rates
            ]  # fmt: skip
            rows.append({"label": named.get(flag, flag), "cells": cells})
        return rows

    def matrix(self) -> list[dict]:
        """How often the policy of the row was preferred to that of the column."""
        rows = []
        for one in self.models:
            cells = []
            for other in self.models:
                pair = self.won.get((one.name, other.name))
                figure = pair["win_rate"] if pair else evaluations.NOTHING
                url = self.rows_url(first=one.pk, second=other.pk)
                cells.append(
                    {"is_self": one == other, "figure": figure, "shade": charts.shade(figure["value"]), "url": url,
                     "share": percent(figure["value"]), "ends": ends_text(figure)}
                )  # fmt: skip
            rows.append({"model": one, "cells": cells})
        return rows

    def part(self, first: ModelVersion, second: ModelVersion) -> dict:
        """One policy against another in this slice, drawn around one half."""
        pair = self.won.get((first.name, second.name))
        figure = pair["win_rate"] if pair else evaluations.NOTHING
        around = {end: None if figure[end] is None else figure[end] - 0.5 for end in ("value", "low", "high")}
        return {
            "name": part_name(self.chosen),
            "share": percent(figure["value"]),
            "ends": ends_text(figure),
            "svg": _drawn(around, least=-0.5, most=0.5),
            "count": figure["count"],
            "ties": pair["ties"] if pair else 0,
            "prompts": figure["prompts"],
            "url": self.rows_url(first=first.pk, second=second.pk),
        }


def _drawn(figure: dict, *, least: float, most: float):
    value = figure["value"]
    return "" if value is None else charts.interval(value, figure["low"], figure["high"], least=least, most=most)


def percent(share: float | None) -> str:
    """A share in hundredths, "57.1 %"."""
    return "–" if share is None else f"{100 * share:.1f} %"


def ends_text(figure: dict) -> str:
    """The ends of a share's interval, in hundredths."""
    return "" if figure["low"] is None else f"{100 * figure['low']:.1f} … {100 * figure['high']:.1f}"


# The rows ------------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def batch_evaluation_rows(request: Request, pk: int) -> HttpResponse:
    """The rankings behind a figure, newest first: of one policy, with a flag, or of two; `?before=` goes on behind one."""
    batch, origin = find(pk), origin_of(request)
    models = versions_of(batch)
    shown = [model for name in ("first", "second") for model in models if str(model.pk) == request.GET.get(name)]
    flag, part = request.GET.get("flag", "").replace("\x00", ""), request.GET.get("part", "").replace("\x00", "")
    rows = _narrowed(counted(statistics.labels({"batch": batch.pk, "origin": origin})), part)
    if flag and shown:
        rows = rows.filter(pk__in=RawSQL(FLAGGED, [shown[0].pk, batch.pk, flag]))  # noqa: S611 parameters alone
    found, more = newest_first(request, _read(rows), ROWS_PER_PAGE)
    query = {"origin": origin, "part": part, "flag": flag} | {
        name: model.pk for name, model in zip(("first", "second"), shown, strict=False)
    }
    labels = {each["name"]: each["label"] for each in batch.schema.response_flags}
    context = {
        "batch": batch,
        "origin": origin,
        "models": shown,
        "flag": labels.get(flag, flag),
        "part": part.partition(":")[2],
        "rows": _judgments(found, shown, labels),
        "more": more,
        "query": urlencode({name: value for name, value in query.items() if value}),
    }
    return render(request, "batch_evaluations/rows.html", context)


def _narrowed(rows: QuerySet[Submission], part: str) -> QuerySet[Submission]:
    kind, _colon, name = part.partition(":")
    if kind == USE_CASE:
        return rows.filter(task__prompt__use_case=name)
    return rows.filter(labeler_group=name) if kind == GROUP else rows


def _read(rows: QuerySet[Submission]) -> QuerySet:
    newest = Revision.objects.filter(submission=OuterRef("pk"), number=OuterRef("revision_count"))
    return rows.select_related("labeler").annotate(
        tiers=Subquery(newest.values("tiers")[:1]),
        ratings=Subquery(newest.values("ratings")[:1]),
        prompt_preview=prompt_preview("task__prompt__"),
    )


def _judgments(page: list, models: list[ModelVersion], labels: dict[str, str]) -> list[dict]:
    """Each submission with the place, rating and flags that it gave each policy."""
    responses = TaskResponse.objects.filter(task__in=[row.task_id for row in page], response__model_version__in=models)
    named = responses.values_list("task_id", "response__model_version_id", "response__uuid")
    name_of = {(task, model): str(name) for task, model, name in named}
    made = []
    for row in page:
        place_of = {name: place for place, tier in enumerate(row.tiers or [], start=1) for name in tier}
        given = []
        for model in models:
            name = name_of.get((row.task_id, model.pk), "")
            rating = (row.ratings or {}).get(name, {})
            yes = [labels.get(flag, flag) for flag, answer in rating.get("flags", {}).items() if answer]
            given.append({"place": place_of.get(name), "quality": rating.get("quality"), "flags": yes})
        made.append({"submission": row, "given": given})
    return made


# The file ------------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def batch_evaluation_csv(request: Request, pk: int) -> HttpResponse:
    """All figures, one a row. 409 while they are being computed."""
    batch, origin = find(pk), origin_of(request)
    statistic = statistic_of(batch, origin)
    if statistic.content is None:
        return HttpResponse(_("Not computed yet: try again in a minute."), status=409, content_type="text/plain")
    head = ["origin", "part", "name", "figure", "policy", "against", "flag", "value", "low", "high", "count", "prompts"]
    return csv_file(f"evaluation-{batch.pk}", head, _lines(origin, evaluations.slices_of(statistic)))


def _lines(origin: str, slices: list[dict]) -> Iterator[list]:
    for one in slices:
        begin = [origin, one["kind"], one["name"]]
        for pair in one["pairs"]:
            yield [*begin, "win_rate", pair["first"], pair["second"], "", *_ends(pair["win_rate"])]
        for policy in one["policies"]:
            yield [*begin, "rating", policy["model"], "", "", *_ends(policy["rating"])]
            for flag, rate in policy["flags"].items():
                yield [*begin, "flag_rate", policy["model"], "", flag, *_ends(rate)]


def _ends(figure: dict) -> list:
    return [figure[name] for name in ("value", "low", "high", "count", "prompts")]
