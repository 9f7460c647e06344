"""A gateway to test: the real application under uvicorn on a loopback port, on the test's own database connection."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from django.db import connections

from labeling.actions import gateway_keys
from labeling.gateway import admission, exchange
from labeling.gateway.admission import Database
from labeling.gateway.app import make_app
from labeling.models import ModelVersion, Promotion
from tests.labeling.policy_server import StubPolicy


def run_apart(coroutine: Coroutine):
    """Run it in a thread of its own: the browser of earlier tests has left an event loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class SharedDatabase(Database):
    """One thread, on the connection of the test, so that the test's transaction is seen and rolled back."""

    def __init__(self) -> None:
        shared = connections["default"]
        shared.inc_thread_sharing()
        self._shared = shared
        self._threads = ThreadPoolExecutor(1, initializer=lambda: setattr(connections._connections, "default", shared))

    async def close(self) -> None:
        self._threads.shutdown()
        self._shared.dec_thread_sharing()


class RunningGateway:
    """A gateway that listens, and how the test talks to it."""

    def __init__(self, url: str, app) -> None:
        self.url, self.inside = url, app.state.gateway

    def client(self, key: str, **options) -> openai.OpenAI:
        """The official client, without retries of its own."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 20} | options)

    def settle(self, seconds: float = 10) -> None:
        """Wait until all is answered, and what was noted is written."""
        deadline = time.monotonic() + seconds
        while self.inside.open or self.inside.afterwards.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextmanager
def running_gateway():
    """Run one; at the end it is stopped as by SIGTERM."""
    app = make_app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningGateway(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join(20)


def promote_stub(name: str = "ppo-1") -> ModelVersion:
    """A policy that serves, in place of the one before."""
    ModelVersion.objects.filter(status="serving").update(status="retired")
    digest = (name.encode().hex() * 64)[:64]
    made = ModelVersion.objects.create(
        name=name, stage="ppo", status="serving", uri=f"/models/{name}", manifest={}, manifest_sha256=digest
    )
    Promotion.objects.create(model_version=made, reason="test")
    return made


@pytest.fixture
def policy(settings):
    """The policy server."""
    made = StubPolicy("/models/ppo-1@main")
    settings.POLICY_URL = made.url
    settings.POLICY_RESTART_SECONDS = 0.0
    yield made
    made.stop()


@pytest.fixture
def serving(db) -> ModelVersion:
    """The policy that is promoted."""
    return promote_stub()


@pytest.fixture
def gateway(serving, policy, monkeypatch):
    """A gateway on the test's connection."""
    monkeypatch.setattr(exchange, "Database", SharedDatabase)
    # It drops connections that are in the middle of a transaction, as the test's is.
    monkeypatch.setattr(admission, "close_old_connections", lambda: None)
    with running_gateway() as made:
        yield made


@pytest.fixture
def secret(db) -> str:
    """A key whose prompts may train."""
    return gateway_keys.create(organization="Acme", name="app", may_train=True, requests_per_minute=1000, by=None)[1]


@pytest.fixture
def client(gateway, secret) -> openai.OpenAI:
    """The official client with that key."""
    return gateway.client(secret)
