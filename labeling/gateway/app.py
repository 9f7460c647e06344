"""The gateway's addresses. Run it with `uvicorn labeling.gateway.app:app`; see the Procfile."""

import asyncio
import json
import logging
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import anyio
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labeling.settings")
django.setup()  # before what follows, which imports the models

from django.db import connection  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect, Request  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402
from starlette.types import Receive, Scope, Send  # noqa: E402

from labeling.gateway import asked as asking  # noqa: E402
from labeling.gateway.admission import AWAY, admit_key, admit_person  # noqa: E402
from labeling.gateway.asked import ANY_POLICY  # noqa: E402
from labeling.gateway.errors import GatewayError  # noqa: E402
from labeling.gateway.exchange import Exchange, Gateway, whole  # noqa: E402
from labeling.gateway.replies import Reply, Shape, read_body  # noqa: E402
from labeling.gateway.turns import Turn, opened  # noqa: E402

log = logging.getLogger("labeling.gateway")

PLAYGROUND_MAX_TOKENS = 1024


def make_app() -> Starlette:
    """The ASGI application. Closed to other origins: no CORS header is ever sent."""
    gateway = Gateway()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    doors = Doors(gateway)
    routes = [
        Route("/v1/chat/completions", Completions(gateway, is_chat=True), methods=["POST"]),
        Route("/v1/completions", Completions(gateway, is_chat=False), methods=["POST"]),
        Route("/v1/models", doors.models),
        Route("/v1/models/{name:path}", doors.model),
        Route("/healthz", doors.healthz),
        Route("/playground/begin", doors.begin, methods=["POST"]),
        Route("/playground/read", doors.read, methods=["POST"]),
        Route("/playground/stop", doors.stop, methods=["POST"]),
    ]
    handlers = {GatewayError: _say_error, HTTPException: _say_http_error}
    made = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    made.state.gateway = gateway
    return made


class Completions:
    """POST /v1/chat/completions and /v1/completions: an ASGI application of its own, so that it may stop in the middle."""

    def __init__(self, gateway: Gateway, *, is_chat: bool):
        self.gateway, self.is_chat = gateway, is_chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(scope, receive, send)
        try:
            request = Request(scope, receive)
            admission = await self.gateway.let_in(admit_key, _secret(request))
            async with Exchange(self.gateway, admission, endpoint=scope["path"]) as exchange:
                body = await read_body(request)
                exchange.ask(
                    asking.read(body, is_chat=self.is_chat),
                    opts_out=asking.opts_out(request.headers.get("X-Heed-Opt-Out")),
                )
                await _unless_gone(receive, lambda: self._answer(exchange, reply))
        except ClientDisconnect:
            return
        except GatewayError as error:
            await reply.fail(error)
        except Exception as error:
            log_failure(scope["path"], error)
            await reply.fail(GatewayError(500, "internal_error", "Something went wrong in the gateway."))

    async def _answer(self, exchange: Exchange, reply: "Reply") -> None:
        asked = exchange.asked
        if asked is None:
            raise RuntimeError("nothing was asked")
        shape = Shape(asked)
        if not asked.is_stream:
            model, choices, usage = await whole(exchange, asked.n)
            await reply.send_json(shape.whole(model, choices, usage), exchange.headers(model))
            return
        answer = await exchange.start()
        await reply.begin_events(exchange.headers(answer.model))
        try:
            for event in shape.opening(answer.model):
                await reply.send_event(event)
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    await reply.send_event(shape.piece(answer.model, piece.text, piece.finish_reason))
            if asked.includes_usage:
                await reply.send_event(shape.usage(answer.model, answer.usage))
            await reply.end_events()
        except GatewayError as error:
            exchange.has_failed = True
            await reply.fail(error)


async def _unless_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work; stop it when the client hangs up. Raises what the work raises."""
    failure: list[Exception] = []

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            await work()
        except Exception as error:  # kept out of the group, which would wrap it
            failure.append(error)
        group.cancel_scope.cancel()
    if failure:
        raise failure[0]


class Doors:
    """The addresses that answer at once."""

    def __init__(self, gateway: Gateway):
        self.gateway = gateway

    async def models(self, request: Request) -> JSONResponse:
        """GET /v1/models: the policy that serves, and the name that always means it."""
        return JSONResponse({"object": "list", "data": await self._models(request)})

    async def model(self, request: Request) -> JSONResponse:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        for model in await self._models(request):
            if model["id"] == name:
                return JSONResponse(model)
        raise GatewayError(404, "model_not_found", f"The model {name!r} does not serve.", param="model")

    async def _models(self, request: Request) -> list[dict]:
        admission = await self.gateway.let_in(admit_key, _secret(request), False)
        names = (ANY_POLICY, admission.serving)
        return [{"id": n, "object": "model", "created": admission.serving_since, "owned_by": "heed"} for n in names]

    async def healthz(self, request: Request) -> JSONResponse:
        """200 when this process answers and its database does; requests under way, notes not written yet, and lost."""
        try:
            await self.gateway.database.run(_ask_database)
            is_ok = True
        except AWAY:
            is_ok = False
        afterwards = self.gateway.afterwards
        body = {"ok": is_ok, "open": self.gateway.open, "waiting": afterwards.waiting, "lost": afterwards.lost}
        return JSONResponse(body, 200 if is_ok else 503)

    async def begin(self, request: Request) -> JSONResponse:
        """POST /playground/begin, signed: begin to answer a conversation. Begun twice, it is answered once."""
        said = opened(await read_body(request))
        body = {"model": ANY_POLICY, "messages": said["messages"], "max_tokens": PLAYGROUND_MAX_TOKENS}
        asked = asking.read(json.dumps(body).encode(), is_chat=True)
        if turn := self.gateway.turns.begin(said["turn"], said["person"]):
            turn.task = asyncio.create_task(self._write(turn, asked, opts_out=bool(said["opts_out"])))
        return JSONResponse({"ok": True})

    async def read(self, request: Request) -> JSONResponse:
        """POST /playground/read, signed: an answer as far as it is."""
        said = opened(await read_body(request))
        return JSONResponse(self.gateway.turns.read(said["turn"], said["person"]).body)

    async def stop(self, request: Request) -> JSONResponse:
        """POST /playground/stop, signed: leave an answer at what is there."""
        said = opened(await read_body(request))
        turn = self.gateway.turns.read(said["turn"], said["person"])
        await turn.stop()
        return JSONResponse(turn.body)

    async def _write(self, turn: Turn, asked: asking.Asked, *, opts_out: bool) -> None:
        try:
            admission = await self.gateway.let_in(admit_person, turn.person_id)
            async with Exchange(self.gateway, admission, endpoint="playground") as exchange:
                exchange.ask(asked, opts_out=opts_out)
                answer = await exchange.start()
                turn.model = answer.model
                async with aclosing(answer.pieces()) as pieces:
                    async for piece in pieces:
                        turn.text += piece.text
                        turn.finish_reason = piece.finish_reason or ""
        except GatewayError as error:
            turn.error = error.body["error"]
        except Exception as error:
            log_failure("playground", error)
            turn.error = GatewayError(500, "internal_error", "Something went wrong in the gateway.").body["error"]
        finally:
            turn.is_over = True


def _ask_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _secret(request: Request) -> str:
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


def log_failure(where: str, error: Exception) -> None:
    """A failure in the log: what and where, without the error's own words, which may hold a prompt."""
    log.error("%s: %s\n%s", where, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))


async def _say_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, GatewayError):
        raise error
    return JSONResponse(error.body, error.status, error.headers)


async def _say_http_error(request: Request, error: Exception) -> JSONResponse:
    """No such address, or not by this method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code, message = {
        404: ("unknown_url", f"There is nothing at {request.url.path}."),
        405: ("method_not_allowed", f"{request.url.path} does not answer {request.method}."),
    }.get(status, ("http_error", "This cannot be answered."))
    return await _say_error(request, GatewayError(status, code, message))


app = make_app()
