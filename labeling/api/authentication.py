"""Who is calling: `Authorization: Bearer heed_…`."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from labeling.actions import tokens
from labeling.models import ApiToken, User


class TokenAuthentication(BaseAuthentication):
    """A valid token is its person, with the token as `request.auth`; a wrong one is refused, never ignored."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """(person, token), or None when the request carries no token at all."""
        kind, _, secret = get_authorization_header(request).partition(b" ")
        if not kind:
            return None
        token = tokens.find(secret.strip().decode("latin-1")) if kind.lower() == b"bearer" else None
        if token is None:
            raise AuthenticationFailed("The token is unknown, expired or withdrawn.")
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        """What a 401 asks for."""
        return 'Bearer realm="Heed"'


class TokenScheme(OpenApiAuthenticationExtension):
    """How the OpenAPI schema names it."""

    target_class = TokenAuthentication
    name = "token"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        """A bearer token."""
        return {"type": "http", "scheme": "bearer", "description": "A token made by `manage.py create_token`."}
