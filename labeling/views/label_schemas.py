"""The rating form's versions: which there are, each as labelers see it, and making a new one from an old one."""

from django import forms
from django.contrib import messages
from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods

from labeling.actions import label_schemas as actions
from labeling.errors import Invalid
from labeling.models import LabelSchema
from labeling.views.access import Request, role_required


@role_required("reviewer", "researcher")
@require_GET
def label_schemas(request: Request) -> HttpResponse:
    """All versions, newest first, with the number of batches that pin each."""
    schemas = LabelSchema.objects.select_related("created_by").annotate(batch_count=Count("batches"))
    return render(request, "label_schemas/list.html", {"schemas": schemas})


@role_required("reviewer", "researcher")
@require_GET
def label_schema(request: Request, version: int) -> HttpResponse:
    """One version, as a labeler sees it."""
    schema = get_object_or_404(LabelSchema.objects.select_related("created_by"), version=version)
    blank = {"value": ""}
    card = {"letter": "A", "label": "A", "quality": "", "flags": [flag | blank for flag in schema.response_flags]}
    context = {
        "schema": schema,
        "card": card,
        "scale": schema.scale,
        "prompt_flags": [flag | blank for flag in schema.prompt_flags],
        "batches": schema.batches.order_by("-id")[:50],
    }
    return render(request, "label_schemas/detail.html", context)


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def label_schema_new(request: Request) -> HttpResponse:
    """A new version, begun from the newest or from `?from=VERSION`. Refused, it is shown again with every place that is wrong."""
    if request.method == "POST":
        parts = _forms(request.POST)
        for part in parts.values():
            part.is_valid()
        try:
            made = actions.create_schema(content=_content(parts), by=request.user)
        except Invalid as error:
            return render(request, "label_schemas/new.html", parts | {"problems": error.errors}, status=422)
        messages.success(request, _("Version %d. New batches are made with it unless they say another.") % made.version)
        return redirect("label_schema", made.version)
    asked = request.GET.get("from", "")
    versions = (
        LabelSchema.objects.filter(version=int(asked))
        if asked.isascii() and asked.isdigit() and len(asked) < 9
        else None
    )
    begun = get_object_or_404(versions) if versions is not None else LabelSchema.latest()
    return render(request, "label_schemas/new.html", _forms(None, begun) | {"begun": begun})


# ---- forms ----------------------------------------------------------------------------------------------------------


class ScaleForm(forms.Form):
    """From, to, and what the numbers mean. Checked by the action, so that every door says the same."""

    min = forms.IntegerField(label=gettext_lazy("From"), required=False)
    max = forms.IntegerField(label=gettext_lazy("To"), required=False)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for value in range(actions.LOWEST, actions.HIGHEST + 1):
            self.fields[f"anchor_{value}"] = forms.CharField(label=str(value), required=False)

    @property
    def anchor_fields(self) -> list:
        return [self[f"anchor_{value}"] for value in range(actions.LOWEST, actions.HIGHEST + 1)]


class FlagForm(forms.Form):
    """One flag. A row without name and label is no flag."""

    # The placeholder lets the stylesheet tell an empty row.
    label = forms.CharField(
        label=gettext_lazy("Label"), required=False, widget=forms.TextInput(attrs={"placeholder": " "})
    )
    name = forms.CharField(label=gettext_lazy("Name in exports"), required=False)
    help = forms.CharField(label=gettext_lazy("Help"), required=False)
    required = forms.BooleanField(label=gettext_lazy("must be answered"), required=False)
    place = forms.IntegerField(label=gettext_lazy("Place"), required=False, widget=forms.NumberInput(attrs={"min": 1}))


FlagRows = forms.formset_factory(FlagForm, extra=4, max_num=actions.MAX_FLAGS + 4, absolute_max=actions.MAX_FLAGS + 10)


def _forms(data, begun: LabelSchema | None = None) -> dict:
    """The page's three parts, from what was sent or from a version."""
    if begun is None:
        return {
            "scale": ScaleForm(data, prefix="scale"),
            **{name: FlagRows(data, prefix=name) for name in actions.LISTS},
        }
    anchors = {f"anchor_{value}": text for value, text in begun.scale["anchors"].items()}
    rows = {
        name: [flag | {"place": place} for place, flag in enumerate(begun.content[name], start=1)]
        for name in actions.LISTS
    }
    return {
        "scale": ScaleForm(prefix="scale", initial=begun.content["quality"] | anchors),
        **{name: FlagRows(prefix=name, initial=rows[name]) for name in actions.LISTS},
    }


def _content(parts: dict) -> dict:
    """What was sent, in the shape of a schema's content; flags by their places."""
    scale = getattr(parts["scale"], "cleaned_data", {})
    anchors = {name.removeprefix("anchor_"): text for name, text in scale.items() if name.startswith("anchor_")}
    content: dict[str, object] = {"quality": {"min": scale.get("min"), "max": scale.get("max"), "anchors": anchors}}
    for name in actions.LISTS:
        rows = []
        for number, row in enumerate(parts[name].forms):
            flag = {**getattr(row, "cleaned_data", {}), "row": number}
            if flag.get("name") or flag.get("label"):
                rows.append(flag)
        content[name] = sorted(rows, key=lambda flag: flag.get("place") or 1000)
    return content
