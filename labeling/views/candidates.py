"""The console's screening: candidates without a name, their figures, blind grading, decisions, the rules."""

import uuid

from django import forms
from django.contrib import messages
from django.db.models import Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import exercise_answers, mail
from labeling.actions import applications
from labeling.actions import screenings as actions
from labeling.errors import Conflict, Invalid
from labeling.models import Application, Attempt, Decision, Grade, Group, Part, Screening, ScreeningRules
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without

ABILITY_WORDS = {
    "yes": gettext_lazy("yes"),
    "partly": gettext_lazy("partly"),
    "no": gettext_lazy("no"),
    "unsaid": gettext_lazy("rather not say"),
}


class Filters(FilterForm):
    """Which candidates to list."""

    state = forms.ChoiceField(
        label=gettext_lazy("State"), required=False,
        choices=[
            ("", gettext_lazy("to decide")), ("working", gettext_lazy("working on it")), ("decided", gettext_lazy("decided")),
            ("any", gettext_lazy("any")),
        ],
    )  # fmt: skip

    def rows(self):
        """The tries that pass, longest waiting first."""
        rows = actions.candidates()
        state = self.chosen.get("state", "decide")
        if state == "decide":
            rows = rows.filter(submitted_at__isnull=False, decisions=None)
        elif state == "working":
            rows = rows.filter(submitted_at=None)
        elif state == "decided":
            rows = rows.filter(decisions__isnull=False)
        order = "-submitted_at" if state in ("decided", "any") else "submitted_at"
        return rows.order_by(order, "id")


def _shown():
    """Tries with what a row of the list shows: no name, unless it is decided."""
    decisions = Prefetch("decisions", Decision.objects.select_related("decided_by").order_by("id"))
    about = Prefetch("user__decisions", Decision.objects.order_by("id"))
    return Screening.objects.select_related("rules", "user").prefetch_related(decisions, about)


@role_required("researcher")
@require_GET
def candidates(request: Request) -> HttpResponse:
    """Candidates and their four figures beside the cutoffs."""
    filters = Filters(request.GET)
    page = paginate(request, filters.rows(), full=_shown())
    figures = actions.figures_of(page.object_list)
    rows = [
        {"screening": each, "figures": figures[each.pk], "decision": _newest(each), "is_named": _is_named(each)}
        for each in page.object_list
    ]
    context = {
        "filters": filters,
        "page": page,
        "rows": rows,
        "query": query_without(request, "page"),
        "to_grade": actions.to_grade(request.user).count(),
        "rules": applications.rules_in_force(),
    }
    return render(request, "candidates/list.html", context)


def _is_named(screening: Screening) -> bool:
    """True once the newest decision on the person, whichever try it was on, is to accept or to decline. Asked to try again,
    nobody has a name on any try, or the next would be known by it."""
    about = list(screening.user.decisions.all())
    return bool(about) and about[-1].verdict != Decision.Verdict.RETAKE


def _newest(screening: Screening) -> Decision | None:
    decisions = list(screening.decisions.all())
    return decisions[-1] if decisions else None


class DecisionForm(forms.Form):
    """What a person decides, and why."""

    verdict = forms.ChoiceField(
        label=gettext_lazy("Decision"), widget=forms.RadioSelect,
        choices=[
            ("accepted", gettext_lazy("Accept")), ("retake", gettext_lazy("Ask to try again")), ("declined", gettext_lazy("Decline")),
        ],
    )  # fmt: skip
    group = forms.ChoiceField(
        label=gettext_lazy("Group, if accepted"), required=False, choices=Group.choices,
        help_text=gettext_lazy("Held-out labels evaluate and are never trained on."),
    )  # fmt: skip
    reason = forms.CharField(
        label=gettext_lazy("Reason"), max_length=5000, widget=forms.Textarea(attrs={"rows": 3}),
        help_text=gettext_lazy("For the team; kept with the decision."),
    )  # fmt: skip
    message = forms.CharField(
        label=gettext_lazy("To the candidate (optional)"), required=False, max_length=5000,
        widget=forms.Textarea(attrs={"rows": 3}), help_text=gettext_lazy("Goes with the e-mail, and stands on their page."),
    )  # fmt: skip
    although_ungraded = forms.BooleanField(
        label=gettext_lazy("Decide although grades are missing"), required=False,
        help_text=gettext_lazy("No more can be given then, and the average stays unknown."),
    )  # fmt: skip
    seen = forms.IntegerField(min_value=0, widget=forms.HiddenInput)


@role_required("researcher")
@require_GET
def candidate(request: Request, screening_uuid: uuid.UUID) -> HttpResponse:
    """One candidate: figures, the rows behind each, the decision."""
    found = get_object_or_404(_shown().filter(pk__in=actions.candidates().values("pk")), uuid=screening_uuid)
    return _page(request, found)


def _page(request: Request, found: Screening, form: DecisionForm | None = None, status: int = 200) -> HttpResponse:
    decisions = list(found.decisions.all())
    newest = decisions[-1] if decisions else None
    figures = actions.figures_of([found])[found.pk]
    initial = {"seen": newest.pk if newest else 0, "group": Group.TRAINING}
    said = Application.objects.filter(user=found.user).first()
    context = {
        "screening": found,
        "figures": figures,
        "decisions": decisions,
        "is_named": _is_named(found),
        "rows": _rows(request, found) if found.submitted_at else [],
        "self_assessment": _self_rows(found),
        "form": form or DecisionForm(initial=initial),
        "can_decide": found.submitted_at and not (newest and newest.verdict == Decision.Verdict.ACCEPTED)
        and found.user_id != request.user.pk,
        "application": said,
        "earlier": Screening.objects.filter(user=found.user, number__lt=found.number).order_by("number"),
    }  # fmt: skip
    return render(request, "candidates/detail.html", context, status=status)


def _rows(request: Request, found: Screening) -> list[dict]:
    """Each item with both answers. A grade is shown to its grader; those of others once all are in."""
    grades = Prefetch("grades", Grade.objects.select_related("grader").order_by("seat"))
    rows = []
    for attempt in found.attempts.select_related("exercise__schema").prefetch_related(grades).order_by("position"):
        exercise, order = attempt.exercise, attempt.shown_order
        given = list(attempt.grades.all())
        is_graded = len(given) >= found.rules.graders
        rows.append({
            "attempt": attempt,
            "exercise": exercise,
            "given": exercise_answers.shown(attempt.content, exercise, order),
            "expected": exercise_answers.shown(exercise.reference, exercise, order),
            "comparisons": exercise_answers.comparisons(attempt.content, exercise, order) if exercise.part == Part.RANKING else [],
            "grades": [g for g in given if is_graded or g.grader_id == request.user.pk],
            "grade_count": len(given),
            "average": sum(g.grade for g in given) / len(given) if is_graded and given else None,
        })  # fmt: skip
    return rows


def _self_rows(found: Screening) -> dict:
    """The self-assessment in words."""
    said = found.self_assessment
    return {
        kind: [(name, ABILITY_WORDS.get(value, value)) for name, value in said.get(kind, {}).items()]
        for kind in ("groups", "topics")
    } | {"comment": said.get("comment", "")}


@role_required("researcher")
@require_POST
def candidate_decide(request: Request, screening_uuid: uuid.UUID) -> HttpResponse:
    """Decide, with a reason; the candidate gets mail. Refused: everything typed is still there."""
    found = get_object_or_404(_shown(), uuid=screening_uuid)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return _page(request, found, form, status=422)
    before = set(found.user.decisions.values_list("pk", flat=True))
    try:
        decision = actions.decide(screening=found, by=request.user, **form.cleaned_data)
    except (Invalid, Conflict) as error:
        form.add_error(None, str(error))
        return _page(request, _shown().get(pk=found.pk), form, status=error.status)
    if decision.pk not in before:
        _tell(request, decision)
    return redirect("candidate", found.uuid)


def _tell(request: Request, decision: Decision) -> None:
    """Mail to the candidate; if it does not go out, that is said here."""
    subjects = {
        Decision.Verdict.ACCEPTED: _("Welcome to Heed"),
        Decision.Verdict.DECLINED: _("Your application"),
        Decision.Verdict.RETAKE: _("Another try"),
    }
    link = request.build_absolute_uri(reverse("home"))
    context = {"person": decision.user, "decision": decision, "link": link}
    verdict = Decision.Verdict(decision.verdict)
    if mail.send(f"people/{verdict}_mail.txt", str(subjects[verdict]), decision.user.email, context):
        messages.success(request, _("Decided, and an e-mail is on its way."))
    else:
        messages.warning(request, _("Decided. The e-mail could not be sent: tell them yourself."))


# Grading -------------------------------------------------------------------------------------------------------


class GradeForm(forms.Form):
    """A researcher's grade of one demonstration."""

    grade = forms.TypedChoiceField(
        label=gettext_lazy("Grade"), coerce=int, widget=forms.RadioSelect, choices=[(n, str(n)) for n in exercise_answers.QUALITY],
        error_messages={"required": gettext_lazy("Choose a grade from 1 to 7.")},
    )  # fmt: skip
    comment = forms.CharField(
        label=gettext_lazy("Comment (optional)"), required=False, max_length=actions.COMMENT_MAX_CHARS,
        widget=forms.Textarea(attrs={"rows": 3}), help_text=gettext_lazy("For the team, shown once all grades are in."),
    )  # fmt: skip


@role_required("researcher")
@require_GET
def grading(request: Request) -> HttpResponse:
    """The next demonstration to grade; `?after=` passes one over for now."""
    waiting = actions.to_grade(request.user)
    passed = request.GET.get("after", "")
    following = list(waiting.values_list("uuid", flat=True)[:200])
    if not following:
        return render(request, "candidates/graded.html")
    place = next((n for n, each in enumerate(following) if str(each) == passed), -1)
    return redirect("grade", following[(place + 1) % len(following)])


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def grade(request: Request, attempt_uuid: uuid.UUID) -> HttpResponse:
    """One demonstration to grade: the prompt and the text, and nothing about who wrote it."""
    rows = Attempt.objects.filter(exercise__part=Part.DEMONSTRATION, screening__submitted_at__isnull=False)
    attempt = get_object_or_404(rows.select_related("exercise__schema"), ~Q(user=request.user), uuid=attempt_uuid)
    form = GradeForm(request.POST or None)
    status = 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                actions.grade(attempt=attempt, by=request.user, **form.cleaned_data)
            except (Conflict, Invalid) as error:
                form.add_error(None, str(error))
                status = error.status
            else:
                messages.success(request, _("Graded."))
                return redirect("grading")
    context = {
        "attempt": attempt,
        "form": form,
        "mine": attempt.grades.filter(grader=request.user).first(),
        "left": actions.to_grade(request.user).count(),
    }
    return render(request, "candidates/grade.html", context, status=status)


# The rules -----------------------------------------------------------------------------------------------------


class Lines(forms.CharField):
    """A list, one entry a line."""

    widget = forms.Textarea(attrs={"rows": 8})

    def prepare_value(self, value):
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value):
        lines = [line.strip() for line in (value or "").splitlines()] if not isinstance(value, list) else value
        return list(dict.fromkeys(line for line in lines if line))


class RulesForm(forms.ModelForm):
    """The rules of screening."""

    groups = Lines(
        label=gettext_lazy("Groups of the self-assessment"), required=False, help_text=gettext_lazy("One a line.")
    )
    topics = Lines(
        label=gettext_lazy("Topics of the self-assessment"), required=False, help_text=gettext_lazy("One a line.")
    )
    flagging_cutoff = forms.FloatField(
        label=gettext_lazy("Flagging: share agreed on, 0 to 1"), min_value=0, max_value=1, widget=forms.NumberInput(attrs={"step": "0.01"})
    )  # fmt: skip
    ranking_cutoff = forms.FloatField(
        label=gettext_lazy("Ranking: share of comparisons agreed on, 0 to 1"), min_value=0, max_value=1,
        widget=forms.NumberInput(attrs={"step": "0.01"}),
    )  # fmt: skip
    demonstration_cutoff = forms.FloatField(
        label=gettext_lazy("Demonstrations: average grade, 1 to 7"), min_value=1, max_value=7,
        widget=forms.NumberInput(attrs={"step": "0.1"}),
    )  # fmt: skip
    graders = forms.IntegerField(
        label=gettext_lazy("Researchers who grade each demonstration"), min_value=1, max_value=9
    )
    max_tries = forms.IntegerField(label=gettext_lazy("Tries at most"), min_value=1, max_value=20)

    class Meta:
        model = ScreeningRules
        fields = ("flagging_items", "flagging_cutoff", "ranking_items", "ranking_cutoff", "demonstration_items",
                  "demonstration_cutoff", "graders", "max_tries", "cooldown_days", "groups", "topics", "terms")  # fmt: skip
        widgets = {"terms": forms.Textarea(attrs={"rows": 10})}

    def clean(self):
        cleaned = super().clean() or self.cleaned_data
        items = [cleaned.get(f"{part}_items") for part in ("flagging", "ranking", "demonstration")]
        if None not in items and not any(items):
            raise forms.ValidationError(_("A screening needs at least one item."))
        return cleaned


@role_required("researcher")
@require_http_methods(["GET", "POST"])
def screening_rules(request: Request) -> HttpResponse:
    """The rules in force, and their history. Saving makes a new version; tries that were begun keep theirs."""
    current = applications.rules_in_force()
    form = RulesForm(request.POST or None, instance=current if request.method == "GET" else None)
    if request.method == "POST" and form.is_valid():
        actions.set_rules(by=request.user, **form.cleaned_data)
        messages.success(request, _("Saved. Tries that were begun keep the rules they began under."))
        return redirect("screening_rules")
    versions = ScreeningRules.objects.select_related("changed_by").order_by("-version")[:50]
    context = {"form": form, "current": current, "versions": versions}
    return render(request, "candidates/rules.html", context, status=422 if form.errors else 200)
