"""/gateway-keys/: organizations' keys to the OpenAI-compatible gateway."""

from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import gateway_keys
from labeling.api.base import (
    PAGE_PARAMETERS,
    PageQuery,
    StrictSerializer,
    Text,
    View,
    Whole,
    YesNo,
    find,
    page,
    page_of,
    query_of,
)
from labeling.api.schema import operation
from labeling.models import GatewayKey


class GatewayKeyIn(StrictSerializer):
    organization = Text(max_length=100)
    name = Text(max_length=100)
    may_train = YesNo(help_text="The organization consents that its prompts train models.")
    requests_per_minute = Whole(required=False, min_value=1, max_value=1_000_000)
    tokens_per_minute = Whole(required=False, min_value=1, max_value=1_000_000_000)
    days = Whole(required=False, min_value=1, max_value=gateway_keys.MAX_DAYS, help_text="Until it expires; 365.")


class GatewayKeyChangeIn(StrictSerializer):
    """What is to be otherwise from the next request on; what is absent stays as it is."""

    may_train = YesNo(required=False)
    requests_per_minute = Whole(required=False, min_value=1, max_value=1_000_000)
    tokens_per_minute = Whole(required=False, min_value=1, max_value=1_000_000_000)
    days = Whole(required=False, min_value=1, max_value=gateway_keys.MAX_DAYS, help_text="Until it expires, from now.")


class GatewayKeyOut(serializers.Serializer):
    id = serializers.IntegerField()
    organization = serializers.CharField()
    name = serializers.CharField()
    prefix = serializers.CharField(help_text="How the key begins.")
    may_train = serializers.BooleanField()
    requests_per_minute = serializers.IntegerField()
    tokens_per_minute = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class NewGatewayKeyOut(GatewayKeyOut):
    secret = serializers.CharField(allow_null=True, help_text="The key itself: shown once.")


class GatewayKeys(View):
    scopes = {"GET": "admin", "POST": "admin"}
    secrets = ("secret",)

    @operation(
        scope="admin", answers={200: page_of(GatewayKeyOut)}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_gateway_keys", summary="Keys, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, GatewayKey.objects.all(), _shown, query, newest_first=True)

    @operation(
        scope="admin", answers={201: NewGatewayKeyOut}, request=GatewayKeyIn, creates=True,
        operation_id="create_gateway_key", summary="Make a key",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        key, secret = gateway_keys.create(**self.checked(GatewayKeyIn, request.data), by=self.person)
        return Response(_shown(key) | {"secret": secret}, status=201)


class OneGatewayKey(View):
    scopes = {"GET": "admin", "PATCH": "admin", "DELETE": "admin"}

    @operation(
        scope="admin", answers={200: GatewayKeyOut}, problems=(404,), operation_id="get_gateway_key", summary="A key",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        return Response(_shown(find(GatewayKey, pk, "key")))

    @operation(
        scope="admin", answers={200: GatewayKeyOut}, request=GatewayKeyChangeIn, problems=(404, 409),
        operation_id="change_gateway_key", summary="Consent, limits and end of a key",
        description="Consent that is taken back also holds for prompts that wait to be written. 409 for a key that has ended.",
    )  # fmt: skip
    def patch(self, request: Request, pk: int) -> Response:
        given = self.checked(GatewayKeyChangeIn, request.data)
        if days := given.pop("days", None):
            given["expires_at"] = timezone.now() + timedelta(days=days)
        return Response(_shown(gateway_keys.change(key=find(GatewayKey, pk, "key"), **given, by=self.person)))

    @operation(
        scope="admin", answers={204: None}, problems=(404,), operation_id="revoke_gateway_key",
        summary="End a key, at once and for ever", description="The row stays, with its use. Doing it twice changes nothing.",
    )  # fmt: skip
    def delete(self, request: Request, pk: int) -> Response:
        key = find(GatewayKey, pk, "key")
        gateway_keys.revoke(key=key, by=self.person)
        return Response(status=204)


def _shown(key: GatewayKey) -> dict[str, Any]:
    names = ("id", "organization", "name", "prefix", "may_train", "requests_per_minute", "tokens_per_minute",
             "created_at", "expires_at", "last_used_at", "revoked_at")  # fmt: skip
    return {name: getattr(key, name) for name in names}
