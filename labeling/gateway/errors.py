"""What the gateway refuses or cannot do, in the shape of OpenAI's errors."""

from typing import Any


class GatewayError(Exception):
    """An error that a client is told. `kind` is OpenAI's `type`; `code` is for programs, the message for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_seconds: int | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_seconds = retry_after_seconds

    @property
    def kind(self) -> str:
        """OpenAI's name for this family of errors."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to ask again, where that is known."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> GatewayError:
    """400: the request itself is wrong."""
    return GatewayError(400, code, message, param=param)
