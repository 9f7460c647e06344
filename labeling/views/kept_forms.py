"""Forms whose text outlives a session: what is sent after it ended waits for the log-in, and is shown to the same person again.

The pages of VIEWS show it in their own form. What was sent anywhere else waits on a page of its own, to be sent again from there.
"""

from django.conf import settings
from django.contrib import messages
from django.core.signing import BadSignature, Signer
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from labeling.models import User
from labeling.views.access import Request

SESSION_KEY = "unsent_form"
LATER_KEY = "form_to_send_again"
COOKIE = "heed_owner"
COOKIE_SECONDS = 365 * 24 * 3600
OF_THE_PAGE = {
    "csrfmiddlewaretoken",
    "key",
    "owner",
    "page",
    "editor",
    "submit_key",
    "seen",
    "seen_review",
    "revision",
    "base",
    "next",
}
VIEWS = {"practice_item", "screening_item", "screening_self", "application", "imports"}
# What saves as it is typed, and the page that it saves.
SAVES = {"practice_save": "practice_item", "screening_save": "screening_item"}


def owner_key(user: User) -> str:
    """Names a person in a form's hidden field `owner`, so that nobody else is shown what they typed."""
    return salted_hmac("form", str(user.pk)).hexdigest()[:20]


def keep(request: HttpRequest, path: str = "") -> None:
    """Put a form that came without a session into the new one, for the page of this path (by default its own). No file is kept."""
    kept = {"path": path or request.path, "fields": request.POST.urlencode(), "has_file": bool(request.FILES)}
    request.session[SESSION_KEY] = kept | {"owner": request.POST.get("owner") or _last_here(request)}


def unsent(request: Request) -> QueryDict | None:
    """What this person sent to this address when their session had ended; once."""
    kept = request.session.get(SESSION_KEY)
    if not kept or kept["path"] != request.path:
        return None
    del request.session[SESSION_KEY]
    fields = QueryDict(kept["fields"])
    if kept.get("owner") != owner_key(request.user):
        return None
    said = _("You had been logged out. This is what you sent; it did not arrive, so send it again.")
    if kept.get("has_file"):
        said = _(
            "You had been logged out: the file did not arrive. Choose it and send it again; all else is still there."
        )
    messages.warning(request, said)
    return fields


# Pages that do not show it themselves --------------------------------------------------------------------------------


def remember(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """Have the browser know who was logged in last, beyond the session: whose a form is that comes after its end."""
    user = getattr(request, "_cached_user", None)  # asked for by now, if this is a page; never looked up for this alone
    if user is None or not user.is_authenticated:
        return response
    value = Signer(salt=COOKIE).sign(owner_key(user))
    if request.COOKIES.get(COOKIE) != value:
        secure = settings.SESSION_COOKIE_SECURE
        response.set_cookie(COOKIE, value, COOKIE_SECONDS, httponly=True, samesite="Lax", secure=secure)
    return response


def _last_here(request: HttpRequest) -> str:
    """Who was logged in last in this browser; empty if nobody knows."""
    try:
        return Signer(salt=COOKIE).unsign(request.COOKIES.get(COOKIE, ""))
    except BadSignature:
        return ""


def keep_for_later(request: HttpRequest) -> bool:
    """Put a form that came without a session into the new one, to be sent again; False if nobody knows whose it is."""
    owner = _last_here(request)
    if not owner:
        return False
    kept = {"path": request.get_full_path(), "fields": request.POST.urlencode(), "owner": owner}
    request.session[LATER_KEY] = kept
    return True


@never_cache
@require_http_methods(["GET", "POST"])
def unsent_form(request: Request) -> HttpResponse:
    """What this person sent when their session had ended, to send again or (POST) to forget."""
    kept = request.session.get(LATER_KEY)
    if request.method == "POST" or not kept or kept["owner"] != owner_key(request.user):
        request.session.pop(LATER_KEY, None)
        return redirect("home")
    fields = [
        (name, value)
        for name, values in QueryDict(kept["fields"]).lists()
        for value in values
        if name != "csrfmiddlewaretoken"
    ]
    typed = [(name.replace("_", " "), value) for name, value in fields if value.strip() and name not in OF_THE_PAGE]
    return render(request, "errors/unsent.html", {"path": kept["path"], "fields": fields, "typed": typed})
