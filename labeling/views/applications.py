"""An applicant's pages: where they stand, and the application to write, send and withdraw."""

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labeling.actions import applications as actions
from labeling.actions import screenings
from labeling.errors import Conflict, Invalid
from labeling.models import Role
from labeling.views import kept_forms
from labeling.views.access import Request, role_required


def applicant_home(request: Request) -> HttpResponse:
    """Where an applicant stands and what is next. Shown at the front door."""
    standing = actions.standing(request.user)
    parts = screenings.parts_of(standing.screening) if standing.step == "screen" and standing.screening else []
    context = {
        "standing": standing,
        "application": standing.application,
        "done": sum(part.done for part in parts),
        "total": sum(part.total for part in parts),
    }
    return render(request, "applications/home.html", context)


class ApplicationForm(forms.Form):
    """What an applicant says. Nothing is required to keep it; what is missing is said when it is sent."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        required=False,
        max_length=150,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    languages = forms.CharField(
        label=gettext_lazy("Languages that you read and write well"), required=False, max_length=500
    )
    why = forms.CharField(
        label=gettext_lazy("Why you would like to label"), required=False, max_length=5000,
        widget=forms.Textarea(attrs={"rows": 5}),
    )  # fmt: skip
    hours_per_week = forms.IntegerField(
        label=gettext_lazy("Hours a week"), required=False, min_value=1, max_value=actions.MAX_HOURS
    )
    availability = forms.CharField(
        label=gettext_lazy("When (optional)"), required=False, max_length=500,
        help_text=gettext_lazy("Days, times of day, time zone."),
    )  # fmt: skip
    consents = forms.BooleanField(label=gettext_lazy("I consent to these terms."), required=False)


@role_required(Role.APPLICANT)
@never_cache
@require_http_methods(["GET", "POST"])
def application(request: Request) -> HttpResponse:
    """Write the application, keep it, send it; change it until it is decided."""
    if request.method == "GET":
        fields = kept_forms.unsent(request)
        return _page(request, ApplicationForm(fields) if fields else ApplicationForm(initial=_said(request)))
    form = ApplicationForm(request.POST)
    if not form.is_valid():
        return _page(request, form, status=422)
    try:
        sent = actions.save(send="send" in request.POST, by=request.user, **form.cleaned_data)
    except Conflict as conflict:
        form.add_error(None, str(conflict))
        return _page(request, form, status=409)
    except Invalid as error:
        kept = _keep_draft(request, form)
        for each in error.errors:
            form.add_error(each["field"], each["message"])
        return _page(request, form, status=422, is_kept=kept)
    messages.success(
        request, _("Sent.") if sent.status == sent.Status.SUBMITTED else _("Kept. Nobody reads it until you send it.")
    )
    return redirect("home")


def _keep_draft(request: Request, form: ApplicationForm) -> bool:
    """Keep what was refused, as far as it was not sent before (what was sent stays as it was)."""
    try:
        actions.save(send=False, by=request.user, **form.cleaned_data)
    except Invalid:
        return False
    return True


def _said(request: Request) -> dict:
    said = actions.standing(request.user).application
    initial: dict = {"name": request.user.name, "why": request.user.statement}
    if said:
        initial |= {
            "languages": said.languages,
            "hours_per_week": said.hours_per_week,
            "availability": said.availability,
        }
        initial["consents"] = bool(said.consented_at)
    return initial


def _page(request: Request, form: ApplicationForm, status: int = 200, is_kept: bool = False) -> HttpResponse:
    standing = actions.standing(request.user)
    context = {
        "form": form,
        "standing": standing,
        "application": standing.application,
        "terms": ((standing.application and standing.application.rules) or standing.rules).terms,
        "is_kept": is_kept,
        "owner_key": kept_forms.owner_key(request.user),
    }
    return render(request, "applications/edit.html", context, status=status)


@role_required(Role.APPLICANT)
@require_POST
def application_withdraw(request: Request) -> HttpResponse:
    """Take the application back. It can be sent again."""
    actions.withdraw(by=request.user)
    messages.info(request, _("Withdrawn. What you wrote is kept, and you can send it again."))
    return redirect("home")
