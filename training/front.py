"""One address for all policies that are served: requests go on to the engine behind it, answers come back piece by piece.

Which engine answers is decided once, when a request is here whole; from then on that engine is waited for before it is stopped.
So a change of policies loses no request: `show` names the new ones, requests under way end where they began. Each answer
carries `X-Heed-Model`. A request's `model` may name one of the policies, and no other answers then: 404, or 503 for one that is
wanted and not up; without, or with ANY_POLICY, the first one answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import uvicorn

from training.errors import StageError
from training.writers import with_prefix

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
ANY_POLICY = "heed"  # the gateway's name for whatever serves, too
MAX_BODY_BYTES = 16 * 2**20
HOLD_SECONDS = 30.0
TRIES = 3
NOT_OURS = {"connection", "keep-alive", "transfer-encoding", "server", "date", "x-heed-model"}


@dataclass(eq=False)
class Served:
    """A policy behind the front: where its engine listens, what that calls it, and how many requests it is answering."""

    name: str
    url: str
    model: str
    few_shot_prefix: str = ""
    in_flight: int = 0


class Front:
    """The public port. An ASGI application in a thread of its own; its methods are for the thread that starts engines."""

    def __init__(self, host: str, port: int):
        try:
            self._socket = socket.create_server((host, port), backlog=512, reuse_port=False)
        except OSError as error:
            raise StageError(f"{host}:{port}: {error.strerror}; choose another port") from None
        self.address = f"http://{host}:{self._socket.getsockname()[1]}"
        self._lock = threading.Lock()  # a policy is picked and counted in one step, or not any more
        self._policies: list[Served] = []
        self._expected: list[str] = []
        self._is_changing = True  # until somebody has looked for the first time
        config = uvicorn.Config(
            self, log_level="error", lifespan="off", server_header=False, timeout_graceful_shutdown=10
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="front", daemon=True)
        self._thread.start()

    def show(self, policies: Sequence[Served]) -> None:
        """From now on new requests go to these, the first where none is named. In one step: none sees half of it."""
        with self._lock:
            self._policies = list(policies)

    def expect(self, names: Sequence[str]) -> None:
        """These are wanted, up or not: who asks for one that is not is told to try again, not that there is none."""
        self._expected = list(names)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, and before it was entered first, requests that find no policy, or a dead one, wait, up to HOLD_SECONDS, in place
        of a refusal."""
        self._is_changing = True
        try:
            yield
        finally:
            self._is_changing = False

    def stop(self) -> None:
        """Take no more requests, end those under way within seconds."""
        self._server.should_exit = True
        self._thread.join(15)

    async def _serve(self) -> None:
        # 2 s: an engine closes idle connections after 5, and one that is closed as we use it would cost a try
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=64, keepalive_expiry=2)
        timeout = httpx.Timeout(30, connect=5, read=None)  # who asks decides how long an answer may take
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as self._http:
            await self._server.serve(sockets=[self._socket])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in PATHS:
            await self._pass_on(scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            listed = [{"id": one.name, "object": "model", "owned_by": "heed"} for one in self._policies]
            await _say(send, 200, {"object": "list", "data": listed})
        elif method == "GET" and path == "/health":
            names = [one.name for one in self._policies]
            await _say(send, 200 if names else 503, {"status": "ok" if names else "no policy", "models": names})
        else:
            await _say(send, 404, _error("not_found", f"Nothing is served at {method} {path}."))

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or stop answering when the client hangs up: the engine's connection closes, and engines cancel by that."""
        body = await _read(receive)
        if body is None:
            return await _say(send, 413, _error("too_large", f"The body is longer than {MAX_BODY_BYTES} bytes."))
        async with anyio.create_task_group() as group:

            async def answer() -> None:
                await self._answer(scope, body, send)
                group.cancel_scope.cancel()

            group.start_soon(answer)
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

    async def _answer(self, scope: Any, body: bytes, send: Any) -> None:
        given = _parsed(body)
        wanted = given.get("model")
        wanted = None if wanted in (None, "", ANY_POLICY) else wanted
        number, deadline = 0, time.monotonic() + HOLD_SECONDS
        while number < TRIES and time.monotonic() < deadline:
            policy = await self._take(wanted)
            if policy is None:
                break
            try:
                request = self._request(policy, scope, given, body)
                response = await self._http.send(request, stream=True)
            except (httpx.TransportError, asyncio.CancelledError) as error:
                self._give_back(policy)
                if isinstance(error, asyncio.CancelledError):
                    raise
                await asyncio.sleep(0.1 * (number + 1))  # nothing was answered yet: asking again does no harm
                # Of an engine that is gone the look under way finds the successor: that is waited for, and costs no try.
                number += not (isinstance(error, httpx.ConnectError) and self._is_changing)
                continue
            try:
                await _stream(response, policy.name, send)
            finally:
                self._give_back(policy)
            return
        name = repr(str(wanted)[:150])
        if self._is_unknown(wanted):
            return await _say(send, 404, _error("model_not_found", f"The model {name} is not served here.", "model"))
        said = "No policy is up" if wanted is None else f"The model {name} is not up"
        await _say(send, 503, _error("no_policy", f"{said} just now. Try again."), {"retry-after": "2"})

    def _is_unknown(self, wanted: Any) -> bool:
        """True for what is neither up nor wanted. While nothing is, nobody can tell."""
        names = [*self._expected, *(one.name for one in self._policies)]
        return wanted is not None and bool(names) and wanted not in names

    async def _take(self, wanted: Any) -> Served | None:
        """The policy that is to answer, counted as busy. None when there is none; while that changes, it is waited for."""
        deadline = time.monotonic() + HOLD_SECONDS
        while True:
            with self._lock:
                found = next((one for one in self._policies if wanted in (None, one.name)), None)
                if found:
                    found.in_flight += 1
                    return found
            if not self._is_changing or self._is_unknown(wanted) or time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.05)

    def _give_back(self, policy: Served) -> None:
        with self._lock:
            policy.in_flight -= 1

    def _request(self, policy: Served, scope: Any, given: dict[str, Any], body: bytes) -> httpx.Request:
        passed = {"content-type", "authorization", "x-request-id"}
        headers = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() in passed]
        if "model" in given or policy.few_shot_prefix:
            body = json.dumps(_as_asked_of(policy, given)).encode()
        headers.append((b"accept-encoding", b"identity"))
        return self._http.build_request("POST", policy.url + scope["path"], headers=headers, content=body)


def _as_asked_of(policy: Served, given: dict[str, Any]) -> dict[str, Any]:
    """The request under the engine's name for the policy, and with its few-shot prefix before the first user turn."""
    asked = given | ({"model": policy.model} if "model" in given else {})
    messages, prompt = given.get("messages"), given.get("prompt")
    if isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in messages
    ):
        asked["messages"] = with_prefix(messages, policy.few_shot_prefix)
    elif isinstance(prompt, str):
        asked["prompt"] = policy.few_shot_prefix + prompt
    return asked


async def _stream(response: httpx.Response, name: str, send: Any) -> None:
    """Pass an answer on as it comes. One that breaks off is broken off here too: the last message is never sent."""
    try:
        kept = [(key, value) for key, value in response.headers.raw if key.decode("latin-1").lower() not in NOT_OURS]
        headers = [*kept, (b"x-heed-model", name.encode("utf-8"))]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for piece in response.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except httpx.TransportError:
        return
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


async def _read(receive: Any) -> bytes | None:
    """The body; None for one that is too long."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _parsed(body: bytes) -> dict[str, Any]:
    """The body as JSON; {} for what is none: the engine says so in its own words."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _error(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if param else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _say(send: Any, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    raw = [
        (name.encode(), value.encode())
        for name, value in ({"content-type": "application/json"} | (headers or {})).items()
    ]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
