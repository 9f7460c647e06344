"""The front door: home by role, invitation links, health, and refused forms."""

from django.contrib.auth.decorators import login_not_required
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views.decorators.http import require_GET

from labeling.actions import people
from labeling.views.access import Request
from labeling.views.applications import applicant_home


@require_GET
def home(request: Request) -> HttpResponse:
    """Where a day starts: labelers at their queue, reviewers in the console, applicants where they stand."""
    if request.user.is_labeler:
        return redirect("tasks")
    if request.user.has_role("reviewer", "researcher"):
        return redirect("reviews")
    if request.user.has_role("applicant"):
        return applicant_home(request)
    return render(request, "account/waiting.html")


@login_not_required
@require_GET
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """An invitation's link: remember it in the session and go to sign up."""
    request.session[people.SESSION_KEY] = secret
    if people.open_invitation(request) is None:
        return render(request, "account/invitation_gone.html", status=410)
    return redirect("account_signup")


@login_not_required
@require_GET
def favicon(request: HttpRequest) -> HttpResponse:
    """Browsers ask for this address on pages that are not ours to mark, a downloaded file's among them."""
    return redirect(static("img/heed.svg"))


@login_not_required
@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """200 when this process answers and its database does, 503 while the database is away."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except OperationalError:
        return JsonResponse({"ok": False, "problem": "the database does not answer"}, status=503)
    return JsonResponse({"ok": True})


@login_not_required
def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form from an old page. What was typed is in the saved draft; a fresh page lets it be sent."""
    return render(request, "errors/csrf.html", {"reason": reason}, status=403)
