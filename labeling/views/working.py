"""What every page shares on which work is typed (static/js/task.js is its script): its words, and its answers in JSON."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.utils.translation import gettext as _


def wants_json(request: HttpRequest) -> bool:
    """True if the page's script asks, and not a form."""
    return request.headers.get("Accept", "") == "application/json"


def go(request: HttpRequest, target: str, status: int = 200) -> HttpResponse:
    """Onwards: a redirect for a form, an address for the page's script."""
    return JsonResponse({"url": target}, status=status) if wants_json(request) else redirect(target)


def problems_json(problems: list[dict], *, status: int, **more: object) -> JsonResponse:
    """What stands in the way, each {"place", "message", "field"}; `html` holds the same as list items for the page."""
    html = render_to_string("tasks/problems.html", {"problems": problems})
    return JsonResponse(more | {"problems": problems, "html": html}, status=status)


def words() -> dict[str, str]:
    """What the page's script says, in the reader's language."""
    return {
        "unsaved": _("Not saved yet"),
        "saving": _("Saving…"),
        "saved": _("Saved"),
        "offline": _("Offline – kept on this computer"),
        "server": _("The server does not answer – kept on this computer"),
        "loggedOut": _("Logged out – kept on this computer"),
        "refused": _("Could not be saved – kept on this computer"),
        "elsewhere": _("Changed elsewhere – kept on this computer"),
        "notSubmitted": _(
            "Not submitted: there is no connection. Your work is kept here; submit again when it is back."
        ),
        "otherPerson": _("Somebody else is logged in here now – kept on this computer"),
        "notDone": _("Not done: there is no connection. Try again when it is back."),
        "backOnline": _("The connection is back: submit again."),
        "minutes": _("{n} min"),
        "words": _("{n} words"),
        "answered": _("{n} answered"),
    }


def ranking_words() -> dict[str, str]:
    """What the ranking board says beside that."""
    return {
        "undone": _("Undone"),
        "nothingToUndo": _("Nothing to undo"),
        "rated": _("{letter}: rated {value}"),
        "alone": _("{letter}: place {place} of {places}"),
        "tied": _("{letter}: place {place} of {places}, tied with {others}"),
        "unranked": _("{letter}: not ranked"),
        "progress": _("{rated} of {n} rated, {ranked} of {n} ranked"),
        "selected": _("{letter} selected"),
        "allBad": _("All are bad: yes"),
        "notAllBad": _("All are bad: no"),
        "done": _("All rated and ranked."),
        "rateFirst": _("Rate the responses first; then they can be put in order by their ratings."),
        "ordered": _("Put in order by rating. Equal ratings are tied; move what differs."),
    }
