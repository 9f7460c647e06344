"""The console's batches: how far each is, its rows, ordering a new one, pausing and closing."""

from dataclasses import dataclass

from django import forms
from django.contrib import messages
from django.db.models import Count, Exists, OuterRef, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import languages
from labeling.actions import batch_rows, batches, people
from labeling.actions.prompts import use_cases
from labeling.errors import HeedError
from labeling.models import Batch, GoldAnswer, Group, Kind, LabelSchema, ModelVersion, Prompt, Skip, Split, Task
from labeling.models.batches import Progress
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, prompt_preview, query_without, set_choices


@dataclass
class Segment:
    """A stretch of a batch's bar, in hundredths of its width."""

    name: str
    label: str
    count: int
    start: float
    width: float


def segments(progress: Progress) -> list[Segment]:
    """The bar of a batch: seats by what became of them, the finished ones first. They add up to the seats."""
    parts = (
        ("accepted", _("accepted"), progress.accepted),
        ("waiting", _("waiting for review"), progress.waiting),
        ("returned", _("returned"), progress.returned),
        ("rejected", _("rejected"), progress.rejected),
        ("leased", _("being worked on"), progress.leased),
        ("open", _("open"), progress.open),
    )
    bar, start = [], 0.0
    for name, label, count in parts:
        width = 100 * count / progress.seats if progress.seats else 0
        bar.append(Segment(name, label, count, round(start, 3), round(width, 3)))
        start += width
    return bar


@role_required("reviewer", "researcher")
@require_GET
def batches_list(request: Request) -> HttpResponse:
    """All batches, newest first, with their progress."""
    page = paginate(request, Batch.objects.defer("query", "instructions").order_by("-id"))
    progress = Batch.objects.filter(pk__in=[batch.pk for batch in page]).progress()
    rows = [{"batch": b, "progress": progress[b.pk], "bar": segments(progress[b.pk])} for b in page]
    return render(request, "batches/list.html", {"page": page, "rows": rows, "query": query_without(request, "page")})


@role_required("reviewer", "researcher")
@require_GET
def batch(request: Request, pk: int) -> HttpResponse:
    """One batch: its counts with the rows behind them, its instructions, its order, its tasks."""
    found = get_object_or_404(Batch.objects.select_related("schema", "created_by"), pk=pk)
    progress = Batch.objects.filter(pk=pk).progress()[pk]
    full = Task.objects.annotate(
        prompt_preview=prompt_preview("prompt__"),
        seats=Count("slots"),
        done=Count("slots", filter=Q(slots__status="submitted")),
        has_gold=Exists(GoldAnswer.objects.filter(task=OuterRef("pk"), withdrawn_at=None)),
    )
    context = {
        "batch": found,
        "makes_gold": found.kind == Kind.RANKING and request.user.is_researcher,
        "progress": progress,
        "bar": segments(progress),
        "order": _order_in_words(found.query),
        "left_out": [(found.counts[r], words) for r, words in batch_rows.LEFT_OUT.items() if found.counts.get(r)],
        "page": paginate(request, Task.objects.filter(batch=found).order_by("id"), per_page=25, full=full),
        "skips": Skip.objects.filter(task__batch=found)
        .select_related("labeler")
        .annotate(prompt_preview=prompt_preview("task__prompt__"))
        .order_by("-id")[:50],
        "form": ChangeForm(
            initial={name: getattr(found, name) for name in ("instructions", "priority", "gold_percent", "language")}
            | {"skills": ", ".join(found.skills)}
        ),
        "gold_tasks": found.tasks.filter(is_gold=True).count(),
    }
    return render(request, "batches/detail.html", context)


def _order_in_words(query: dict) -> list[tuple[str, str]]:
    """The order for the page: lists on one line, the instructions (shown beside it) left out."""
    shown = {name: value for name, value in query.items() if name not in ("instructions", "kind", "k", "overlap")}
    if isinstance(shown.get("prompt_ids"), dict):
        shown["prompt_ids"] = _("%(n)d named prompts") % {"n": shown["prompt_ids"]["count"]}
    return [(name.replace("_", " "), ", ".join(v) if isinstance(v, list) else v) for name, v in shown.items()]


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def batch_new(request: Request) -> HttpResponse:
    """Order a batch. A refused order is shown again with every problem at its field."""
    form = OrderForm(
        request.POST or None, initial={"kind": Kind.RANKING, "k": 4, "overlap": 1, "seed": 0, "priority": 0}
    )
    if request.method == "POST" and form.is_valid():
        try:
            made = batches.create_batch(**form.order(), by=request.user)
        except HeedError as error:
            form.take(error)
            return render(request, "batches/new.html", {"form": form}, status=error.status)
        messages.success(request, _("Ordered: %(n)d tasks.") % {"n": made.counts["tasks"]})
        return redirect("batch", made.pk)
    return render(request, "batches/new.html", {"form": form}, status=422 if form.is_bound else 200)


@role_required("researcher")
@require_POST
def batch_status(request: Request, pk: int) -> HttpResponse:
    """Pause, resume or close."""
    found = get_object_or_404(Batch, pk=pk)
    changed = batches.set_status(batch=found, status=request.POST.get("status", ""), by=request.user)
    messages.success(request, _("The batch is %(status)s.") % {"status": changed.get_status_display()})
    return redirect("batch", pk)


@role_required("researcher")
@require_POST
def batch_edit(request: Request, pk: int) -> HttpResponse:
    """Change instructions and priority."""
    found = get_object_or_404(Batch, pk=pk)
    form = ChangeForm(request.POST)
    if not form.is_valid():
        return render(request, "batches/edit.html", {"batch": found, "form": form}, status=422)
    batches.edit(batch=found, by=request.user, **form.cleaned_data)
    messages.success(request, _("Saved."))
    return redirect("batch", pk)


# ---- forms ----------------------------------------------------------------------------------------------------------


class EditForm(forms.Form):
    """What can be changed later."""

    instructions = forms.CharField(
        label=gettext_lazy("Instructions"),
        help_text=gettext_lazy("Markdown, shown beside every task."),
        required=False,
        max_length=50_000,
        widget=forms.Textarea(attrs={"rows": 8}),
    )
    priority = forms.IntegerField(
        label=gettext_lazy("Priority"),
        help_text=gettext_lazy("−1000 to 1000; higher is handed out first."),
        min_value=-1000,
        max_value=1000,
    )


def any_or(choices) -> list:
    return [("", gettext_lazy("any")), *choices]


class ForForm(EditForm):
    """Which labelers a batch is for, besides their group."""

    language = forms.ChoiceField(
        label=gettext_lazy("Language"), required=False, choices=lambda: any_or(languages.choices()),
        help_text=gettext_lazy("Only labelers who know it."),
    )  # fmt: skip
    skills = forms.CharField(
        label=gettext_lazy("Skills"),
        required=False,
        max_length=1000,
        help_text=gettext_lazy("With commas between. Only labelers who have all of them; an admin says who has which."),
    )

    def clean_skills(self) -> list[str]:
        """Their names."""
        try:
            return list(people.skill_names(self.cleaned_data["skills"].split(",")))
        except HeedError as error:
            raise forms.ValidationError(str(error)) from None


class ChangeForm(ForForm):
    """What can be changed of a batch that is there."""

    gold_percent = forms.IntegerField(
        label=gettext_lazy("Gold tasks (%)"),
        help_text=gettext_lazy("Share of a labeler's tasks whose right answer is known, as far as there are any."),
        min_value=0,
        max_value=batches.MAX_GOLD_PERCENT,
        required=False,
    )


class OrderForm(ForForm):
    """A new batch. The fields are those of `batches.create_batch`."""

    name = forms.CharField(label=gettext_lazy("Name"), max_length=100)
    kind = forms.ChoiceField(label=gettext_lazy("Labelers"), choices=[
        (Kind.RANKING, gettext_lazy("rank K responses")), (Kind.DEMONSTRATION, gettext_lazy("write a demonstration")),
    ])  # fmt: skip
    purpose = forms.ChoiceField(
        label=gettext_lazy("Purpose"),
        required=False,
        choices=Batch.Purpose.choices,
        help_text=gettext_lazy(
            "A final evaluation compares the models ticked on prompts of the test split: one response of each in every task. "
            "It is never trained on."
        ),
    )
    k = forms.IntegerField(
        label=gettext_lazy("Responses per task (K)"),
        help_text=gettext_lazy("2 to 12, distinct texts and models first. In a final evaluation: as many as models."),
        required=False,
        min_value=batches.MIN_K,
        max_value=batches.MAX_K,
    )
    model_names = forms.MultipleChoiceField(
        label=gettext_lazy("Models"),
        help_text=gettext_lazy("Whose responses to rank. None ticked: all."),
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    must_include = forms.MultipleChoiceField(
        label=gettext_lazy("In every task"),
        help_text=gettext_lazy("Every task has a response of these models."),
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    overlap = forms.IntegerField(label=gettext_lazy("Labelers per task"), min_value=1, max_value=batches.MAX_OVERLAP)
    group = forms.ChoiceField(
        label=gettext_lazy("Group"),
        required=False,
        choices=[("", gettext_lazy("the usual")), (batches.ANY_GROUP, gettext_lazy("any")), *Group.choices],
        help_text=gettext_lazy("Usual is any; in a final evaluation, held-out."),
    )
    split = forms.ChoiceField(label=gettext_lazy("Split"), required=False, choices=any_or(Split.choices))
    use_case = forms.ChoiceField(label=gettext_lazy("Use case"), required=False)
    source = forms.ChoiceField(label=gettext_lazy("Source"), required=False, choices=any_or(Prompt.Source.choices))
    prompt_kind = forms.ChoiceField(
        label=gettext_lazy("Kind of prompt"), required=False, choices=any_or(Prompt.Kind.choices)
    )
    only_new = forms.BooleanField(label=gettext_lazy("Only prompts that have no task of this kind yet"), required=False)
    limit = forms.IntegerField(
        label=gettext_lazy("At most so many tasks"),
        help_text=gettext_lazy("Chosen at random. Empty: all that match."),
        required=False,
        min_value=1,
    )
    seed = forms.IntegerField(
        label=gettext_lazy("Seed"), help_text=gettext_lazy("The same seed chooses the same rows again."), min_value=0
    )

    schema_version = forms.TypedChoiceField(
        label=gettext_lazy("Rating form"), required=False, coerce=int, empty_value=None
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["language"].help_text = _("Prompts in it, for labelers who know it.")
        versions = LabelSchema.objects.values_list("version", flat=True)
        choices = [("", gettext_lazy("the newest version")), *((n, _("version %d") % n) for n in versions)]
        set_choices(self, "schema_version", choices)
        names = list(ModelVersion.objects.exclude(stage="rm").order_by("-id").values_list("name", flat=True))
        for field in ("model_names", "must_include"):
            set_choices(self, field, [(name, name) for name in names])
        set_choices(self, "use_case", any_or((case, case) for case in use_cases()))

    def order(self) -> dict:
        """Keyword arguments of `create_batch`; what a demonstration, or an evaluation, does not have is left out."""
        order = dict(self.cleaned_data)
        if order["kind"] == Kind.DEMONSTRATION:
            order |= {"k": None, "model_names": [], "must_include": []}
        elif order["purpose"] == Batch.Purpose.EVALUATION:
            order |= {"k": None, "must_include": []}
        return order

    def take(self, error: HeedError) -> None:
        """Show a refusal at the fields it names."""
        placed = [p for p in getattr(error, "errors", []) if p["place"] in self.fields]
        for problem in placed:
            self.add_error(problem["place"], problem["message"])
        if not placed:
            self.add_error(None, str(error))
