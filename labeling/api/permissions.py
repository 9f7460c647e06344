"""What a caller may do: the token's scope, within what its person may do."""

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from labeling.models import ApiToken, Role


class HasScope(BasePermission):
    """The token carries the scope that the view names for this method, and its person is a researcher (or an admin).

    A view says `scopes = {"GET": "read", "POST": "import"}`. A method it does not name is refused.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """False with a message that says what is missing."""
        if not request.user.is_authenticated:
            return False
        method = str(request.method)
        if method == "OPTIONS" or not hasattr(view, method.lower()):
            return True  # the framework answers these itself: what is allowed, and 405
        scope = getattr(view, "scopes", {}).get("GET" if method == "HEAD" else method)
        if not request.user.has_role(Role.RESEARCHER):
            self.message = "The token's person is not a researcher."
            return False
        if scope is None or not isinstance(request.auth, ApiToken) or scope not in request.auth.scopes:
            self.message = f"The token lacks the scope {scope!r}."
            return False
        return True


class IsResearcher(BasePermission):
    """Anyone who may use the API, by token or logged in: for the documentation."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """True for researchers and admins."""
        return bool(request.user.is_authenticated and request.user.has_role(Role.RESEARCHER))
