"""What a client may ask: OpenAI's chat completions and completions, checked strictly.

What the policy server would silently ignore is refused, so that nobody builds on it; what is OpenAI's own business (billing
tiers, caches) is accepted and left aside. Content that is no text is refused: a picture's address would have the policy server
fetch it.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from labeling.gateway.errors import GatewayError, invalid

ANY_POLICY = "heed"
MAX_TOKENS = 8192  # of one answer
MAX_CHOICES = 8
MAX_MESSAGES = 1000
MAX_CHARS = 200_000  # of all messages, as for imports (settings.PROMPT_MAX_CHARS)

Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1, max_length=500)]
UserName = Annotated[str, Meta(max_length=500)]


class StreamOptions(Struct):
    """Whether the last piece of a stream tells the tokens used."""

    include_usage: bool | None = None


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both endpoints understand. None: not given."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Tokens | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    user: UserName | None = None
    # Left aside: OpenAI's own business.
    service_tier: Any = None

    FORWARDED: ClassVar[tuple[str, ...]] = (
        *("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "logit_bias", "seed"),
    )
    REFUSED: ClassVar[dict[str, tuple]] = {}


class Message(Struct):
    """One turn. Fields of answers that clients send back (refusal, annotations …) are left aside."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class Chat(Settings, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: UserName | None = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    response_format: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    FORWARDED: ClassVar[tuple[str, ...]] = (*Settings.FORWARDED, "max_completion_tokens")
    # What none of our policy servers does, with the values that ask for nothing.
    REFUSED: ClassVar[dict[str, tuple]] = {
        "response_format": ({"type": "text"},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }


class Completion(Settings, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str]
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    suffix: Any = None
    echo: Any = None
    best_of: Any = None
    logprobs: Any = None

    REFUSED: ClassVar[dict[str, tuple]] = {"suffix": ("",), "echo": (False,), "best_of": (1,), "logprobs": ()}


@dataclass(frozen=True)
class Asked:
    """A request that can be answered."""

    is_chat: bool
    model: str
    messages: list[
        dict[str, str]
    ]  # as the policy is asked and as they are kept; a completion's text is one user message
    settings: dict[str, Any]  # as they are passed on
    stop: tuple[str, ...] = ()
    n: int = 1
    is_stream: bool = False
    includes_usage: bool = False
    user: str = ""
    opts_out: bool = False  # by the body; the header counts too

    @property
    def wanted(self) -> str | None:
        """The policy that the client insists on; None: whichever serves."""
        return None if self.model == ANY_POLICY else self.model


def read(body: bytes, *, is_chat: bool) -> Asked:
    """The request, or GatewayError (400) with the place of the first thing that is wrong."""
    try:
        said: Chat | Completion = (
            msgspec.json.decode(body, type=Chat) if is_chat else msgspec.json.decode(body, type=Completion)
        )
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("The body is not JSON.", code="invalid_json") from None
    _refuse_what_nobody_does(said)
    messages = _messages(said)
    if (length := sum(len(message["content"]) for message in messages)) > MAX_CHARS:
        raise invalid(
            f"The prompt has {length:,} characters; {MAX_CHARS:,} at most.", "messages", "context_length_exceeded"
        )
    if said.stream and (said.n or 1) > 1:
        raise invalid("n: more than 1 is not answered as a stream; leave stream out.", "n")
    stop = (said.stop,) if isinstance(said.stop, str) else tuple(said.stop or ())
    return Asked(
        is_chat=is_chat,
        model=said.model,
        messages=messages,
        settings={name: value for name in said.FORWARDED if (value := getattr(said, name)) is not None},
        stop=stop,
        n=said.n or 1,
        is_stream=bool(said.stream),
        includes_usage=bool(said.stream_options and said.stream_options.include_usage),
        user=said.user or getattr(said, "safety_identifier", None) or "",
        opts_out=said.store is False or _says_yes((said.metadata or {}).get("heed_opt_out")),
    )


def opts_out(header: str | None) -> bool:
    """True if X-Heed-Opt-Out keeps a request out of training: unless it plainly says no, it does."""
    return header is not None and _says_yes(header)


def _says_yes(value: Any) -> bool:
    return str(value).strip().lower() not in ("", "0", "false", "no", "off", "none")


def _invalid(said: str) -> GatewayError:
    """msgspec's message, "Expected `float`, got `str` - at `$.temperature`", as OpenAI would tell it."""
    message, _, place = said.partition(" - at `$")
    param = place.strip("`").lstrip(".") or None
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        param = f"{param}.{unknown[1]}" if param else unknown[1]
        return invalid(f"Unrecognized request argument: {param}", param, "unknown_parameter")
    if missing := re.search(r"missing required field `([^`]*)`", message):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return invalid(f"Missing required parameter: {param}", param, "missing_required_parameter")
    return invalid(f"{param}: {message}" if param else message, param)


def _refuse_what_nobody_does(said: Settings) -> None:
    for name, harmless in said.REFUSED.items():
        value = getattr(said, name)
        if value is not None and value not in harmless:
            raise invalid(f"{name} is not supported here.", name, "unsupported_parameter")


def _messages(said: Chat | Completion) -> list[dict[str, str]]:
    if isinstance(said, Completion):
        prompts = [said.prompt] if isinstance(said.prompt, str) else said.prompt
        if len(prompts) != 1:
            raise invalid("prompt: one text at a time.", "prompt")
        return [{"role": "user", "content": _text(prompts[0], "prompt")}]
    return [_message(message, f"messages[{number}]") for number, message in enumerate(said.messages)]


def _message(message: Message, place: str) -> dict[str, str]:
    if message.tool_calls:
        raise invalid(f"{place}: tools are not supported here.", f"{place}.tool_calls", "unsupported_parameter")
    content = message.content or ""
    if isinstance(content, list):
        for number, part in enumerate(content):
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise invalid(f"{place}: content takes text alone.", f"{place}.content[{number}]")
        content = "\n".join(part["text"] for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(content, f"{place}.content")}


def _text(text: str, place: str) -> str:
    if "\x00" in text:
        raise invalid(f"{place}: holds a NUL character.", place)
    return text
