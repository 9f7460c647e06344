"""The console's exercises: practice and screening items to write, change, retire, and the figures of each."""

import json

from django import forms
from django.contrib import messages
from django.db.models import Count, F, FloatField, Q, Sum
from django.db.models.functions import Cast
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import exercise_answers
from labeling.actions import exercises as actions
from labeling.answers import LETTERS
from labeling.errors import Conflict, Invalid
from labeling.models import Exercise, LabelSchema, Part, Purpose
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without

RESPONSES = 6
ANY = ("", gettext_lazy("any"))


class Filters(FilterForm):
    """Which exercises to list."""

    purpose = forms.ChoiceField(label=gettext_lazy("For"), required=False, choices=[ANY, *Purpose.choices])
    part = forms.ChoiceField(label=gettext_lazy("Part"), required=False, choices=[ANY, *Part.choices])
    retired = forms.ChoiceField(
        label=gettext_lazy("State"), required=False,
        choices=[("", gettext_lazy("given out")), ("yes", gettext_lazy("retired")), ("any", gettext_lazy("any"))],
    )  # fmt: skip

    def rows(self):
        """The exercises that pass, with how often they were answered and how far people agreed with them."""
        chosen = self.chosen
        rows = Exercise.objects.filter(**{name: chosen[name] for name in ("purpose", "part") if name in chosen})
        if chosen.get("retired") != "any":
            rows = rows.filter(retired_at__isnull=chosen.get("retired") != "yes")
        handed_in = Q(attempts__submitted_at__isnull=False)
        return rows.annotate(
            answers=Count("attempts", filter=handed_in),
            share=Cast(Sum("attempts__agreed", filter=handed_in), FloatField()) * 100 / Sum("attempts__compared", filter=handed_in),
        ).order_by("purpose", "part", "id")  # fmt: skip


@role_required("researcher")
@require_GET
def exercises_list(request: Request) -> HttpResponse:
    """Exercises by purpose and part."""
    filters = Filters(request.GET)
    context = {
        "filters": filters,
        "page": paginate(request, filters.rows()),
        "query": query_without(request, "page"),
        "parts": Part,
        "is_empty": not Exercise.objects.exists(),
    }
    return render(request, "exercises/list.html", context)


@role_required("researcher")
@require_POST
def exercises_default(request: Request) -> HttpResponse:
    """Load the set that Heed ships. What is there already, or was retired, is passed over."""
    new = actions.load(rows=actions.read_file(actions.DEFAULT_FILE), by=request.user)
    messages.success(request, _("%(n)d exercises loaded.") % {"n": new})
    return redirect("exercises")


class ExerciseForm(forms.Form):
    """An exercise of one part: its prompt, what is answered, the reference and why."""

    purpose = forms.ChoiceField(label=gettext_lazy("For"), choices=Purpose.choices)
    prompt = forms.CharField(
        label=gettext_lazy("Prompt"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 4, "dir": "auto"}),
    )
    answer = forms.CharField(
        label=gettext_lazy("Answer to it (optional)"), required=False, strip=False,
        widget=forms.Textarea(attrs={"rows": 3, "dir": "auto"}),
        help_text=gettext_lazy("Shown with the prompt, as the other side of the conversation."),
    )  # fmt: skip
    reference_by = forms.CharField(label=gettext_lazy("Whose answer it is"), required=False, max_length=200)
    explanation = forms.CharField(
        label=gettext_lazy("Why"), required=False, strip=False, widget=forms.Textarea(attrs={"rows": 5, "dir": "auto"}),
        help_text=gettext_lazy("Markdown. Shown after a practice answer, never in a screening."),
    )  # fmt: skip

    def __init__(self, *args, part: str, exercise: Exercise | None = None, **options):
        self.part, self.exercise = part, exercise
        self.schema = exercise.schema if exercise else LabelSchema.latest()
        super().__init__(*args, **options)
        self.initial = _initial(exercise) if exercise else {}
        if exercise and [m["role"] for m in exercise.messages] not in (["user"], ["user", "assistant"]):
            del (
                self.fields["prompt"],
                self.fields["answer"],
            )  # a longer conversation comes from a file and stays as it is
        {Part.FLAGGING: self._add_flags, Part.RANKING: self._add_responses, Part.DEMONSTRATION: self._add_text}[
            Part(part)
        ]()

    def _add_flags(self) -> None:
        labels = {flag["name"]: flag["label"] for flag in self.schema.prompt_flags}
        labels |= {
            name: labels.get(name, name) for name in (self.exercise.reference["prompt_flags"] if self.exercise else {})
        }
        choices = [("", _("not asked")), ("yes", _("yes")), ("no", _("no"))]
        for name, label in labels.items():
            self.fields[f"flag-{name}"] = forms.ChoiceField(label=label, required=False, choices=choices)

    def _add_responses(self) -> None:
        places = [("", "–"), *((str(n), str(n)) for n in range(1, len(LETTERS) + 1))]
        qualities = [("", "–"), *((str(n), str(n)) for n in self.schema.quality_range)]
        count = max(RESPONSES, len(self.exercise.responses) if self.exercise else 0)
        for letter in LETTERS[:count]:
            area = forms.Textarea(attrs={"rows": 3, "dir": "auto"})
            self.fields[f"response-{letter}"] = forms.CharField(
                label=_("Response %s") % letter, required=False, strip=False, widget=area
            )
            self.fields[f"place-{letter}"] = forms.ChoiceField(label=_("Place"), required=False, choices=places)
            self.fields[f"quality-{letter}"] = forms.ChoiceField(label=_("Rating"), required=False, choices=qualities)

    def _add_text(self) -> None:
        self.fields["text"] = forms.CharField(
            label=_("Reference demonstration"), required=False, strip=False, widget=forms.Textarea(attrs={"rows": 8, "dir": "auto"}),
            help_text=_("Practice shows it beside the labeler's. In a screening people grade, and it may be empty."),
        )  # fmt: skip

    def row(self) -> dict:
        """The exercise as a file's row says it."""
        said = self.cleaned_data
        turns = [{"role": "user", "content": said.get("prompt", "")}]
        turns += [{"role": "assistant", "content": said["answer"]}] if said.get("answer", "").strip() else []
        row = {
            "purpose": said["purpose"],
            "part": self.part,
            "messages": turns if "prompt" in self.fields else self.exercise.messages,  # type: ignore[union-attr]
            "reference_by": said["reference_by"],
            "explanation": said["explanation"],
        }
        return row | self._reference(said)

    def _reference(self, said: dict) -> dict:
        if self.part == Part.DEMONSTRATION:
            return {"reference": {"text": said["text"]}}
        if self.part == Part.FLAGGING:
            flags = {name[5:]: value == "yes" for name, value in said.items() if name.startswith("flag-") and value}
            return {"reference": {"prompt_flags": flags}}
        letters = [letter for letter in LETTERS if said.get(f"response-{letter}", "").strip()]
        tiers: dict[int, list[str]] = {}
        for letter in letters:
            if place := said[f"place-{letter}"]:
                tiers.setdefault(int(place), []).append(letter)
        ratings = {
            letter: {"quality": int(said[f"quality-{letter}"])} for letter in letters if said[f"quality-{letter}"]
        }
        reference = {"tiers": [tiers[place] for place in sorted(tiers)], "ratings": ratings}
        return {"responses": {letter: said[f"response-{letter}"] for letter in letters}, "reference": reference}

    def response_rows(self) -> list[dict]:
        """The fields of each response, for the template."""
        letters = [letter for letter in LETTERS if f"response-{letter}" in self.fields]
        return [
            {"text": self[f"response-{x}"], "place": self[f"place-{x}"], "quality": self[f"quality-{x}"]}
            for x in letters
        ]

    def flag_fields(self) -> list:
        return [self[name] for name in self.fields if name.startswith("flag-")]


def _initial(exercise: Exercise) -> dict:
    """The form's fields that say this exercise."""
    turns = [m["content"] for m in exercise.messages]
    initial = {name: getattr(exercise, name) for name in ("purpose", "reference_by", "explanation")}
    initial |= {
        "prompt": turns[0],
        "answer": turns[1] if len(turns) > 1 else "",
        "text": exercise.reference.get("text", ""),
    }
    for name, value in exercise.reference.get("prompt_flags", {}).items():
        initial[f"flag-{name}"] = "yes" if value else "no"
    places = {r: n for n, tier in enumerate(exercise.reference.get("tiers", []), start=1) for r in tier}
    for letter, response in zip(LETTERS, exercise.responses, strict=False):
        rating = exercise.reference.get("ratings", {}).get(response["id"], {})
        initial[f"response-{letter}"] = response["text"]
        initial[f"place-{letter}"] = str(places.get(response["id"], ""))
        initial[f"quality-{letter}"] = str(rating.get("quality", ""))
    return initial


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def exercise_new(request: Request, part: str) -> HttpResponse:
    """Write an exercise of a part."""
    if part not in Part.values:
        raise Http404
    return _edit(request, part, None)


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def exercise_edit(request: Request, pk: int) -> HttpResponse:
    """Change an exercise. One that somebody has begun stays as it was for them: another takes its place."""
    exercise = get_object_or_404(Exercise, pk=pk)
    return _edit(request, exercise.part, exercise)


def _edit(request: Request, part: str, exercise: Exercise | None) -> HttpResponse:
    form = ExerciseForm(request.POST or None, part=part, exercise=exercise)
    status = 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                if exercise:
                    saved = actions.change(exercise=exercise, row=form.row(), by=request.user)
                else:
                    saved = actions.add(row=form.row(), by=request.user)
            except (Invalid, Conflict) as error:
                form.add_error(None, str(error))
                status = error.status
            else:
                messages.success(request, _("Saved."))
                return redirect("exercise", saved.pk)
    context = {"form": form, "exercise": exercise, "part": Part(part)}
    return render(request, "exercises/edit.html", context, status=status)


@role_required("researcher")
@require_GET
def exercise(request: Request, pk: int) -> HttpResponse:
    """One exercise with its reference, and how people answered: counts alone, for a screening is anonymous."""
    found = get_object_or_404(Exercise.objects.select_related("replaces", "created_by"), pk=pk)
    order = [response["id"] for response in found.responses]
    handed_in = found.attempts.filter(submitted_at__isnull=False)
    figures = handed_in.aggregate(n=Count("id"), agreed=Sum("agreed"), compared=Sum("compared"))
    context = {
        "exercise": found,
        "expected": exercise_answers.shown(found.reference, found, order),
        "rows": exercise_answers.form_rows({}, found, order),
        "figures": figures,
        "share": 100 * figures["agreed"] / figures["compared"] if figures["compared"] else None,
        "whole": handed_in.filter(compared__gt=0, agreed=F("compared")).count(),
        "replaced_by": found.replaced_by.first(),
        "row_json": json.dumps(_row_of(found), ensure_ascii=False, indent=2),
    }
    return render(request, "exercises/detail.html", context)


def _row_of(found: Exercise) -> dict:
    """The exercise as a line of a file."""
    names = ("purpose", "part", "messages", "responses", "reference", "reference_by", "explanation")
    return {name: getattr(found, name) for name in names}


@role_required("researcher")
@require_POST
def exercise_retire(request: Request, pk: int) -> HttpResponse:
    """Give an exercise out no more, or again."""
    found = get_object_or_404(Exercise, pk=pk)
    is_retired = request.POST.get("retired") == "yes"
    actions.set_retired(exercise=found, is_retired=is_retired, by=request.user)
    messages.success(request, _("It is given out no more.") if is_retired else _("It is given out again."))
    return redirect("exercise", pk)
