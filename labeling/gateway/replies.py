"""Bodies in, answers out: OpenAI's shapes, whole or as a stream of events."""

import asyncio
import json
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from labeling.gateway.asked import Asked
from labeling.gateway.errors import GatewayError
from labeling.gateway.policy import Usage

MAX_BODY_BYTES = 2 * 2**20
BODY_SECONDS = 30.0


class Shape:
    """OpenAI's shapes of an answer, chat or not."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.name = "chat.completion" if asked.is_chat else "text_completion"
        self.id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def _body(self, name: str, model: str, choices: list[dict], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": model, "choices": choices, **more}

    def whole(self, model: str, texts: list[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """An answer in one piece."""
        choices = []
        for index, (text, finish_reason) in enumerate(texts):
            content = {"message": {"role": "assistant", "content": text}} if self.asked.is_chat else {"text": text}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish_reason})
        return self._body(self.name, model, choices, usage=usage.body)

    def opening(self, model: str) -> list[dict[str, Any]]:
        """What comes before the first piece."""
        if not self.asked.is_chat:
            return []
        return [self._event(model, {"delta": {"role": "assistant", "content": ""}}, None)]

    def piece(self, model: str, text: str, finish_reason: str | None) -> dict[str, Any]:
        """One piece of a stream."""
        content = {"delta": {"content": text} if text else {}} if self.asked.is_chat else {"text": text}
        return self._event(model, content, finish_reason)

    def usage(self, model: str, usage: Usage) -> dict[str, Any]:
        """The last event of a stream, where it was asked for."""
        return self._body(self._chunk, model, [], usage=usage.body)

    def _event(self, model: str, content: dict, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        more = {"usage": None} if self.asked.includes_usage else {}
        return self._body(self._chunk, model, [choice], **more)

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.asked.is_chat else self.name


class Reply:
    """Answers a request as one JSON body or as events, and knows which of them has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._scope, self._receive, self._send = scope, receive, send
        self._is_begun = False

    async def send_json(self, body: dict[str, Any], headers: dict[str, str], status: int = 200) -> None:
        """The whole answer."""
        self._is_begun = True
        await JSONResponse(body, status, headers)(self._scope, self._receive, self._send)

    async def begin_events(self, headers: dict[str, str]) -> None:
        """Open a stream of events."""
        self._is_begun = True
        named = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no", **headers}
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def send_event(self, event: dict[str, Any]) -> None:
        """One event."""
        await self._send_data(json.dumps(event, ensure_ascii=False, separators=(",", ":")))

    async def end_events(self) -> None:
        """OpenAI's last event, and the end."""
        await self._send_data("[DONE]")
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: GatewayError) -> None:
        """Say an error: as the answer, or as the last event of a stream that has begun."""
        if self._is_begun:
            await self.send_event(error.body)
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await self.send_json(error.body, {"Cache-Control": "no-store", **error.headers}, error.status)

    async def _send_data(self, data: str) -> None:
        body = b"data: " + data.encode("utf-8", "replace") + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def read_body(request: Request) -> bytes:
    """The body. Raises GatewayError 413 past MAX_BODY_BYTES, 408 when it does not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    message = f"The body is longer than {MAX_BODY_BYTES // 2**20} MB."
                    raise GatewayError(413, "request_too_large", message)
                parts.append(part)
    except TimeoutError:
        raise GatewayError(408, "request_timeout", "The body did not come in time.") from None
    return b"".join(parts)
