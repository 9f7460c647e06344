"""What every request passes through besides Django's own."""

from collections.abc import Callable
from functools import cached_property

from csp.constants import HEADER
from csp.middleware import CSPMiddleware
from csp.utils import build_policy
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware, LoginRequiredMiddleware
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.views import redirect_to_login
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxMiddleware
from whitenoise.middleware import WhiteNoiseMiddleware

from labeling.errors import HeedError
from labeling.views import kept_forms
from labeling.views.working import problems_json, wants_json

NOT_TYPED = kept_forms.OF_THE_PAGE | {"kind", "batch"}  # what a button alone sends


# Programs ------------------------------------------------------------------------------------------------------


def is_program(request: HttpRequest) -> bool:
    """True for what comes to the API with a token, right or wrong: no session and no cookie has a say in it, there or before."""
    return "HTTP_AUTHORIZATION" in request.META and request.path_info.startswith("/api/")


class _ForPages:
    """Before a middleware's class: programs pass it by. What it does before a view stays, so that it still closes what it closes."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request) if is_program(request) else super().__call__(request)  # type: ignore[misc,attr-defined]


class StaticFiles(_ForPages, WhiteNoiseMiddleware):
    pass


class Sessions(_ForPages, SessionMiddleware):
    pass


class Messages(_ForPages, MessageMiddleware):
    pass


class Htmx(_ForPages, HtmxMiddleware):
    pass


class Authentication(AuthenticationMiddleware):
    """Who has the session; a program is nobody until the API knows its token."""

    def process_request(self, request: HttpRequest) -> None:
        if is_program(request):
            request.user = AnonymousUser()
        else:
            super().process_request(request)


class ContentSecurity(CSPMiddleware):
    """Its policy, put into words once: nearly every answer has the same."""

    OWN = ("_csp_config", "_csp_update", "_csp_replace", "_csp_exempt")

    @cached_property
    def usual(self) -> str:
        return build_policy() or ""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        has_own = request.csp_nonce or any(hasattr(response, name) for name in self.OWN)  # type: ignore[attr-defined]
        if has_own or settings.DEBUG:
            return super().process_response(request, response)
        response.headers.setdefault(HEADER, self.usual)
        return response


class DomainErrors:
    """Translates domain errors of HTML views once: 403, 409 or 422 with the message, as a page, an HTMX fragment or JSON."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, RequestDataTooBig | TooManyFieldsSent):
            error = TooLong(error)
        return refused(request, error) if isinstance(error, HeedError) else None


def refused(request: HttpRequest, error: HeedError) -> HttpResponse:
    """The answer that says why: a page, an HTMX fragment, or JSON for a page's own script."""
    if wants_json(request):
        problems = getattr(error, "errors", None) or [{"place": "", "message": str(error), "field": ""}]
        return problems_json(problems, status=error.status, code=error.code)
    template = "errors/refused.html#message" if getattr(request, "htmx", False) else "errors/refused.html"
    return render(request, template, {"error": error}, status=error.status)


class TooLong(HeedError):
    """A form with more in it than Heed reads into memory."""

    status = 413
    code = "too_large"

    def __init__(self, reason: RequestDataTooBig | TooManyFieldsSent):
        if isinstance(reason, RequestDataTooBig):
            limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 2**20
            message = _("This is too long: a form takes %(n)d MB. Go back, shorten it and send it again.") % {
                "n": limit
            }
        else:
            message = _("The form has more fields than the %(n)d that are read.")
            message %= {"n": settings.DATA_UPLOAD_MAX_NUMBER_FIELDS}
        super().__init__(message)


class LongForms:
    """Refuses a form that is too long with 413 and words. Stands before whatever reads forms: there it would be a bare 400."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view, args, kwargs) -> HttpResponse | None:
        if getattr(view, "csrf_exempt", False):  # nothing reads forms for the API, so neither do we
            return None
        try:
            request.POST  # noqa: B018 reading it is what may fail
        except (RequestDataTooBig, TooManyFieldsSent) as error:
            return refused(request, TooLong(error))
        return None


class LoginRequired(LoginRequiredMiddleware):
    """Closed by default. What a page sent after its session ended waits in the new session for the log-in."""

    def handle_no_permission(self, request: HttpRequest, view_func: Callable) -> HttpResponse:  # type: ignore[override]
        match = request.resolver_match
        if "HX-Request" in request.headers and not wants_json(request):
            return _fragment_refused(request)
        if request.method == "POST" and match is not None and match.view_name in kept_forms.VIEWS:
            kept_forms.keep(request)
            return redirect_to_login(request.path)
        is_task = match is not None and match.view_name in {"task_submit", "task_release", "task_skip"}
        if request.method != "POST" or not is_task or wants_json(request):
            if _is_typed(request) and kept_forms.keep_for_later(request):
                return redirect_to_login(reverse("unsent_form"))
            return super().handle_no_permission(request, view_func)
        task_uuid = match.kwargs["task_uuid"]  # type: ignore[union-attr]
        request.session["unsent"] = {"task": str(task_uuid), "fields": request.POST.dict()}
        return redirect_to_login(reverse("task", args=[task_uuid]))

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        return kept_forms.remember(request, response)


def _fragment_refused(request: HttpRequest) -> HttpResponse:
    """For a part of a page, never the log-in in its place: what it asks for is refused with words, so that nobody leaves a page that
    they type on; what it sends waits as any form does, and the whole page goes to the log-in."""
    match = request.resolver_match
    here = request.htmx.current_url_abs_path or reverse("home")  # type: ignore[attr-defined]
    if request.method != "POST" or match is None:
        log_in = redirect_to_login(here).url
        return render(request, "errors/logged_out.html", {"log_in": log_in}, status=403)
    if page := kept_forms.SAVES.get(match.view_name):
        here = reverse(page, kwargs=match.kwargs)
        kept_forms.keep(request, path=here)
    elif _is_typed(request) and kept_forms.keep_for_later(request):
        here = reverse("unsent_form")
    return HttpResponseClientRedirect(redirect_to_login(here).url)


def _is_typed(request: HttpRequest) -> bool:
    """True for a form that a person sent from a page of ours; not what a script asks for, nor a file, nor about accounts."""
    is_elsewhere = request.path.startswith(("/accounts/", "/admin/", "/api/"))
    is_form = request.method == "POST" and not wants_json(request) and not is_elsewhere and not request.FILES
    return is_form and any(str(value).strip() and name not in NOT_TYPED for name, value in request.POST.items())


class RequireSecondFactor:
    """With MFA=required, reviewers, researchers and admins set a second factor up before they see anything else."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if settings.MFA == "required" and request.user.is_authenticated and not request.path.startswith("/accounts/"):
            from allauth.mfa.utils import is_mfa_enabled

            user = request.user
            if user.has_role("reviewer", "researcher", "admin") and not is_mfa_enabled(user):
                return redirect("mfa_activate_totp")
        return self.get_response(request)
