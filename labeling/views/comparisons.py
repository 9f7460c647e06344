"""Two responses of a ranking task beside each other, for the labeler who ranks them."""

import uuid

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from labeling.errors import Invalid
from labeling.models import Role
from labeling.views import drafts
from labeling.views.access import Request, role_required
from labeling.views.readings import text_changes


@role_required(Role.LABELER)
@never_cache
@require_GET
def compare(request: Request, task_uuid: uuid.UUID) -> HttpResponse:
    """What one response says and the other does not, word by word. Responses by their letters, as shown to this labeler."""
    task = drafts.given_task(request, task_uuid)
    cards = {card.letter: card for card in drafts.cards_of(task, drafts.shown_order(task, request.user))}
    chosen = [cards.get(request.GET.get(name, "")) for name in ("first", "second")]
    first, second = chosen
    if first is None or second is None:
        raise Invalid(_("Choose two of the task's responses."))
    changes = text_changes(first.text, second.text)
    sides = [
        {"card": first, "parts": [c for c in changes if c.kind != "added"]},
        {"card": second, "parts": [c for c in changes if c.kind != "removed"]},
    ]
    return render(request, "tasks/comparison.html", {"sides": sides, "are_equal": first == second})
