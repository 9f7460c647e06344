"""/batches/: order tasks."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import batches
from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import BatchIn, BatchOut, BatchPage
from labeling.models import Batch


class Batches(View):
    scopes = {"GET": "read", "POST": "import"}

    @operation(
        scope="read", answers={200: BatchPage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_batches", summary="Batches, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        return page(request, Batch.objects.all(), _shown, self.checked(PageQuery, query_of(request)), newest_first=True)

    @operation(
        scope="import", answers={200: BatchOut, 201: BatchOut}, request=BatchIn, problems=(409,),
        operation_id="create_batch", summary="Order a batch",
        description="201 when it was made; 200 when the same order under the same name was there; 409 when another was.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        order = self.checked(BatchIn, request.data)
        is_known = Batch.objects.filter(name=order["name"]).exists()
        batch = batches.create_batch(**order, by=self.person)
        return Response(_shown(batch), status=200 if is_known else 201)


def _shown(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in ("id", "name", "kind", "status", "counts", "created_at")}
