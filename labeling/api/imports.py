"""/imports/: what came in, and how far its checks are."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, find, page, page_of, query_of
from labeling.api.schema import operation
from labeling.api.serializers import JSONObject
from labeling.models import Import


class ImportOut(serializers.Serializer):
    id = serializers.IntegerField()
    kind = serializers.ChoiceField(Import.Kind.choices)
    file_name = serializers.CharField()
    file_sha256 = serializers.CharField(allow_blank=True)
    counts = JSONObject()
    checked = serializers.IntegerField(help_text="Of its new prompts: those that the checks have looked at.")
    held = serializers.IntegerField(help_text="Of these: those held back for a person to decide.")
    created_at = serializers.DateTimeField()


class Imports(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: page_of(ImportOut)}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_imports", summary="Imports, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, Import.objects.all(), _shown, query, newest_first=True)


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
