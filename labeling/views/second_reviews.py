"""Second reviews: one to give, blind to the first verdict; how far reviewers agree, with the rows behind it."""

from collections.abc import Iterator

from django.contrib import messages
from django.db.models import Count, F, Q, QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from labeling import agreement, answers
from labeling.actions import adjudications, looks, second_reviews, submissions
from labeling.errors import Conflict, HeedError, Invalid
from labeling.models import Kind, Review, Revision, SecondReview, SecondReviewRate, Submission, User
from labeling.views import drafts, readings
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, query_without


@role_required("reviewer", "researcher")
@require_GET
def second_review_list(request: Request) -> HttpResponse:
    """How far reviewers agree; below, where they do not (?all=1: everything; ?first= or ?second=: one reviewer's)."""
    decided = SecondReview.objects.decided()
    rows = decided if request.GET.get("all") == "1" else SecondReview.objects.disagreeing()
    for name, field in (("first", "first_reviewer"), ("second", "reviewer")):
        if (pk := request.GET.get(name, "")).isascii() and pk.isdigit() and len(pk) < 10:
            rows = rows.filter(**{field: pk})
    full = SecondReview.objects.select_related("review__submission__labeler", "first_reviewer", "reviewer")
    page = paginate(request, rows.order_by("-decided_at", "-id"), full=full)
    context = {
        "page": page,
        "waiting": SecondReview.objects.open_to(request.user).count() if request.user.is_reviewer else 0,
        "percent": SecondReviewRate.current(),
        "by_reviewer": _by_reviewer(decided),
        "shows_all": request.GET.get("all") == "1",
        "query": query_without(request, "page"),
    }
    return render(request, "second_reviews/list.html", context | _agreement(decided))


def _agreement(decided: QuerySet) -> dict:
    """Every first verdict against every second one: counts, the share that agree, Krippendorff's α for chance."""
    pairs = {(a, b): n for a, b, n in decided.values_list("first_verdict", "verdict").annotate(n=Count("id"))}
    verdicts = list(Review.Verdict.values)
    total = sum(pairs.values())
    same = sum(n for (a, b), n in pairs.items() if a == b)
    judged = [(unit, verdicts.index(v)) for unit, pair in enumerate(_repeated(pairs)) for v in pair]
    alpha = None
    if judged:
        units, values = zip(*judged, strict=True)
        alpha = agreement.krippendorff_alpha([0] * len(units), units, values, level="nominal").value
    labels = dict(Review.Verdict.choices)
    matrix = [(labels[a], [pairs.get((a, b), 0) for b in verdicts]) for a in verdicts]
    figures = {"total": total, "same": same, "share": same / total if total else None, "alpha": alpha}
    return figures | {"matrix": matrix, "verdicts": [labels[v] for v in verdicts]}


def _repeated(counts: dict[tuple[str, str], int]) -> Iterator[tuple[str, str]]:
    return (pair for pair, n in counts.items() for _again in range(n))


def _by_reviewer(decided: QuerySet) -> list[dict]:
    """First reviewers: how many of their verdicts were looked at again, and how many were given the same way; the most first."""
    counts = decided.values("first_reviewer").annotate(
        n=Count("id"), same=Count("id", filter=Q(verdict=F("first_verdict")))
    )
    rows = list(counts.order_by("-n", "first_reviewer")[:200])
    people = User.objects.in_bulk([row["first_reviewer"] for row in rows])
    return [row | {"person": people[row["first_reviewer"]], "share": row["same"] / row["n"]} for row in rows]


@role_required("reviewer")
@require_GET
def second_review_next(request: Request) -> HttpResponse:
    """The longest waiting that this reviewer may look at."""
    first = SecondReview.objects.open_to(request.user).order_by("id").first()
    if first is None:
        messages.info(request, _("Nothing waits for a second look by you."))
        return redirect("second_review_list")
    return redirect("second_review", first.pk)


@role_required("reviewer")
@require_GET
def second_review(request: Request, pk: int) -> HttpResponse:
    """What was handed in, as the first reviewer read it, without their verdict."""
    return _page(request, _mine(request, pk))


def _mine(request: Request, pk: int) -> SecondReview:
    """One that waits for this reviewer or that they have given; 404 for any other."""
    rows = SecondReview.objects.lookable_by(request.user).select_related(
        "review__revision", "review__submission__labeler", "review__submission__schema",
        "review__submission__task__prompt", "review__submission__task__batch",
    )  # fmt: skip
    found = get_object_or_404(rows, pk=pk)
    if found.verdict and found.reviewer_id != request.user.pk:
        raise Http404
    return found


def _page(request: Request, second: SecondReview, problem: HeedError | None = None) -> HttpResponse:
    submission, revision = second.review.submission, second.review.revision
    looks.look(task=submission.task, by=request.user)
    cards = drafts.cards_of(submission.task, submission.shown_order)
    answer = answers.shown(submissions.answer_of(revision), cards, submission.schema)
    context = {
        "second": second,
        "submission": submission,
        "revision": revision,
        "answer": answer | {"comment": ""},
        "others": _others(submission),
        "verdicts": Review.Verdict.choices,
        "chosen": request.POST.get("verdict", second.verdict),
        "comment": request.POST.get("comment", second.comment),
        "problem": problem,
    }
    return render(request, "second_reviews/detail.html", context, status=problem.status if problem else 200)


def _others(submission: Submission) -> list[tuple[User, str]]:
    """What others said of the same task, under this submission's letters."""
    if submission.kind != Kind.RANKING:
        return []
    letters = readings.letters_of(submission)
    newest = Revision.objects.filter(
        submission__in=adjudications.rankings_of(submission.task), number=F("submission__revision_count")
    ).exclude(submission=submission)
    rows = newest.select_related("submission__labeler").order_by("submission_id")
    return [(row.submission.labeler, readings.tiers_text(row.tiers or [], letters)) for row in rows]


@role_required("reviewer")
@require_POST
def second_review_decide(request: Request, pk: int) -> HttpResponse:
    """Give the second verdict, then on to the next."""
    second = _mine(request, pk)
    verdict, comment = request.POST.get("verdict", ""), request.POST.get("comment", "")
    try:
        second_reviews.decide(second=second, verdict=verdict, comment=comment, by=request.user)
    except (Invalid, Conflict) as refusal:
        return _page(request, second, refusal)
    messages.success(request, _("Kept. The submission stays as it was decided."))
    return redirect("second_review_next")


@role_required("researcher")
@require_POST
def second_review_rate(request: Request) -> HttpResponse:
    """Which share of verdicts is given twice from now on."""
    value = request.POST.get("percent", "")
    if not (value.isascii() and value.isdigit() and len(value) < 4):
        raise Invalid(_("%s is not a percentage from 0 to 100.") % value[:20])
    second_reviews.set_rate(percent=int(value), by=request.user)
    messages.success(request, _("Saved. It counts for verdicts from now on."))
    return redirect("second_review_list")
