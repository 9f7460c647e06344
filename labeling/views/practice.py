"""Practice: exercises before the first task of a kind, each explained as soon as it is handed in."""

import uuid

from django.contrib import messages
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import exercise_answers
from labeling.actions import exercises as actions
from labeling.errors import Conflict, Invalid
from labeling.models import PARTS_OF_KIND, Attempt, Exercise, Kind, Role
from labeling.views import kept_forms
from labeling.views.access import Request, role_required
from labeling.views.drafts import clock


def kind_or_404(kind: str) -> Kind:
    """The kind of task that an address names."""
    try:
        return Kind(kind)
    except ValueError:
        raise Http404 from None


@role_required(Role.LABELER)
@never_cache
@require_GET
def practice(request: Request, kind: str) -> HttpResponse:
    """What there is to practise for a kind of task, and what is done."""
    kind_or_404(kind)
    done = Attempt.objects.filter(user=request.user, screening=None, submitted_at__isnull=False)
    done = done.filter(exercise__part__in=PARTS_OF_KIND[Kind(kind)]).select_related("exercise").order_by("submitted_at")
    left = list(Exercise.objects.practice_left(request.user, kind))
    if not left and not done:
        raise Http404
    return render(request, "practice/overview.html", {"kind": Kind(kind), "done": done, "left": left})


@role_required(Role.LABELER)
@require_POST
def practice_next(request: Request, kind: str) -> HttpResponse:
    """Go to the next exercise; when none is left, to the tasks."""
    kind_or_404(kind)
    attempt = actions.next_practice(kind=kind, by=request.user)
    if attempt is None:
        messages.success(request, _("Practice done. You can begin."))
        return redirect("tasks")
    return redirect("practice_item", attempt.uuid)


def _mine(request: Request, attempt_uuid: uuid.UUID) -> Attempt:
    rows = Attempt.objects.filter(user=request.user, screening=None).select_related("exercise__schema")
    return get_object_or_404(rows, uuid=attempt_uuid)


@role_required(Role.LABELER)
@never_cache
@require_http_methods(["GET", "POST"])
def practice_item(request: Request, attempt_uuid: uuid.UUID) -> HttpResponse:
    """One exercise: the form; once handed in, both answers side by side and the explanation."""
    attempt = _mine(request, attempt_uuid)
    if request.method == "POST":
        if attempt.submitted_at is not None:  # sent twice: what counts is what was handed in first
            return redirect("practice_item", attempt.uuid)
        content = exercise_answers.from_fields(request.POST, attempt.exercise, attempt.shown_order)
        try:
            actions.submit_practice(
                attempt=attempt, content=content, page=request.POST.get("page", ""), by=request.user
            )
        except Invalid:
            found = exercise_answers.problems(content, attempt.exercise, attempt.shown_order)
            return _form(request, attempt, content, found, status=422)
        return redirect("practice_item", attempt.uuid)
    if attempt.submitted_at is None:
        actions.opened(work=attempt)
        fields = kept_forms.unsent(request)
        return _form(request, attempt, sent_content(fields, attempt))
    return render(request, "practice/result.html", result_of(attempt) | {"kind": _kind_of(attempt)})


def sent_content(fields: QueryDict | None, attempt: Attempt) -> dict:
    """What the form shows: what was sent in vain, else the draft."""
    if fields is None:
        return attempt.content
    return exercise_answers.from_fields(fields, attempt.exercise, attempt.shown_order)


def _kind_of(attempt: Attempt) -> Kind:
    return next(kind for kind, parts in PARTS_OF_KIND.items() if attempt.exercise.part in parts)


def _form(request: Request, attempt: Attempt, content: dict, problems: list[str] | None = None, status: int = 200):
    context = form_context(request, attempt, content, problems or []) | {"kind": _kind_of(attempt)}
    context["save_url"] = reverse("practice_save", args=[attempt.uuid])
    return render(request, "practice/item.html", context, status=status)


def form_context(request: Request, attempt: Attempt, content: dict, problems: list[str]) -> dict:
    """What exercises/form.html needs."""
    return {
        "attempt": attempt,
        "exercise": attempt.exercise,
        "rows": exercise_answers.form_rows(content, attempt.exercise, attempt.shown_order),
        "scale": attempt.exercise.schema.scale,
        "problems": problems,
        "page_key": uuid.uuid4(),
        "owner_key": kept_forms.owner_key(request.user),
    }


def result_of(attempt: Attempt) -> dict:
    """What exercises/result.html needs: both answers, where they differ, the figures."""
    exercise, order = attempt.exercise, attempt.shown_order
    is_ranking = bool(exercise.reference.get("tiers"))
    return {
        "attempt": attempt,
        "exercise": exercise,
        "given": exercise_answers.shown(attempt.content, exercise, order),
        "expected": exercise_answers.shown(exercise.reference, exercise, order),
        "comparisons": exercise_answers.comparisons(attempt.content, exercise, order) if is_ranking else [],
    }


@role_required(Role.LABELER)
@require_POST
def practice_save(request: Request, attempt_uuid: uuid.UUID) -> HttpResponse:
    """Keep what is typed so far, as it is typed."""
    return save(request, _mine(request, attempt_uuid))


def save(request: Request, attempt: Attempt) -> HttpResponse:
    """An automatic save: a line that says so, or why not."""
    content = exercise_answers.from_fields(request.POST, attempt.exercise, attempt.shown_order)
    try:
        page = request.POST.get("page", "")
        saved = actions.save_attempt(attempt=attempt, content=content, page=page, is_automatic=True, by=request.user)
    except Conflict as conflict:
        return render(request, "exercises/kept.html", {"problem": str(conflict)}, status=conflict.status)
    return render(request, "exercises/kept.html", {"when": clock(saved.saved_at)})
