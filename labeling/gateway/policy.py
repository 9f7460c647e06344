"""The policy server, asked over HTTP: `transformers serve`, vLLM, or any other that speaks OpenAI's API.

It is always asked for a stream, also where the client wants the answer whole: so a server that hangs is noticed between two
pieces, and an answer that nobody waits for any more is cancelled (`transformers serve` cancels streams alone).

As long as a client has not got a piece, asking again does no harm. So while a policy server that was up a moment ago restarts, requests
wait for it instead of failing. A promotion needs no restart: `python -m training serve` changes over behind its one address.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from django.conf import settings

from labeling.gateway.asked import Asked
from labeling.gateway.errors import GatewayError

MAX_PARALLEL = 64  # answers at once; more requests wait for a place
PLACE_SECONDS = 10.0
PAUSE_SECONDS = 0.25
LATELY_SECONDS = 300.0  # a server that answered within these is restarting; before that, it is down
MAX_ANSWER_CHARS = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Some text, and with the last piece why it ended: "stop", "length"."""

    text: str
    finish_reason: str | None = None


@dataclass
class Usage:
    """Tokens of an answer: as the server counts them; until it says so, or if it never does, a guess of four characters each."""

    prompt_tokens: int
    completion_tokens: int = 0

    @property
    def body(self) -> dict[str, int]:
        """In OpenAI's shape."""
        total = self.prompt_tokens + self.completion_tokens
        return {**vars(self), "total_tokens": total}


class TryAgain(Exception):
    """Nothing was answered yet and may be soon; `error` is what to say when it is not."""

    def __init__(self, error: GatewayError):
        self.error = error


class Answer:
    """An answer under way: by which policy, its pieces, and what it used so far."""

    def __init__(self, asked: Asked, model: str, chunks: AsyncGenerator[dict, None], first: dict):
        self.model = model
        chars = sum(len(message["content"]) for message in asked.messages)
        self.usage = Usage(prompt_tokens=(chars + 3) // 4)
        self._stops, self._chunks, self._first = asked.stop, chunks, first
        self._chars = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces, the last with a finish reason; text from a stop sequence on is left out.

        Raises GatewayError when the server falls silent, breaks off or reports an error.
        """
        held, chunk = "", self._first
        while True:
            text, finish_reason = _text_of(chunk)
            self._count(chunk, text)
            held += text
            if (cut := _first_stop(held, self._stops)) is not None:
                yield Piece(held[:cut], "stop")
                return
            if finish_reason:
                async for late in self._usage_after_the_end():
                    self._count(late, "")
                yield Piece(held, finish_reason)
                return
            ready = len(held) - _may_begin_a_stop(held, self._stops)
            if ready:
                yield Piece(held[:ready])
                held = held[ready:]
            chunk = await _next(self._chunks, settings.POLICY_GAP_SECONDS, "fell silent in the middle of its answer")

    async def _usage_after_the_end(self) -> AsyncGenerator[dict, None]:
        """vLLM tells the tokens in a chunk after the last; whoever does not is not waited for long."""
        try:
            async with asyncio.timeout(1):
                async for chunk in self._chunks:
                    yield chunk
        except (TimeoutError, GatewayError, httpx.HTTPError):
            return

    def _count(self, chunk: dict, text: str) -> None:
        self._chars += len(text)
        if self._chars > MAX_ANSWER_CHARS:
            raise GatewayError(502, "policy_error", "The policy's answer does not end.")
        self.usage.completion_tokens = max(self.usage.completion_tokens, (self._chars + 3) // 4)
        if isinstance(told := chunk.get("usage"), dict):
            self.usage.prompt_tokens = int(told.get("prompt_tokens") or self.usage.prompt_tokens)
            self.usage.completion_tokens = int(told.get("completion_tokens") or 0)


class PolicyServer:
    """The server at POLICY_URL. `name_of` tells which registered policy a server's `model` is."""

    def __init__(self, name_of: Callable[[str], Awaitable[str | None]]):
        self._name_of = name_of
        self._names: dict[str, str] = {}
        self._answered_at = -LATELY_SECONDS
        self._http = httpx.AsyncClient(
            base_url=settings.POLICY_URL.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {settings.POLICY_API_KEY}"} if settings.POLICY_API_KEY else {},
            limits=httpx.Limits(max_connections=MAX_PARALLEL, max_keepalive_connections=8, keepalive_expiry=2),
            trust_env=False,
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def start(self, stack: AsyncExitStack, asked: Asked, serving: str) -> Answer:
        """An answer whose first piece is here; leaving `stack` ends it. `serving`: the policy promoted last.

        Raises GatewayError: 503 not reachable, 502 an error of the server, 504 too slow.
        """
        is_restarting = time.monotonic() - self._answered_at < LATELY_SECONDS
        deadline = time.monotonic() + (settings.POLICY_RESTART_SECONDS if is_restarting else 0)
        while True:
            async with AsyncExitStack() as attempt:
                try:
                    answer = await self._begin(attempt, asked, serving)
                except TryAgain as again:
                    if time.monotonic() + PAUSE_SECONDS > deadline:
                        raise again.error from None
                else:
                    stack.push_async_exit(attempt.pop_all())
                    return answer
            await asyncio.sleep(PAUSE_SECONDS)

    async def _begin(self, stack: AsyncExitStack, asked: Asked, serving: str) -> Answer:
        response = await self._open(stack, asked, serving)
        chunks = await stack.enter_async_context(aclosing(_chunks(response)))
        limit = asyncio.get_running_loop().time() + settings.POLICY_FIRST_SECONDS
        while True:
            left = limit - asyncio.get_running_loop().time()
            try:
                chunk = await _next(chunks, left, "did not begin to answer")
            except GatewayError as error:
                raise TryAgain(error) if error.code == "policy_cut" else error from None
            if any(_text_of(chunk)):
                break
        return Answer(asked, await self._check(chunk.get("model"), asked, serving), chunks, chunk)

    async def _open(self, stack: AsyncExitStack, asked: Asked, serving: str) -> httpx.Response:
        path = "/v1/chat/completions" if asked.is_chat else "/v1/completions"
        timeout = httpx.Timeout(
            connect=settings.POLICY_CONNECT_SECONDS, read=settings.POLICY_FIRST_SECONDS, write=30, pool=PLACE_SECONDS
        )
        request = self._http.stream("POST", path, json=_body(asked, serving), timeout=timeout)
        try:
            response = await stack.enter_async_context(request)
            if response.is_success:
                self._answered_at = time.monotonic()
                return response
            await response.aread()
        except httpx.PoolTimeout:
            message = "The policy is busy with other requests. Try again."
            raise GatewayError(503, "policy_busy", message, retry_after_seconds=5) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            message = "The policy server cannot be reached. Try again later."
            raise TryAgain(GatewayError(503, "policy_unavailable", message, retry_after_seconds=10)) from None
        except httpx.TimeoutException:
            raise _too_slow("did not begin to answer") from None
        except httpx.TransportError:
            raise TryAgain(GatewayError(502, "policy_cut", "The policy server broke off.")) from None
        # `python -m training serve` while no policy is up, or has not heard yet of the one named
        is_unknown = response.status_code == 404 and "{name}" in settings.POLICY_MODEL
        if response.status_code == 503 or is_unknown:
            message = "No policy is up just now. Try again."
            raise TryAgain(GatewayError(503, "policy_unavailable", message, retry_after_seconds=10))
        raise _refused(response, serving)

    async def _check(self, said: Any, asked: Asked, serving: str) -> str:
        """The name of the policy that answers. A server that has not changed over yet to the policy asked for is asked again."""
        name = await self._registered(str(said or ""), serving)
        if asked.wanted and name != asked.wanted:
            message = f"The policy {asked.wanted} is being brought up. Try again."
            raise TryAgain(GatewayError(503, "policy_unavailable", message, retry_after_seconds=10))
        return name

    async def _registered(self, said: str, serving: str) -> str:
        if settings.POLICY_MODEL and "{name}" not in settings.POLICY_MODEL:
            return serving  # a server under a fixed name: whoever runs it answers for what it serves
        if said not in self._names:
            name = await self._name_of(said)
            if name is None:
                message = "The policy server answers with a model that is not registered."
                raise GatewayError(502, "policy_unknown", message)
            self._names[said] = name
        return self._names[said]


def _body(asked: Asked, serving: str) -> dict[str, Any]:
    """What the policy server is told. A few-shot prefix is added behind it, where it is known which policy answers."""
    text = {"messages": asked.messages} if asked.is_chat else {"prompt": asked.messages[0]["content"]}
    model = {"model": settings.POLICY_MODEL.replace("{name}", serving)} if settings.POLICY_MODEL else {}
    # n is left out (`transformers serve` ignores it: the gateway asks n times), and so is stop, which is held to here: the same
    # for all servers, and without the stop sequence in the text.
    return {**model, **text, **asked.settings, "stream": True, "stream_options": {"include_usage": True}}


async def _chunks(response: httpx.Response) -> AsyncGenerator[dict, None]:
    """The events of a stream. Raises GatewayError for an event that is an error or makes no sense."""
    try:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if not isinstance(chunk, dict) or chunk.get("error") or not isinstance(chunk.get("choices"), list):
                raise GatewayError(502, "policy_error", "The policy server reported an error.")
            yield chunk
    except httpx.TimeoutException:
        raise _too_slow("fell silent") from None
    except httpx.TransportError:
        raise GatewayError(502, "policy_cut", "The policy server broke off.") from None
    except ValueError:
        raise GatewayError(502, "policy_error", "The policy server's answer makes no sense.") from None


async def _next(chunks: AsyncGenerator[dict, None], seconds: float, what: str) -> dict:
    """The next chunk. Raises GatewayError 504 after `seconds` without one, 502 when there is none."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            return await anext(chunks)
    except TimeoutError:
        raise _too_slow(what) from None
    except StopAsyncIteration:
        raise GatewayError(502, "policy_cut", "The policy server broke off.") from None


def _too_slow(what: str) -> GatewayError:
    return GatewayError(504, "policy_timeout", f"The policy server {what}. Try again.", retry_after_seconds=10)


def _refused(response: httpx.Response, serving: str) -> GatewayError:
    """An answer that is no success. What a server says about the request is passed on, less where its model lies."""
    if response.status_code not in (400, 413, 422):
        return GatewayError(502, "policy_error", f"The policy server answered with status {response.status_code}.")
    try:
        said = response.json()
        said = said.get("detail") or said.get("error") or said.get("message") or ""
        said = said.get("message", "") if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = ""
    if not isinstance(said, str) or "/" in said:
        said = ""
    return GatewayError(400, "policy_refused", f"The policy server refused the request. {said[:300]}".strip())


def _text_of(chunk: dict) -> tuple[str, str | None]:
    """(text, finish reason) of a chunk, chat or not."""
    choice = chunk["choices"][0] if chunk["choices"] else {}
    if not isinstance(choice, dict):
        raise GatewayError(502, "policy_error", "The policy server's answer makes no sense.")
    text = (choice.get("delta") or {}).get("content") if "delta" in choice else choice.get("text")
    return text if isinstance(text, str) else "", choice.get("finish_reason") or None


def _first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


def _may_begin_a_stop(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end may be the beginning of a stop sequence: they are held back."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
