"""The console's gold: answers that are known, made of an existing task, released and withdrawn."""

from uuid import UUID

from django import forms
from django.contrib import messages
from django.db.models import Avg, Count, OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import answers
from labeling.actions import gold as actions
from labeling.actions import looks
from labeling.errors import HeedError, Invalid
from labeling.models import Adjudication, Batch, Consensus, GoldAnswer, Kind, SubmissionNumbers, Task
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, prompt_preview, query_without


class Filters(FilterForm):
    """Whose gold."""

    batch = forms.ModelChoiceField(
        Batch.objects.filter(kind=Kind.RANKING).defer("query", "instructions", "counts").order_by("-id"),
        label=gettext_lazy("Batch"),
        required=False,
        empty_label=gettext_lazy("any"),
    )


@role_required("reviewer", "researcher")
@require_GET
def gold(request: Request) -> HttpResponse:
    """Gold answers with how labelers did on them; and tasks that a gold answer could be made of."""
    filters = Filters(request.GET)
    within = {"task__batch": filters.chosen["batch"]} if "batch" in filters.chosen else {}
    numbers = SubmissionNumbers.objects.filter(submission__task=OuterRef("task"), gold_share__isnull=False)
    measured = numbers.order_by().values("submission__task")
    full = GoldAnswer.objects.select_related("task__batch", "made_by").annotate(
        prompt_preview=prompt_preview("task__prompt__"),
        done=Subquery(measured.annotate(n=Count("pk")).values("n")),
        passed=Subquery(measured.annotate(n=Count("pk", filter=Q(gold_passed=True))).values("n")),
        share=Subquery(measured.annotate(n=Avg("gold_share")).values("n")),
    )
    context = {
        "filters": filters,
        "page": paginate(request, GoldAnswer.objects.filter(**within).order_by("-id"), full=full),
        "candidates": _candidates(**within),
        "query": query_without(request, "page"),
    }
    return render(request, "gold/list.html", context)


def _candidates(**within) -> QuerySet[Consensus]:
    """Tasks without a gold answer on which labelers agree best: good ones to look at first."""
    rows = Consensus.objects.filter(task__is_gold=False, rankings__gte=2, **within)
    rows = rows.exclude(task__gold_answers__withdrawn_at=None, task__gold_answers__isnull=False)
    order = ("-support", "-rankings", "task_id")
    best = Consensus.objects.filter(pk__in=rows.order_by(*order).values("pk")[:20])  # only of these are prompts read
    shown = best.select_related("task__batch").annotate(prompt_preview=prompt_preview("task__prompt__"))
    return shown.order_by(*order)


class GoldForm(forms.Form):
    """A gold answer: a place for each response, why, and how far one may be off."""

    explanation = forms.CharField(
        label=gettext_lazy("Why this is right"),
        help_text=gettext_lazy("Markdown. Labelers read it once the answer is released."),
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 5}),
    )
    tolerance = forms.FloatField(
        label=gettext_lazy("Tolerance (%)"),
        help_text=gettext_lazy("Share of comparisons that may differ, and the task still counts as passed."),
        min_value=0,
        max_value=100,
        initial=25,
    )

    def __init__(self, cards: list[answers.Card], *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cards = cards
        choices = [("", "–"), *((str(i), str(i)) for i in range(1, len(cards) + 1))]
        for card in cards:
            self.fields[f"place-{card.letter}"] = forms.ChoiceField(
                label=gettext_lazy("Place of %s") % card.label,
                choices=choices,
                error_messages={"required": _("Give it a place.")},
            )

    def places(self) -> list[dict]:
        """Each response with its field."""
        return [{"card": card, "field": self[f"place-{card.letter}"]} for card in self.cards]

    def tiers(self) -> list[list[str]]:
        """Equal places are a tie."""
        places: dict[int, list[str]] = {}
        for card in self.cards:
            places.setdefault(int(self.cleaned_data[f"place-{card.letter}"]), []).extend(card.uuids)
        return [places[place] for place in sorted(places)]


def _known(task: Task) -> tuple[list[list[str]], str]:
    """The ranking to begin with, and whose it is: the newest adjudication's, else the consensus."""
    if adjudication := Adjudication.objects.filter(task=task).order_by("-id").first():
        return adjudication.tiers, _("It begins with the ranking that %(who)s settled on.") % {
            "who": adjudication.reviewer
        }
    if agreed := Consensus.objects.filter(task=task).first():
        return agreed.tiers, _("It begins with the consensus of %(n)d rankings.") % {"n": agreed.rankings}
    return [], ""


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def gold_new(request: Request, uuid: UUID) -> HttpResponse:
    """Give a ranking task a gold answer: adopted from what a reviewer or the labelers settled on, or by hand."""
    task = get_object_or_404(Task.objects.select_related("prompt", "batch"), uuid=uuid, kind=Kind.RANKING)
    looks.look(task=task, by=request.user)  # at what was agreed on, or to settle what is right
    responses = task.task_responses.order_by("response__uuid").values_list("response__uuid", "response__text")
    texts = {str(response_uuid): text for response_uuid, text in responses}
    cards = answers.cards_of(list(texts), texts)
    tiers, whence = _known(task)
    initial = {
        f"place-{card.letter}": str(n) for n, tier in enumerate(tiers, 1) for card in cards if card.uuids[0] in tier
    }
    form = GoldForm(cards, request.POST or None, initial=initial)
    status = 422 if form.is_bound else 200
    if request.method == "POST" and form.is_valid():
        said = {"explanation": form.cleaned_data["explanation"], "tolerance": form.cleaned_data["tolerance"] / 100}
        try:
            actions.make(task=task, tiers=form.tiers(), by=request.user, **said)
        except HeedError as error:
            form.add_error(None, str(error))
            status = error.status
        else:
            messages.success(
                request, _("Gold: it is mixed in at the batch's rate, %(n)d %%.") % {"n": task.batch.gold_percent}
            )
            return redirect(f"{reverse('gold')}?batch={task.batch_id}")
    return render(request, "gold/new.html", {"task": task, "form": form, "whence": whence}, status=status)


@role_required("researcher")
@require_POST
def gold_end(request: Request, pk: int) -> HttpResponse:
    """Release an answer to those who did the task, or withdraw it."""
    answer = get_object_or_404(GoldAnswer.objects.select_related("task"), pk=pk)
    if request.POST.get("how") == "withdraw":
        actions.withdraw(gold=answer, by=request.user)
        messages.success(request, _("Withdrawn: nobody is measured by it any more."))
    elif request.POST.get("how") != "release":  # what is shown cannot be taken back
        raise Invalid(_("Choose whether to release it or to withdraw it."))
    else:
        actions.release(gold=answer, by=request.user)
        messages.success(request, _("Released: whoever did the task can read the answer and why it is right."))
    return redirect(f"{reverse('gold')}?batch={answer.task.batch_id}")
