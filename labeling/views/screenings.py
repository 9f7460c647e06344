"""An applicant's screening: four parts in any order, kept as they are typed, handed in at once."""

import uuid

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import exercise_answers
from labeling.actions import exercises
from labeling.actions import screenings as actions
from labeling.actions.applications import standing
from labeling.errors import Conflict, Invalid
from labeling.models import Attempt, Role, Screening
from labeling.views import kept_forms
from labeling.views.access import Request, role_required
from labeling.views.practice import form_context, save, sent_content

ABILITIES = [
    ("yes", gettext_lazy("Yes")),
    ("partly", gettext_lazy("Partly")),
    ("no", gettext_lazy("No")),
    ("unsaid", gettext_lazy("Rather not say")),
]


@role_required(Role.APPLICANT)
@never_cache
@require_GET
def screening(request: Request) -> HttpResponse:
    """The four parts, and how far each is."""
    where = standing(request.user)
    if where.step not in ("screen", "decide"):
        return redirect("home")
    return _overview(request, where.screening if where.retake is None else None, where)


def _overview(request: Request, shown: Screening | None, where, problem: str = "", status: int = 200) -> HttpResponse:
    context = {
        "screening": shown,
        "standing": where,
        "parts": actions.parts_of(shown) if shown else [],
        "self_missing": len(actions.self_missing(shown)) if shown else 0,
        "problem": problem,
    }
    return render(request, "screenings/overview.html", context, status=status)


@role_required(Role.APPLICANT)
@require_POST
def screening_begin(request: Request) -> HttpResponse:
    """Begin a try, or go on with the one that is open."""
    actions.begin(by=request.user)
    return redirect("screening")


@role_required(Role.APPLICANT)
@require_POST
def screening_submit(request: Request) -> HttpResponse:
    """Hand all four parts in, for good."""
    mine = Screening.objects.filter(user=request.user).order_by("-number").first()
    if mine is None:
        return redirect("home")
    try:
        actions.hand_in(screening=mine, by=request.user)
    except Invalid as error:
        return _overview(request, mine, standing(request.user), str(error), status=422)
    messages.success(request, _("Handed in. Thank you!"))
    return redirect("home")


# Items ---------------------------------------------------------------------------------------------------------


def _mine(request: Request, attempt_uuid: uuid.UUID) -> Attempt:
    rows = Attempt.objects.filter(user=request.user, screening__isnull=False)
    return get_object_or_404(rows.select_related("exercise__schema", "screening"), uuid=attempt_uuid)


@role_required(Role.APPLICANT)
@never_cache
@require_http_methods(["GET", "POST"])
def screening_item(request: Request, attempt_uuid: uuid.UUID) -> HttpResponse:
    """One item. Each button keeps what is typed; *next* goes on once it is complete."""
    attempt = _mine(request, attempt_uuid)
    if request.method == "GET":
        exercises.opened(work=attempt)
        fields = kept_forms.unsent(request)
        return _item_page(request, attempt, sent_content(fields, attempt))
    content = exercise_answers.from_fields(request.POST, attempt.exercise, attempt.shown_order)
    try:
        exercises.save_attempt(attempt=attempt, content=content, page=request.POST.get("page", ""), by=request.user)
    except Conflict as conflict:
        return _item_page(request, attempt, content, [str(conflict)], conflict.status)
    if "later" in request.POST:
        return redirect("screening")
    if problems := exercise_answers.problems(content, attempt.exercise, attempt.shown_order):
        return _item_page(request, attempt, content, problems, 422)
    following = attempt.screening.attempts.filter(position__gt=attempt.position).order_by("position")  # type: ignore[union-attr]
    following = following.filter(exercise__part=attempt.exercise.part).first()
    return redirect("screening_item", following.uuid) if following else redirect("screening")


def _item_page(
    request: Request, attempt: Attempt, content: dict, problems: list[str] | None = None, status: int = 200
) -> HttpResponse:
    siblings = Attempt.objects.filter(screening=attempt.screening, exercise__part=attempt.exercise.part).order_by(
        "position"
    )
    uuids = list(siblings.values_list("uuid", flat=True))
    context = form_context(request, attempt, content, problems or []) | {
        "save_url": reverse("screening_save", args=[attempt.uuid]),
        "number": uuids.index(attempt.uuid) + 1,
        "count": len(uuids),
        "previous": uuids[uuids.index(attempt.uuid) - 1] if uuids.index(attempt.uuid) else None,
    }
    return render(request, "screenings/item.html", context, status=status)


@role_required(Role.APPLICANT)
@require_POST
def screening_save(request: Request, attempt_uuid: uuid.UUID) -> HttpResponse:
    """Keep what is typed so far, as it is typed."""
    return save(request, _mine(request, attempt_uuid))


# The self-assessment -------------------------------------------------------------------------------------------


@role_required(Role.APPLICANT)
@never_cache
@require_http_methods(["GET", "POST"])
def screening_self(request: Request) -> HttpResponse:
    """Part four: where one would recognise sensitive text. Kept complete or not."""
    shown = actions.open_try(request.user)
    if shown is None:
        return redirect("home")
    if request.method == "GET":
        exercises.opened(work=shown)
        fields = kept_forms.unsent(request)
        return _self_page(request, shown, _sent(fields, shown) if fields else shown.self_assessment)
    sent = _sent(request.POST, shown)
    shown = actions.save_self_assessment(screening=shown, by=request.user, **sent)
    missing = actions.self_missing(shown)
    if missing and "later" not in request.POST:
        return _self_page(request, shown, sent, missing, status=422)
    return redirect("screening")


def _sent(fields, shown: Screening) -> dict:
    """The form's answers, by name of group and topic."""
    return {
        "groups": {name: fields.get(f"group-{n}", "") for n, name in enumerate(shown.rules.groups)},
        "topics": {name: fields.get(f"topic-{n}", "") for n, name in enumerate(shown.rules.topics)},
        "comment": fields.get("comment", ""),
    }


def _self_page(request: Request, shown: Screening, said: dict, missing=(), status: int = 200) -> HttpResponse:
    def rows(kind: str, names: list[str]) -> list[dict]:
        answers = said.get(f"{kind}s", {})
        return [{"field": f"{kind}-{n}", "name": name, "value": answers.get(name, "")} for n, name in enumerate(names)]

    context = {
        "groups": rows("group", shown.rules.groups),
        "topics": rows("topic", shown.rules.topics),
        "comment": said.get("comment", ""),
        "abilities": ABILITIES,
        "missing": missing,
        "owner_key": kept_forms.owner_key(request.user),
    }
    return render(request, "screenings/self.html", context, status=status)
