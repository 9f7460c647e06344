"""The console's submissions: the list with its filters, side by side with others', and the decision."""

from dataclasses import dataclass
from datetime import time
from uuid import UUID

from django import forms
from django.contrib import messages
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_POST

from labeling.actions import looks, reviews, second_reviews
from labeling.errors import Conflict, HeedError, Invalid
from labeling.models import Batch, Group, Kind, Origin, Response, Review, Revision, Submission, User
from labeling.views import readings
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, day_input, moment_on, paginate, prompt_preview, query_without

ANY = "any"


class Filters(FilterForm):
    """Which submissions to list. Without a status in the address: those that wait for review."""

    status = forms.ChoiceField(
        label=gettext_lazy("Status"), required=False, choices=[(ANY, gettext_lazy("any")), *Submission.Status.choices]
    )
    batch = forms.ModelChoiceField(
        Batch.objects.order_by("-id"), label=gettext_lazy("Batch"), required=False, empty_label=gettext_lazy("any")
    )
    kind = forms.ChoiceField(
        label=gettext_lazy("Kind"), required=False, choices=[("", gettext_lazy("any")), *Kind.choices]
    )
    labeler = forms.ModelChoiceField(
        User.objects.filter(Exists(Submission.objects.filter(labeler=OuterRef("pk")))).order_by("email"),
        label=gettext_lazy("Labeler"),
        required=False,
        empty_label=gettext_lazy("any"),
    )
    origin = forms.ChoiceField(
        label=gettext_lazy("Origin"), required=False, choices=[("", gettext_lazy("any")), *Origin.choices]
    )
    group = forms.ChoiceField(
        label=gettext_lazy("Group"), required=False, choices=[("", gettext_lazy("any")), *Group.choices]
    )
    surplus = forms.ChoiceField(
        label=gettext_lazy("Surplus"),
        required=False,
        choices=[("", gettext_lazy("any")), ("no", gettext_lazy("no")), ("yes", gettext_lazy("yes"))],
    )
    task = forms.UUIDField(required=False, widget=forms.HiddenInput)
    since = forms.DateField(label=gettext_lazy("From"), required=False, widget=day_input())
    until = forms.DateField(label=gettext_lazy("Until"), required=False, widget=day_input())

    def __init__(self, data):
        data = data.copy()
        data.setdefault("status", Submission.Status.SUBMITTED)
        super().__init__(data)

    def rows(self) -> QuerySet[Submission]:
        """The submissions that pass."""
        chosen = self.chosen
        rows = Submission.objects.all()
        if chosen.get("status", ANY) != ANY:
            rows = rows.filter(status=chosen["status"])
        if "surplus" in chosen:
            rows = rows.filter(is_surplus=chosen["surplus"] == "yes")
        if "since" in chosen:
            rows = rows.filter(submitted_at__gte=moment_on(chosen["since"], time.min))
        if "until" in chosen:
            rows = rows.filter(submitted_at__lte=moment_on(chosen["until"], time.max))
        lookups = {
            "kind": "kind",
            "labeler": "labeler",
            "origin": "origin",
            "group": "labeler_group",
            "batch": "batch",
            "task": "task__uuid",
        }
        return rows.filter(**{lookups[name]: value for name, value in chosen.items() if name in lookups})


@role_required("reviewer", "researcher")
@require_GET
def reviews_list(request: Request) -> HttpResponse:
    """Submissions: those that wait by how much a look at them is worth, others newest first."""
    filters = Filters(request.GET)
    is_queue = filters.chosen.get("status") == Submission.Status.SUBMITTED
    full = (
        Submission.objects.select_related("labeler", "task__batch")
        .defer("task__batch__query", "task__batch__instructions")
        .annotate(prompt_preview=prompt_preview("task__prompt__"), second_due=second_reviews.due_from(request.user))
    )
    context = {
        "paused": User.objects.filter(is_paused=True).order_by("name", "email")[:20],
        "filters": filters,
        "page": paginate(
            request, filters.rows().order_by(*(reviews.MOST_WORTH_FIRST if is_queue else ("-id",))), full=full
        ),
        "query": query_without(request, "page"),
        "is_waiting_only": is_queue,
    }
    return render(request, "reviews/list.html", context)


@role_required("reviewer", "researcher")
@require_GET
def review(request: Request, uuid: UUID) -> HttpResponse:
    """One submission beside those of others on the same task. Model names only with ?models=1, so that review is blind."""
    return _page(request, uuid)


def _page(request: Request, uuid: UUID, problem: HeedError | None = None) -> HttpResponse:
    """The submission as it is now. After a refused decision it says so, and keeps the comment that came with it."""
    submission = get_object_or_404(_readable(Submission.objects.all(), request.user), uuid=uuid)
    filters, reading = Filters(request.GET), Reading.of(submission, request.user)
    if reading.others or submission.labeler_id != request.user.pk:
        looks.look(task=submission.task, by=request.user)
    context = {
        "submission": submission,
        "reading": reading,
        "shows_models": request.GET.get("models") == "1",
        "next": reviews.next_waiting(after=submission, among=filters.rows(), by=request.user),
        "waiting": filters.rows().filter(status=Submission.Status.SUBMITTED).exclude(labeler=request.user).count(),
        "query": query_without(request, "models"),
        "is_own": submission.labeler_id == request.user.pk,
        "problem": problem,
        "comment": request.POST.get("comment", ""),
    }
    return render(request, "reviews/detail.html", context, status=problem.status if problem else 200)


@role_required("reviewer")
@require_POST
def review_decide(request: Request, uuid: UUID) -> HttpResponse:
    """Accept, return or reject; then on to the next one in the same filters. Refused, back to the same one as it is now."""
    submission = get_object_or_404(Submission, uuid=uuid)
    form = Decision(request.POST)
    if not form.is_valid():
        return _page(request, uuid, Invalid(_("This decision cannot be read."), errors=_problems(form)))
    try:
        made = reviews.review(submission=submission, by=request.user, **form.cleaned_data)
    except (Conflict, Invalid) as refusal:
        return _page(request, uuid, refusal)
    messages.success(request, _decided(made))
    following = reviews.next_waiting(after=submission, among=Filters(request.GET).rows(), by=request.user)
    query = query_without(request, "models")
    if following is None:
        return redirect(f"{reverse('reviews')}?{query}")
    return redirect(f"{reverse('review', args=[following.uuid])}?{query}")


class Decision(forms.Form):
    """What the decision form sends: the verdict and what the reviewer was looking at."""

    verdict = forms.ChoiceField(choices=Review.Verdict.choices)
    comment = forms.CharField(required=False, max_length=reviews.MAX_COMMENT_CHARS)
    revision = forms.IntegerField(min_value=1)
    seen_review = forms.IntegerField(min_value=0)


def _problems(form: forms.Form) -> list[dict]:
    return [{"place": name, "message": error} for name, errors in form.errors.items() for error in errors]


def _decided(made: Review) -> str:
    said = {
        "accepted": _("Accepted."),
        "returned": _("Returned to the labeler with your comment."),
        "rejected": _("Rejected."),
    }
    return said[made.verdict]


@role_required("reviewer")
@require_POST
def reviews_accept(request: Request) -> HttpResponse:
    """Accept the ticked rows of a page as they were seen: `seen` = "uuid:revision", repeated."""
    seen = dict(_seen(value) for value in request.POST.getlist("seen"))
    if not seen:
        raise Invalid(_("Tick at least one submission."))
    count = reviews.accept_many(seen=seen, by=request.user)
    if count:
        messages.success(
            request, ngettext("%(n)d submission accepted.", "%(n)d submissions accepted.", count) % {"n": count}
        )
    if count < len(seen):
        messages.warning(request, _passed_over(reviews.why_passed_over(seen=seen, by=request.user), len(seen) - count))
    return redirect(f"{reverse('reviews')}?{request.GET.urlencode()}")


MAX_NAMED = 5


def _passed_over(passed: list[tuple[Submission, str]], count: int) -> str:
    """The first few by name: a line that names fifty is read by nobody."""
    said = "; ".join(f"{submission.labeler}: {reason}" for submission, reason in passed[:MAX_NAMED])
    more = "; …" if len(passed) > MAX_NAMED else ""
    return _("%(n)d passed over, look again: %(said)s") % {"n": count, "said": said + more}


def _seen(value: str) -> tuple[str, int]:
    uuid, _colon, revision = value.partition(":")
    try:
        return str(UUID(uuid)), int(revision)
    except ValueError:
        raise Invalid(_("A ticked row cannot be read: %(value)s") % {"value": value[:60]}) from None


@role_required("reviewer")
@require_GET
def reviews_next(request: Request) -> HttpResponse:
    """Of the submissions that wait in these filters, the one where a look is worth most."""
    first = reviews.next_waiting(after=None, among=Filters(request.GET).rows(), by=request.user)
    if first is None:
        messages.info(request, _("Nothing waits for review here."))
        return redirect(f"{reverse('reviews')}?{request.GET.urlencode()}")
    return redirect(f"{reverse('review', args=[first.uuid])}?{request.GET.urlencode()}")


# ---- what the side-by-side page reads -------------------------------------------------------------------------------


def _readable(submissions: QuerySet[Submission], reader: User) -> QuerySet[Submission]:
    """With everything that is shown, in a constant number of queries. `second_due`: its verdicts are not to be shown to the reader."""
    submissions = submissions.annotate(second_due=second_reviews.due_from(reader))
    given = Review.objects.select_related("reviewer").order_by("id")
    return submissions.select_related("labeler", "schema", "task__batch", "task__prompt").prefetch_related(
        Prefetch("revisions", Revision.objects.order_by("number")), Prefetch("reviews", given)
    )


@dataclass
class Entry:
    """One revision with what changed in it and what reviewers said about it."""

    revision: Revision
    text_changes: list[readings.Change]
    lines: list[str]
    reviews: list[Review]


@dataclass
class Column:
    """A labeler's answer in the table of all answers to the task; ranks by letter."""

    submission: Submission
    revision: Revision
    ranking: str
    cells: list[dict]


@dataclass
class Reading:
    """A submission made ready for the page."""

    current: Revision
    rated: list[readings.RatedResponse]
    prompt_flags: list[str]
    history: list[Entry]
    others: list[tuple[Submission, Revision]]
    table: list[Column]
    letters: list[str]
    seen_review: int

    @classmethod
    def of(cls, submission: Submission, reader: User) -> "Reading":
        """Read the task's responses and everybody's answers to it."""
        everybody = list(
            _readable(Submission.objects.filter(task=submission.task), reader).order_by("submitted_at", "id")
        )
        responses = list(
            Response.objects.filter(pk__in=submission.task.task_responses.values("response_id")).select_related(
                "model_version"
            )
        )
        current = _newest(submission)
        is_ranking = submission.kind == Kind.RANKING
        given = list(submission.reviews.all())
        return cls(
            current=current,
            rated=readings.rated_responses(submission, current, responses) if is_ranking else [],
            prompt_flags=readings.prompt_flags(submission, current),
            history=_history(submission),
            others=[(other, _newest(other)) for other in everybody if other.pk != submission.pk],
            table=_table(submission, everybody) if is_ranking else [],
            letters=sorted(readings.letters_of(submission).values()),
            seen_review=given[-1].pk if given else 0,
        )


def _newest(submission: Submission) -> Revision:
    """The newest of the revisions already read."""
    return list(submission.revisions.all())[-1]


def _history(submission: Submission) -> list[Entry]:
    """Newest first."""
    entries: list[Entry] = []
    previous, is_blind = None, getattr(submission, "second_due", None) is not None
    for revision in submission.revisions.all():
        text_changes: list[readings.Change] = []
        lines: list[str] = []
        if previous and revision.text is not None:
            text_changes = readings.text_changes(previous.text or "", revision.text)
        elif previous:
            lines = readings.ranking_changes(previous, revision, submission)
        given = [r for r in submission.reviews.all() if r.revision_id == revision.pk and not is_blind]
        entries.append(Entry(revision, text_changes, lines, given))
        previous = revision
    return entries[::-1]


def _table(submission: Submission, everybody: list[Submission]) -> list[Column]:
    """Everybody's ranks and qualities under this submission's letters, this one first."""
    letters = readings.letters_of(submission)
    columns = []
    for one in sorted(everybody, key=lambda s: s.pk != submission.pk):
        revision = _newest(one)
        ranks = readings.tier_numbers(revision.tiers or [])
        cells = [
            {"rank": ranks.get(uuid), "quality": (revision.ratings.get(uuid) or {}).get("quality")}
            for uuid in sorted(letters, key=lambda uuid: letters[uuid])
        ]
        columns.append(Column(one, revision, readings.tiers_text(revision.tiers or [], letters), cells))
    return columns
