"""The console's labelers: their numbers with the rows behind each, pauses, and the rules that pause."""

from typing import Any

from django import forms
from django.contrib import messages
from django.db.models import Exists, F, Model, OuterRef, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from labeling.actions import pauses
from labeling.errors import HeedError
from labeling.models import (
    Group,
    LabelerNumbers,
    LabelerPause,
    LabelerRule,
    Role,
    Skip,
    Submission,
    SubmissionNumbers,
    User,
    UserRole,
)
from labeling.views.access import Request, role_required
from labeling.views.csv_files import csv_file
from labeling.views.listing import FilterForm, paginate, prompt_preview, query_without

SORTS = {
    "reliability": gettext_lazy("reliability, lowest first"),
    "agreement": gettext_lazy("agreement with others, lowest first"),
    "gold": gettext_lazy("agreement with gold, lowest first"),
    "skip_rate": gettext_lazy("skips, most first"),
    "name": gettext_lazy("name"),
}
COLUMNS = (
    "demonstrations", "rankings", "skips", "skip_rate", "reliability", "reliability_low", "reliability_high", "agreement",
    "agreement_low", "agreement_high", "agreement_count", "consensus_agreement", "consensus_low", "consensus_high",
    "consensus_count", "gold", "gold_low", "gold_high", "gold_count", "gold_passed", "ranking_seconds",
    "demonstration_seconds", "too_fast", "pasted", "near_copies",
)  # fmt: skip


class Filters(FilterForm):
    """Which labelers, and in what order."""

    group = forms.ChoiceField(
        label=gettext_lazy("Group"), required=False, choices=[("", gettext_lazy("any")), *Group.choices]
    )
    paused = forms.ChoiceField(
        label=gettext_lazy("Paused"),
        required=False,
        choices=[("", gettext_lazy("any")), ("yes", gettext_lazy("yes")), ("no", gettext_lazy("no"))],
    )
    sort = forms.ChoiceField(label=gettext_lazy("Order"), required=False, choices=list(SORTS.items()))

    def rows(self):
        """Numbers of the labelers that pass, as ordered."""
        chosen = self.chosen
        rows = LabelerNumbers.objects.select_related("labeler")
        if "group" in chosen:
            rows = rows.filter(labeler__group=chosen["group"])
        if "paused" in chosen:
            rows = rows.filter(labeler__is_paused=chosen["paused"] == "yes")
        sort = chosen.get("sort", "reliability")
        if sort == "name":
            return rows.order_by("labeler__name", "labeler__email")
        order = F(sort).desc(nulls_last=True) if sort == "skip_rate" else F(sort).asc(nulls_last=True)
        return rows.order_by(order, "labeler_id")


@role_required("reviewer", "researcher")
@require_GET
def labelers_list(request: Request) -> HttpResponse:
    """All labelers with their numbers; those who are paused above."""
    filters = Filters(request.GET)
    context = {
        "filters": filters,
        "page": paginate(request, filters.rows()),
        "paused": User.objects.filter(is_paused=True).order_by("name", "email")[:100],
        "query": query_without(request, "page"),
    }
    return render(request, "labelers/list.html", context)


@role_required("reviewer", "researcher")
@require_GET
def labelers_csv(request: Request) -> HttpResponse:
    """The same table as CSV, all of it."""
    head = ["labeler", "email", "group", "is_paused", *COLUMNS, "computed_at"]
    rows = (
        [str(row.labeler), row.labeler.email, row.labeler.group, row.labeler.is_paused]
        + [getattr(row, column) for column in COLUMNS]
        + [row.computed_at.isoformat()]
        for row in Filters(request.GET).rows()
    )
    return csv_file("labelers", head, rows)


# One labeler ---------------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "all": (gettext_lazy("everything"), {}, "-submitted_at"),
    "agreement": (gettext_lazy("compared with others"), {"agreement__isnull": False}, "agreement"),
    "consensus": (
        gettext_lazy("compared with the consensus of the others"),
        {"consensus_agreement__isnull": False},
        "consensus_agreement",
    ),
    "gold": (gettext_lazy("gold tasks"), {"gold_share__isnull": False}, "gold_share"),
    "rankings": (gettext_lazy("rankings"), {"kind": "ranking"}, "-submitted_at"),
    "demonstrations": (gettext_lazy("demonstrations"), {"kind": "demonstration"}, "-submitted_at"),
    "fast": (gettext_lazy("made impossibly fast"), {"is_too_fast": True}, "-speed"),
    "pasted": (gettext_lazy("mostly pasted"), {"is_pasted": True}, "-paste_chars"),
    "copies": (gettext_lazy("near-copies"), {"is_near_copy": True}, "-near_copy"),
}


class ReasonForm(forms.Form):
    """Why a labeler is paused or resumed."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        help_text=gettext_lazy("Kept for ever; the labeler is not shown it."),
        max_length=pauses.REASON_MAX_CHARS,
        widget=forms.Textarea(attrs={"rows": 3, "class": "short"}),
    )


@role_required("reviewer", "researcher")
@require_GET
def labeler(request: Request, pk: int) -> HttpResponse:
    """One labeler's numbers, week by week too, and the submissions behind each."""
    return _labeler(request, _labeler_or_404(pk), ReasonForm())


def _labeler_or_404(pk: int) -> User:
    """Somebody who labels, or has: they hold the role, or there is something of theirs to show."""
    people = User.objects.filter(pk=pk)
    traces: tuple[type[Model], ...] = (Submission, Skip, LabelerPause)
    is_labeler = Q(Exists(UserRole.objects.filter(user=OuterRef("pk"), role=Role.LABELER)))
    for rows in traces:
        is_labeler |= Q(Exists(rows.objects.filter(labeler=OuterRef("pk"))))  # type: ignore[attr-defined]
    return get_object_or_404(people.filter(is_labeler))


def _labeler(request: Request, person: User, form: forms.Form, status: int = 200) -> HttpResponse:
    shown = request.GET.get("rows", "all")
    shown = shown if shown in ROWS else "all"
    label, conditions, order = ROWS[shown]
    rows = SubmissionNumbers.objects.filter(labeler=person, **conditions).order_by(order, "-submission_id")
    full = SubmissionNumbers.objects.select_related("submission", "batch").annotate(
        prompt_preview=prompt_preview("submission__task__prompt__")
    )
    skips = person.skips.select_related("task__batch").order_by("-id") if request.GET.get("rows") == "skips" else None
    context = {
        "person": person,
        "numbers": LabelerNumbers.objects.filter(labeler=person).first(),
        "shown": "skips" if skips is not None else shown,
        "shown_label": _("skipped tasks") if skips is not None else label,
        "page": paginate(request, rows, full=full) if skips is None else paginate(request, skips),
        "pauses": person.pauses.select_related("rule", "by").order_by("-id")[:50],
        "form": form,
        "query": query_without(request, "page"),
    }
    return render(request, "labelers/detail.html", context, status=status)


@role_required("reviewer", "researcher")
@require_POST
def labeler_pause(request: Request, pk: int) -> HttpResponse:
    """Pause or resume, with a reason."""
    person = _labeler_or_404(pk)
    form = ReasonForm(request.POST)
    is_paused = request.POST.get("paused") == "yes"
    if form.is_valid() and request.POST.get("paused") not in {"yes", "no"}:
        form.add_error("reason", _("Say whether to pause or to resume: press one of the buttons."))
    if not form.is_valid():
        return _labeler(request, person, form, status=422)
    try:
        pauses.set_paused(labeler=person, is_paused=is_paused, by=request.user, **form.cleaned_data)
    except HeedError as error:
        form.add_error("reason", str(error))
        return _labeler(request, person, form, status=error.status)
    said = _("%(who)s gets no new tasks until resumed.") if is_paused else _("%(who)s gets tasks again.")
    messages.success(request, said % {"who": person})
    return redirect("labeler", pk)


# Rules ---------------------------------------------------------------------------------------------------------------


class RuleForm(forms.Form):
    """A new rule."""

    metric = forms.ChoiceField(label=gettext_lazy("Number"), choices=LabelerRule.Metric.choices)
    threshold = forms.FloatField(
        label=gettext_lazy("Threshold (%)"),
        help_text=gettext_lazy("Of agreement and gold: pauses below it. Of the others: above it."),
        min_value=0,
        max_value=100,
    )
    minimum = forms.IntegerField(
        label=gettext_lazy("At least so many submissions"),
        help_text=gettext_lazy("Fewer say too little to act on."),
        min_value=1,
        max_value=100_000,
        initial=20,
    )
    window_days = forms.IntegerField(label=gettext_lazy("Over the last days"), min_value=1, max_value=365, initial=14)


@role_required("reviewer", "researcher")
@require_GET
def labeler_rules(request: Request) -> HttpResponse:
    """The rules in force, those that were, whom each paused; and the form of a new one."""
    return _rules(request, RuleForm())


@role_required("researcher")
@require_POST
def labeler_rule_new(request: Request) -> HttpResponse:
    """Put a rule in force."""
    form = RuleForm(request.POST)
    if not form.is_valid():
        return _rules(request, form, 422)
    wanted: dict[str, Any] = form.cleaned_data | {"threshold": form.cleaned_data["threshold"] / 100}
    pauses.make_rule(by=request.user, **wanted)
    messages.success(request, _("The rule is in force."))
    return redirect("labeler_rules")


def _rules(request: Request, form: forms.Form, status: int = 200) -> HttpResponse:
    context = {
        "form": form,
        "rules": LabelerRule.objects.select_related("made_by", "ended_by").order_by(
            F("ended_at").desc(nulls_first=True), "-id"
        )[:100],
        "pauses": LabelerPause.objects.filter(rule__isnull=False)
        .select_related("labeler", "rule")
        .order_by("-id")[:50],
    }
    return render(request, "labelers/rules.html", context, status=status)


@role_required("researcher")
@require_POST
def labeler_rule_end(request: Request, pk: int) -> HttpResponse:
    """End a rule."""
    pauses.end_rule(rule=get_object_or_404(LabelerRule, pk=pk), by=request.user)
    messages.success(request, _("The rule pauses nobody any more."))
    return redirect("labeler_rules")
