"""Forms whose text outlives a session: what is sent after it ended waits for the log-in, and is shown to the same person again."""

from django.contrib import messages
from django.http import HttpRequest, QueryDict
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _

from labeling.models import User
from labeling.views.access import Request

SESSION_KEY = "unsent_form"
VIEWS = {"practice_item", "screening_item", "screening_self", "application"}


def owner_key(user: User) -> str:
    """Names a person in a form's hidden field `owner`, so that nobody else is shown what they typed."""
    return salted_hmac("form", str(user.pk)).hexdigest()[:20]


def keep(request: HttpRequest) -> None:
    """Put a form that came without a session into the new one."""
    request.session[SESSION_KEY] = {"path": request.path, "fields": request.POST.urlencode()}


def unsent(request: Request) -> QueryDict | None:
    """What this person sent to this address when their session had ended; once."""
    kept = request.session.get(SESSION_KEY)
    if not kept or kept["path"] != request.path:
        return None
    del request.session[SESSION_KEY]
    fields = QueryDict(kept["fields"])
    if fields.get("owner") != owner_key(request.user):
        return None
    messages.warning(request, _("You had been logged out. This is what you sent; it did not arrive, so send it again."))
    return fields
