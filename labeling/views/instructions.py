"""Instructions: labelers read and acknowledge them; researchers write, preview and publish them in the console."""

from dataclasses import dataclass

from django import forms
from django.contrib import messages
from django.db.models import Count, Exists, OuterRef
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.actions import instructions as actions
from labeling.actions import preparation
from labeling.errors import Conflict, Invalid
from labeling.models import Acknowledgement, Instructions, InstructionsDraft, Role, Subject, User
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, query_without


def subject_or_404(kind: str) -> Subject:
    """What an address names: a kind of task, or final evaluations."""
    try:
        return Subject(kind)
    except ValueError:
        raise Http404 from None


# Labelers ------------------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@never_cache
@require_GET
def read(request: Request, kind: str) -> HttpResponse:
    """The instructions in force for a kind of task or for final evaluations, to read and to acknowledge."""
    shown = Instructions.objects.filter(kind=subject_or_404(kind)).order_by("-version").first()
    if shown is None:
        raise Http404
    mine = Acknowledgement.objects.filter(user=request.user, instructions__kind=kind)
    context = {
        "instructions": shown,
        "acknowledged": mine.filter(instructions=shown).first(),
        "knew_older": mine.exclude(instructions=shown).exists(),
        "problem": "",
    }
    return render(request, "instructions/read.html", context)


@role_required(Role.LABELER)
@require_POST
def acknowledge(request: Request, kind: str) -> HttpResponse:
    """Say that one has read them, and go on: to practice if there is some, else to the next task of this kind."""
    version = request.POST.get("version", "")
    shown = Instructions.objects.filter(
        kind=subject_or_404(kind), version=int(version) if version.isdecimal() and len(version) < 10 else 0
    ).first()
    if shown is None:
        raise Http404
    if not request.POST.get("read"):
        context = {"instructions": shown, "problem": _("Tick the box once you have read them.")}
        return render(request, "instructions/read.html", context, status=422)
    try:
        actions.acknowledge(instructions=shown, by=request.user)
    except Conflict as conflict:
        messages.warning(request, str(conflict))
        return redirect("instructions_read", kind)
    for due in preparation.due(request.user, kind):
        return redirect(step_url(due.kind, due.step))
    messages.success(request, _("Thank you. You can begin."))
    return redirect("tasks")


def step_url(kind: str, step: str) -> str:
    """Where a labeler does what is due before a task of a kind."""
    return reverse("instructions_read" if step == "instructions" else "practice", args=[kind])


# The console ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A subject in the list: what is in force, who has acknowledged it, whether a next version is being written."""

    kind: Subject
    instructions: Instructions | None
    acknowledged: int
    draft: InstructionsDraft | None


def _labelers():
    return User.objects.with_role(Role.LABELER).filter(is_simulated=False)


@role_required("reviewer", "researcher")
@require_GET
def instructions_list(request: Request) -> HttpResponse:
    """The instructions of every kind of task, and of final evaluations."""
    newest = {each.kind: each for each in Instructions.objects.current().select_related("published_by")}
    counts = dict(
        Acknowledgement.objects.filter(instructions__in=[each.pk for each in newest.values()], user__in=_labelers())
        .values_list("instructions__kind").annotate(n=Count("id"))
    )  # fmt: skip
    drafts = {each.kind: each for each in InstructionsDraft.objects.filter(is_open=True).select_related("saved_by")}
    rows = [Row(kind, newest.get(kind), counts.get(kind, 0), drafts.get(kind)) for kind in Subject]
    return render(request, "instructions/list.html", {"rows": rows, "labelers": _labelers().count()})


@role_required("reviewer", "researcher")
@require_GET
def instructions(request: Request, kind: str) -> HttpResponse:
    """One kind: a version (the newest, unless `?version=` names one), its history, and who has acknowledged it."""
    versions = list(
        Instructions.objects.filter(kind=subject_or_404(kind)).order_by("-version").select_related("published_by").defer("text", "examples")
    )  # fmt: skip
    wanted = request.GET.get("version", "")
    shown = next((each for each in versions if str(each.version) == wanted), versions[0] if versions else None)
    done = Acknowledgement.objects.filter(instructions=shown, user=OuterRef("pk"))
    people = _labelers().annotate(is_done=Exists(done), done_at=done.values("acknowledged_at")[:1])
    context = {
        "kind": Subject(kind),
        "versions": versions,
        "shown": shown,
        "page": paginate(request, people.order_by("is_done", "name", "id")),
        "query": query_without(request, "page"),
    }
    return render(request, "instructions/detail.html", context)


class InstructionsForm(forms.Form):
    """The next version of a kind's instructions."""

    text = forms.CharField(
        label=gettext_lazy("Instructions"), required=False, strip=False, max_length=actions.MAX_CHARS,
        widget=forms.Textarea(attrs={"rows": 24, "dir": "auto"}), help_text=gettext_lazy("Markdown."),
    )  # fmt: skip
    examples = forms.CharField(
        label=gettext_lazy("Examples"), required=False, strip=False, max_length=actions.MAX_CHARS,
        widget=forms.Textarea(attrs={"rows": 16, "dir": "auto"}),
        help_text=gettext_lazy("Markdown, shown below the instructions. A few good and bad answers say more than rules."),
    )  # fmt: skip
    note = forms.CharField(
        label=gettext_lazy("What changed"), required=False, max_length=actions.NOTE_MAX_CHARS,
        help_text=gettext_lazy("Shown to labelers who knew the version before."),
    )  # fmt: skip
    seen = forms.IntegerField(min_value=0, widget=forms.HiddenInput)


@role_required("researcher")
@never_cache
@require_http_methods(["GET", "POST"])
def instructions_edit(request: Request, kind: str) -> HttpResponse:
    """Write the next version. Each preview keeps what is written; publishing puts it in force."""
    subject_or_404(kind)
    draft = actions.draft_of(kind)
    if request.method == "GET":
        initial = {"text": draft.text, "examples": draft.examples, "note": draft.note, "seen": draft.version}
        return _edit_page(request, kind, InstructionsForm(initial=initial))
    form = InstructionsForm(request.POST)
    if not form.is_valid():
        return _edit_page(request, kind, form, status=422)
    try:
        if "publish" in request.POST:
            published = actions.publish(kind=kind, by=request.user, **form.cleaned_data)
            said = _("Version %(n)d is in force. Labelers acknowledge it before their next task.")
            messages.success(request, said % {"n": published.version})
            return redirect("instructions", kind)
        actions.save_draft(kind=kind, by=request.user, **form.cleaned_data)
    except (Invalid, Conflict) as error:
        form.add_error(None, str(error))
        fresh = request.POST.copy()
        fresh["seen"] = str(actions.draft_of(kind).version)  # told of the other's work, they may go on knowingly
        form.data = fresh
        return _edit_page(request, kind, form, status=error.status)
    messages.success(request, _("Kept. Below is how it looks; nobody else sees it yet."))
    return redirect(reverse("instructions_edit", args=[kind]) + "?preview")


def _edit_page(request: Request, kind: str, form: InstructionsForm, status: int = 200) -> HttpResponse:
    data = form.data if form.is_bound else form.initial
    context = {
        "kind": Subject(kind),
        "form": form,
        "published": actions.current(kind),
        "draft": InstructionsDraft.objects.filter(kind=kind, is_open=True).select_related("saved_by").first(),
        "preview": {"text": data.get("text", ""), "examples": data.get("examples", "")}
        if "preview" in request.GET or form.is_bound else None,
    }  # fmt: skip
    return render(request, "instructions/edit.html", context, status=status)
