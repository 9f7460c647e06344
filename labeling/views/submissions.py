"""A labeler's own history: what they handed in, what became of it, and corrections."""

import uuid

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from labeling import answers
from labeling.actions import submissions as actions
from labeling.models import Draft, GoldAnswer, Kind, Review, Role, Submission
from labeling.views import readings
from labeling.views.access import Request, role_required
from labeling.views.drafts import cards_of, shown_copies

PER_PAGE = 25


@role_required(Role.LABELER)
@never_cache
@require_GET
def history(request: Request) -> HttpResponse:
    """Own submissions, newest first, by status or kind."""
    mine = Submission.objects.filter(labeler=request.user).select_related("task__prompt", "task__batch")
    status, kind = request.GET.get("status", ""), request.GET.get("kind", "")
    if status in Submission.Status.values:
        mine = mine.filter(status=status)
    if kind in Kind.values:
        mine = mine.filter(kind=kind)
    page = Paginator(mine.order_by("-submitted_at", "-id"), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "status": status,
        "kind": kind,
        "statuses": Submission.Status.choices,
        "kinds": Kind.choices,
    }
    return render(request, "submissions/history.html", context)


@role_required(Role.LABELER)
@never_cache
@require_GET
def feedback(request: Request) -> HttpResponse:
    """What reviewers said of their work, newest first; what they have not opened yet is marked."""
    later = Review.objects.feedback().filter(submission=OuterRef("submission"), pk__gt=OuterRef("pk"))
    given = Review.objects.feedback().filter(submission__labeler=request.user).annotate(is_newest=~Exists(later))
    given = given.select_related("submission__task__prompt", "submission__task__batch").order_by("-id")
    context = {
        "page": Paginator(given, PER_PAGE).get_page(request.GET.get("page")),
        "unread": Submission.objects.filter(labeler=request.user, has_unread_feedback=True).count(),
    }
    return render(request, "submissions/feedback.html", context)


def _submission(request: Request, submission_uuid: uuid.UUID) -> Submission:
    """Their own, or 404."""
    mine = Submission.objects.filter(labeler=request.user).select_related("task__prompt", "task__batch", "schema")
    return get_object_or_404(mine, uuid=submission_uuid)


@role_required(Role.LABELER)
@never_cache
@require_GET
def submission(request: Request, submission_uuid: uuid.UUID) -> HttpResponse:
    """One submission: every revision with its reviews, newest first."""
    submission = _submission(request, submission_uuid)
    cards = cards_of(submission.task, submission.shown_order)
    reviews: dict[int, list] = {}
    for review in submission.reviews.all():
        reviews.setdefault(review.revision_id, []).append(review)
    given = list(submission.revisions.order_by("number"))
    revisions = [
        {
            "revision": revision,
            "reviews": reviews.get(revision.pk, []),
            "answer": answers.shown(actions.answer_of(revision), cards, submission.schema),
            "text_changes": readings.text_changes(before.text or "", revision.text) if before and revision.text else [],
            "lines": readings.ranking_changes(before, revision, submission) if before and revision.tiers else [],
        }
        for before, revision in zip([None, *given], given, strict=False)
    ][::-1]
    known = GoldAnswer.objects.filter(task=submission.task, withdrawn_at=None, released_at__isnull=False)
    newest = known.first()  # read whether this was a test or not, so that no time tells
    released = newest if submission.is_gold else None
    closed = actions.why_closed(submission)
    correction = Draft.objects.filter(task=submission.task, labeler=request.user).first()
    context = {
        "submission": submission,
        "revisions": revisions,
        "correction": correction,
        "released": released,
        "gold": answers.shown({"tiers": released.tiers}, cards, submission.schema) | {"is_gold": True}
        if released
        else None,
        "closed": closed,
        "can_change": not closed,
        "copies": shown_copies(request, submission.task, cards, submission.schema),
        "too_late": answers.shown(correction.content, cards, submission.schema) if correction and closed else None,
    }
    actions.mark_read(submission=submission, by=request.user)
    return render(request, "submissions/submission.html", context)


@role_required(Role.LABELER)
@require_POST
def reopen(request: Request, submission_uuid: uuid.UUID) -> HttpResponse:
    """Begin a correction, or go on with it."""
    submission = _submission(request, submission_uuid)
    actions.reopen(submission=submission, by=request.user)
    return redirect("task", submission.task.uuid)


@role_required(Role.LABELER)
@require_POST
def discard_correction(request: Request, submission_uuid: uuid.UUID) -> HttpResponse:
    """Drop a correction that was begun; what was handed in stands."""
    submission = _submission(request, submission_uuid)
    actions.discard_correction(submission=submission, by=request.user)
    messages.info(request, _("The unfinished correction is gone; what you had submitted stands."))
    return redirect("submission", submission.uuid)
