"""The OpenAPI schema: which answers each operation may give."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from labeling.api.idempotency import HEADER
from labeling.api.serializers import ProblemOut

PROBLEMS = {
    401: "No token, or one that is not valid.",
    403: "The token's scope or its person's role is not enough.",
    404: "There is no such thing.",
    406: "Nothing that the header Accept asks for can be given.",
    409: "The rows have moved on since; look again.",
    413: "The body is too large.",
    415: "The body is of a kind that is not taken here.",
    422: "The input is wrong; `errors` names each place.",
}


IDEMPOTENCY_KEY = OpenApiParameter(
    HEADER,
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    OpenApiParameter.HEADER,
    description=(
        "The same key with the same body within 24 hours: the answer of the first time, with `Idempotent-Replayed: true`, and nothing "
        "is done twice. With another body: 409 `idempotency_key_reused`."
    ),
)


def operation(
    *,
    scope: str,
    answers: dict[Any, Any],
    request: Any = None,
    problems: tuple[int, ...] = (),
    creates: bool = False,
    **options: Any,
):
    """Documents a method: its answers, the problems it may answer with, the scope it needs, and whether it takes idempotency keys."""
    codes = {400, 401, 403, 406, *problems} | ({413, 415, 422} if request is not None else set())
    if creates:
        codes.add(409)
        options["parameters"] = [*options.get("parameters", []), IDEMPOTENCY_KEY]
    texts = {400: "The request is malformed."} | PROBLEMS
    given = {(code, "application/problem+json"): OpenApiResponse(ProblemOut, texts[code]) for code in sorted(codes)}
    needs = f"Scope: `{scope}`."
    description = "\n\n".join(filter(None, [options.pop("description", ""), needs]))
    return extend_schema(request=request, responses=answers | given, description=description, **options)
