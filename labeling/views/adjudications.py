"""Adjudications: the tasks whose rankings disagree, and one of them with its rankings side by side."""

import uuid as uuids
from dataclasses import dataclass
from itertools import combinations
from uuid import UUID

from django.contrib import messages
from django.db.models import Prefetch
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from labeling import answers
from labeling.actions import adjudications as actions
from labeling.actions import second_reviews
from labeling.actions.adjudications import SeenRanking
from labeling.errors import Conflict, HeedError, Invalid
from labeling.models import Kind, Review, Revision, Submission, Task, TaskResponse, User
from labeling.views import readings
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, prompt_preview, query_without


@role_required("reviewer", "researcher")
@require_GET
def adjudications(request: Request) -> HttpResponse:
    """Ranking tasks that nobody has settled, the most disagreement first; with ?settled=1 those settled, newest first."""
    is_settled = request.GET.get("settled") == "1"
    if is_settled:
        rows = Task.objects.filter(adjudicated_at__isnull=False).order_by("-adjudicated_at", "-id")
    else:
        rows = Task.objects.filter(disagreement__gt=0, adjudicated_at=None).order_by("-disagreement", "id")
    rankings = Prefetch("submissions", Submission.objects.select_related("labeler").order_by("id"))
    full = Task.objects.select_related("batch").annotate(prompt_preview=prompt_preview("prompt__"))
    context = {
        "page": paginate(request, rows, full=full.prefetch_related(rankings)),
        "is_settled": is_settled,
        "query": query_without(request, "page"),
    }
    return render(request, "adjudications/list.html", context)


@role_required("reviewer", "researcher")
@require_GET
def task_adjudication(request: Request, uuid: UUID) -> HttpResponse:
    """The rankings of a task side by side."""
    task = _ranking_task(uuid)
    actions.check_may(task=task, by=request.user)
    return _page(request, task)


def _ranking_task(uuid: UUID) -> Task:
    return get_object_or_404(Task.objects.select_related("prompt", "batch__schema"), uuid=uuid, kind=Kind.RANKING)


@role_required("reviewer")
@require_POST
def task_adjudicate(request: Request, uuid: UUID) -> HttpResponse:
    """Settle it. Refused, back to it as it is now, with what was chosen."""
    task = _ranking_task(uuid)
    actions.check_may(task=task, by=request.user)
    try:
        _settle(request, task)
    except (Invalid, Conflict) as refusal:
        return _page(request, task, refusal)
    messages.success(request, _("Settled. The rankings themselves stay as they were given."))
    return redirect("adjudications")


def _settle(request: Request, task: Task) -> None:
    cards = _cards(task)
    places: dict[int, list[str]] = {}
    for card in cards:
        place = request.POST.get(f"place-{card.letter}", "")
        if place.isascii() and place.isdigit() and len(place) < 3:
            places.setdefault(int(place), []).append(card.uuids[0])
    comment, settled = request.POST.get("return_comment", ""), request.POST.get("settled", "")
    try:
        key = UUID(request.POST.get("key", ""))
    except ValueError:
        raise Invalid(_("The form cannot be read: reload the page.")) from None
    actions.adjudicate(
        task=task,
        tiers=[places[place] for place in sorted(places)],
        seen=dict(_seen(value) for value in request.POST.getlist("seen")),
        key=key,
        comment=request.POST.get("comment", ""),
        returned=dict.fromkeys(request.POST.getlist("return"), comment),
        settled=int(settled) if settled.isascii() and settled.isdigit() and len(settled) < 19 else 0,
        by=request.user,
    )


def _seen(value: str) -> tuple[str, SeenRanking]:
    """From "uuid:revision:review"."""
    try:
        name, revision, review = value.split(":")
        return str(UUID(name)), SeenRanking(int(revision), int(review))
    except ValueError:
        raise Invalid(_("A ranking cannot be read: %(value)s") % {"value": value[:60]}) from None


# ---- what the page reads --------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """A labeler's word on one response. `minority`: comparisons with others in which most labelers say otherwise."""

    labeler: User
    place: int
    quality: int | None
    minority: int


@dataclass
class Side:
    """A labeler's ranking, under this page's letters."""

    submission: Submission
    revision: Revision
    seen: str
    tiers: list[list[str]]
    cells: list[Cell]


@dataclass
class Contest:
    """Two responses on which the labelers differ: who is better, and how many say so."""

    first: str
    second: str
    better: int
    worse: int
    tied: int


def _cards(task: Task) -> list[answers.Card]:
    """The responses under this page's letters, which are nobody's."""
    texts = TaskResponse.objects.filter(task=task).values_list("response__uuid", "response__text")
    return answers.cards_of(actions.response_ids(task), {str(name): text for name, text in texts})


def _page(request: Request, task: Task, problem: HeedError | None = None) -> HttpResponse:
    """Everything as it is now; after a refusal with why, and with what was chosen and typed."""
    cards = _cards(task)
    sides = _sides(task, cards, request.user)
    fields = request.POST.dict() if request.method == "POST" else _begun_with(request, sides)
    before = list(task.adjudications.select_related("reviewer").order_by("-id"))
    context = {
        "task": task,
        "sides": sides,
        "responses": [
            {"card": card, "place": fields.get(f"place-{card.letter}", ""), "cells": [side.cells[i] for side in sides]}
            for i, card in enumerate(cards)
        ],
        "contests": _contests(sides, cards),
        "before": [(made, readings.tiers_text(made.tiers, _letters(cards))) for made in before],
        "settled": before[0].pk if before else 0,
        "places": [str(place) for place in range(1, len(cards) + 1)],
        "comment": fields.get("comment", ""),
        "return_comment": fields.get("return_comment", ""),
        "returned": request.POST.getlist("return"),
        "key": uuids.uuid4(),
        "problem": problem,
    }
    return render(request, "adjudications/detail.html", context, status=problem.status if problem else 200)


def _begun_with(request: Request, sides: list[Side]) -> dict[str, str]:
    """The places of the labeler's ranking that ?start= names, to begin with."""
    chosen = [side for side in sides if str(side.submission.uuid) == request.GET.get("start")]
    placed = enumerate(chosen[0].tiers, start=1) if chosen else ()
    return {f"place-{letter}": str(place) for place, tier in placed for letter in tier}


def _letters(cards: list[answers.Card]) -> dict[str, str]:
    return {name: letter for card in cards for name, letter in zip(card.uuids, card.letters, strict=True)}


def _sides(task: Task, cards: list[answers.Card], reader: User) -> list[Side]:
    blind = actions.rankings_of(task).annotate(second_due=second_reviews.due_from(reader))
    rows = blind.select_related("labeler").prefetch_related(
        Prefetch("revisions", Revision.objects.order_by("number")), Prefetch("reviews", Review.objects.order_by("id"))
    )  # fmt: skip
    newest = [(row, list(row.revisions.all())[-1]) for row in rows]
    places = [readings.tier_numbers(revision.tiers or []) for _row, revision in newest]
    minority = _minorities(places, [card.uuids[0] for card in cards])
    letters = {card.uuids[0]: card.letter for card in cards}
    sides = []
    for i, (row, revision) in enumerate(newest):
        tiers = [sorted(letters[u] for u in tier if u in letters) for tier in revision.tiers or []]
        cells = []
        for card in cards:
            name = card.uuids[0]
            quality = (revision.ratings.get(name) or {}).get("quality")
            cells.append(Cell(row.labeler, places[i].get(name, 0), quality, minority[i].get(name, 0)))
        last = list(row.reviews.all())[-1:]
        seen = f"{row.uuid}:{row.revision_count}:{last[0].pk if last else 0}"
        sides.append(Side(row, revision, seen, tiers, cells))
    return sides


def _order(places: dict[str, int], a: str, b: str) -> int:
    """1: a is better; −1: b; 0: tied."""
    return (places[b] > places[a]) - (places[b] < places[a])


def _minorities(places: list[dict[str, int]], names: list[str]) -> list[dict[str, int]]:
    """For each ranking: response → comparisons with it in which more than half of the rankings say something else, the same thing."""
    found: list[dict[str, int]] = [{} for _ranking in places]
    for a, b in combinations(names, 2):
        said = [_order(each, a, b) for each in places]
        most = max(set(said), key=said.count, default=0)
        if 2 * said.count(most) <= len(said):
            continue
        for i, word in enumerate(said):
            if word != most:
                found[i][a], found[i][b] = found[i].get(a, 0) + 1, found[i].get(b, 0) + 1
    return found


def _contests(sides: list[Side], cards: list[answers.Card]) -> list[Contest]:
    """Pairs on which the labelers differ, the most evenly split first."""
    places = [{card.letter: side.cells[i].place for i, card in enumerate(cards)} for side in sides]
    contests = []
    for a, b in combinations([card.letter for card in cards], 2):
        said = [_order(each, a, b) for each in places]
        if len(set(said)) > 1:
            contests.append(Contest(a, b, said.count(1), said.count(-1), said.count(0)))
    return sorted(contests, key=lambda c: (max(c.better, c.worse, c.tied), c.first, c.second))
