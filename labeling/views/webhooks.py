"""The console's webhooks: made, tried, ended; what became of each message."""

from django import forms
from django.contrib import messages
from django.db.models import Count, F, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.actions import webhooks as actions
from labeling.errors import HeedError
from labeling.models import Webhook, WebhookDelivery
from labeling.models.webhooks import Event
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate


class WebhookForm(forms.Form):
    """A new webhook."""

    url = forms.CharField(
        label=gettext_lazy("Address"),
        max_length=500,
        help_text=gettext_lazy("Begins with https:// and is not in a private network."),
        widget=forms.URLInput,
    )
    events = forms.MultipleChoiceField(
        label=gettext_lazy("Tell it when"), choices=Event.choices, widget=forms.CheckboxSelectMultiple
    )


@never_cache
@role_required("admin")
@require_http_methods(["GET", "POST"])
def webhooks_list(request: Request) -> HttpResponse:
    """All webhooks; a new one is made here, and its secret shown in the answer and never again."""
    if request.method == "GET":
        return _list(request, WebhookForm())
    form = WebhookForm(request.POST)
    if not form.is_valid():
        return _list(request, form, status=422)
    try:
        webhook = actions.create(by=request.user, **form.cleaned_data)
    except HeedError as error:
        form.add_error("url", str(error))
        return _list(request, form, status=error.status)
    return render(request, "webhooks/created.html", {"webhook": webhook})


def _list(request: Request, form: WebhookForm, status: int = 200) -> HttpResponse:
    states = {state: Count("deliveries", filter=Q(deliveries__status=state)) for state in WebhookDelivery.Status.values}
    rows = Webhook.objects.annotate(**states).order_by(F("ended_at").desc(nulls_first=True), "-id")
    context = {"page": paginate(request, rows), "query": "", "form": form}
    return render(request, "webhooks/list.html", context, status=status)


@role_required("admin")
@require_GET
def webhook(request: Request, pk: int) -> HttpResponse:
    """One webhook, and its messages, newest first."""
    found = get_object_or_404(Webhook.objects.select_related("created_by"), pk=pk)
    labels = dict(Event.choices)
    context = {
        "webhook": found,
        "events": [labels[event] for event in found.events],
        "page": paginate(request, found.deliveries.order_by("-id")),
        "query": "",
    }
    return render(request, "webhooks/detail.html", context)


@role_required("admin")
@require_POST
def webhook_test(request: Request, pk: int) -> HttpResponse:
    """Send a message that says nothing."""
    actions.try_out(webhook=get_object_or_404(Webhook, pk=pk), by=request.user)
    messages.info(request, _("A test message is on its way: what becomes of it is shown below."))
    return redirect("webhook", pk)


@role_required("admin")
@require_POST
def webhook_end(request: Request, pk: int) -> HttpResponse:
    """Tell this address nothing more."""
    actions.end(webhook=get_object_or_404(Webhook, pk=pk), by=request.user)
    messages.success(request, _("This address is told nothing more."))
    return redirect("webhook", pk)
