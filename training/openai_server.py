"""Sampling from any server that speaks OpenAI's API (vLLM, outside models), after a probe that it means what it says."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from training.client import ClientError, HttpClient
from training.errors import StageError

PROBE_PROMPTS = ("Name a colour, an animal and a city.", "Write one sentence about the sea.", "Tell me something odd.")
PARALLEL_REQUESTS = 8


class NotACompletion(ClientError):
    """The server answered, and what it said is no chat completion."""


class Tokens(NamedTuple):
    """What a server read and sampled, as ids (EOS included where it was sampled), with a log-probability for each id sampled."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]


class Choice(NamedTuple):
    """One response; its finish reason is stop, length, or empty when unknown."""

    text: str
    finish_reason: str
    tokens: Tokens | None = None


class OpenAIServer:
    """Chat completions of one model. OPENAI_API_KEY, where set, is sent as the key.

    `with_tokens` asks for the very ids that were sampled (vLLM's `return_token_ids`, since 0.10.2): encoding a text anew may
    give others.
    """

    def __init__(self, http: HttpClient, model: str, *, with_tokens: bool = False):
        self._http, self.model, self.url, self.with_tokens = http, model, http.url, with_tokens

    @classmethod
    def connect(
        cls, url: str, model: str | None = None, *, with_tokens: bool = False, **options: Any
    ) -> "OpenAIServer":
        """The server at `url` (with or without its `/v1`), and its model. Raises StageError when that is not clear."""
        http = HttpClient(url.rstrip("/").removesuffix("/v1"), os.environ.get("OPENAI_API_KEY"), **options)
        if model is None:
            listed = [entry["id"] for entry in http.get("/v1/models").get("data", [])]
            if len(listed) != 1:
                shown = ", ".join(listed[:5]) or "none"
                raise StageError(f"{url}: lists {len(listed)} models ({shown}); name one with --server-model")
            model = listed[0]
        return cls(http, model, with_tokens=with_tokens)

    def probe(self) -> None:
        """Refuse a server whose K responses would not be K samples. Raises StageError saying what it ignores.

        `transformers serve` answers one choice whatever `n` says and, unless the model's generation_config.json sets
        do_sample, the same text at any temperature.
        """
        hot = [self.complete(_probe(text, n=3, temperature=1.5, seed=n)) for n, text in enumerate(PROBE_PROMPTS)]
        if any(len(choices) != 3 for choices in hot):
            raise StageError(f"{self.url}: asked for n=3 responses, got {len(hot[0])}: it ignores n")
        if all(len({choice.text for choice in choices}) == 1 for choices in hot):
            raise StageError(f"{self.url}: 3 responses at temperature 1.5 are always equal: it ignores temperature")
        cold = [
            {self.complete(_probe(text, n=1, temperature=0, seed=n))[0].text for n in (1, 2)} for text in PROBE_PROMPTS
        ]
        if all(len(texts) > 1 for texts in cold):
            raise StageError(f"{self.url}: responses at temperature 0 always differ: it ignores temperature")

    def complete_all(self, orders: Sequence[dict[str, Any]]) -> list[list[Choice]]:
        """The choices of each request, in order, a few requests at a time. Raises StageError if a server skimps."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            answers = list(pool.map(self.complete, orders))
        for order, choices in zip(orders, answers, strict=True):
            if len(choices) != order["n"]:
                raise StageError(f"{self.url}: asked for {order['n']} responses, got {len(choices)}")
        return answers

    def complete(self, order: dict[str, Any]) -> list[Choice]:
        """The choices of one request.

        Raises NotACompletion for an answer that is none, StageError where ids are missing or another model answered.
        """
        asked = {"return_token_ids": True, "logprobs": True} if self.with_tokens else {}
        response = self._http.send("/v1/chat/completions", {"model": self.model, **order, **asked})
        # Heed's servers say so. The answer's own `model` proves nothing: others put a longer name there than was asked for.
        if (by := response.headers.get("X-Heed-Model", self.model)) != self.model:
            raise StageError(f"{self.url}: asked for {self.model}, answered by {by}")
        try:
            answer = response.json()
            choices = [Choice(c["message"]["content"] or "", c.get("finish_reason")) for c in answer["choices"]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NotACompletion(f"{self.url}: not a chat completion: no {error}") from None
        return [
            Choice(
                choice.text,
                choice.finish_reason if choice.finish_reason in ("stop", "length") else "",
                self._tokens(answer, given) if self.with_tokens else None,
            )
            for choice, given in zip(choices, answer["choices"], strict=True)
        ]

    def _tokens(self, answer: dict[str, Any], given: dict[str, Any]) -> Tokens:
        try:
            logprobs = [entry["logprob"] for entry in given["logprobs"]["content"]]
            tokens = Tokens(list(answer["prompt_token_ids"]), list(given["token_ids"]), logprobs)
        except (KeyError, TypeError):
            raise StageError(
                f"{self.url}: gives no token ids with their log-probabilities (vLLM does, from 0.10.2 on); leave out token_ids"
            ) from None
        if len(tokens.ids) != len(tokens.logprobs):
            raise StageError(
                f"{self.url}: gives {len(tokens.ids)} token ids and {len(tokens.logprobs)} log-probabilities for one response"
            )
        return tokens


def _probe(text: str, **settings: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 24, **settings}
