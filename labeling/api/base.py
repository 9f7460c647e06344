"""What the API's views share: scopes, a limit on bodies, pages by keyset, checked input."""

import base64
import codecs
import json
from collections.abc import Callable
from functools import cache, partial
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, TypeVar, cast
from uuid import UUID

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db.models import Model, QuerySet
from django.http import Http404, QueryDict
from drf_spectacular.utils import OpenApiParameter, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.parsers import BaseParser, JSONParser, MultiPartParser
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.api.errors import TooLarge
from labeling.api.idempotency import HEADER, once
from labeling.api.permissions import HasScope
from labeling.models import User

MAX_BODY_BYTES = 32 * 2**20
BLOCK_BYTES = 2**16
MAX_PAGE_ROWS = 1000

Row = TypeVar("Row", bound=Model)


class BoundedJSONParser(BaseParser):
    """JSON of at most MAX_BODY_BYTES.

    Not a subclass of JSONParser: the framework reads the whole body before it calls one of those, by Django's limit for
    page forms (DATA_UPLOAD_MAX_MEMORY_SIZE), which is lower and known to it only as a crash.
    """

    media_type = JSONParser.media_type

    def parse(self, stream, media_type=None, parser_context=None):
        """The parsed body. Raises TooLarge by the length announced, before anything is read."""
        check_length((parser_context or {})["request"], MAX_BODY_BYTES)
        try:
            text = codecs.getreader("utf-8")(stream).read()
            return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
        except ValueError as error:
            raise ParseError(f"JSON parse error - {error}") from None
        except RecursionError:
            raise ValidationError({"body": ["nested too deeply"]}) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members. Raises ValueError for a name said twice: of two answers one would be dropped unseen."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _value in pairs]
        raise ValueError(f"name said twice in one object: {next(n for n in names if names.count(n) > 1)!r}")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class UploadParser(MultiPartParser):
    """A form with files, which lie on disk while they are looked at: of as many bytes as the view takes."""

    def parse(self, stream, media_type=None, parser_context=None):
        """Fields and files. Raises TooLarge by the length announced, before anything is read, ParseError for what is no such form."""
        context = parser_context or {}
        check_length(context["request"], context["view"].most_bytes())
        try:
            return super().parse(stream, media_type, parser_context)
        except RequestDataTooBig:
            raise TooLarge("The fields beside the file are too long.") from None
        except (SuspiciousOperation, LookupError) as error:  # too many fields or files; an encoding that nobody knows
            raise ParseError(f"Multipart form parse error - {error}") from None


def check_length(request: Request, most: int) -> None:
    """Raise TooLarge by the length announced, if there is one."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > most:
        raise _too_large(most)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The body is larger than {most:,} bytes, the most that is taken at once; send less.")


def gather_chunks(request: Request, most: int) -> None:
    """Make a body that came in chunks, without its length, one of known length: Django takes it for an empty one.

    A long one goes to disk. Raises TooLarge past `most` bytes, having read hardly more than that.
    """
    meta = request.META
    if meta.get("CONTENT_LENGTH") or not meta.get("wsgi.input_terminated") or "HTTP_TRANSFER_ENCODING" not in meta:
        return
    body = cast(BinaryIO, SpooledTemporaryFile(MAX_BODY_BYTES))  # noqa: SIM115 closed, and gone, with the request
    while block := meta["wsgi.input"].read(BLOCK_BYTES):
        if body.tell() + len(block) > most:
            raise _too_large(most)
        body.write(block)
    meta["CONTENT_LENGTH"] = str(body.tell())
    body.seek(0)
    request._request._stream = body


class View(APIView):
    """A view of the API. `scopes` says which scope each method needs."""

    permission_classes: tuple[type[BasePermission], ...] = (HasScope,)
    parser_classes: tuple[type[BaseParser], ...] = (BoundedJSONParser,)
    scopes: dict[str, str] = {}
    takes_idempotency_keys = True
    secrets: tuple[str, ...] = ()  # members of a POST's answer that are shown once

    def most_bytes(self) -> int:
        """How long a body may be."""
        return MAX_BODY_BYTES

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Let nobody in who may not; only then take what they send in chunks."""
        super().initial(request, *args, **kwargs)
        gather_chunks(request, self.most_bytes())
        if (
            request.method == "POST"
            and HEADER in request.headers
            and self.takes_idempotency_keys
            and hasattr(self, "post")
        ):
            handler = partial(once, getattr(self, "post"), self.person, self.secrets)  # noqa: B009 mypy knows of none
            setattr(self, "post", handler)  # noqa: B010 the framework asks for it after this

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[Any, str]:
        """Who wishes for nothing gets the one kind of answer there is, without it being asked which would suit best."""
        renderers = self.get_renderers()
        if len(renderers) == 1 and request.META.get("HTTP_ACCEPT", "*/*") == "*/*" and not request.META["QUERY_STRING"]:
            return renderers[0], renderers[0].media_type
        return super().perform_content_negotiation(request, force)

    @property
    def person(self) -> User:
        """Whoever the caller acts for. The permissions have let them in, so it is nobody anonymous."""
        return cast(User, self.request.user)

    @property
    def sent(self) -> Any:
        """The body; {} if there was none."""
        return {} if isinstance(self.request.data, QueryDict) else self.request.data

    @staticmethod
    def checked(serializer: type[serializers.Serializer], data: Any) -> dict[str, Any]:
        """The input, checked by a serializer that refuses unknown fields. Raises ValidationError."""
        try:
            return checker_of(serializer).run_validation(data)
        except ValidationError:
            checker = serializer(data=data)  # which puts what is wrong as the framework does
            checker.is_valid(raise_exception=True)
            raise


@cache
def checker_of(serializer: type[serializers.Serializer]) -> serializers.Serializer:
    """One of its kind for all requests: making its fields anew costs more than checking by them, which leaves no trace in it."""
    return serializer()


class StrictSerializer(serializers.Serializer):
    """Refuses fields that it does not know: a misspelt option must not be silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        """Checked values. Raises ValidationError naming unknown fields too."""
        unknown = sorted(set(data) - set(self.fields)) if hasattr(data, "keys") else []
        if unknown:
            raise ValidationError({str(name)[:100]: ["Unknown field."] for name in unknown})
        return super().to_internal_value(data)


class Text(serializers.CharField):
    """A JSON string: a number is not taken for one."""

    def to_internal_value(self, data: Any) -> str:
        """The text. Raises ValidationError for anything that is no string."""
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Whole(serializers.IntegerField):
    """A JSON number without a fraction: neither "1" nor true is taken for one."""

    def to_internal_value(self, data: Any) -> int:
        """The number. Raises ValidationError for anything that is no whole number."""
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        return super().to_internal_value(data)


class YesNo(serializers.BooleanField):
    """A JSON true or false: neither "yes" nor 1 is taken for one."""

    def to_internal_value(self, data: Any) -> bool:
        """True or False. Raises ValidationError for anything else."""
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Uuid(serializers.UUIDField):
    """A UUID in its usual form, as text."""

    def to_internal_value(self, data: Any) -> UUID:
        """The UUID. Raises ValidationError for anything that does not say one with its hyphens."""
        if not isinstance(data, str) or len(data) != 36:
            self.fail("invalid", value=data)
        return super().to_internal_value(data)


class PageQuery(StrictSerializer):
    """Which page: `cursor` from the page before, `limit` rows."""

    cursor = serializers.CharField(required=False, max_length=40)
    limit = serializers.IntegerField(required=False, min_value=1, max_value=MAX_PAGE_ROWS, default=100)

    def validate_cursor(self, value: str) -> int:
        """The id that the page begins behind."""
        try:
            return int(base64.urlsafe_b64decode(value.encode("ascii", "strict")).decode("ascii"))
        except ValueError:
            raise ValidationError("Not a cursor of ours.") from None


PAGE_PARAMETERS = [
    OpenApiParameter(
        "cursor",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]+={0,2}$", "maxLength": 40},
        description="`next` of the page before; absent for the first page",
    ),
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_ROWS, "default": 100},
        description="rows per page",
    ),
]


def page_of(shown: type[serializers.Serializer]) -> serializers.Serializer:
    """For the documentation: a page of such rows."""
    fields = {"results": shown(many=True), "next": serializers.CharField(allow_null=True)}
    return inline_serializer(name=shown.__name__.removesuffix("Out") + "Page", fields=fields)


def page(
    request: Request,
    rows: QuerySet,
    show: Callable[[Any], dict[str, Any]],
    query: dict[str, Any],
    *,
    newest_first: bool = False,
    key: str = "id",
) -> Response:
    """A page of rows in order of their key, and the cursor of the next one: cost O(limit), however far back the page lies."""
    limit, cursor = query["limit"], query.get("cursor")
    if cursor is not None:
        rows = rows.filter(**{f"{key}__lt" if newest_first else f"{key}__gt": cursor})
    found: list[Model] = list(rows.order_by(f"-{key}" if newest_first else key)[: limit + 1])
    has_more = len(found) > limit
    found = found[:limit]
    following = base64.urlsafe_b64encode(str(found[-1].pk).encode()).decode() if has_more else None
    return Response({"results": [show(row) for row in found], "next": following})


def find(model: type[Row], pk: int, what: str) -> Row:
    """The row with this number. Raises Http404, also for a number that is too large for any key."""
    row = model._default_manager.filter(pk=pk).first() if pk < 2**63 else None
    if row is None:
        raise Http404(f"There is no {what} {pk}.")
    return row


def query_of(request: Request) -> dict[str, Any]:
    """The query string as a dict, each name once. Raises ValidationError for a repeated name."""
    repeated = [name for name in request.query_params if len(request.query_params.getlist(name)) > 1]
    if repeated:
        raise ValidationError({repeated[0]: ["Given twice."]})
    return request.query_params.dict()
