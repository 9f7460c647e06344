"""What every request passes through besides Django's own."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from labeling.errors import HeedError


class DomainErrors:
    """Translates domain errors of HTML views once: 403, 409 or 422 with the message, as a page, an HTMX fragment or JSON."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, HeedError):
            return None
        if request.headers.get("Accept", "") == "application/json":  # a page's own script
            problems = getattr(error, "errors", None) or [{"place": "", "message": str(error), "field": ""}]
            return JsonResponse({"code": error.code, "problems": problems}, status=error.status)
        template = "errors/refused.html#message" if getattr(request, "htmx", False) else "errors/refused.html"
        return render(request, template, {"error": error}, status=error.status)


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
