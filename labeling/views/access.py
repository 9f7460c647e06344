"""Who may open a page. Everyone is logged in already (LoginRequiredMiddleware); this asks for a role."""

from collections.abc import Callable
from functools import wraps

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django_htmx.middleware import HtmxDetails

from labeling.models import User


class Request(HttpRequest):
    """A request as views get it, for the type checker: somebody is logged in, and HTMX may have asked."""

    user: User
    htmx: HtmxDetails


def role_required(*roles: str) -> Callable:
    """A view decorator: 403 unless the person holds one of the roles. Put it outermost, so that the role is asked before the method."""

    def decorate(view: Callable) -> Callable:
        @wraps(view)
        def guarded(request: Request, *args, **kwargs) -> HttpResponse:
            if not request.user.has_role(*roles):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return guarded

    return decorate
