"""The console's exports: order one, see what it holds, download its files or all of them at once."""

from functools import partial
from io import BufferedReader
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_safe

from labeling import downloads
from labeling.actions import exports
from labeling.actions.export_queries import Selection
from labeling.actions.prompts import use_cases
from labeling.errors import HeedError
from labeling.models import Batch, Export, Group, LabelSchema, Origin, Split
from labeling.views.access import Request, role_required
from labeling.views.listing import day_input, paginate, query_without, set_choices

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

STANDARD = Selection()


def ticks(
    label: "StrOrPromise", choices: list, help_text: "StrOrPromise" = "", initial: tuple = ()
) -> forms.MultipleChoiceField:
    """A list of things to tick."""
    return forms.MultipleChoiceField(
        label=label,
        choices=choices,
        help_text=help_text,
        required=False,
        initial=initial,
        widget=forms.CheckboxSelectMultiple,
    )


class SelectionForm(forms.Form):
    """What goes in. Its fields are the keys of an export's query."""

    review = ticks(
        gettext_lazy("State of review"),
        [
            ("accepted", gettext_lazy("accepted")),
            ("unreviewed", gettext_lazy("not reviewed yet")),
            ("returned", gettext_lazy("returned")),
            ("rejected", gettext_lazy("rejected")),
        ],
        initial=STANDARD.review,
    )
    origins = ticks(
        gettext_lazy("Made by"),
        [("import", gettext_lazy("import")), *Origin.choices],
        gettext_lazy("Simulated and AI labels go in only when you say so."),
        initial=STANDARD.origins,
    )
    groups = ticks(gettext_lazy("Groups"), Group.choices, gettext_lazy("None ticked: all, in rows of their own."))
    splits = ticks(gettext_lazy("Splits"), Split.choices, gettext_lazy("None ticked: all."))
    use_cases = ticks(gettext_lazy("Use cases"), [], gettext_lazy("None ticked: all."))
    batches = ticks(gettext_lazy("Batches"), [], gettext_lazy("None ticked: all."))
    surplus = forms.BooleanField(label=gettext_lazy("Surplus work too, marked"), required=False)
    since = forms.DateField(label=gettext_lazy("Handed in since"), required=False, widget=day_input())
    until = forms.DateField(
        label=gettext_lazy("Handed in until"),
        required=False,
        widget=day_input(),
        help_text=gettext_lazy("Days in UTC, both included."),
    )
    schemas = ticks(gettext_lazy("Versions of the label schema"), [], gettext_lazy("None ticked: all."))
    min_agreement = forms.FloatField(
        label=gettext_lazy("Least agreement"),
        required=False,
        min_value=0,
        max_value=1,
        widget=forms.NumberInput(attrs={"step": "any"}),
        help_text=gettext_lazy(
            "Only rankings of tasks whose labelers agree on at least this share of comparisons, 0 to 1. "
            "A task ranked once has no agreement and stays out."
        ),
    )
    pairs = forms.BooleanField(
        label=gettext_lazy("Rankings as pairs too (prompt, chosen, rejected), which TRL reads"), required=False
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        set_choices(self, "use_cases", [(case, case) for case in use_cases()])
        names = Batch.objects.order_by("-id").values_list("name", flat=True)
        set_choices(self, "batches", [(name, name) for name in names])
        versions = LabelSchema.objects.values_list("version", flat=True)
        set_choices(self, "schemas", [(str(version), str(version)) for version in versions])

    def clean(self):
        for name in ("review", "origins"):
            if not self.cleaned_data.get(name) and name not in self.errors:
                self.add_error(name, _("Tick at least one."))
        return self.cleaned_data

    def query(self) -> dict[str, Any]:
        """What the form asks for, as an export's query."""
        given = dict(self.cleaned_data)
        given["schemas"] = [int(version) for version in given["schemas"]]
        return given | {name: day.isoformat() if (day := given[name]) else None for name in ("since", "until")}


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def exports_list(request: Request) -> HttpResponse:
    """All exports, newest first, and the form to order one. The same order while one is building is that one."""
    form = SelectionForm(request.POST or None)
    if request.method == "POST":
        form = SelectionForm(request.POST)
        if form.is_valid():
            try:
                return redirect("export", exports.request(query=form.query(), by=request.user).pk)
            except HeedError as error:
                form.add_error(None, str(error))
    rows = Export.objects.select_related("created_by", "same_as").defer("manifest").order_by("-id")
    context = {"form": form, "page": paginate(request, rows, per_page=20), "query": query_without(request, "page")}
    return render(request, "exports/list.html", context, status=422 if form.errors else 200)


@role_required("researcher")
@require_GET
def export(request: Request, pk: int) -> HttpResponse:
    """One export: its state while it is built, then counts, files with checksums, selection, and the models made from it."""
    found = get_object_or_404(Export.objects.select_related("created_by", "same_as"), pk=pk)
    if found.same_as is not None:
        messages.info(
            request, _("Nothing has changed since: %(name)s holds this selection.") % {"name": found.same_as.name}
        )
        return redirect("export", found.same_as_id)
    files = (found.manifest or {}).get("files", {})
    context = {
        "export": found,
        "files": [{"name": name, **entry} for name, entry in files.items()],
        "total_bytes": sum(entry["bytes"] for entry in files.values()),
        "models": found.model_versions.order_by("id"),
        "is_downloadable": _is_there(found),
    }
    template = "exports/detail.html#state" if request.htmx else "exports/detail.html"
    response = render(request, template, context)
    if request.htmx and found.status != Export.Status.BUILDING:
        response["HX-Refresh"] = "true"
    return response


@role_required("researcher")
@require_safe
def export_file(request: Request, pk: int, name: str) -> HttpResponseBase:
    """One file of an export, as it was written; a download that broke off goes on where it stopped."""
    found = _downloadable(pk)
    if name not in _file_names(found):
        raise Http404
    sha256 = found.sha256_of(name)
    return downloads.send(request, found.folder / name, file_name=f"{found.name}-{name}", sha256=sha256)


@role_required("researcher")
@require_safe
def export_zip(request: Request, pk: int) -> HttpResponseBase:
    """The whole folder as one zip, of which nothing is kept: memory and disk stay as they are, and a download that broke off goes on."""
    found = _downloadable(pk)
    archive = found.archive()
    opened = partial(BufferedReader, archive)
    return downloads.send_from(request, opened, size=archive.size, version=archive.tag, file_name=f"{found.name}.zip")


def _file_names(found: Export) -> list[str]:
    return ["manifest.json", *found.manifest.get("files", {})]


def _is_there(found: Export) -> bool:
    return found.status == Export.Status.READY and (found.folder / "manifest.json").is_file()


def _downloadable(pk: int) -> Export:
    found = get_object_or_404(Export, pk=pk)
    if not _is_there(found):
        raise Http404(f"{found.name} has no files")
    return found
