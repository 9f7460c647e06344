"""A labeler's day: the queue, the page of a task, and what its forms and script send."""

import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from urllib.parse import urlencode

from django.contrib import messages
from django.db.models import Exists, IntegerField, OuterRef, Subquery
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import answers, languages
from labeling.actions import drafts as draft_actions
from labeling.actions import gold
from labeling.actions import submissions as submission_actions
from labeling.actions import tasks as actions
from labeling.errors import Conflict, HandedInElsewhere, Invalid, NotPrepared, SavedElsewhere
from labeling.models import Batch, Draft, DraftCopy, Kind, Review, Role, Skip, Slot, Submission, Task, User
from labeling.models.batches import is_for
from labeling.views import drafts
from labeling.views.access import Request, role_required
from labeling.views.instructions import step_url
from labeling.views.working import go, problems_json, ranking_words, wants_json, words

PACE_OF = 20  # the last tasks, by which a labeler sees how long they usually take
LEFT_AT_MOST = 1000  # counting further would cost more than it tells


# The queue -----------------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@never_cache
@require_GET
def queue(request: Request) -> HttpResponse:
    """Where a labeler's day starts: what is begun, what came back, what is left, what is done today."""
    user = request.user
    actions.return_expired()  # or seats that nobody works on would not be counted as left
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    done_today = Submission.objects.filter(labeler=user, submitted_at__gte=midnight)
    left = _left(user)
    context = {
        "begun": _begun(user),
        "returned": _returned(user),
        "left": left,
        "left_at_most": LEFT_AT_MOST,
        "lacks": None if left else _lacks(user),
        "languages": [languages.name_of(code) for code in user.languages],
        "kinds_left": [kind for kind in Kind if any(each.batch.kind == kind for each in left)],
        "done_today": done_today.count(),
        "done_demonstrations": done_today.filter(kind=Kind.DEMONSTRATION).count(),
        "done_rankings": done_today.filter(kind=Kind.RANKING).count(),
    }
    return render(request, "tasks/queue.html", context)


@dataclass(frozen=True)
class Returned:
    """A submission to correct, and why."""

    submission: Submission
    feedback: Review | None


def _returned(user: User) -> list[Returned]:
    """Submissions to correct, longest waiting first."""
    mine = Submission.objects.filter(labeler=user, status=Submission.Status.RETURNED)
    mine = mine.select_related("task__prompt").prefetch_related("reviews").order_by("updated_at")[:50]
    return [Returned(each, max(each.reviews.all(), key=lambda review: review.pk, default=None)) for each in mine]


@dataclass(frozen=True)
class Begun:
    """A draft to go on with."""

    draft: Draft
    has_seat: bool
    is_correction: bool


def _begun(user: User) -> list[Begun]:
    """Drafts with a seat, and those with something in them, newest first. Corrections among them."""
    drafts = (
        Draft.objects.filter(labeler=user).select_related("task__prompt", "task__batch").order_by("-saved_at")[:100]
    )
    ids = [draft.task_id for draft in drafts]
    seated = set(
        Slot.objects.filter(task__in=ids, labeler=user, status=Slot.Status.LEASED).values_list("task_id", flat=True)
    )
    handed_in = {each.task_id: each for each in Submission.objects.filter(task__in=ids, labeler=user)}
    with_copies = set(DraftCopy.objects.filter(task__in=ids, labeler=user).values_list("task_id", flat=True))
    ended = set(Skip.objects.filter(task__in=ids, labeler=user).values_list("task_id", flat=True))
    ended |= {task_id for task_id, submission in handed_in.items() if not submission.is_open_to_change}
    begun = [Begun(draft, draft.task_id in seated, draft.task_id in handed_in) for draft in drafts]
    return [
        each
        for each in begun
        if each.draft.task_id not in ended
        and (each.has_seat or each.draft.task_id in with_copies or not answers.is_empty(each.draft.content))
    ]


@dataclass(frozen=True)
class Left:
    """How many tasks of a batch a labeler may still take, counted to LEFT_AT_MOST."""

    batch: Batch
    count: int


class CountOf(Subquery):
    """How many rows a correlated query has."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def _left(user: User) -> list[Left]:
    """What is left in active batches, best first; two queries however many there are."""
    open_tasks = Slot.objects.claimable_by(user).filter(batch=OuterRef("pk")).values("task_id").order_by().distinct()
    batches = Batch.objects.filter(is_for(user), status=Batch.Status.ACTIVE).defer("query", "counts")
    counted = batches.annotate(left=CountOf(open_tasks[:LEFT_AT_MOST]))
    if user.is_paused:
        return []
    hidden = gold.left_for(user)
    left = [
        (batch, _with_hidden(batch.left, *hidden.get(batch.pk, (0, 0))))
        for batch in counted.order_by("-priority", "id")
    ]
    return [Left(batch, count) for batch, count in left if count]


def _with_hidden(seats: int, gold_tasks: int, begun: int) -> int:
    """Gold comes only in the midst of other work: without any, what is left of it is what was put back."""
    return min(LEFT_AT_MOST, seats + (gold_tasks if seats else begun))


@dataclass(frozen=True)
class Lacks:
    """What open batches ask for and a labeler has not: why nothing is left where there is work for others."""

    languages: list[str]
    skills: list[str]


def _lacks(user: User) -> Lacks:
    has_open = Exists(Slot.objects.filter(batch=OuterRef("pk"), status=Slot.Status.OPEN))
    others = Batch.objects.filter(has_open, status=Batch.Status.ACTIVE, group__in=["", user.group]).exclude(
        is_for(user)
    )
    asked = list(others.values_list("language", "skills").order_by())
    codes = {language for language, _skills in asked} - {"", *user.languages}
    skills = {skill for _language, names in asked for skill in names} - set(user.skills)
    return Lacks(sorted(map(languages.name_of, codes)), sorted(skills))


@role_required(Role.LABELER)
@require_POST
def claim(request: Request) -> HttpResponse:
    """The next task. A second click leads to the same one."""
    kind, name = request.POST.get("kind", ""), answers.clean_text(request.POST.get("batch", ""))
    if kind and kind not in Kind.values:
        raise Invalid(_("Unknown kind of task: %s") % kind[:100])
    wanted = _wanted(request, kind, name)
    if name and "batch" not in wanted:
        raise Invalid(_("Unknown batch: %s") % name[:100])
    return redirect(_next_task(request, wanted) or _nothing_left(request, wanted))


def _wanted(request: Request, kind: str, name: str) -> dict:
    """What a labeler has chosen to be given: a kind, a batch, both or neither; only what there is."""
    # By its name: an id would tell how many batches there were before.
    batch = Batch.objects.filter(is_for(request.user), name=name).first() if name else None
    return ({"kind": kind} if kind in Kind.values else {}) | ({"batch": batch} if batch else {})


def _still_wanted(request: Request) -> dict:
    """The choice that the address of a task's page carries on to the next one."""
    return _wanted(request, request.GET.get("kind", ""), answers.clean_text(request.GET.get("batch", "")))


def _next_task(request: Request, wanted: dict) -> str | None:
    """Where the next task is, with what was chosen, or what comes before it; None if nothing is left."""
    batch = wanted.get("batch")
    try:
        slot = actions.claim_next(by=request.user, kind=wanted.get("kind", ""), batch_id=batch.pk if batch else None)
    except NotPrepared as due:
        return step_url(due.kind, due.step)
    return reverse("task", args=[slot.task.uuid]) + _query(wanted) if slot else None


def _query(wanted: dict) -> str:
    return "?" + urlencode({name: getattr(value, "name", value) for name, value in wanted.items()}) if wanted else ""


def _nothing_left(request: Request, wanted: dict) -> str:
    """Say why there is no next task, and lead to the queue."""
    if request.user.is_paused:
        messages.info(request, _("New work is paused for you, so there is no next task. Ask the team under Questions."))
    elif wanted:
        messages.info(request, _("Nothing is left of what you chose. What there is besides stands below."))
    else:
        messages.info(request, _("There is nothing left for you just now."))
    return reverse("tasks")


# A task --------------------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@never_cache
@require_GET
def task(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """The page to work on. Opening it renews the lease. Work that is handed in is shown in the history instead."""
    task = drafts.given_task(request, task_uuid)
    draft = Draft.objects.filter(task=task, labeler=request.user).first()
    submission = Submission.objects.filter(task=task, labeler=request.user).first()
    if submission and (draft is None or submission_actions.why_closed(submission)):
        return redirect("submission", submission.uuid)
    if Skip.objects.filter(task=task, labeler=request.user).exists():
        messages.info(request, _("You skipped this task."))
        return redirect("tasks")
    if draft is None:
        raise Http404
    seat = actions.renew(task=task, by=request.user)
    if (
        seat == "lost"
        and answers.is_empty(draft.content)
        and not draft_actions.other_versions(task=task, by=request.user)
    ):
        messages.info(request, _("That task has gone to someone else meanwhile; you had not begun it here."))
        return redirect("tasks")
    unsent = request.session.pop("unsent", None)
    if unsent and unsent["fields"].get("owner") == drafts.owner_key(task, request.user):
        messages.warning(
            request, _("You had been logged out. This is what you sent; it did not arrive, so send it again.")
        )
        return _page(request, task, draft, submission, seat, unsent["fields"], knowingly=True)
    return _page(request, task, draft, submission, seat)


def _page(
    request: Request,
    task: Task,
    draft: Draft,
    submission: Submission | None,
    seat: str,
    fields: dict | None = None,
    problems: list[dict] | None = None,
    status: int = 200,
    knowingly: bool = False,
) -> HttpResponse:
    """The form, filled from the draft or, when it was refused, with what was sent.

    `knowingly`: it shows other work than the draft, and its labeler has been told so.
    """
    cards = drafts.cards_of(task, draft.shown_order)
    fields = answers.to_fields(draft.content, cards) if fields is None else fields
    schema = task.batch.schema
    context = {
        "task": task,
        "draft": draft,
        "submission": submission,
        "feedback": submission.reviews.last() if submission else None,
        "seat": seat,
        "fields": fields,
        "cards": [_shown(card, fields, schema) for card in cards],
        "has_twins": any(len(card.letters) > 1 for card in cards),
        "prompt_flags": [flag | {"value": fields.get(f"prompt-{flag['name']}", "")} for flag in schema.prompt_flags],
        "scale": schema.scale,
        "wanted": _query(_still_wanted(request)),
        "problems": problems or [],
        "submit_key": (not knowingly and request.POST.get("submit_key")) or uuid.uuid4(),
        # What was refused still knows only what it knew.
        "base": draft.version if status != 422 else fields.get("base", 0),
        "revision": fields.get("revision", 0) if status == 422 else submission.revision_count if submission else 0,
        "draft_id": salted_hmac("draft row", str(draft.pk)).hexdigest()[:12],
        "owner_key": drafts.owner_key(task, request.user),
        "knowingly": knowingly,
        "copies": drafts.shown_copies(request, task, cards, schema),
        "is_plain": "plain" in request.GET,
        "skip_reasons": Skip.Reason.choices,
        "lease_seconds": actions.lease_seconds(),
        "editor": uuid.uuid4(),
        "minutes": words()["minutes"].replace("{n}", str(int(draft.active_seconds // 60))),
        "pace": _pace(request.user, task.kind),
        "words": words() | (ranking_words() if task.kind == Kind.RANKING else {}),
    }
    return render(request, f"tasks/{task.kind}.html", context, status=status)


def _pace(user: User, kind: str) -> str:
    """What the labeler's last tasks of this kind took, for comparison; "" until there are five."""
    last = Submission.objects.filter(labeler=user, kind=kind).order_by("-submitted_at", "-id")
    seconds = list(last.values_list("active_seconds", flat=True)[:PACE_OF])
    if len(seconds) < 5:
        return ""
    return _("usually %(n)d min") % {"n": max(1, round(median(seconds) / 60))}


def _shown(card: answers.Card, fields: dict, schema) -> dict:
    """What the template needs of a card: letters only, never an id."""
    flags = [flag | {"value": fields.get(f"flag-{card.letter}-{flag['name']}", "")} for flag in schema.response_flags]
    return {
        "letter": card.letter,
        "letters": card.letters,
        "label": card.label,
        "text": card.text,
        "quality": fields.get(f"quality-{card.letter}", ""),
        "place": fields.get(f"place-{card.letter}", ""),
        "flags": flags,
        "answered": sum(1 for flag in flags if flag["value"]),
    }


# What the page sends -------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@require_POST
def renew(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """A sign of work without a change: the lease is renewed."""
    task, worked = drafts.given_task(request, task_uuid), _worked(request)
    return JsonResponse({"seat": actions.renew(task=task, by=request.user, **worked)})


def _worked(request: Request) -> dict:
    """How long the page that sends this was worked on."""
    page = answers.clean_text(request.POST.get("editor", ""))[:40]
    return {"page": page, "active_seconds": drafts.active_seconds(request)}


@role_required(Role.LABELER)
@require_http_methods(["GET", "POST"])
def submit(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Hand the work in, once, and go on. Refused: 422 with every place that is wrong and everything that was typed."""
    task = drafts.given_task(request, task_uuid)
    if request.method == "GET":  # sent here after logging in again: the draft is on the task's page
        return redirect("task", task.uuid)
    answer, problems = drafts.sent_answer(request, task)
    try:
        key = uuid.UUID(request.POST.get("submit_key", ""))
    except ValueError:
        raise Invalid(_("submit_key: not a UUID. Reload the page and submit again.")) from None
    seen = drafts.seen_by(request)
    try:
        submission = submission_actions.submit(
            task=task,
            submit_key=key,
            answer=answer,
            problems=problems,
            seen=seen,
            active_seconds=drafts.active_seconds(request),
            by=request.user,
        )
    except Invalid as error:
        return _refused(request, task, error)
    except Conflict as conflict:
        return _stale(request, task, answer, seen, conflict)
    return _handed_in(request, submission)


def _stale(request: Request, task: Task, answer: dict, seen: draft_actions.Seen, conflict: Conflict) -> HttpResponse:
    """409: something newer is there. What was sent becomes the draft, or a copy where the draft is another page's newer work."""
    message = str(conflict)
    if isinstance(conflict, HandedInElsewhere):
        message = _("You have handed this in already. Submit once more to replace that by what is here.")
    elif isinstance(conflict, SavedElsewhere):
        message = _(
            "There is newer work of yours on this task, from another tab. Submit once more to use what is here."
        )
    with suppress(SavedElsewhere):
        kept = replace(seen, version=max(seen.version, seen.base) + 1)
        draft_actions.save_draft(task=task, content=answer, seen=kept, by=request.user)
    newest = drafts.newest(request, task)
    problems = [answers.problem("", message)]
    submission = Submission.objects.filter(task=task, labeler=request.user).first()
    if submission and submission_actions.why_closed(submission):  # its page shows what came too late
        return go(request, reverse("submission", args=[submission.uuid]), status=409)
    if wants_json(request):
        return problems_json(problems, status=409, code=conflict.code, **newest)
    draft = Draft.objects.get(task=task, labeler=request.user)
    return _page(request, task, draft, submission, "held", request.POST.dict(), problems, 409, knowingly=True)


def _refused(request: Request, task: Task, error: Invalid) -> HttpResponse:
    if wants_json(request):
        return problems_json(error.errors, status=422)
    submission = Submission.objects.filter(task=task, labeler=request.user).first()
    draft = Draft.objects.filter(task=task, labeler=request.user).first()
    if draft is None and submission is not None:
        draft = submission_actions.reopen(submission=submission, by=request.user)
    if draft is None:
        raise error
    return _page(request, task, draft, submission, "held", request.POST.dict(), error.errors, 422)


def _handed_in(request: Request, submission: Submission) -> HttpResponse:
    """Say so kindly, and lead to the next task or to what was asked for."""
    link = reverse("submission", args=[submission.uuid])
    if submission.is_surplus:
        text = _(
            "Kept, and visible in your history. Your seat on this task had gone to someone else, so it counts as extra work."
        )
        messages.warning(request, format_html('{} <a href="{}">{}</a>', text, link, _("See it")))
    elif submission.revision_count > 1:
        messages.success(request, format_html('{} <a href="{}">{}</a>', _("Correction submitted."), link, _("See it")))
    else:
        messages.success(request, format_html('{} <a href="{}">{}</a>', _("Submitted."), link, _("See or change it")))
    if not request.POST.get("next"):
        return go(request, reverse("tasks"))
    wanted = _still_wanted(request)
    return go(request, _next_task(request, wanted) or (_nothing_left(request, wanted) if wanted else reverse("tasks")))


@role_required(Role.LABELER)
@require_POST
def skip(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Pass the task on with a reason, and go to the next one."""
    task = drafts.given_task(request, task_uuid)
    flags = answers.from_fields(request.POST, Kind.DEMONSTRATION, [], task.batch.schema)[0]["prompt_flags"]
    try:
        actions.skip(
            task=task,
            reason=request.POST.get("reason", ""),
            comment=request.POST.get("skip_comment", ""),
            prompt_flags=flags,
            by=request.user,
            **_worked(request),
        )
    except Invalid as error:
        return _refused(request, task, error)
    messages.info(request, _("Skipped. It will not be given to you again."))
    wanted = _still_wanted(request)
    return go(request, _next_task(request, wanted) or (_nothing_left(request, wanted) if wanted else reverse("tasks")))


@role_required(Role.LABELER)
@require_POST
def release(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Put the task back for others; the draft stays."""
    task = drafts.given_task(request, task_uuid)
    if not wants_json(request):  # without the page's script nothing was saved as they typed
        seen, answer = drafts.seen_by(request), drafts.sent_answer(request, task)[0]
        with suppress(SavedElsewhere):  # then it was set aside
            draft_actions.save_draft(
                task=task, content=answer, seen=replace(seen, version=seen.base + 1), by=request.user
            )
    else:
        actions.renew(task=task, by=request.user, **_worked(request))
    actions.release(task=task, by=request.user)
    messages.info(request, _("Put back. What you typed is kept, should you return to it."))
    return go(request, reverse("tasks"))
