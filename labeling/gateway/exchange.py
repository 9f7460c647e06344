"""One question to the policy, from its admission to the note about it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import anyio

from labeling.gateway.admission import Admission, Database, RateLimitedError, name_of_policy
from labeling.gateway.afterwards import Afterwards, Note
from labeling.gateway.asked import ANY_POLICY, Asked
from labeling.gateway.errors import GatewayError
from labeling.gateway.policy import Answer, PolicyServer, Usage
from labeling.gateway.turns import Turns
from labeling.models.gateway_keys import Amounts

T = TypeVar("T")
DRAIN_SECONDS = 8.0
NOTICE = "Prompts may be kept and used to train models. Send X-Heed-Opt-Out: 1 to keep a request out."


class Gateway:
    """What all requests of this process share."""

    def __init__(self) -> None:
        self.database = Database()
        self.policy = PolicyServer(self._name_of)
        self.afterwards = Afterwards(self.database)
        self.turns = Turns()
        self.open = 0  # exchanges under way

    async def _name_of(self, said: str) -> str | None:
        return await self.database.ask(name_of_policy, said)

    async def let_in(self, admit: Callable[..., Admission], *args: Any) -> Admission:
        """Ask the database. A refusal by the rate limit is counted and said in OpenAI's shape."""
        try:
            return await self.database.ask(admit, *args)
        except RateLimitedError as limited:
            if limited.key_id is not None:
                self.afterwards.put(Note(limited.key_id, "", Amounts(limited=1)))
            message = f"Too many requests or tokens in a minute. Try again in {limited.seconds} s."
            raise GatewayError(429, "rate_limit_exceeded", message, retry_after_seconds=limited.seconds) from None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While inside, notes are written; at the end what waits is written, for some seconds, and all is let go."""
        writer = asyncio.create_task(self.afterwards.run())
        try:
            yield
        finally:
            await self.turns.end()
            await self.afterwards.drain(DRAIN_SECONDS)
            writer.cancel()
            await self.policy.close()
            await self.database.close()


class Exchange:
    """One question to the policy, from its admission to the note about it. A context manager: leaving it writes the note."""

    def __init__(self, gateway: Gateway, admission: Admission, *, endpoint: str):
        self.gateway, self.admission, self.endpoint = gateway, admission, endpoint
        self.asked: Asked | None = None
        self.answers: list[Answer] = []
        self.has_failed = False
        self.may_train = admission.may_train
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Exchange":
        self.gateway.open += 1
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.has_failed |= isinstance(error, Exception)
        self.gateway.afterwards.put(self._note())
        self.gateway.open -= 1
        await self._stack.aclose()

    def ask(self, asked: Asked, *, opts_out: bool) -> None:
        """Note what is asked. Raises GatewayError 404 for a model that does not serve."""
        self.asked = asked
        self.may_train = self.admission.may_train and not opts_out and not asked.opts_out
        if asked.model not in (ANY_POLICY, self.admission.serving):
            message = f"The model {asked.model!r} does not serve. Ask for {self.admission.serving!r} or {ANY_POLICY!r}."
            raise GatewayError(404, "model_not_found", message, param="model")

    async def start(self) -> Answer:
        """An answer, its first piece here."""
        if self.asked is None:
            raise RuntimeError("nothing was asked")
        answer = await self.gateway.policy.start(self._stack, self.asked, self.admission.serving)
        self.answers.append(answer)
        return answer

    def headers(self, model: str = "") -> dict[str, str]:
        """Which policy answers, and whether the prompt may be kept."""
        training = {"X-Heed-Training": "may be used" if self.may_train else "not used"}
        notice = {"X-Heed-Notice": NOTICE} if self.admission.may_train else {}
        return {"Cache-Control": "no-store", **({"X-Heed-Model": model} if model else {}), **training, **notice}

    def _note(self) -> Note:
        used = [answer.usage for answer in self.answers]
        amounts = Amounts(
            requests=1,
            errors=int(self.has_failed),
            prompt_tokens=max((usage.prompt_tokens for usage in used), default=0),  # n answers read it once
            completion_tokens=sum(usage.completion_tokens for usage in used),
        )
        note = Note(self.admission.asker.key_id, self.admission.bucket, amounts)
        if not (self.asked and self.answers and self.may_train):
            return note
        return replace(
            note,
            asker=replace(self.admission.asker, user=self.asked.user),
            messages=self.asked.messages,
            metadata={"endpoint": self.endpoint, "model": self.answers[0].model},
        )


async def whole(exchange: Exchange, n: int) -> tuple[str, list[tuple[str, str]], Usage]:
    """(model, [(text, finish reason)], usage) of n answers, all by one policy."""
    for _ in range(3):
        first = len(exchange.answers)
        texts = await _together(n, lambda: _one(exchange))
        answers = exchange.answers[first:]
        if len({answer.model for answer in answers}) == 1:
            usage = Usage(answers[0].usage.prompt_tokens, sum(a.usage.completion_tokens for a in answers))
            return answers[0].model, texts, usage
    message = "Another policy is being promoted just now. Try again."
    raise GatewayError(503, "policy_unavailable", message, retry_after_seconds=10)


async def _together(n: int, work: Callable[[], Awaitable[T]]) -> list[T]:
    """The results of the same work done n times at once; the first failure ends all.

    In anyio's task group, not asyncio.gather: when a client hangs up, anyio cancels again and again, and only its own tasks
    can close their connections in peace meanwhile.
    """
    results: list[T] = []
    failures: list[Exception] = []

    async def run() -> None:
        try:
            results.append(await work())
        except Exception as error:
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(run)
    if failures:
        raise failures[0]
    return results


async def _one(exchange: Exchange) -> tuple[str, str]:
    answer = await exchange.start()
    texts, reason = [], ""
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            texts.append(piece.text)
            reason = piece.finish_reason or reason
    return "".join(texts), reason
