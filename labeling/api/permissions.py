"""What a caller may do: the token's scope, within what its person may do."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from labeling.models import ApiToken, Role

ROLE_OF: dict[Any, Role] = {
    ApiToken.Scope.LABEL: Role.LABELER,
    ApiToken.Scope.REVIEW: Role.REVIEWER,
    ApiToken.Scope.ADMIN: Role.ADMIN,
}  # the others are a researcher's


class HasScope(BasePermission):
    """The token carries the scope that the view names for this method, and its person holds the role that goes with it.

    A view says `scopes = {"GET": "read", "POST": "import"}`. A method it does not name is refused. `readers` are the roles that may
    GET it by the scope `read`: researchers (and so admins), unless it says otherwise.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """False with a message that says what is missing."""
        if not request.user.is_authenticated:
            return False
        method = str(request.method)
        if method == "OPTIONS" or not hasattr(view, method.lower()):
            return True  # the framework answers these itself: what is allowed, and 405
        scope = getattr(view, "scopes", {}).get("GET" if method == "HEAD" else method)
        readers = getattr(view, "readers", (Role.RESEARCHER,))
        roles = readers if scope == ApiToken.Scope.READ else (ROLE_OF.get(scope, Role.RESEARCHER),)
        if not request.user.has_role(*roles):
            self.message = f"The token's person is not a {' or '.join(roles)}."
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
