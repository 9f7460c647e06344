"""The console's keys to the gateway: made, changed, revoked; what each used."""

from datetime import timedelta

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db.models import F, Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labeling.actions import gateway_keys
from labeling.errors import HeedError
from labeling.models import GatewayKey, GatewayUsage
from labeling.views.access import Request, role_required
from labeling.views.listing import paginate

USAGE_DAYS = 30
CONSENT_HELP = gettext_lazy(
    "Only tick this if the organization agreed. Single requests can still be kept out by X-Heed-Opt-Out: 1."
)


class LimitsForm(forms.Form):
    """What an admin may change about a key."""

    may_train = forms.BooleanField(
        label=gettext_lazy("Prompts may be kept and used to train models"), required=False, help_text=CONSENT_HELP
    )
    requests_per_minute = forms.IntegerField(
        label=gettext_lazy("Requests a minute"), min_value=1, max_value=1_000_000, initial=60
    )
    tokens_per_minute = forms.IntegerField(
        label=gettext_lazy("Tokens a minute"),
        min_value=1,
        max_value=1_000_000_000,
        initial=20_000,
        help_text=gettext_lazy("Of prompts and answers together."),
    )


class KeyForm(LimitsForm):
    """A new key."""

    organization = forms.CharField(label=gettext_lazy("Organization"), max_length=100)
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=100,
        help_text=gettext_lazy("What the key is for: an application, a team."),
    )
    days = forms.IntegerField(
        label=gettext_lazy("Days until it expires"), min_value=1, max_value=gateway_keys.MAX_DAYS, initial=365
    )
    field_order = ["organization", "name", "may_train", "requests_per_minute", "tokens_per_minute", "days"]


class ChangeForm(LimitsForm):
    """Limits, consent and end of a key that is there."""

    expires_at = forms.DateTimeField(
        label=gettext_lazy("Expires"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
    )


@never_cache
@role_required("admin")
@require_http_methods(["GET", "POST"])
def gateway_keys_list(request: Request) -> HttpResponse:
    """All keys; a new one is made here, and its secret shown in the answer and never again."""
    if request.method == "GET":
        return _list(request, KeyForm())
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _list(request, form, status=422)
    try:
        key, secret = gateway_keys.create(by=request.user, **form.cleaned_data)
    except HeedError as error:
        form.add_error("name", str(error))
        return _list(request, form, status=error.status)
    context = {"key": key, "secret": secret, "gateway_url": settings.GATEWAY_PUBLIC_URL}
    return render(request, "gateway_keys/created.html", context)


@role_required("admin")
@require_http_methods(["GET", "POST"])
def gateway_key(request: Request, pk: int) -> HttpResponse:
    """One key: what it used, its limits and consent."""
    key = get_object_or_404(GatewayKey.objects.select_related("created_by", "consent_by", "revoked_by"), pk=pk)
    fields = ("may_train", "requests_per_minute", "tokens_per_minute", "expires_at")
    form = ChangeForm(request.POST or None, initial={name: getattr(key, name) for name in fields})
    status = 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                gateway_keys.change(key=key, by=request.user, **form.cleaned_data)
            except HeedError as error:
                form.add_error(None, str(error))
                status = error.status
            else:
                messages.success(request, _("Saved. It holds from the next request on."))
                return redirect("gateway_key", pk)
    context = {"key": key, "form": form, "page": paginate(request, key.usage.order_by("-day")), "query": ""}
    return render(request, "gateway_keys/detail.html", context, status=status)


@role_required("admin")
@require_POST
def gateway_key_revoke(request: Request, pk: int) -> HttpResponse:
    """End a key, at once."""
    gateway_keys.revoke(key=get_object_or_404(GatewayKey, pk=pk), by=request.user)
    messages.success(request, _("The key opens nothing any more."))
    return redirect("gateway_key", pk)


def _list(request: Request, form: KeyForm, status: int = 200) -> HttpResponse:
    since = timezone.localdate() - timedelta(days=USAGE_DAYS - 1)
    context = {
        "page": paginate(
            request,
            _with_usage(GatewayKey.objects.all(), since).order_by(F("revoked_at").desc(nulls_first=True), "-id"),
        ),
        "query": "",
        "form": form,
        "playground": GatewayUsage.objects.filter(key=None, day__gte=since).aggregate(
            requests=Coalesce(Sum("requests"), 0),
            tokens=Coalesce(Sum(F("prompt_tokens") + F("completion_tokens")), 0),
            captured=Coalesce(Sum("captured"), 0),
        ),
        "days": USAGE_DAYS,
        "gateway_url": settings.GATEWAY_PUBLIC_URL,
    }
    return render(request, "gateway_keys/list.html", context, status=status)


def _with_usage(keys: QuerySet[GatewayKey], since) -> QuerySet[GatewayKey]:
    recent = Q(usage__day__gte=since)
    return keys.annotate(
        requests=Coalesce(Sum("usage__requests", filter=recent), 0),
        errors=Coalesce(Sum("usage__errors", filter=recent), 0),
        tokens=Coalesce(Sum(F("usage__prompt_tokens") + F("usage__completion_tokens"), filter=recent), 0),
        captured=Coalesce(Sum("usage__captured", filter=recent), 0),
    )
