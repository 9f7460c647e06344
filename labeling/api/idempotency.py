"""The header Idempotency-Key: a request sent again is answered as it was the first time, and does nothing twice."""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.http import QueryDict
from django.utils import timezone
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.encoders import JSONEncoder

from labeling.errors import Conflict
from labeling.models import IdempotencyKey, User

HEADER = "Idempotency-Key"
KEPT = timedelta(hours=24)


class KeyReused(Conflict):
    """The key came before with another request: one of the two is a mistake."""

    code = "idempotency_key_reused"


class AnswerErased(Conflict):
    """The request was done; what it was answered went with somebody's erasure."""

    code = "idempotent_answer_erased"


def once(
    handle: Callable[..., Response], user: User, secrets: tuple[str, ...], request: Request, *args: Any, **kwargs: Any
) -> Response:
    """The handler's answer, kept with what it made in one transaction; or the answer kept of the same request before.

    A second request that comes while the first is at work waits for it. What fails is not kept, so it may be tried again.
    Members of the answer named in `secrets` are not kept: a repeated answer has null there. Raises KeyReused, AnswerErased,
    ValidationError.
    """
    key, digest, now = _key(request), _digest(request), timezone.now()
    with transaction.atomic():
        IdempotencyKey.objects.filter(user=user, key=key, created_at__lt=now - KEPT).delete()
        row = IdempotencyKey(user=user, key=key, request_sha256=digest, created_at=now)
        IdempotencyKey.objects.bulk_create([row], ignore_conflicts=True)
        row = IdempotencyKey.objects.select_for_update().get(user=user, key=key)
        if row.request_sha256 != digest:
            raise KeyReused(f"{HEADER} {key!r} came before with another request.")
        if row.status == IdempotencyKey.ERASED:
            raise AnswerErased(f"{HEADER} {key!r}: it was done; its answer was removed when somebody was erased since.")
        if row.status is not None:
            return Response(row.body, status=row.status, headers={"Idempotent-Replayed": "true"})
        answer = handle(request, *args, **kwargs)
        body = json.loads(json.dumps(answer.data, cls=JSONEncoder))
        row.status, row.body = answer.status_code, body and body | dict.fromkeys(secrets)
        row.save(update_fields=["status", "body"])
        return answer


def forget_old() -> int:
    """Remove keys older than a day; how many."""
    return IdempotencyKey.objects.filter(created_at__lt=timezone.now() - KEPT).delete()[0]


def _key(request: Request) -> str:
    key = request.headers[HEADER]
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise ValidationError({HEADER: ["Expected 1 to 255 visible ASCII characters."]})
    return key


def _digest(request: Request) -> str:
    data = dict(request.data.lists()) if isinstance(request.data, QueryDict) else request.data
    said = json.dumps(data, sort_keys=True, separators=(",", ":"), default=_said_of_file)
    return hashlib.sha256(f"{request.method} {request.get_full_path()}\n{said}".encode()).hexdigest()


def _said_of_file(file: UploadedFile) -> list[str]:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return [str(file.name), digest]
