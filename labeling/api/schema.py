"""The OpenAPI schema: which answers each operation may give."""

from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema

from labeling.api.serializers import ProblemOut

PROBLEMS = {
    401: "No token, or one that is not valid.",
    403: "The token's scope or its person's role is not enough.",
    404: "There is no such thing.",
    409: "The rows have moved on since; look again.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The input is wrong; `errors` names each place.",
}


def operation(
    *, scope: str, answers: dict[Any, Any], request: Any = None, problems: tuple[int, ...] = (), **options: Any
):
    """Documents a method: its answers, the problems it may answer with, and the scope it needs."""
    codes = {400, 401, 403, *problems} | ({413, 415, 422} if request is not None else set())
    texts = {400: "The request is malformed."} | PROBLEMS
    given = {(code, "application/problem+json"): OpenApiResponse(ProblemOut, texts[code]) for code in sorted(codes)}
    needs = f"Scope: `{scope}`."
    description = "\n\n".join(filter(None, [options.pop("description", ""), needs]))
    return extend_schema(request=request, responses=answers | given, description=description, **options)
