"""The playground: a conversation with the serving policy. It is kept in the person's session, so a reload loses nothing."""

import uuid
from contextlib import suppress
from typing import Any

from django.core.exceptions import BadRequest
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.actions import playground
from labeling.actions.capture import may_train_on
from labeling.actions.playground import Gone, Progress
from labeling.errors import Conflict, HeedError, Invalid, Unavailable
from labeling.views.access import Request, role_required

SESSION_KEY = "playground"
MAX_CHARS = 40_000  # of a conversation; it travels with the session
MAX_TURNS = 100
may_play = role_required("labeler", "reviewer", "researcher")


@may_play
@never_cache
@require_http_methods(["GET", "POST"])
def chat(request: Request) -> HttpResponse:
    """The conversation so far, and the box. POST says something."""
    if request.method == "GET":
        return _page(request, _progress(request))
    text = request.POST.get("text", "").replace("\r\n", "\n").strip()
    try:
        turn = uuid.UUID(request.POST.get("turn", ""))
    except ValueError:
        raise BadRequest("turn: expected a UUID") from None
    try:
        _say(request, text, turn, opts_out="opt_out" in request.POST)
    except HeedError as error:
        return _page(request, _progress(request), text=text, problem=error)
    return _page(request, _progress(request)) if request.htmx else redirect("playground")


@may_play
@never_cache
@require_GET
def answer(request: Request) -> HttpResponse:
    """The answer as far as it is; the conversation once it is over. Pages ask again and again while it is written."""
    looks = request.GET.get("looks", "0")
    progress = _progress(request)
    context = _context(request, progress) | {"looks": int(looks) + 1 if looks.isdecimal() and len(looks) < 6 else 0}
    if progress is None or progress.is_over:
        response = render(request, "playground/chat.html#conversation", context)
        response["HX-Retarget"] = "#conversation"
        return response
    return render(request, "playground/chat.html#pending", context)


@may_play
@require_POST
def stop(request: Request) -> HttpResponse:
    """Leave the answer at what is there."""
    kept = _kept(request)
    if kept["turn"]:
        with suppress(Gone):  # the page will say so
            _take(request, playground.stop(turn=uuid.UUID(kept["turn"]), by=request.user))
    return _page(request, _progress(request)) if request.htmx else redirect("playground")


@may_play
@require_POST
def again(request: Request) -> HttpResponse:
    """Ask once more for an answer that failed."""
    kept = _kept(request)
    messages = kept["messages"]
    problem = None
    if messages and messages[-1]["role"] == "user" and not kept["turn"]:
        try:
            _begin(request, messages, uuid.uuid4(), kept["opts_out"])
        except HeedError as error:
            problem = error
    if problem is None and not request.htmx:
        return redirect("playground")
    return _page(request, _progress(request), problem=problem)


@may_play
@require_POST
def clear(request: Request) -> HttpResponse:
    """Forget the conversation; begin a new one."""
    kept = _kept(request)
    if kept["turn"]:
        with suppress(Gone, Unavailable):
            playground.stop(turn=uuid.UUID(kept["turn"]), by=request.user)
    request.session[SESSION_KEY] = _kept_nothing() | {"opts_out": kept["opts_out"]}
    return redirect("playground")


# ---- what is kept between requests ----------------------------------------------------------------------------------


def _kept_nothing() -> dict[str, Any]:
    """messages; the id of the turn being answered; the last one's id; whether the person opted out; why the last turn failed;
    which policy wrote each answer."""
    return {"messages": [], "turn": "", "last_turn": "", "opts_out": False, "error": "", "models": []}


def _kept(request: Request) -> dict[str, Any]:
    return _kept_nothing() | request.session.get(SESSION_KEY, {})


def _say(request: Request, text: str, turn: uuid.UUID, *, opts_out: bool) -> None:
    kept = _kept(request)
    if str(turn) in (kept["turn"], kept["last_turn"]):
        return  # a double click: said already
    if kept["turn"]:
        raise Conflict(_("The answer before is still being written. Wait for it, or stop it."))
    if not text:
        raise Invalid(_("Write something first."))
    # A question that got no answer is replaced by the next one.
    before = (
        kept["messages"][:-1] if kept["messages"][-1:] and kept["messages"][-1]["role"] == "user" else kept["messages"]
    )
    messages = [*before, {"role": "user", "content": text}]
    if sum(len(message["content"]) for message in messages) > MAX_CHARS or len(messages) > 2 * MAX_TURNS:
        raise Invalid(_("This conversation is too long. Shorten your text, or begin a new conversation."))
    _begin(request, messages, turn, opts_out)


def _begin(request: Request, messages: list[dict[str, str]], turn: uuid.UUID, opts_out: bool) -> None:
    playground.begin(turn=turn, messages=messages, opts_out=opts_out, by=request.user)
    changes = {"messages": messages, "turn": str(turn), "last_turn": str(turn), "opts_out": opts_out, "error": ""}
    request.session[SESSION_KEY] = _kept(request) | changes


def _progress(request: Request) -> Progress | None:
    """How far the answer is, None when none is being written. One that is over becomes part of the conversation."""
    kept = _kept(request)
    if not kept["turn"]:
        return None
    try:
        progress = playground.read(turn=uuid.UUID(kept["turn"]), by=request.user)
    except Gone as gone:
        progress = Progress("", "", "", True, str(gone))
    except (Unavailable, Invalid) as error:
        return Progress("", "", "", False, str(error))  # it may come back
    if progress.is_over:
        _take(request, progress)
    return progress


def _take(request: Request, progress: Progress) -> None:
    """Keep an answer that is over: what there is of it, and why there is no more."""
    kept = _kept(request)
    if progress.text:
        kept["messages"] = [*kept["messages"], {"role": "assistant", "content": progress.text}]
        kept["models"] = [*kept["models"], progress.model]
    request.session[SESSION_KEY] = kept | {"turn": "", "error": progress.error}


# ---- what is shown --------------------------------------------------------------------------------------------------


def _context(request: Request, progress: Progress | None) -> dict[str, Any]:
    kept = _kept(request)
    models = iter(kept["models"])
    may_see_models = request.user.is_reviewer or request.user.is_researcher  # labelers never learn who wrote what
    turns = [
        message | {"model": next(models, "") if may_see_models and message["role"] == "assistant" else ""}
        for message in kept["messages"]
    ]
    is_written = bool(kept["turn"]) and progress is not None and not progress.is_over
    return {
        "turns": turns,
        "progress": progress if is_written else None,
        "error": kept["error"],
        "can_ask_again": bool(turns) and turns[-1]["role"] == "user" and not kept["turn"],
        "opts_out": kept["opts_out"],
        "is_never_kept": not may_train_on(request.user),
        "turn": uuid.uuid4(),
        "looks": 0,
        "max_chars": MAX_CHARS,
    }


def _page(
    request: Request, progress: Progress | None, *, text: str = "", problem: HeedError | None = None
) -> HttpResponse:
    context = _context(request, progress) | {"text": text, "problem": problem}
    template = "playground/chat.html#said" if request.htmx else "playground/chat.html"
    status = problem.status if problem else 200
    if request.htmx and status >= 500:
        status = 409  # pages swap in what is refused, not what broke; what was typed must stay in sight
    return render(request, template, context, status=status)
