"""The console's agreement: reports per batch and of all, by group and between groups, and the rows behind each figure."""

import operator
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Exists, F, OuterRef, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from labeling import charts, jobs
from labeling.actions import looks
from labeling.models import (
    AgreementFigure,
    AgreementPair,
    AgreementReport,
    Batch,
    Between,
    LabelSchema,
    Revision,
    Submission,
    Task,
    User,
)
from labeling.models.agreement import AgreementPairQuerySet
from labeling.views.access import Request, role_required
from labeling.views.csv_files import csv_file
from labeling.views.listing import ROWS_PER_PAGE, FilterForm, paginate, prompt_preview, query_without

RANKINGS = {
    "share": gettext_lazy("Comparisons agreed on"),
    "share_untied": gettext_lazy("Comparisons agreed on, without ties"),
    "tau_b": gettext_lazy("Kendall's τ-b"),
}
QUALITY = gettext_lazy("Quality ratings (Krippendorff's α)")


class Scope(FilterForm):
    """Which report, and which figure of it."""

    batch = forms.ModelChoiceField(
        Batch.objects.defer("query", "instructions", "counts").order_by("-id"),
        label=gettext_lazy("Batch"),
        required=False,
        empty_label=gettext_lazy("all"),
    )

    def report(self) -> AgreementReport | None:
        return AgreementReport.objects.filter(batch=self.chosen.get("batch")).first()


class Groups(Scope):
    """Whose rankings."""

    between = forms.ChoiceField(label=gettext_lazy("Labelers"), required=False, choices=Between.choices)


class Rows(Groups):
    """Which rows behind a figure. `one`, `other`: two labelers."""

    measure = forms.CharField(required=False, max_length=120, widget=forms.HiddenInput)
    one = forms.IntegerField(required=False, min_value=1, max_value=2**31, widget=forms.HiddenInput)
    other = forms.IntegerField(required=False, min_value=1, max_value=2**31, widget=forms.HiddenInput)


def label_of(measure: str, flags: dict[str, str]) -> str:
    """A measure's name for people; flags by the words of their schema."""
    if measure in RANKINGS:
        return str(RANKINGS[measure])
    if measure == "quality":
        return str(QUALITY)
    return _("Flag: %(flag)s (α)") % {"flag": flags.get(measure, measure.partition(":")[2])}


def flag_labels() -> dict[str, str]:
    """Measure → the words of the newest schema that has the flag."""
    found: dict[str, str] = {}
    for schema in LabelSchema.objects.order_by("version"):
        found |= {f"flag:{flag['name']}": flag["label"] for flag in schema.response_flags}
        found |= {f"prompt_flag:{flag['name']}": flag["label"] for flag in schema.prompt_flags}
    return found


@role_required("reviewer", "researcher")
@require_GET
def agreement_reports(request: Request) -> HttpResponse:
    """Every report with its main figures: all together first, then batches, the newest first."""
    reports = AgreementReport.objects.select_related("batch").defer("batch__query", "batch__instructions")
    page = paginate(request, reports.order_by(F("batch").desc(nulls_first=True)))
    wanted = AgreementFigure.objects.filter(report__in=[report.pk for report in page])
    found: dict[int, dict[str, AgreementFigure]] = defaultdict(dict)
    for figure in wanted.filter(measure="share") | wanted.filter(measure="quality", between=Between.ALL):
        found[figure.report_id][f"{figure.measure}_{figure.between}"] = figure
    rows = [{"report": report, "figures": found[report.pk]} for report in page]
    return render(request, "agreement/list.html", {"page": page, "rows": rows, "query": query_without(request, "page")})


@dataclass
class Line:
    """A measure with its figures by group; None where nothing could be compared."""

    label: str
    measure: str
    cells: list[tuple[AgreementFigure | None, str]]


def _lines(report: AgreementReport) -> list[Line]:
    flags, found = flag_labels(), {(figure.measure, figure.between): figure for figure in report.figures.all()}
    measures = list(dict.fromkeys(measure for measure, _between in found))
    order = {name: i for i, name in enumerate([*RANKINGS, "quality", *flags])}
    return [
        Line(
            label_of(measure, flags),
            measure,
            [(found.get((measure, between)), _rows_url(report, measure, between)) for between in Between],
        )
        for measure in sorted(measures, key=lambda name: (order.get(name, len(order)), name))
    ]


def _rows_url(report: AgreementReport, measure: str, between: str) -> str:
    query = {"batch": report.batch_id, "measure": measure, "between": between}
    return f"{reverse('agreement_rows')}?{urlencode({name: value for name, value in query.items() if value})}"


@role_required("reviewer", "researcher")
@require_GET
def agreement_report(request: Request) -> HttpResponse:
    """One report: every figure by group and between groups, with its interval and count."""
    scope = Scope(request.GET)
    report = scope.report()
    context = {"scope": scope, "report": report, "between": Between.choices, "query": query_without(request, "page")}
    return render(request, "agreement/detail.html", context | {"lines": _lines(report) if report else []})


@role_required("reviewer", "researcher")
@require_GET
def agreement_csv(request: Request) -> HttpResponse:
    """A report's figures as CSV."""
    head = ["measure", "between", "value", "low", "high", "tasks", "count", "computed_at"]
    rows: list[list] = []
    if report := Scope(request.GET).report():
        moment = report.computed_at.isoformat()
        rows = [
            [f.measure, f.between, f.value, f.low, f.high, f.tasks, f.count, moment]
            for f in report.figures.order_by("id")
        ]
    return csv_file("agreement", head, rows)


@role_required("reviewer", "researcher")
@require_POST
def agreement_measure(request: Request) -> HttpResponse:
    """Have the worker measure now what has come since."""
    jobs.order(jobs.measure_quality)
    messages.info(request, _("The figures are being computed again: reload the page in a moment."))
    return redirect(f"{reverse('agreement_report')}?{urlencode({'batch': request.POST.get('batch', '')})}")


# Rows --------------------------------------------------------------------------------------------------------------


@role_required("reviewer", "researcher")
@require_GET
def agreement_rows(request: Request) -> HttpResponse:
    """The rows behind a figure: pairs of rankings, those that agree least first; or the judgments of each task."""
    rows = Rows(request.GET)
    measure = rows.chosen.get("measure") or "share"
    context: dict[str, Any] = {
        "rows": rows,
        "measure": measure,
        "label": label_of(measure, flag_labels()),
        "two": User.objects.filter(
            pk__in=[rows.chosen[name] for name in ("one", "other") if name in rows.chosen]
        ).order_by("name"),
        "query": query_without(request, "page"),
    }
    if measure in RANKINGS:
        people = ("first_labeler", "second_labeler", "first", "second")
        full = AgreementPair.objects.select_related(*people).annotate(prompt_preview=prompt_preview("task__prompt__"))
        return render(request, "agreement/pairs.html", context | {"page": paginate(request, _pairs(rows), full=full)})
    shown = Task.objects.annotate(prompt_preview=prompt_preview("prompt__"))
    page = paginate(request, _shared_tasks(rows), per_page=20, full=shown)
    may = looks.look_many(tasks=[task.pk for task in page], by=request.user)
    judged = _judged([task for task in page if task.pk in may], measure, rows)
    return render(request, "agreement/judgments.html", context | {"page": page, "tasks": judged})


def _origin(scope: Scope) -> str:
    report = scope.report()
    return report.origin if report else "person"


def _chosen_pairs(rows: Groups) -> AgreementPairQuerySet:
    found = AgreementPair.objects.filter(origin=_origin(rows))
    if "batch" in rows.chosen:
        found = found.filter(batch=rows.chosen["batch"])
    if rows.chosen.get("between", Between.ALL) != Between.ALL:
        found = found.filter(between=rows.chosen["between"])
    return found


def _pairs(rows: Rows):
    found = _chosen_pairs(rows)
    for pk in (rows.chosen[name] for name in ("one", "other") if name in rows.chosen):
        found = found.filter(Q(first_labeler=pk) | Q(second_labeler=pk))
    return found.order_by("share", "id")


def _shared_tasks(rows: Rows):
    """Tasks that two or more have handed in; between groups: by somebody of each."""
    handed_in = Submission.objects.filter(task=OuterRef("pk"), is_gold=False, origin=_origin(rows))
    found = Task.objects.filter(**({"batch": rows.chosen["batch"]} if "batch" in rows.chosen else {}))
    between = rows.chosen.get("between", Between.ALL)
    if between == Between.GROUPS:
        for group in ("training", "held_out"):
            found = found.filter(Exists(handed_in.filter(labeler_group=group)))
    else:
        if between != Between.ALL:
            handed_in = handed_in.filter(labeler_group=between)
        twice = handed_in.order_by().values("task").annotate(n=Count("pk")).filter(n__gt=1)
        found = found.filter(Exists(twice))
    return found.order_by("-id")


def _judged(tasks: list[Task], measure: str, rows: Rows) -> list[dict]:
    """Per task: who said what of each response (numbered), or of the prompt."""
    newest = Revision.objects.filter(submission__task__in=tasks, number=F("submission__revision_count"))
    newest = newest.filter(submission__is_gold=False, submission__origin=_origin(rows)).order_by("submission_id")
    between = rows.chosen.get("between", Between.ALL)
    if between in {"training", "held_out"}:
        newest = newest.filter(submission__labeler_group=between)
    said: dict[int, list[Revision]] = defaultdict(list)
    for revision in newest.select_related("submission__labeler"):
        said[revision.submission.task_id].append(revision)
    return [{"task": task, **_table(said[task.pk], measure)} for task in tasks]


def _table(revisions: list[Revision], measure: str) -> dict:
    kind, _colon, flag = measure.partition(":")
    if kind == "prompt_flag":
        return {
            "columns": [_("Prompt")],
            "lines": [(each.submission, [each.prompt_flags.get(flag)]) for each in revisions],
        }
    ids = sorted({response for each in revisions for response in each.ratings})

    def value(rating: dict):
        return rating.get("quality") if kind == "quality" else (rating.get("flags") or {}).get(flag)

    lines = [(each.submission, [value(each.ratings.get(response) or {}) for response in ids]) for each in revisions]
    return {"columns": [_("Response %d") % (i + 1) for i in range(len(ids))], "lines": lines}


# Labeler by labeler ------------------------------------------------------------------------------------------------

IN_MATRIX = 30  # labelers side by side: more than fit on a screen, fewer than make a page slow


class Labelers(Groups):
    """Whose agreement with each other; of one, that labeler's with everybody."""

    labeler = forms.IntegerField(required=False, min_value=1, max_value=2**31, widget=forms.HiddenInput)


@dataclass
class Shared:
    """How far two labelers agree, over the tasks that both have ranked."""

    other: User
    tasks: int
    mean: float
    agreed_on: int
    compared: int
    href: str

    @property
    def shade(self) -> str:
        return charts.shade(self.mean)


@role_required("reviewer", "researcher")
@require_GET
def agreement_labelers(request: Request) -> HttpResponse:
    """How far each labeler agrees with each other one: those who share most tasks side by side, or one of them with everybody."""
    scope = Labelers(request.GET)
    pairs = _chosen_pairs(scope)
    context: dict[str, Any] = {"scope": scope, "query": query_without(request, "page", "labeler")}
    if "labeler" in scope.chosen:
        person = get_object_or_404(User, pk=scope.chosen["labeler"])
        rows = _shared(scope, pairs.filter(Q(first_labeler=person) | Q(second_labeler=person)))[person.pk]
        rows.sort(key=lambda row: (row.mean, -row.tasks, row.other.pk))
        page = Paginator(rows, ROWS_PER_PAGE).get_page(request.GET.get("page"))
        context |= {"person": person, "page": page, "page_query": query_without(request, "page")}
        return render(request, "agreement/labeler.html", context)
    counts = _counts(pairs)
    most = sorted(counts, key=lambda pk: (-counts[pk], pk))[:IN_MATRIX]
    shared = _shared(scope, pairs.filter(first_labeler__in=most, second_labeler__in=most))
    chosen = sorted(User.objects.filter(pk__in=most), key=lambda person: (str(person).casefold(), person.pk))
    matrix = []
    for person in chosen:
        of = {row.other.pk: row for row in shared[person.pk]}
        matrix.append((person, [(other == person, of.get(other.pk)) for other in chosen]))
    context |= {"people": chosen, "matrix": matrix, "count": len(counts)}
    return render(request, "agreement/labelers.html", context)


def _counts(pairs: AgreementPairQuerySet) -> Counter[int]:
    """Labeler → pairs of rankings that one of theirs is in."""
    found: Counter[int] = Counter()
    for side in ("first_labeler", "second_labeler"):
        found.update(dict(pairs.order_by().values_list(side).annotate(n=Count("id"))))
    return found


def _shared(scope: Labelers, pairs: AgreementPairQuerySet) -> dict[int, list[Shared]]:
    """Labeler → what they share with each other one; each two under either."""
    rows = list(pairs.by_labelers())
    people = User.objects.in_bulk({row[name] for row in rows for name in ("one", "other")})
    batch, between = scope.chosen.get("batch"), scope.chosen.get("between")
    query = {"batch": batch.pk if batch else None, "between": between}
    more = "".join(f"&{name}={value}" for name, value in query.items() if value)
    found: dict[int, list[Shared]] = defaultdict(list)
    for row in rows:
        for one, other in ((row["one"], row["other"]), (row["other"], row["one"])):
            href = f"{reverse('agreement_rows')}?one={one}&other={other}{more}"
            numbers = (row["tasks"], row["mean"], row["agreed_on"], row["compared"])
            found[one].append(Shared(people[other], *numbers, href))
    return found


@role_required("reviewer", "researcher")
@require_GET
def agreement_labelers_csv(request: Request) -> HttpResponse:
    """Every two labelers who share tasks, as CSV: with the same filters, all of them."""
    rows = list(_chosen_pairs(Labelers(request.GET)).by_labelers().order_by("one", "other"))
    people = User.objects.in_bulk({row[name] for row in rows for name in ("one", "other")})
    head = ["labeler", "other", "tasks", "mean_share", "agreed", "compared"]
    emails = [[people[row[name]].email for name in ("one", "other")] for row in rows]
    numbers = [[row["tasks"], f"{row['mean']:.4f}", row["agreed_on"], row["compared"]] for row in rows]
    return csv_file("agreement_labelers", head, map(operator.add, emails, numbers))
