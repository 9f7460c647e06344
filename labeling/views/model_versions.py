"""The console's models: the registry with its lineage, evaluations, and which policy serves."""

from dataclasses import dataclass

from django import forms
from django.contrib import messages
from django.db import connection
from django.db.models import Count, OuterRef, Subquery
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from labeling.actions import model_versions
from labeling.actions.lineage import sources
from labeling.errors import Invalid
from labeling.models import GateCheck, ModelVersion, Promotion
from labeling.views import evaluations
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without


class Filters(FilterForm):
    """Which model versions to list."""

    stage = forms.ChoiceField(
        label=gettext_lazy("Stage"),
        required=False,
        choices=[("", gettext_lazy("any")), *ModelVersion.Stage.choices],
    )
    status = forms.ChoiceField(
        label=gettext_lazy("Status"),
        required=False,
        choices=[("", gettext_lazy("any")), *ModelVersion.Status.choices],
    )


class ReasonForm(forms.Form):
    """Why the serving policy changes."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"), max_length=2000, widget=forms.Textarea(attrs={"rows": 2, "class": "short"})
    )


class OverrideForm(ReasonForm):
    """Who lets a policy serve that the gate refused, and why."""

    override_by = forms.CharField(label=gettext_lazy("Name of who decides"), max_length=200)
    field_order = ["override_by", "reason"]


GATE_SAID = Subquery(GateCheck.objects.filter(model_version=OuterRef("pk")).decisive_first().values("holds")[:1])


@role_required("researcher")
@require_GET
def model_versions_list(request: Request) -> HttpResponse:
    """The registry, newest first; what serves on top."""
    filters = Filters(request.GET)
    rows = (
        ModelVersion.objects.filter(**filters.chosen)
        .select_related("export")
        .defer("manifest")
        .annotate(gate_holds=GATE_SAID)
    )
    context = {
        "filters": filters,
        "page": paginate(request, rows.prefetch_related("parents").order_by("-id")),
        "query": query_without(request, "page"),
        "serving": model_versions.serving_policy(),
        "rollback_target": model_versions.rollback_target(),
        "promotions": Promotion.objects.select_related("model_version", "previous", "promoted_by").order_by("-id")[:10],
        "form": ReasonForm(auto_id="rollback_%s"),
    }
    return render(request, "model_versions/list.html", context)


@role_required("researcher")
@require_GET
def model_version(request: Request, pk: int) -> HttpResponse:
    """One model: what it is made from, its figures, its files, when it served."""
    found = get_object_or_404(
        ModelVersion.objects.select_related("export", "registered_by").annotate(
            response_count=Count("responses"), gate_holds=GATE_SAID
        ),
        pk=pk,
    )
    checks = list(found.gate_checks.select_related("created_by").decisive_first()[:10])
    is_refused = bool(checks) and not checks[0].holds
    context = {
        "model": found,
        "lineage": lineage(found),
        "sources": sources(found),
        "children": found.children.order_by("id"),
        "measured": evaluations.measured(found),
        "earlier": evaluations.earlier(found),
        "promotions": found.promotions.select_related("previous", "promoted_by").order_by("-id")[:50],
        "gate_checks": checks,
        "form": OverrideForm(initial={"override_by": request.user.name}) if is_refused else ReasonForm(),
        "can_promote": found.is_policy and found.status != ModelVersion.Status.SERVING,
    }
    return render(request, "model_versions/detail.html", context)


@role_required("admin")
@require_POST
def model_promote(request: Request, pk: int) -> HttpResponse:
    """Let this policy serve."""
    found = get_object_or_404(ModelVersion, pk=pk)
    model_versions.promote(
        model_version=found,
        reason=_reason(request),
        override_by=request.POST.get("override_by", "")[:200],
        by=request.user,
    )
    messages.success(request, _("%(name)s serves now.") % {"name": found.name})
    return redirect("model_version", pk)


@role_required("admin")
@require_POST
def model_rollback(request: Request) -> HttpResponse:
    """Take the serving policy back. `serving` names what the page showed, so that a second click does not go back twice."""
    promotion = model_versions.rollback(
        reason=_reason(request), seen_serving=request.POST.get("serving", ""), by=request.user
    )
    messages.success(request, _("%(name)s serves again.") % {"name": promotion.model_version.name})
    return redirect("model_versions")


def _reason(request: Request) -> str:
    form = ReasonForm(request.POST)
    if not form.is_valid():
        raise Invalid(_("Say why, in at most 2000 characters."))
    return form.cleaned_data["reason"]


# ---- lineage --------------------------------------------------------------------------------------------------------

ANCESTORS = """
WITH RECURSIVE up(child, parent) AS (
  SELECT from_modelversion_id, to_modelversion_id FROM labeling_modelversion_parents WHERE from_modelversion_id = %s
  UNION
  SELECT p.from_modelversion_id, p.to_modelversion_id
    FROM labeling_modelversion_parents p JOIN up ON p.from_modelversion_id = up.parent
) SELECT child, parent FROM up
"""


@dataclass
class Ancestor:
    """A model that another was made from, in which role, and its own ancestors. Shown in full once, then by name only."""

    model: ModelVersion
    roles: list[str]
    ancestors: list["Ancestor"]
    is_repeated: bool


def lineage(model: ModelVersion) -> list[Ancestor]:
    """What a model was made from, all the way down, in two queries."""
    with connection.cursor() as cursor:
        cursor.execute(ANCESTORS, [model.pk])
        edges = cursor.fetchall()
    models = {m.pk: m for m in ModelVersion.objects.filter(pk__in={p for _c, p in edges}).select_related("export")}
    parents: dict[int, list[int]] = {}
    for child, parent in edges:
        parents.setdefault(child, []).append(parent)
    shown: set[int] = set()

    def above(child: ModelVersion) -> list[Ancestor]:
        return [_ancestor(child, models[pk], shown, above) for pk in sorted(parents.get(child.pk, []), reverse=True)]

    return above(model)


def _ancestor(child: ModelVersion, parent: ModelVersion, shown: set[int], above) -> Ancestor:
    refs = (child.manifest or {}).get("parents", {})
    roles = [role for role, ref in refs.items() if ref["manifest_sha256"] == parent.manifest_sha256]
    is_repeated = parent.pk in shown
    shown.add(parent.pk)
    return Ancestor(parent, roles, [] if is_repeated else above(parent), is_repeated)
