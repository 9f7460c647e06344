"""The console's erasures: finding an author, seeing what would go, erasing; afterwards what had held them, to be withdrawn."""

from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.actions import erasures as actions
from labeling.actions import exports
from labeling.errors import HeedError
from labeling.models import Author, Erasure, Export, Prompt, User
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate, query_without

FOUND_AT_MOST = 20
PREVIEWS = 5


def words() -> dict[str, str]:
    """What is counted, in words."""
    return {
        "prompts": _("prompts by them"),
        "responses": _("responses to those"),
        "tasks": _("tasks that ask for those"),
        "open_seats": _("open seats on these tasks"),
        "submissions": _("submissions to these tasks, or by them"),
        "own_submissions": _("of these: by them"),
        "reviews": _("reviews of these"),
        "drafts": _("drafts"),
        "draft_copies": _("copies of drafts"),
        "skips": _("tasks passed on"),
        "gold_answers": _("gold answers"),
        "adjudications": _("adjudications"),
        "questions": _("questions and their threads"),
        "writings": _("prompts being written, or handed in"),
        "attempts": _("exercises done"),
        "screenings": _("screenings"),
        "accounts": _("account"),
    }


def _in_words(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(said, counts[name]) for name, said in words().items() if counts.get(name)]


@never_cache
@role_required("admin")
@require_GET
def erasures_list(request: Request) -> HttpResponse:
    """Past erasures, and a search for an author: by key, organization or e-mail address."""
    search = request.GET.get("search", "").replace("\x00", "").strip()[:200]
    authors: list[Author] = []
    people: list[User] = []
    if search:
        found = Author.objects.select_related("user").filter(
            Q(key__icontains=search) | Q(organization__icontains=search) | Q(user__email__icontains=search)
        )
        authors = list(found.order_by("key")[:FOUND_AT_MOST])
        counts = dict(Prompt.objects.filter(author__in=authors).values_list("author").annotate(n=Count("pk")))
        for author in authors:
            author.prompt_count = counts.get(author.pk, 0)  # type: ignore[attr-defined]
        people = list(User.objects.filter(email__icontains=search, author=None).order_by("email")[:FOUND_AT_MOST])
    rows = Erasure.objects.select_related("erased_by").order_by("-id")
    context = {
        "search": search,
        "authors": authors,
        "people": people,
        "limit": FOUND_AT_MOST,
        "page": paginate(request, rows, per_page=20),
        "query": query_without(request, "page"),
    }
    return render(request, "erasures/list.html", context)


@never_cache
@role_required("admin")
@require_POST
def erasure_person(request: Request) -> HttpResponse:
    """An account that has written no prompt yet, as an author to be erased."""
    pk = request.POST.get("person", "")
    person = get_object_or_404(User, pk=int(pk) if pk.isascii() and pk.isdigit() and len(pk) < 10 else 0)
    return redirect("erasure_new", actions.author_of(user=person).pk)


@never_cache
@role_required("admin")
@require_http_methods(["GET", "POST"])
def erasure_new(request: Request, pk: int) -> HttpResponse:
    """What would be erased, and the form for it: the author's key must be typed."""
    author, error = get_object_or_404(Author.objects.select_related("user"), pk=pk), None
    if request.method == "POST":
        given = {name: request.POST.get(name, "").replace("\x00", "") for name in ("confirmation", "reason")}
        try:
            made = actions.erase(author=author, by=request.user, **given)
        except HeedError as refusal:
            error = refusal
        else:
            messages.success(request, _("Erased. What is left to decide is below."))
            return redirect("erasure", made.uuid)
    plan = actions.plan(author=author)
    context = {
        "author": author,
        "plan": plan,
        "counts": _in_words(plan.counts),
        "prompts": author.prompts.order_by("-id")[:PREVIEWS],
        "error": error,
        "typed": request.POST,
    }
    return render(request, "erasures/new.html", context, status=error.status if error else 200)


@never_cache
@role_required("admin")
@require_GET
def erasure(request: Request, erasure_uuid: UUID) -> HttpResponse:
    """What was erased; the exports that had held it, to be withdrawn; the models trained on them."""
    found = get_object_or_404(Erasure.objects.select_related("erased_by"), uuid=erasure_uuid)
    held = list(found.exports.defer("manifest").select_related("withdrawn_by").order_by("number"))
    context = {
        "erasure": found,
        "counts": _in_words(found.counts),
        "exports": held,
        "models": actions.models_trained_on(held),
    }
    return render(request, "erasures/detail.html", context)


@role_required("admin")
@require_POST
def erasure_withdraw(request: Request, erasure_uuid: UUID, pk: int) -> HttpResponse:
    """Withdraw one of the exports that held the person. Twice is once."""
    found = get_object_or_404(Erasure, uuid=erasure_uuid)
    export = get_object_or_404(Export, pk=pk, erasures=found)
    exports.withdraw(export=export, by=request.user)
    messages.success(
        request, _("%(name)s was withdrawn: its files are gone, its manifest stays.") % {"name": export.name}
    )
    return redirect("erasure", found.uuid)
