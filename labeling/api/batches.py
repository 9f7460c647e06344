"""/batches/: order tasks."""

from dataclasses import asdict, fields
from typing import Any

from django.conf import settings
from django.db import transaction
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import languages
from labeling.actions import batches
from labeling.api.base import PageQuery, StrictSerializer, Text, View, Whole, find, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import BatchIn, BatchOut, BatchPage
from labeling.models import Batch, Kind
from labeling.models.batches import Progress


class BatchQuery(PageQuery):
    """Which batches, and which page of them, newest first."""

    status = serializers.ChoiceField(Batch.Status.choices, required=False)
    kind = serializers.ChoiceField(Kind.choices, required=False)
    purpose = serializers.ChoiceField(Batch.Purpose.choices, required=False)


class BatchChangeIn(StrictSerializer):
    """What is to be otherwise; what is absent stays as it is."""

    status = serializers.ChoiceField(Batch.Status.choices, required=False)
    priority = Whole(required=False, min_value=-1000, max_value=1000)
    instructions = Text(required=False, allow_blank=True, trim_whitespace=False, max_length=settings.PROMPT_MAX_CHARS)
    gold_percent = Whole(required=False, min_value=0, max_value=batches.MAX_GOLD_PERCENT)
    language = serializers.ChoiceField(languages.CODES, required=False, allow_blank=True)
    skills = serializers.ListField(child=Text(max_length=50), required=False, max_length=20)


class ProgressOut(serializers.Serializer):
    """Seats: open + leased + submitted = seats. Submissions by status; `surplus` stand outside them. Gold is left out."""

    locals().update({field.name: serializers.IntegerField() for field in fields(Progress)})


class BatchDetailOut(BatchOut):
    priority = serializers.IntegerField()
    instructions = serializers.CharField(allow_blank=True)
    gold_percent = serializers.IntegerField()
    progress = ProgressOut()


class Batches(View):
    scopes = {"GET": "read", "POST": "import"}

    @operation(
        scope="read", answers={200: BatchPage}, problems=(422,), parameters=[BatchQuery],
        operation_id="list_batches", summary="Batches, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(BatchQuery, query_of(request))
        chosen = {name: query[name] for name in ("status", "kind", "purpose") if name in query}
        return page(request, Batch.objects.filter(**chosen), _shown, query, newest_first=True)

    @operation(
        scope="import", answers={200: BatchOut, 201: BatchOut}, request=BatchIn, creates=True, problems=(409,),
        operation_id="create_batch", summary="Order a batch",
        description="201 when it was made; 200 when the same order under the same name was there; 409 when another was.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        order = self.checked(BatchIn, request.data)
        is_known = Batch.objects.filter(name=order["name"]).exists()
        batch = batches.create_batch(**order, by=self.person)
        return Response(_shown(batch), status=200 if is_known else 201)


class OneBatch(View):
    scopes = {"GET": "read", "PATCH": "import"}

    @operation(
        scope="read", answers={200: BatchDetailOut}, problems=(404,), operation_id="get_batch", summary="A batch and how far it is",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        return Response(_detail(find(Batch, pk, "batch")))

    @operation(
        scope="import", answers={200: BatchDetailOut}, request=BatchChangeIn, problems=(404,),
        operation_id="change_batch", summary="Pause, resume, close or change a batch",
        description=(
            "While it is not active no seat of it is given out; whoever holds one may finish. Its prompts, models and K stay what they are."
        ),
    )  # fmt: skip
    def patch(self, request: Request, pk: int) -> Response:
        given = self.checked(BatchChangeIn, request.data)
        batch = find(Batch, pk, "batch")
        with transaction.atomic():
            if status := given.pop("status", None):
                batch = batches.set_status(batch=batch, status=status, by=self.person)
            if given:
                batch = batches.edit(batch=batch, **given, by=self.person)
        return Response(_detail(batch))


def _detail(batch: Batch) -> dict[str, Any]:
    changing = {name: getattr(batch, name) for name in ("priority", "instructions", "gold_percent")}
    return _shown(batch) | changing | {"progress": asdict(Batch.objects.filter(pk=batch.pk).progress()[batch.pk])}


def _shown(batch: Batch) -> dict[str, Any]:
    shown = ("id", "name", "kind", "purpose", "status", "language", "skills", "counts", "created_at")
    return {name: getattr(batch, name) for name in shown}
