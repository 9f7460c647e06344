"""/imports/: what came in, and how far its checks are; files to bring."""

from typing import Any

from django.http import QueryDict
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import imports
from labeling.actions.import_files import FORMATS, Columns
from labeling.api.base import (
    PAGE_PARAMETERS,
    PageQuery,
    StrictSerializer,
    UploadParser,
    View,
    find,
    page,
    page_of,
    query_of,
)
from labeling.api.errors import TooLarge
from labeling.api.schema import operation
from labeling.api.serializers import JSONObject
from labeling.models import Import

FORM_BYTES = 2**20  # beside the file: fields, and what parts them


def _pairs(help_text: str) -> serializers.ListField:
    text = serializers.CharField(max_length=10_000, trim_whitespace=False)
    return serializers.ListField(child=text, required=False, max_length=100, help_text=help_text)


class ImportOut(serializers.Serializer):
    id = serializers.IntegerField()
    kind = serializers.ChoiceField(Import.Kind.choices)
    file_name = serializers.CharField()
    file_sha256 = serializers.CharField(allow_blank=True)
    counts = JSONObject()
    checked = serializers.IntegerField(help_text="Of its new prompts: those that the checks have looked at.")
    held = serializers.IntegerField(help_text="Of these: those held back for a person to decide.")
    created_at = serializers.DateTimeField()


@extend_schema_field(OpenApiTypes.BINARY)
class UploadedFile(serializers.FileField):
    pass


class UploadIn(StrictSerializer):
    """A file, what is in it, and how its columns are named."""

    kind = serializers.ChoiceField(Import.Kind.choices)
    file = UploadedFile(
        max_length=255, help_text="JSON Lines, CSV, TSV, Parquet or Arrow, as its name says; .gz may follow."
    )
    format = serializers.ChoiceField(
        FORMATS,
        required=False,
        default="heed",
        help_text="What the rows are; or how the file is written, where its name does not tell.",
    )
    map = _pairs("FIELD=COLUMN, where your columns have other names. A path reaches into nested data.")
    constant = _pairs("FIELD=TEXT: the same in every row.")
    template = _pairs("FIELD=TEXT with {column} in it.")

    def to_internal_value(self, data: Any) -> Any:
        """Checked values. Raises ValidationError for a field that is given twice and is no list."""
        given = data.lists() if isinstance(data, QueryDict) else ()  # an empty body is an empty dict
        if twice := [name for name, values in given if len(values) > 1 and name not in {"map", "constant", "template"}]:
            raise ValidationError({twice[0][:100]: ["Given twice."]})
        return super().to_internal_value(data)


class Imports(View):
    scopes = {"GET": "read", "POST": "import"}
    parser_classes = (UploadParser,)

    def most_bytes(self) -> int:
        """A file, and the form about it."""
        return imports.UPLOAD_MAX_BYTES + FORM_BYTES

    @operation(
        scope="read", answers={200: page_of(ImportOut)}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_imports", summary="Imports, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, Import.objects.all(), _shown, query, newest_first=True)

    @operation(
        scope="import", answers={201: ImportOut}, request={"multipart/form-data": UploadIn}, creates=True,
        operation_id="import_file", summary="Bring a file",
        description=(
            "As on the page: prompts, or responses and the prompts they answer. All or nothing: where something is wrong the answer "
            "is 422 and `errors` names file, line and field of each place, 100 at most. What is here already is counted as present. "
            f"At most {imports.UPLOAD_MAX_BYTES // 2**20} MiB; `manage.py import_prompts` and `import_responses` take more."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = self.checked(UploadIn, request.data)
        file = given["file"]
        if file.size > imports.UPLOAD_MAX_BYTES:
            most = imports.UPLOAD_MAX_BYTES
            said = f"{file.name} has {file.size:,} bytes, an upload at most {most:,}; `manage.py import_{given['kind']}` takes more."
            raise TooLarge(said)
        columns = Columns.parse(**{name: given.get(name, []) for name in ("map", "constant", "template")})
        made = imports.IMPORT_OF[given["kind"]](
            path=file.temporary_file_path(), file_name=file.name, form=given["format"], columns=columns, by=self.person
        )
        return Response(_shown(made), status=201)


class OneImport(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: ImportOut}, problems=(404,), operation_id="get_import",
        summary="An import, and how far its checks are",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        return Response(_shown(find(Import, pk, "import")))


def _shown(record: Import) -> dict[str, Any]:
    names = ("id", "kind", "file_name", "file_sha256", "counts", "checked", "held", "created_at")
    return {name: getattr(record, name) for name in names}
