"""The console's intake: what was held back and why, with the places marked; a person decides one, some or all."""

from typing import NamedTuple
from uuid import UUID

from django import forms
from django.contrib import messages
from django.db.models import Count, Max, Prefetch, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods

from labeling.actions import intake as actions
from labeling.errors import HeedError, Invalid
from labeling.models import Finding, Import, Intake, IntakeDecision, Prompt
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without

ROWS_PER_PAGE = 20
AROUND_CHARS = 80  # shown before and behind what is marked
EXCERPTS = 3
PREVIEW_CHARS = 240
COUNTED_TO = 1_000_000
STATES = [
    (Intake.HELD, gettext_lazy("to decide")),
    (Intake.REFUSED, gettext_lazy("refused")),
    (actions.RELEASED, gettext_lazy("released")),
]


class Filters(FilterForm):
    """Which prompts."""

    state = forms.ChoiceField(label=gettext_lazy("State"), choices=STATES, required=False)
    reason = forms.ChoiceField(
        label=gettext_lazy("Reason"), choices=[("", gettext_lazy("any")), *Finding.Reason.choices], required=False
    )
    file = forms.ModelChoiceField(
        Import.objects.filter(held__gt=0).order_by("-id"),
        label=gettext_lazy("Import"),
        required=False,
        empty_label=gettext_lazy("any"),
    )

    @property
    def state_chosen(self) -> str:
        return self.chosen.get("state") or Intake.HELD

    def rows(self) -> QuerySet[Prompt]:
        """The prompts, oldest first."""
        file = self.chosen.get("file")
        return actions.held(
            state=self.state_chosen, reason=self.chosen.get("reason", ""), record=file.pk if file else None
        )


class Piece(NamedTuple):
    """A stretch of a text; `kind` says what is personal about it."""

    text: str
    kind: str = ""


def marked(prompt: Prompt, findings: list[Finding]) -> list[tuple[str, list[Piece]]]:
    """(role, pieces) of each message, what is personal as pieces of its own."""
    spans = [span for finding in findings for span in finding.spans]
    turns = []
    for number, message in enumerate(prompt.messages):
        pieces, text, at = [], message["content"], 0
        for span in sorted((s for s in spans if s["message"] == number), key=lambda s: s["start"]):
            pieces += [Piece(text[at : span["start"]]), Piece(text[span["start"] : span["end"]], _said(span["kind"]))]
            at = span["end"]
        turns.append((message["role"], [piece for piece in [*pieces, Piece(text[at:])] if piece.text]))
    return turns


def excerpts(turns: list[tuple[str, list[Piece]]]) -> list[list[Piece]]:
    """The first places that are marked, with a little around them; none where nothing is."""
    found: list[list[Piece]] = []
    for _role, pieces in turns:
        for place, piece in enumerate(pieces):
            if piece.kind and len(found) < EXCERPTS:
                before = pieces[place - 1].text if place and not pieces[place - 1].kind else ""
                behind = pieces[place + 1].text if pieces[place + 1 :] else ""
                before = before if len(before) <= AROUND_CHARS else "… " + before[-AROUND_CHARS:]
                behind = behind if len(behind) <= AROUND_CHARS else behind[:AROUND_CHARS] + " …"
                found.append([Piece(before), piece, Piece(behind)])
    return found


def _said(kind: str) -> str:
    words = {
        "email": _("e-mail address"),
        "phone": _("telephone number"),
        "ssn": _("social security number"),
        "credit_card": _("payment card"),
        "iban": _("bank account"),
        "ip_address": _("IP address"),
        "link": _("link with somebody's data"),
        "secret": _("secret key"),
    }
    return words.get(kind, kind)


FULL = Prompt.objects.select_related("author", "imported_in").prefetch_related(
    Prefetch("findings", Finding.objects.select_related("like").order_by("reason")),
    Prefetch("intake_decisions", IntakeDecision.objects.select_related("decided_by").order_by("-id")),
)


def _shown(prompt: Prompt) -> dict:
    findings = list(prompt.findings.all())
    turns = marked(prompt, findings)
    text = " ".join(prompt.text[: 2 * PREVIEW_CHARS].split())
    return {
        "prompt": prompt,
        "findings": findings,
        "turns": turns,
        "excerpts": excerpts(turns),
        "preview": text[:PREVIEW_CHARS] + ("…" if len(text) > PREVIEW_CHARS else ""),
        "decision": next(iter(prompt.intake_decisions.all()), None),
    }


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def intake(request: Request) -> HttpResponse:
    """The queue. POST decides what is ticked, or all that the filters show. Refused: 422, with ticks and words as they were."""
    filters, error = Filters(request.GET), None
    if request.method == "POST":
        try:
            _decide(request, _wanted(request, filters))
            return redirect(f"{reverse('intake')}?{query_without(request, 'page')}")
        except HeedError as refusal:
            error = refusal
    rows = filters.rows()
    page = paginate(request, rows, ROWS_PER_PAGE, full=FULL)
    reasons = Finding.objects.filter(prompt__intake=Intake.HELD).values("reason").annotate(n=Count("pk"))
    context = {
        "filters": filters,
        "state": filters.state_chosen,
        "page": page,
        "rows": [_shown(prompt) for prompt in page],
        "newest": rows.order_by().aggregate(newest=Max("pk"))["newest"] or 0,
        "reasons": [(Finding.Reason(row["reason"]), row["n"]) for row in reasons.order_by("-n", "reason")],
        "waiting": Prompt.objects.filter(intake=Intake.WAITING)[:COUNTED_TO].count(),
        "query": query_without(request, "page"),
        "error": error,
        "typed": request.POST,
        "ticked": set(request.POST.getlist("seen")),
    }
    return render(request, "intake/list.html", context, status=error.status if error else 200)


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def intake_prompt(request: Request, prompt_uuid: UUID) -> HttpResponse:
    """One prompt whole, what it is held for, of what it is a copy, what was decided; POST decides."""
    prompt, error = get_object_or_404(FULL, uuid=prompt_uuid), None
    if request.method == "POST":
        try:
            _decide(request, [prompt.uuid])
            return redirect("intake")
        except HeedError as refusal:
            error = refusal
    context = {**_shown(prompt), "error": error, "typed": request.POST, "is_waiting": prompt.intake == Intake.WAITING}
    return render(request, "intake/detail.html", context, status=error.status if error else 200)


def _decide(request: Request, wanted: QuerySet[Prompt] | list[UUID]) -> None:
    verdict = request.POST.get("verdict", "")
    comment = request.POST.get("comment", "")
    count = actions.decide(prompts=wanted, verdict=verdict, comment=comment, by=request.user)
    said = (
        ngettext("%(n)d prompt released.", "%(n)d prompts released.", count)
        if verdict == IntakeDecision.Verdict.RELEASED
        else ngettext("%(n)d prompt refused.", "%(n)d prompts refused.", count)
    )
    messages.success(request, said % {"n": count})


def _wanted(request: Request, filters: Filters) -> QuerySet[Prompt] | list[UUID]:
    """What the form means: the ticked rows, or all that were there when the page was made."""
    if request.POST.get("which") == "all":
        newest = request.POST.get("newest", "")
        return filters.rows().filter(
            pk__lte=int(newest) if newest.isascii() and newest.isdigit() and len(newest) < 19 else 0
        )
    try:
        ticked = [UUID(value) for value in request.POST.getlist("seen")]
    except ValueError:
        raise Invalid(_("A ticked row cannot be read.")) from None
    if not ticked:
        raise Invalid(_("Tick at least one prompt."))
    return ticked
