"""What a task's page sends as its labeler types, and the copies of their work that are not the draft."""

import re
import uuid

from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling import answers
from labeling.actions import drafts as actions
from labeling.errors import Invalid, OtherPerson, SavedElsewhere
from labeling.models import Draft, DraftCopy, LabelSchema, Role, Submission, Task, TaskResponse, User
from labeling.views.access import Request, role_required


def given_task(request: Request, task_uuid: uuid.UUID) -> Task:
    """A task that was given to this labeler; 404 for any other, so that nothing can be learned by asking.

    Raises OtherPerson if what is sent comes from a page that was made for somebody else: another tab has logged in anew.
    """
    mine = Q(drafts__labeler=request.user) | Q(submissions__labeler=request.user)
    tasks = Task.objects.select_related("prompt", "batch__schema")
    task = get_object_or_404(tasks, Q(pk__in=Task.objects.filter(mine, uuid=task_uuid).values("pk")))
    if request.POST.get("owner", owner_key(task, request.user)) != owner_key(task, request.user):
        raise OtherPerson(_("This page was opened by somebody else. Log in as yourself again; nothing was changed."))
    return task


def owner_key(task: Task, user: User) -> str:
    """Names a person's page of a task: what was sent from it, and the copy that their browser keeps, are theirs."""
    return salted_hmac("draft", f"{task.pk}:{user.pk}").hexdigest()[:20]


def cards_of(task: Task, shown_order: list[str]) -> list[answers.Card]:
    """The task's responses as shown."""
    texts = TaskResponse.objects.filter(task=task).values_list("response__uuid", "response__text")
    return answers.cards_of(shown_order, {str(response_uuid): text for response_uuid, text in texts})


def shown_order(task: Task, user: User) -> list[str]:
    """In which order this labeler sees the responses."""
    draft = Draft.objects.filter(task=task, labeler=user).first()
    return (draft or Submission.objects.get(task=task, labeler=user)).shown_order


def sent_answer(request: Request, task: Task) -> tuple[dict, list[dict]]:
    """What the page's form says, and what is wrong with it at first sight."""
    cards = cards_of(task, shown_order(task, request.user))
    return answers.from_fields(request.POST, task.kind, cards, task.batch.schema)


def number(request: HttpRequest, name: str) -> int:
    """A field of at most nine digits; 0 if it is not there. Raises Invalid."""
    value = request.POST.get(name, "0")
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise Invalid(_("%(name)s: %(value)r is not a whole number") % {"name": name, "value": value})
    return int(value)


def active_seconds(request: HttpRequest) -> float:
    """The time worked on the page that sends this, in seconds; 0 if it does not say. Raises Invalid."""
    value = request.POST.get("active_seconds") or "0"
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", value):
        raise Invalid(_("active_seconds: %r is not a number of seconds") % value)
    return float(value)


def seen_by(request: Request) -> actions.Seen:
    """What the page that sends this knew."""
    base, version, revision = (number(request, name) for name in ("base", "version", "revision"))
    editor, takes = (answers.clean_text(request.POST.get(name, "")) for name in ("editor", "takes"))
    knowingly = request.POST.get("knowingly") == "1"
    return actions.Seen(base, version, revision, editor[:40], _taken(takes), knowingly)


def _taken(text: str) -> tuple[tuple[str, int], ...]:
    """Pages by name and last save, as "NAME:3 NAME:1"; what is not of that form says nothing."""
    pairs = [part.rpartition(":") for part in text[:400].split()]
    return tuple((name, int(n)) for name, _colon, n in pairs if name and n.isascii() and n.isdigit() and len(n) < 10)


def newest(request: Request, task: Task) -> dict:
    """What a page must know by now, before it may send again: the draft's version, the revisions handed in, a new key."""
    draft = Draft.objects.filter(task=task, labeler=request.user).first()
    submission = Submission.objects.filter(task=task, labeler=request.user).first()
    return {
        "version": draft.version if draft else 0,
        "saved_at": clock(draft.saved_at if draft else submission.updated_at),  # type: ignore[union-attr]
        "revision": submission.revision_count if submission else 0,
        "submit_key": str(uuid.uuid4()),
    }


def clock(moment) -> str:
    """The time of day and its zone, for people."""
    return timezone.localtime(moment).strftime("%H:%M %Z")


def shown_copies(request: Request, task: Task, cards: list[answers.Card], schema: LabelSchema) -> list[dict]:
    """What the templates need of the other versions of the labeler's work on a task."""
    copies = actions.other_versions(task=task, by=request.user)
    return [{"copy": copy, "answer": answers.shown(copy.content, cards, schema)} for copy in copies]


@role_required(Role.LABELER)
@require_POST
def save_draft(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Keep what is typed. 200 with the version kept and the state of the seat; 409 if another page has saved meanwhile.

    With `url` if the very same was handed in by this page already: the answer to its submit was lost.
    """
    task = given_task(request, task_uuid)
    content, _problems = sent_answer(request, task)
    seconds, paste_chars = active_seconds(request), number(request, "paste_chars")
    try:
        draft, seat = actions.save_draft(
            task=task,
            content=content,
            seen=seen_by(request),
            active_seconds=seconds,
            paste_chars=paste_chars,
            by=request.user,
        )
    except SavedElsewhere as conflict:
        answer = {"code": conflict.code, "message": str(conflict)}
        return JsonResponse(newest(request, task) | answer, status=409)
    saved: dict[str, object] = {"version": draft.version, "saved_at": clock(draft.saved_at), "seat": seat}
    if seat == "submitted" and _is_handed_in(request, task, content):
        saved["url"] = reverse("tasks")
    return JsonResponse(saved)


def _is_handed_in(request: Request, task: Task, content: dict) -> bool:
    submission = Submission.objects.get(task=task, labeler=request.user)
    same_page = str(submission.current.submit_key) == request.POST.get("submit_key")
    return same_page and actions.says_the_same(content, submission)


@role_required(Role.LABELER)
@require_POST
def set_aside(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """Keep work found on a computer that is not, or cannot be, the draft."""
    task = given_task(request, task_uuid)
    copy = actions.set_aside(task=task, content=sent_answer(request, task)[0], by=request.user)
    submission = Submission.objects.filter(task=task, labeler=request.user).first()
    url = reverse("submission", args=[submission.uuid]) if submission else reverse("task", args=[task.uuid])
    return kept_here(url + "#copies" if copy else "")


def kept_here(url: str) -> JsonResponse:
    """Tells the person where work is now that was found on their computer; says nothing where it was here already."""
    message = _("Work of yours that was kept on this computer is now kept here:")
    note = format_html('<p class="message message-info">{} <a href="{}">{}</a></p>', message, url, _("see it"))
    return JsonResponse({"html": note if url else ""})


@role_required(Role.LABELER)
@require_POST
def use_copy(request: Request, task_uuid: uuid.UUID, digest: str) -> HttpResponse:
    """Go on with a copy, named by what is in it (an id would tell how much others do); what was the draft becomes one."""
    copy = get_object_or_404(DraftCopy, content_sha256=digest, labeler=request.user, task__uuid=task_uuid)
    actions.use_copy(copy=copy, by=request.user)
    return redirect("task", task_uuid)
