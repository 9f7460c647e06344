"""Hours: a labeler's own, day by day; in the console everybody's, by period, as a page and as CSV."""

from collections.abc import Iterable
from datetime import date
from typing import cast

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from labeling.actions import hours as actions
from labeling.models import PayRule, Role, User, WorkEntry
from labeling.models.hours import WorkEntryQuerySet, sums
from labeling.views.access import Request, role_required
from labeling.views.csv_files import csv_file
from labeling.views.listing import ROWS_PER_PAGE, FilterForm, day_input, paginate, query_without

TEAM = (Role.REVIEWER, Role.RESEARCHER)


class Period(FilterForm):
    """Which days. Without any in the address: this month, up to today."""

    since = forms.DateField(label=gettext_lazy("From"), required=False, widget=day_input())
    until = forms.DateField(label=gettext_lazy("Until"), required=False, widget=day_input())

    def __init__(self, data):
        data = data.copy()
        if "since" not in data and "until" not in data:
            data["since"] = timezone.localdate().replace(day=1).isoformat()
            data["until"] = timezone.localdate().isoformat()
        super().__init__(data)

    @property
    def days(self) -> tuple[date | None, date | None]:
        return self.chosen.get("since"), self.chosen.get("until")


class Filters(Period):
    """Whose, and in which rows."""

    labeler = forms.ModelChoiceField(
        User.objects.filter(Exists(WorkEntry.objects.filter(labeler=OuterRef("pk")))).order_by("email"),
        label=gettext_lazy("Labeler"),
        required=False,
        empty_label=gettext_lazy("everybody"),
    )
    by = forms.ChoiceField(
        label=gettext_lazy("A row for each"),
        required=False,
        choices=[("", gettext_lazy("labeler")), ("day", gettext_lazy("labeler and day"))],
    )

    def __init__(self, data):
        super().__init__(data)
        self.nameless = actions.nameless()
        people = cast(forms.ModelChoiceField, self.fields["labeler"])
        people.queryset = cast(QuerySet[User], people.queryset).exclude(pk__in=self.nameless)

    def entries(self) -> WorkEntryQuerySet:
        """The entries that pass. Simulated labelers are not paid; candidates have no name until they are decided on."""
        rows = WorkEntry.objects.between(*self.days).exclude(labeler__in=self.nameless)
        if "labeler" in self.chosen:
            return rows.filter(labeler=self.chosen["labeler"])
        return rows.exclude(labeler__in=User.objects.filter(is_simulated=True))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("labeler", "day") if self.chosen.get("by") else ("labeler",)


# A labeler's own -----------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@never_cache
@require_GET
def hours(request: Request) -> HttpResponse:
    """What they did, day by day, and how much of it is paid."""
    period, rule = Period(request.GET), PayRule.current()
    mine = WorkEntry.objects.between(*period.days).filter(labeler=request.user)
    context = {
        "filters": period,
        "days": mine.summed("day", rule=rule).order_by("-day"),
        "total": mine.total(rule),
        "rule": rule,
        "query": request.GET.urlencode(),
    }
    return render(request, "hours/own.html", context)


@role_required(Role.LABELER)
@never_cache
@require_GET
def hours_csv(request: Request) -> HttpResponse:
    """The same as a table of days."""
    mine = WorkEntry.objects.between(*Period(request.GET).days).filter(labeler=request.user)
    return _csv(mine.summed("day", rule=PayRule.current()), ("day",), {})


# The console's -------------------------------------------------------------------------------------------------


@role_required(*TEAM)
@require_GET
def hours_all(request: Request) -> HttpResponse:
    """Everybody's, the most hours first (by day: the newest day first)."""
    filters, rule = Filters(request.GET), PayRule.current()
    order = ("-day", "-paid_seconds", "labeler") if "day" in filters.columns else ("-paid_seconds", "labeler")
    rows = filters.entries().summed(*filters.columns, rule=rule).order_by(*order)
    if "day" in filters.columns:
        page, total = paginate(request, rows), filters.entries().total(rule)
    else:  # as many rows as labelers: summing the entries once is enough
        everybody = list(rows)
        page = Paginator(everybody, ROWS_PER_PAGE).get_page(request.GET.get("page"))
        total = {name: sum(row[name] for row in everybody) for name in sums(rule)}
    people = _people(row["labeler"] for row in page)
    since, until = filters.days
    context = {
        "filters": filters,
        "page": page,
        "rows": [row | {"person": people[row["labeler"]]} for row in page],
        "total": total,
        "rule": rule,
        "since": since,
        "until": until,
        "query": query_without(request, "page"),
    }
    return render(request, "hours/all.html", context)


def _people(ids: Iterable[int]) -> dict[int, User]:
    return User.objects.in_bulk(list(set(ids)))


@role_required(*TEAM)
@require_GET
def hours_all_csv(request: Request) -> HttpResponse:
    """All rows of the same filters."""
    filters = Filters(request.GET)
    rows = list(filters.entries().summed(*filters.columns, rule=PayRule.current()))
    return _csv(rows, filters.columns, _people(row["labeler"] for row in rows))


COUNTS = ["demonstrations", "rankings", "corrections", "prompts", "surplus", "skips", "practice", "screening"]


def _csv(rows: Iterable[dict], columns: tuple[str, ...], people: dict[int, User]) -> HttpResponse:
    """A file of rows: who and when, paid time in seconds and in hours, time apart, counts."""
    who = ["email", "name", "group"] if "labeler" in columns else []
    when = ["day"] if "day" in columns else []

    def cells(row: dict) -> list:
        person = people.get(row.get("labeler", 0))
        named = [person.email, person.name, person.group] if person else []
        paid = [row["paid_seconds"], f"{row['paid_seconds'] / 3600:.4f}", row["unpaid_seconds"], row["skip_seconds"]]
        return named + ([row["day"].isoformat()] if when else []) + paid + [row[name] for name in COUNTS]

    head = [*who, *when, "paid_seconds", "paid_hours", "unpaid_seconds", "skip_seconds", *COUNTS]
    return csv_file("hours", head, map(cells, rows))


@role_required(Role.RESEARCHER)
@require_POST
def pay_rule(request: Request) -> HttpResponse:
    """What is paid besides work that was handed in."""
    given = {name: name in request.POST for name in ("pays_skips", "pays_practice", "pays_screening")}
    actions.set_rule(by=request.user, **given)
    messages.success(request, _("Saved. It counts for every period."))
    return redirect(f"{reverse('hours_all')}?{request.GET.urlencode()}")
