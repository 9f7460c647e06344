"""Every error of the API as problem JSON (RFC 9457): {type, title, status, code, detail, errors: [{place, message}]}."""

import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, JsonResponse
from rest_framework import exceptions
from rest_framework.views import set_rollback

from labeling.errors import HeedError, Unavailable

log = logging.getLogger("django.request")
PROBLEM_JSON = "application/problem+json"


class TooLarge(exceptions.APIException):
    """The request's body is larger than the API takes."""

    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"


def problem(error: Exception, context: dict[str, Any]) -> JsonResponse:
    """The answer to an exception in an API view. What nobody foresaw is logged and tells the caller nothing."""
    if isinstance(error, Http404):
        error = exceptions.NotFound(str(error) or None)
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    set_rollback()
    if isinstance(error, HeedError):
        headers = {"Retry-After": "5"} if isinstance(error, Unavailable) else {}
        return _answer(error.status, error.code, str(error), getattr(error, "errors", []), headers)
    if isinstance(error, exceptions.APIException):
        return _from_framework(error)
    log.exception("%s %s", context["request"].method, context["request"].path)
    return _answer(500, "error", "Something went wrong here; it has been logged.", [], {})


def _from_framework(error: exceptions.APIException) -> JsonResponse:
    headers = {}
    if asked := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = asked
    if seconds := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(seconds))
    if isinstance(error, exceptions.ValidationError):
        errors = [{"place": place, "message": message} for place, message in _flat(error.detail, "")]
        said = "; ".join(f"{e['place']}: {e['message']}" if e["place"] else e["message"] for e in errors[:3])
        return _answer(422, "invalid", said, errors, headers)
    detail = error.detail
    code = getattr(detail, "code", error.default_code)
    return _answer(error.status_code, code, str(detail), [], headers)


def _flat(detail: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, message) of DRF's nested errors: {"query": {"splits": […]}} as query.splits."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            own = "" if name == "non_field_errors" else str(name)
            yield from _flat(inner, ".".join(filter(None, [place, own])))
    elif isinstance(detail, list):
        for number, inner in enumerate(detail):
            if isinstance(inner, dict | list):
                yield from _flat(inner, f"{place}[{number}]")
            else:
                yield place, str(inner)
    else:
        yield place, str(detail)


def _answer(status: int, code: str, detail: str, errors: list[dict], headers: dict[str, str]) -> JsonResponse:
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "code": code,
        "detail": detail,
        "errors": errors,
    }
    # Not DRF's Response: a view that renders YAML or a page would render its errors so too.
    return JsonResponse(body, status=status, headers=headers, content_type=PROBLEM_JSON)
