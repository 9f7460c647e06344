"""/exports/: order them, wait for them, fetch their files."""

import re
from typing import Any

from django.http import Http404
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import downloads
from labeling.actions import exports
from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import ExportIn, ExportOut, ExportPage
from labeling.models import Export

TYPES = {"json": "application/json", "jsonl": "application/jsonl", "md": "text/markdown; charset=utf-8",
         "parquet": "application/vnd.apache.parquet"}  # fmt: skip


def _type(kind: str) -> OpenApiTypes:
    return OpenApiTypes.OBJECT if kind == TYPES["json"] else OpenApiTypes.BINARY


class Exports(View):
    scopes = {"GET": "read", "POST": "train"}

    @operation(
        scope="read", answers={200: ExportPage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_exports", summary="Exports, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        rows = Export.objects.exclude(status=Export.Status.SAME)
        return page(request, rows, _shown, self.checked(PageQuery, query_of(request)), newest_first=True)

    @operation(
        scope="train", answers={200: ExportOut, 202: ExportOut}, request=ExportIn, creates=True,
        operation_id="build_export", summary="Order an export",
        description=(
            "202 while it is being built: ask for it again by its id until it is ready or failed. The same selection of "
            "the same data ends as the export that is there already."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        export = exports.request(query=self.checked(ExportIn, request.data)["query"], by=self.person)
        return Response(_shown(export), status=202 if export.status == Export.Status.BUILDING else 200)


class LabelCountsOut(serializers.Serializer):
    """Single labels, not tasks. What may be trained on by kind; `held_out`: labels of held-out labelers, of both kinds."""

    demonstrations = serializers.IntegerField()
    rankings = serializers.IntegerField()
    held_out = serializers.IntegerField()


class CountLabels(View):
    scopes = {"POST": "read"}

    @operation(
        scope="read", answers={200: LabelCountsOut}, request=ExportIn,
        operation_id="count_labels", summary="How many labels an export would hold now",
        description="Nothing is built. By this the nightly command tells whether enough labels are new.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        return Response(exports.count_labels(query=self.checked(ExportIn, request.data)["query"]))


class OneExport(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: ExportOut}, problems=(404,),
        operation_id="get_export", summary="An export, by id or name",
    )  # fmt: skip
    def get(self, request: Request, key: str) -> Response:
        return Response(_shown(_find(key)))


class WithdrawExport(View):
    scopes = {"POST": "admin"}
    takes_idempotency_keys = False  # done twice, it changes nothing the second time

    @operation(
        scope="admin", answers={200: ExportOut}, problems=(404, 409), operation_id="withdraw_export",
        summary="Take an export back",
        description="After an erasure: its files go, its manifest stays, its number is not given again. 409 for one that was never ready.",
    )  # fmt: skip
    def post(self, request: Request, key: str) -> Response:
        return Response(_shown(exports.withdraw(export=_find(key), by=self.person)))


class ExportFile(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", problems=(404,), operation_id="get_export_file", summary="A file of an export",
        description="Answers `Range: bytes=…`, so that a download which broke off can go on; its `ETag` is the SHA-256.",
        answers={(200, kind): OpenApiResponse(_type(kind), "The file's bytes.") for kind in TYPES.values()}
        | {(206, kind): OpenApiResponse(OpenApiTypes.BINARY, "The range asked for.") for kind in TYPES.values()}
        | {
            304: OpenApiResponse(description="The client has it (If-None-Match)."),
            416: OpenApiResponse(description="There is no such range; Content-Range says how long the file is."),
        },
    )  # fmt: skip
    def get(self, request: Request, key: str, file_name: str) -> HttpResponseBase:
        export = _find(key)
        if export.status != Export.Status.READY or file_name not in _file_names(export):
            raise Http404(f"Export {export.name} has no file {file_name[:100]!r}.")
        content_type = TYPES[file_name.rpartition(".")[2]]
        sha256 = export.sha256_of(file_name)
        path = export.folder / file_name
        return downloads.send(request, path, file_name=file_name, sha256=sha256, content_type=content_type)


def _find(key: str) -> Export:
    """By id ("12") or by name ("v0007"); an order that found equal data is the export that holds it."""
    rows = Export.objects.select_related("same_as")
    export = None
    if re.fullmatch(r"v[0-9]{4,9}", key):
        export = rows.filter(number=int(key[1:])).first()
    elif re.fullmatch(r"[0-9]{1,18}", key):
        export = rows.filter(pk=int(key)).first()
    if export is None:
        raise Http404(f"There is no export {key[:100]!r}.")
    return export.resolved


def _file_names(export: Export) -> list[str]:
    return ["manifest.json", *export.manifest.get("files", {})] if export.status == Export.Status.READY else []


def _shown(export: Export) -> dict[str, Any]:
    return {
        "id": export.pk,
        "name": export.name if export.number else None,
        "status": export.status,
        "query": export.query,
        "counts": export.counts_in_order,
        "data_sha256": export.data_sha256,
        "error": export.error,
        "created_at": export.created_at,
        "files": _file_names(export),
    }
