"""/label-schemas/: versions of the rating form."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import label_schemas
from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import LabelSchemaIn, LabelSchemaOut, LabelSchemaPage
from labeling.models import LabelSchema


class LabelSchemas(View):
    scopes = {"GET": "read", "POST": "import"}

    @operation(
        scope="read", answers={200: LabelSchemaPage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_label_schemas", summary="Versions of the rating form, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, LabelSchema.objects.order_by(), _shown, query, newest_first=True)

    @operation(
        scope="import", answers={200: LabelSchemaOut, 201: LabelSchemaOut}, request=LabelSchemaIn, creates=True,
        operation_id="create_label_schema", summary="Make a new version of the rating form",
        description="201 when it was made; 200 when the newest version says the same. Batches name it by `schema_version`.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        newest = LabelSchema.objects.first()
        made = label_schemas.create_schema(content=self.checked(LabelSchemaIn, request.data)["content"], by=self.person)
        return Response(_shown(made), status=200 if made == newest else 201)


def _shown(schema: LabelSchema) -> dict[str, Any]:
    return {name: getattr(schema, name) for name in ("id", "version", "content", "created_at")}
