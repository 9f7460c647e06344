"""Where labelers write prompts, and where researchers keep the use cases to write for."""

import uuid

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.actions import writings as actions
from labeling.answers import clean_text
from labeling.errors import Conflict, Invalid, OtherPerson, SavedElsewhere
from labeling.models import Prompt, Role, UseCase, User, Writing
from labeling.views.access import Request, role_required
from labeling.views.drafts import active_seconds, clock, kept_here, seen_by
from labeling.views.working import go, problems_json, wants_json, words

PER_PAGE = 25


@role_required(Role.LABELER)
@never_cache
@require_GET
def writings(request: Request) -> HttpResponse:
    """Own drafts and what was written, newest first, and where to begin another."""
    mine = Writing.objects.filter(labeler=request.user).exclude(version=0, submitted_at=None)
    page = Paginator(mine.order_by("-saved_at", "-id"), PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "writings/list.html", {"page": page})


@role_required(Role.LABELER)
@require_POST
def writing_new(request: Request) -> HttpResponse:
    """Begin a prompt; an empty one that was begun is gone on with."""
    return redirect("writing", actions.begin(kind=request.POST.get("kind", ""), by=request.user).uuid)


@role_required(Role.LABELER)
@never_cache
@require_GET
def writing(request: Request, writing_uuid: uuid.UUID) -> HttpResponse:
    """The page to write on, or what was written."""
    found = _own(request, writing_uuid)
    return _page(request, found, found.content)


def _own(request: Request, writing_uuid: uuid.UUID) -> Writing:
    """Their own, or 404. Raises OtherPerson if the page that sends this was made for somebody else."""
    found = actions.of(labeler=request.user, uuid=writing_uuid)
    if found is None:
        raise Http404
    if request.POST.get("owner", _owner_key(found, request.user)) != _owner_key(found, request.user):
        raise OtherPerson(_("This page was opened by somebody else. Log in as yourself again; nothing was changed."))
    return found


def _owner_key(writing: Writing, user: User) -> str:
    return salted_hmac("draft", f"writing:{writing.pk}:{user.pk}").hexdigest()[:20]


def _page(
    request: Request, writing: Writing, fields, problems: list[dict] | None = None, status: int = 200
) -> HttpResponse:
    context = {
        "writing": writing,
        "fields": fields,
        "pairs": [(n, fields.get(f"query-{n}", ""), fields.get(f"response-{n}", "")) for n in actions.PAIRS],
        "use_cases": UseCase.objects.filter(is_open=True),
        "problems": problems or [],
        "prompts": Prompt.objects.filter(author__user=writing.labeler_id, metadata__writing=str(writing.uuid)).order_by(
            "id"
        )
        if writing.submitted_at
        else [],
        "owner_key": _owner_key(writing, request.user),
        "editor": uuid.uuid4(),
        "submit_key": uuid.uuid4(),
        "base": writing.version,
        "words": words(),
    }
    return render(request, "writings/writing.html", context, status=status)


@role_required(Role.LABELER)
@require_POST
def writing_draft(request: Request, writing_uuid: uuid.UUID) -> HttpResponse:
    """Keep what is typed; 409 if another page has saved meanwhile."""
    found = _own(request, writing_uuid)
    content = actions.read(request.POST, found.kind)
    try:
        seen, seconds = seen_by(request), active_seconds(request)
        saved = actions.save(writing=found, content=content, seen=seen, active_seconds=seconds, by=request.user)
    except SavedElsewhere as conflict:
        found.refresh_from_db()
        return JsonResponse(_known(found) | {"code": conflict.code}, status=409)
    return JsonResponse(_known(saved) | ({"url": reverse("writings")} if saved.submitted_at else {}))


def _known(writing: Writing) -> dict:
    """What the page must know before it may send again."""
    key = str(uuid.uuid4())
    return {"version": writing.version, "saved_at": clock(writing.saved_at), "revision": 0, "submit_key": key}


@role_required(Role.LABELER)
@require_POST
def writing_aside(request: Request, writing_uuid: uuid.UUID) -> HttpResponse:
    """Keep work found on a computer that is not the draft, as a draft of its own."""
    found = _own(request, writing_uuid)
    kept = actions.set_aside(writing=found, content=actions.read(request.POST, found.kind), by=request.user)
    return kept_here(reverse("writing", args=[kept.uuid]) if kept else "")


@role_required(Role.LABELER)
@require_http_methods(["GET", "POST"])
def writing_submit(request: Request, writing_uuid: uuid.UUID) -> HttpResponse:
    """Hand it in. Refused: 422 with everything that is wrong, and all that was typed."""
    found = _own(request, writing_uuid)
    if request.method == "GET":
        return redirect("writing", found.uuid)
    content = actions.read(request.POST, found.kind)
    page, seconds = clean_text(request.POST.get("editor", ""))[:40], active_seconds(request)
    try:
        actions.hand_in(writing=found, content=content, page=page, active_seconds=seconds, by=request.user)
    except Invalid as error:
        if wants_json(request):
            return problems_json(error.errors, status=422)
        return _page(request, found, content, error.errors, 422)
    except Conflict as conflict:
        actions.set_aside(writing=found, content=content, by=request.user)
        messages.warning(request, _("%s What you typed since is kept as a draft.") % conflict)
        return go(request, reverse("writings"))
    messages.success(request, _("Handed in. Thank you!"))
    if request.POST.get("next") and not request.user.is_paused:
        return go(request, reverse("writing", args=[actions.begin(kind=found.kind, by=request.user).uuid]))
    return go(request, reverse("writings"))


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def use_cases(request: Request) -> HttpResponse:
    """The list to write for: add one, close or open one."""
    problem = ""
    if request.method == "POST":
        try:
            if "use_case" in request.POST:
                pk = request.POST["use_case"]
                case = get_object_or_404(UseCase, pk=int(pk) if pk.isascii() and pk.isdigit() and len(pk) < 10 else 0)
                actions.open_use_case(use_case=case, is_open=request.POST.get("open") == "1", by=request.user)
            else:
                name, description = request.POST.get("name", ""), request.POST.get("description", "")
                actions.add_use_case(name=name, description=description, by=request.user)
            return redirect("use_cases")
        except Invalid as error:
            problem = str(error)
    context = {"use_cases": UseCase.objects.all(), "problem": problem, "typed": request.POST}
    return render(request, "writings/use_cases.html", context, status=422 if problem else 200)
