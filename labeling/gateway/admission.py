"""The gateway's dealings with the database: short, in a few threads of their own, never while a policy answers."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connections

from labeling.actions import gateway_keys, model_versions
from labeling.actions.capture import Asker, may_train_on
from labeling.gateway.errors import GatewayError
from labeling.models import ModelVersion, RateBucket, User

THREADS = 4  # and so at most as many connections, whatever the number of requests
AWAY = (OperationalError, InterfaceError)
T = TypeVar("T")


class Database:
    """Runs functions that use the ORM in a few threads, each with a connection of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-database")

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, when a thread is free. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _with_fresh_connection, function, *args)

    async def ask(self, function: Callable[..., T], *args: Any) -> T:
        """The same for a client who waits: a database that is away is a 503."""
        try:
            return await self.run(function, *args)
        except AWAY:
            message = "The gateway's database does not answer just now. Try again."
            raise GatewayError(503, "database_unavailable", message, retry_after_seconds=2) from None

    async def close(self) -> None:
        """End the threads and their connections: each thread waits for the others, so that all are met."""
        all_here = threading.Barrier(THREADS)
        await asyncio.gather(*(self.run(_close_own, all_here) for _ in range(THREADS)))
        self._threads.shutdown()


def _with_fresh_connection(function: Callable[..., T], *args: Any) -> T:
    close_old_connections()
    try:
        return function(*args)
    finally:
        close_old_connections()


def _close_own(all_here: threading.Barrier) -> None:
    all_here.wait(10)
    connections.close_all()


@dataclass(frozen=True)
class Admission:
    """Somebody who may ask now, and the policy that is to answer."""

    asker: Asker
    bucket: str
    may_train: bool
    serving: str
    serving_since: int  # Unix time


class RateLimitedError(Exception):
    """Too much was asked; whose key it was (None: a person's) and how long to wait."""

    def __init__(self, key_id: int | None, seconds: int):
        super().__init__(f"key {key_id}: wait {seconds} s")
        self.key_id, self.seconds = key_id, seconds


def admit_key(secret: str, takes: bool = True) -> Admission:
    """The holder of this key, let in. `takes`: count it as a request.

    Raises GatewayError 401 for a key that is unknown, expired or revoked, 503 when no policy serves, RateLimitedError.
    """
    key = gateway_keys.find(secret) if secret else None
    if key is None:
        said = (
            "No API key was given: send it as `Authorization: Bearer heedgw_…`." if not secret else "Unknown API key."
        )
        raise GatewayError(401, "invalid_api_key", said)
    if not key.is_valid:
        said = "This API key has been revoked." if key.revoked_at else "This API key has expired."
        raise GatewayError(401, "invalid_api_key", said)
    if takes:
        _take(key.bucket, key.requests_per_minute, key.tokens_per_minute, key.pk)
    asker = Asker(key_id=key.pk, organization=key.organization)
    return _admission(asker, key.bucket, key.may_train)


def admit_person(person_id: int) -> Admission:
    """A person in the playground, let in. Raises GatewayError 401 for one who is locked out, 503, RateLimitedError."""
    person = User.objects.filter(pk=person_id, is_active=True).first()
    if person is None:
        raise GatewayError(401, "invalid_person", "This account is not active.")
    bucket = f"person:{person.pk}"
    _take(bucket, settings.PLAYGROUND_REQUESTS_PER_MINUTE, settings.PLAYGROUND_TOKENS_PER_MINUTE, None)
    return _admission(Asker(person_id=person.pk), bucket, may_train_on(person))


def _take(bucket: str, requests_per_minute: int, tokens_per_minute: int, key_id: int | None) -> None:
    wait = RateBucket.objects.take(bucket, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    if wait:
        raise RateLimitedError(key_id, wait)


def _admission(asker: Asker, bucket: str, may_train: bool) -> Admission:
    serving = model_versions.serving_policy()
    if serving is None:
        raise GatewayError(503, "no_policy", "No policy has been promoted yet.", retry_after_seconds=60)
    since = serving.promotions.order_by("-id").values_list("promoted_at", flat=True)[0]
    return Admission(asker, bucket, may_train, serving.name, int(since.timestamp()))


def name_of_policy(said: str) -> str | None:
    """The registered policy that a policy server means by its `model`: a folder, or a name. None when there is none."""
    said = said.removesuffix("@main")  # as `transformers serve` calls a folder
    policies = ModelVersion.objects.exclude(stage__in=["rm", "external"])
    if policies.filter(name=said).exists():
        return said
    if "/" not in said:
        return None
    base = Path(said).name
    for name, uri, digest in policies.order_by("-id").values_list("name", "uri", "manifest_sha256"):
        # `serve` puts what it fetched from elsewhere in a folder named for the model and its manifest.
        fetched = f"{quote(name, safe='')}-{(digest or '')[:12]}"
        if said == uri or base == fetched or ("://" not in uri and os.path.realpath(uri) == os.path.realpath(said)):
            return name
    return None
