"""Questions: a labeler's threads and the answers for all; the console's queue of open ones."""

import uuid

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import answers, mail
from labeling.actions import looks
from labeling.actions import questions as actions
from labeling.actions import submissions as submission_actions
from labeling.errors import HeedError, Invalid
from labeling.models import Draft, Kind, Question, QuestionMessage, Role, Submission
from labeling.views import drafts
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without

PER_PAGE = 20
TEAM = (Role.REVIEWER, Role.RESEARCHER)


# A labeler's side ----------------------------------------------------------------------------------------------


@role_required(Role.LABELER)
@never_cache
@require_GET
def questions(request: Request) -> HttpResponse:
    """Own threads, those with news first, and what was answered for all, by words and kind."""
    words, kind = request.GET.get("q", "")[:200], request.GET.get("kind", "")
    known = Question.objects.saying(answers.clean_text(words))
    if kind in Kind.values:
        known = known.filter(kind=kind)
    mine = _with_messages(Question.objects.filter(asker=request.user))
    context = {
        "mine": Paginator(mine.order_by("-is_unread", "-asked_at", "-id"), PER_PAGE).get_page(request.GET.get("mine")),
        "known": Paginator(known.order_by("-published_at", "-id"), PER_PAGE).get_page(request.GET.get("page")),
        "words": words,
        "kind": kind,
        "kinds": Kind.choices,
        "query": query_without(request, "page", "mine"),
    }
    return render(request, "questions/list.html", context)


def _with_messages(rows: QuerySet[Question]) -> QuerySet[Question]:
    said = QuestionMessage.objects.select_related("author").order_by("id")
    return rows.select_related("task__batch", "task__prompt").prefetch_related(Prefetch("messages", said))


@role_required(Role.LABELER)
@never_cache
@require_http_methods(["GET", "POST"])
def question_ask(request: Request) -> HttpResponse:
    """Ask about the instructions of a kind of task."""
    kind = request.POST.get("kind", request.GET.get("kind", ""))
    text = request.POST.get("text", "")
    context = {"kinds": Kind.choices, "kind": kind, "text": text, "key": uuid.uuid4()}
    if request.method == "GET":
        return render(request, "questions/ask.html", context)
    try:
        actions.ask(kind=kind, text=text, key=_key(request), by=request.user)
    except Invalid as error:
        return render(request, "questions/ask.html", context | {"problems": error.errors}, status=422)
    messages.success(request, _("Asked. The answer appears here, and an e-mail tells you."))
    return redirect("questions")


@role_required(Role.LABELER)
@never_cache
@require_http_methods(["GET", "POST"])
def task_question(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Ask about a task, beside the work on it: HTMX puts this into the task's page, which stays as it is."""
    task = drafts.given_task(request, task_uuid)
    problems, text, status = [], "", 200
    if request.method == "POST":
        try:
            actions.ask(task=task, text=request.POST.get("text", ""), key=_key(request), by=request.user)
        except Invalid as error:
            problems, text, status = error.errors, request.POST.get("text", ""), 422
        else:
            if not request.htmx:
                return redirect("task_question", task.uuid)
    threads = _with_messages(Question.objects.filter(task=task, asker=request.user)).order_by("id")
    context = {"task": task, "threads": threads, "problems": problems, "text": text, "key": uuid.uuid4()}
    context["submission"] = Submission.objects.filter(task=task, labeler=request.user).first()
    context["is_sent"] = request.method == "POST" and status == 200
    template = "questions/on_task.html#panel" if request.htmx else "questions/on_task.html"
    return render(request, template, context, status=status)


@role_required(Role.LABELER)
@never_cache
@require_http_methods(["GET", "POST"])
def question(request: Request, question_uuid: uuid.UUID) -> HttpResponse:
    """One of their threads, read by opening it; POST asks on."""
    found = get_object_or_404(_with_messages(Question.objects.filter(asker=request.user)), uuid=question_uuid)
    context = {"question": found, "text": "", "key": uuid.uuid4()}
    if request.method == "POST":
        try:
            actions.reply(question=found, text=request.POST.get("text", ""), key=_key(request), by=request.user)
        except Invalid as error:
            context |= {"problems": error.errors, "text": request.POST.get("text", "")}
            return render(request, "questions/thread.html", context, status=422)
        messages.success(request, _("Sent."))
        return redirect("question", found.uuid)
    actions.mark_read(question=found, by=request.user)
    return render(request, "questions/thread.html", context)


def _key(request: Request) -> uuid.UUID:
    try:
        return uuid.UUID(request.POST.get("key", ""))
    except ValueError:
        raise Invalid(_("The form cannot be read: reload the page."), [answers.problem("key", "is no UUID")]) from None


# The console's side --------------------------------------------------------------------------------------------


class Filters(FilterForm):
    """Which questions to list. Without a state in the address: those that wait for an answer."""

    state = forms.ChoiceField(
        label=gettext_lazy("State"),
        required=False,
        choices=[
            ("open", gettext_lazy("waiting for an answer")),
            ("answered", gettext_lazy("answered")),
            ("published", gettext_lazy("shown to all")),
            ("any", gettext_lazy("any")),
        ],
    )
    kind = forms.ChoiceField(
        label=gettext_lazy("Kind"), required=False, choices=[("", gettext_lazy("any")), *Kind.choices]
    )
    words = forms.CharField(label=gettext_lazy("Words"), required=False, max_length=200)

    def __init__(self, data):
        data = data.copy()
        data.setdefault("state", "open")
        super().__init__(data)

    def rows(self) -> QuerySet[Question]:
        """The questions that pass; open ones by how long they wait, else newest first."""
        chosen, rows = self.chosen, Question.objects.all()
        state = chosen.get("state", "any")
        if state in {"open", "answered"}:
            rows = rows.filter(is_open=state == "open")
        elif state == "published":
            rows = rows.published()
        if "kind" in chosen:
            rows = rows.filter(kind=chosen["kind"])
        for word in chosen.get("words", "").split():
            rows = rows.filter(pk__in=QuestionMessage.objects.filter(text__icontains=word).values("question"))
        return rows.order_by("asked_at", "id") if state == "open" else rows.order_by("-asked_at", "-id")


@role_required(*TEAM)
@require_GET
def question_queue(request: Request) -> HttpResponse:
    """Questions, the longest waiting first."""
    filters = Filters(request.GET)
    context = {
        "filters": filters,
        "page": paginate(request, _with_messages(filters.rows()).select_related("asker")),
        "query": query_without(request, "page"),
    }
    return render(request, "questions/queue.html", context)


@role_required(*TEAM)
@require_GET
def question_review(request: Request, uuid: uuid.UUID) -> HttpResponse:
    """One thread, with its task, to answer."""
    return _thread(request, _found(uuid))


def _found(question_uuid: uuid.UUID) -> Question:
    rows = _with_messages(Question.objects.select_related("asker", "task__batch__schema"))
    return get_object_or_404(rows, uuid=question_uuid)


def _asked_about(found: Question) -> dict:
    """What the asker sees of the task, under their letters, and what they have said of it by now; no model's name."""
    if found.task is None:
        return {}
    draft = Draft.objects.filter(task=found.task, labeler=found.asker).first()
    submission = Submission.objects.filter(task=found.task, labeler=found.asker).first()
    if draft is None and submission is None:
        return {}
    content = draft.content if draft else submission_actions.answer_of(submission.current)  # type: ignore[union-attr]
    cards = drafts.cards_of(found.task, (draft or submission).shown_order)  # type: ignore[union-attr]
    fields = answers.to_fields(content, cards)
    return {
        "is_draft": draft is not None,
        "text": fields.get("text", ""),
        "cards": [
            {"card": card, "place": fields.get(f"place-{card.letter}"), "quality": fields.get(f"quality-{card.letter}")}
            for card in cards
        ],
        "is_ranked": any(name.startswith("place-") for name in fields),
        "scale": found.task.batch.schema.scale,
    }


def _thread(request: Request, found: Question, problem: HeedError | None = None) -> HttpResponse:
    """The thread; after a refusal with why, and with what was typed."""
    said = list(found.messages.all())
    answered = [message.text for message in said if message.is_answer]
    typed = request.POST
    # Not to who works on the task; and never theirs to label, once they have read it.
    may_read = found.task_id is None or found.asker_id == request.user.pk
    if found.task_id and not may_read:
        may_read = bool(looks.look_many(tasks=[found.task_id], by=request.user))
    context = {
        "question": found,
        "about": _asked_about(found) if may_read else {},
        "said": said,
        "is_own": found.asker_id == request.user.pk,
        "is_answered": bool(answered),
        "text": typed.get("text", ""),
        "public_question": typed.get("public_question", found.public_question or said[0].text),
        "public_answer": typed.get("public_answer", found.public_answer or "".join(answered[-1:])),
        "problem": problem,
        "key": uuid.uuid4(),
    }
    return render(request, "questions/review.html", context, status=problem.status if problem else 200)


@role_required(*TEAM)
@require_POST
def question_answer(request: Request, uuid: uuid.UUID) -> HttpResponse:
    """Answer, and tell the asker."""
    found = _found(uuid)
    if found.asker_id == request.user.pk:
        return _thread(request, found, Invalid(_("This question is your own: somebody else answers it.")))
    key = _key(request)
    said = set(found.messages.values_list("pk", flat=True))
    try:
        made = actions.reply(question=found, text=request.POST.get("text", ""), key=key, by=request.user)
    except Invalid as error:
        return _thread(request, found, error)
    if made.pk not in said:
        link = request.build_absolute_uri(reverse("question", args=[found.uuid]))
        mail.send("questions/answered_mail.txt", _("Your question was answered"), found.asker.email,
                  {"person": found.asker, "link": link})  # fmt: skip
    messages.success(request, _("Answered. %(who)s is told.") % {"who": found.asker})
    return redirect("question_review", found.uuid)


@role_required(*TEAM)
@require_POST
def question_publish(request: Request, uuid: uuid.UUID) -> HttpResponse:
    """Show it to every labeler, in the words of the form; `withdraw`: to nobody else any more."""
    found = _found(uuid)
    if "withdraw" in request.POST:
        actions.withdraw(question=found, by=request.user)
        messages.success(request, _("Only the asker sees it now."))
        return redirect("question_review", found.uuid)
    words = {name: request.POST.get(name, "") for name in ("public_question", "public_answer")}
    try:
        actions.publish(question=found, by=request.user, **words)
    except HeedError as error:
        return _thread(request, found, error)
    messages.success(request, _("Every labeler can read it now."))
    return redirect("question_review", found.uuid)
