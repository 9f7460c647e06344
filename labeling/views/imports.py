"""The console's imports: a file of prompts or responses, whole or not at all, with every error named."""

from typing import TYPE_CHECKING

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from labeling.actions import imports
from labeling.actions.import_files import FORMATS, Columns
from labeling.actions.import_rows import PROMPT_FIELDS, RESPONSE_FIELDS
from labeling.errors import HeedError
from labeling.models import Import
from labeling.views import kept_forms
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, query_without

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

FORMAT_NAMES = {
    "heed": gettext_lazy("Heed's fields"),
    "hh-rlhf": gettext_lazy("HH-RLHF, and other pairs of chosen and rejected"),
    "oasst": gettext_lazy("Open-Assistant's trees, or their messages"),
    "self_instruct": gettext_lazy("Self-Instruct's tasks"),
}
FORMAT_CHOICES = [*FORMAT_NAMES.items(), *((name, name) for name in FORMATS if name not in FORMAT_NAMES)]


def lines_field(label: "StrOrPromise", help_text: "StrOrPromise", example: str) -> forms.CharField:
    """A text area of FIELD=… lines."""
    widget = forms.Textarea(attrs={"rows": 3, "placeholder": example, "spellcheck": "false", "class": "mono short"})
    return forms.CharField(label=label, help_text=help_text, required=False, max_length=10_000, widget=widget)


class UploadForm(forms.Form):
    """A file and how its columns are named."""

    kind = forms.ChoiceField(
        label=gettext_lazy("What is in the file"), choices=Import.Kind.choices, widget=forms.RadioSelect
    )
    file = forms.FileField(
        label=gettext_lazy("File"), help_text=gettext_lazy("JSON Lines, CSV, TSV, Parquet or Arrow."), max_length=255
    )
    format = forms.ChoiceField(
        label=gettext_lazy("Format"),
        choices=FORMAT_CHOICES,
        help_text=gettext_lazy("What the rows are; or how a file is written whose name does not tell."),
    )
    map = lines_field(
        gettext_lazy("Columns"),
        gettext_lazy(
            "FIELD=COLUMN, one per line, where your columns have other names. A path reaches into nested data."
        ),
        "prompt=context\nresponse=sample\nmodel=model_type",
    )
    constant = lines_field(
        gettext_lazy("The same in every row"), gettext_lazy("FIELD=TEXT, one per line."), "use_case=summarization"
    )
    template = lines_field(
        gettext_lazy("Put together from columns"),
        gettext_lazy("FIELD=TEXT with {column} in it, one per line."),
        "prompt={instruction} {input}",
    )

    def clean_file(self):
        file = self.cleaned_data["file"]
        if file.size > imports.UPLOAD_MAX_BYTES:
            limit = imports.UPLOAD_MAX_BYTES // 2**20
            message = _(
                "%(name)s has %(size)d MB; a page takes %(limit)d MB. Use `manage.py import_%(kind)s`, which takes more."
            )
            kind = self.cleaned_data.get("kind") or Import.Kind.PROMPTS
            raise forms.ValidationError(
                message % {"name": file.name, "size": file.size // 2**20, "limit": limit, "kind": kind}
            )
        return file

    def columns(self) -> Columns:
        """The mapping. Raises Invalid naming the line that cannot be read."""
        lines = {name: self.cleaned_data[name].splitlines() for name in ("map", "constant", "template")}
        return Columns.parse(**{name: [line for line in given if line.strip()] for name, given in lines.items()})


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def imports_list(request: Request) -> HttpResponse:
    """What came in, newest first, and the form to bring more. A refused file leaves nothing but its errors."""
    sent = kept_forms.unsent(request) if request.method == "GET" else None
    initial = {"kind": Import.Kind.PROMPTS, "format": "heed"} | (sent.dict() if sent else {})
    form = UploadForm(request.POST or None, request.FILES or None, initial=initial)
    error = None
    if request.method == "POST" and form.is_valid():
        try:
            made = _import(form, request.user)
        except HeedError as refusal:
            error = refusal
        else:
            messages.success(
                request, _("%(file)s went in: %(counts)s.") % {"file": made.file_name, "counts": _said(made)}
            )
            return redirect("imports")
    context = {
        "form": form,
        "error": error,
        "page": paginate(request, Import.objects.select_related("created_by").order_by("-id"), per_page=20),
        "query": query_without(request, "page"),
        "prompt_fields": sorted(PROMPT_FIELDS),
        "response_fields": sorted(RESPONSE_FIELDS - PROMPT_FIELDS),
    }
    return render(request, "imports/list.html", context, status=_status(form, error))


def _import(form: UploadForm, by) -> Import:
    file = form.cleaned_data["file"]
    return imports.IMPORT_OF[form.cleaned_data["kind"]](
        path=file.temporary_file_path(),
        file_name=file.name,
        form=form.cleaned_data["format"],
        columns=form.columns(),
        by=by,
    )


def _said(made: Import) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in made.counts.items())


def _status(form: UploadForm, error: HeedError | None) -> int:
    if error is not None:
        return error.status
    return 422 if form.is_bound and form.errors else 200
