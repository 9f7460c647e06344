"""/webhooks/: addresses that are told what happened, and what became of each message."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import webhooks
from labeling.api.base import PAGE_PARAMETERS, PageQuery, StrictSerializer, Text, View, find, page, page_of, query_of
from labeling.api.schema import operation
from labeling.models import Webhook, WebhookDelivery
from labeling.models.webhooks import Event


class WebhookIn(StrictSerializer):
    url = Text(max_length=500, help_text="https://…, not in a private network.")
    events = serializers.ListField(child=serializers.ChoiceField(Event.choices), min_length=1, max_length=len(Event))


class WebhookOut(serializers.Serializer):
    id = serializers.IntegerField()
    url = serializers.CharField()
    events = serializers.ListField(child=serializers.ChoiceField(Event.choices))
    created_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)


class NewWebhookOut(WebhookOut):
    secret = serializers.CharField(allow_null=True, help_text="Signs every message: shown once.")


class WebhookDeliveryOut(serializers.Serializer):
    message_id = serializers.UUIDField(help_text="The header webhook-id: the same in every attempt.")
    event = serializers.CharField()
    status = serializers.ChoiceField(WebhookDelivery.Status.choices)
    attempts = serializers.IntegerField()
    answer = serializers.CharField(allow_blank=True, help_text="What the last attempt met.")
    created_at = serializers.DateTimeField()
    attempted_at = serializers.DateTimeField(allow_null=True)


class Webhooks(View):
    scopes = {"GET": "admin", "POST": "admin"}
    secrets = ("secret",)

    @operation(
        scope="admin", answers={200: page_of(WebhookOut)}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_webhooks", summary="Webhooks, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, Webhook.objects.all(), _shown, query, newest_first=True)

    @operation(
        scope="admin", answers={201: NewWebhookOut}, request=WebhookIn, creates=True,
        operation_id="create_webhook", summary="Have an address told what happens",
        description="Messages are signed as the Standard Webhooks specification says, and sent again for about a day until they are taken.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        made = webhooks.create(**self.checked(WebhookIn, request.data), by=self.person)
        return Response(_shown(made) | {"secret": made.secret}, status=201)


class OneWebhook(View):
    scopes = {"GET": "admin", "DELETE": "admin"}

    @operation(
        scope="admin", answers={200: WebhookOut}, problems=(404,), operation_id="get_webhook", summary="A webhook",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        return Response(_shown(find(Webhook, pk, "webhook")))

    @operation(
        scope="admin", answers={204: None}, problems=(404,), operation_id="end_webhook", summary="End a webhook",
        description="Doing it twice changes nothing; what it was told stays to be read.",
    )  # fmt: skip
    def delete(self, request: Request, pk: int) -> Response:
        webhooks.end(webhook=find(Webhook, pk, "webhook"), by=self.person)
        return Response(status=204)


class Deliveries(View):
    scopes = {"GET": "admin"}

    @operation(
        scope="admin", answers={200: page_of(WebhookDeliveryOut)}, problems=(404, 422), parameters=PAGE_PARAMETERS,
        operation_id="list_webhook_deliveries", summary="Messages to a webhook, newest first",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, find(Webhook, pk, "webhook").deliveries.all(), _shown_delivery, query, newest_first=True)


class TryOut(View):
    scopes = {"POST": "admin"}

    @operation(
        scope="admin", answers={202: WebhookDeliveryOut}, problems=(404, 409),
        operation_id="test_webhook", summary="Send a message that says nothing, to try the address",
    )  # fmt: skip
    def post(self, request: Request, pk: int) -> Response:
        return Response(
            _shown_delivery(webhooks.try_out(webhook=find(Webhook, pk, "webhook"), by=self.person)), status=202
        )


def _shown(webhook: Webhook) -> dict[str, Any]:
    return {name: getattr(webhook, name) for name in ("id", "url", "events", "created_at", "ended_at")}


def _shown_delivery(delivery: WebhookDelivery) -> dict[str, Any]:
    same = ("event", "status", "attempts", "answer", "created_at", "attempted_at")
    return {"message_id": delivery.uuid} | {name: getattr(delivery, name) for name in same}
