"""Who answers asks: a model folder in batches, or any OpenAI-compatible server. Which answers come out is a function of the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from training.errors import StageError
from training.openai_server import OpenAIServer, Tokens

if TYPE_CHECKING:
    from training.sample import Config, Source


@dataclass(frozen=True)
class Ask:
    """One response to be written: to which prompt, and its number among the model's responses to it."""

    prompt: dict[str, Any]
    number: int

    @property
    def name(self) -> str:
        """What errors call the prompt."""
        return self.prompt.get("prompt_id") or self.prompt.get("external_id") or "a prompt"

    def again(self, round_number: int) -> Ask:
        """The same ask in another round of best-of-n, with a number that no other ask of the prompt has (K is at most 64)."""
        return Ask(self.prompt, self.number + 64 * round_number)


class Answer(NamedTuple):
    """A response: its text, why it ended, its tokens where a server was asked for them, and the reward it was chosen by, if it was."""

    text: str
    finish_reason: str
    tokens: Tokens | None = None
    reward: float | None = None


class Writer(Protocol):
    """What answers asks: (text, finish reason) for each, None where the prompt is too long and may be dropped."""

    def write(self, asks: Sequence[Ask], batch_number: int) -> list[Answer | None]:
        """The answers to a batch; the batch's number is what its random numbers depend on."""
        ...


class PromptEncoder:
    """Prompts as a model folder's tokenizer and context take them."""

    def __init__(self, config: Config, source: Source):
        from training.models import context_of, load_tokenizer  # torch takes seconds to load

        assert source.folder is not None  # noqa: S101 the caller chose by it
        self.config, self.source = config, source
        self.tokenizer, self.context = load_tokenizer(source.folder), context_of(source.folder)

    def encode(self, ask: Ask) -> list[int] | None:
        """The prompt's ids; None where it is too long and may be dropped. Raises StageError where it may not."""
        from training.data import encode_prompt

        ids = encode_prompt(self.tokenizer, with_prefix(ask.prompt["messages"], self.source.few_shot_prefix))
        if self.context is None or len(ids) + self.config.max_new_tokens <= self.context:
            return ids
        if self.config.on_too_long == "drop":
            return None
        raise StageError(
            f"{ask.name}: {len(ids)} prompt + {self.config.max_new_tokens} response tokens exceed {self.source.name}'s "
            f"context of {self.context}; lower max_new_tokens, or set on_too_long to drop"
        )


class FolderWriter:
    """Samples from a model folder, batch by batch; batch n draws the same numbers whether or not the others ran."""

    def __init__(self, config: Config, source: Source):
        from training import cpu  # torch takes seconds to load
        from training.models import load_policy, pick_device

        cpu.use(threads=0)
        self.config, self.source, self.encoder = config, source, PromptEncoder(config, source)
        self.model = load_policy(str(source.folder), pick_device(config.device))

    def write(self, asks: Sequence[Ask], batch_number: int) -> list[Answer | None]:
        """(text, finish reason) per ask, None where the prompt is too long and may be dropped."""
        from training.generation import sample_texts

        prompts = [self.encoder.encode(ask) for ask in asks]
        kept = [prompt for prompt in prompts if prompt is not None]
        if not kept:
            return [None] * len(asks)
        texts, reasons = sample_texts(
            self.model,
            self.encoder.tokenizer,
            kept,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=_seed(self.config.seed, self.source.identity, batch_number),
            batch=len(kept),
        )
        answers = iter(Answer(text, reason) for text, reason in zip(texts, reasons, strict=True))
        return [None if prompt is None else next(answers) for prompt in prompts]


def with_prefix(messages: Sequence[dict[str, str]], prefix: str) -> list[dict[str, str]]:
    """The messages with a few-shot prefix before the first user turn (the paper's prompted baseline)."""
    turns = [dict(message) for message in messages]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if prefix and first:
        first["content"] = prefix + first["content"]
    return turns


def _seed(*parts: Any) -> int:
    """A seed of 31 bits from what decides a batch."""
    return int(digest(list(parts))[:8], 16) >> 1


class ServerWriter:
    """Samples from an OpenAI-compatible server."""

    def __init__(self, config: Config, server: OpenAIServer):
        self.config, self.server = config, server
        server.probe()

    def write(self, asks: Sequence[Ask], batch_number: int) -> list[Answer | None]:
        """(text, finish reason) per ask; the responses to one prompt are asked for together."""
        groups: list[list[Ask]] = []
        for ask in asks:
            if groups and groups[-1][0].prompt is ask.prompt:
                groups[-1].append(ask)
            else:
                groups.append([ask])
        orders = [
            {
                "messages": group[0].prompt["messages"],
                "n": len(group),
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_new_tokens,
                "seed": _seed(self.config.seed, prompt_hash(group[0].prompt), group[0].number),
            }
            for group in groups
        ]
        return [Answer(*choice) for choices in self.server.complete_all(orders) for choice in choices]


def prompt_hash(prompt: dict[str, Any]) -> str:
    return digest(prompt["messages"])


def digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
