"""One row of an import, checked: a prompt, with the responses and demonstrations that came with it."""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _
from msgspec import Struct

from labeling.actions.import_formats import what_fits
from labeling.models import Prompt, Split
from labeling.models.prompts import content_digest
from labeling.models.responses import text_digest
from labeling.normalisation import normalise, normalise_messages

ROLES = ("system", "user", "assistant")
PROMPT_FIELDS = frozenset(
    (
        "prompt",
        "messages",
        "kind",
        "use_case",
        "author",
        "organization",
        "split",
        "external_id",
        "metadata",
        "demonstration",
    )
)
RESPONSE_FIELDS = PROMPT_FIELDS | {
    "prompt_id", "model", "response", "responses", "response_external_id", "finish_reason", "sampling"
}  # fmt: skip
RESPONSE_PARTS = frozenset(("model", "text", "external_id", "finish_reason", "sampling"))
FINISH_REASONS = ("", "stop", "length")
PLAIN = Prompt.Kind.PLAIN.value
MAX_MESSAGES = 1000
MAX_JSON_BYTES = 100_000
ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # after an odd number of backslashes

Complain = Callable[[str, str], None]
"""Takes (field, message) of something wrong with the row."""
Check = Callable[[Any], Any]
"""A value in, the value as it is stored out; ValueError says what is wrong."""


class ResponseItem(Struct, frozen=True, gc=False):
    """A response as it came in. `model` None: written by a person, a demonstration. `sampling` is JSON."""

    model: str | None
    text: str
    external_id: str | None = None
    finish_reason: str = ""
    sampling: str = "{}"

    @property
    def text_sha256(self) -> str:
        """What equal texts share."""
        return text_digest(self.text)


class PromptItem(Struct, frozen=True, gc=False):
    """A prompt as it came in: either its UUID, when it is here already, or its messages. `metadata` is JSON."""

    prompt_id: uuid.UUID | None
    messages: list[dict[str, str]]
    content_sha256: str
    external_id: str | None = None
    kind: str = PLAIN
    use_case: str = ""
    author: str | None = None
    organization: str = ""
    split: str | None = None
    metadata: str = "{}"
    original: list[dict[str, str]] | None = None
    responses: tuple[ResponseItem, ...] = ()


def check_row(
    row: dict[str, Any], *, with_responses: bool, complain: Complain, seen_unknown: set[str]
) -> PromptItem | None:
    """The row's content, or None after `complain` was told everything that is wrong with it.

    A column that is unknown is told once, not in every row: `seen_unknown` remembers.
    """
    known = RESPONSE_FIELDS if with_responses else PROMPT_FIELDS
    if not row.keys() <= known:
        unknown = set(row) - known
        if fitting := what_fits(row):
            about, advice = fitting
            if about not in seen_unknown:
                complain(
                    about, _("%(advice)s (columns found: %(columns)s)") % {"advice": advice, "columns": _listed(row)}
                )
            seen_unknown |= unknown
        for name in sorted(unknown - seen_unknown):
            complain(name[:100] or "''", _why_unknown(name, row, with_responses))
        seen_unknown |= unknown
        return None  # the rest of the row would only repeat that its columns are not understood
    reader = _Reader(row, complain)
    item = _read_item(reader, with_responses)
    return None if reader.has_failed else item


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(sorted(row))[:300]


def _why_unknown(name: str, row: dict[str, Any], with_responses: bool) -> str:
    if not with_responses and name in RESPONSE_FIELDS:
        return _("unknown column here: it belongs to an import of responses")
    fields = sorted(RESPONSE_FIELDS if with_responses else PROMPT_FIELDS)
    said = _("unknown column; map it, leave it out, or name it as a field: %(fields)s (columns found: %(columns)s)")
    return said % {"fields": ", ".join(fields), "columns": _listed(row)}


def _read_item(reader: "_Reader", with_responses: bool) -> PromptItem:
    prompt_id = reader.read("prompt_id", _uuid)
    came = [] if prompt_id and not reader.has("prompt", "messages") else reader.messages()
    messages, original = normalise_messages(came)
    responses = [ResponseItem(None, text) for text in reader.read("demonstration", _texts) or []]
    if with_responses:
        responses = [*reader.responses(), *responses]
    return PromptItem(
        prompt_id=prompt_id,
        messages=messages,
        content_sha256=content_digest(messages) if messages else "",
        original=original,
        responses=tuple(responses),
        **reader.read_given(PROMPT_CHECKS),
    )


class _Reader:
    """Reads a row's fields one by one; what is wrong is told, and reading goes on so that all of it is told at once."""

    def __init__(self, row: dict[str, Any], complain: Complain):
        self.row = row
        self._complain = complain
        self.has_failed = False

    def refuse(self, name: str, message: str) -> None:
        """Note that a field is wrong."""
        self.has_failed = True
        self._complain(name, message)

    def has(self, *names: str) -> bool:
        """True if the row gives one of these fields."""
        for name in names:  # noqa: SIM110 asked several times a row, a generator would cost more than what it asks
            if self.row.get(name) is not None:
                return True
        return False

    def read_given(self, checks: Mapping[str, Check]) -> dict[str, Any]:
        """The checked values of those of the fields that the row gives, and that say something."""
        row = self.row
        return {name: value for name, check in checks.items() if name in row and (value := self.read(name, check))}

    def read(self, name: str, check: Check) -> Any:
        """A field's checked value; None when it is absent or was refused."""
        value = self.row.get(name)
        if value is None:
            return None
        try:
            return check(value)
        except ValueError as error:
            self.refuse(name, str(error))
            return None

    def messages(self) -> list[dict[str, str]]:
        """The prompt's messages, from `prompt` or `messages`; empty when they were refused."""
        has_messages = self.has("messages")
        if self.has("prompt"):
            if not has_messages:
                text = self.read("prompt", _text(settings.PROMPT_MAX_CHARS))
                return [{"role": "user", "content": text}] if text else []
            self.refuse("prompt", _("give either prompt or messages, not both"))
        elif has_messages:
            return self.read("messages", _messages) or []
        else:
            self.refuse("prompt", _("missing or empty"))
        return []

    def responses(self) -> list[ResponseItem]:
        """The row's responses: one (`model`, `response`) or several (`responses`)."""
        if self.has("responses"):
            if self.has("response", "model", "response_external_id", "finish_reason", "sampling"):
                self.refuse("responses", _("give either responses, or model and response"))
            return self._several()
        if not self.has("response") and self.has("model"):
            self.refuse("response", _("missing or empty"))
        if self.has("response") and not self.has("model"):
            self.refuse("model", _("missing: who wrote the response"))
        if not self.has("response", "model", "demonstration"):
            self.refuse("response", _("missing: a row needs model and response, or responses"))
        if not self.has("response"):
            return []
        return [self._one("response", RESPONSE_CHECKS, settings.RESPONSE_MAX_CHARS)]

    def _several(self) -> list[ResponseItem]:
        given = self.row["responses"]
        if not isinstance(given, list) or not given:
            self.refuse("responses", _("expected a list of {model, text}, not empty"))
            return []
        items, most = [], settings.RESPONSE_MAX_CHARS
        for number, one in enumerate(given):
            inner = _Reader(one if isinstance(one, dict) else {}, self._within(number))
            if not inner.row.keys() <= RESPONSE_PARTS:
                for name in sorted(inner.row.keys() - RESPONSE_PARTS):
                    inner.refuse(name, _("unknown field"))
            for name in ("model", "text"):
                if not inner.has(name):
                    inner.refuse(name, _("missing or empty"))
            items.append(inner._one("text", RESPONSE_PART_CHECKS, most))
            self.has_failed |= inner.has_failed
        return items

    def _within(self, number: int) -> Complain:
        return lambda name, message: self._complain(f"responses[{number}].{name}", message)

    def _one(self, text: str, checks: Mapping[str, Check], max_chars: int) -> ResponseItem:
        given = self.read_given(checks)
        if "response_external_id" in given:
            given["external_id"] = given.pop("response_external_id")
        # A model that stops at once has answered, badly, and people should say so; without a finish reason an empty
        # text is more likely a hole in the file.
        check = _text(max_chars, may_be_empty="finish_reason" in given)
        return ResponseItem(model=self.read("model", _model_name) or "", text=self.read(text, check) or "", **given)


# ---- checks: a value in, the value as it is stored out; ValueError says what is wrong -----------------------------------


def _clean(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(_("expected text, got %s") % _kind_of(value))
    if "\x00" in value:
        raise ValueError(_("holds a NUL character, which cannot be stored"))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(_("holds half a surrogate pair, which is no character")) from None
    return value


def _kind_of(value: Any) -> str:
    number = _("a number")
    names = {bool: _("true or false"), int: number, float: number, list: _("a list"), dict: _("an object")}
    return names.get(type(value), type(value).__name__)


def _too_long(length: int, most: int) -> ValueError:
    return ValueError(_("%(n)s characters; %(most)s at most") % {"n": f"{length:,}", "most": f"{most:,}"})


@cache
def _text(max_chars: int, *, may_be_empty: bool = False) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        text = _clean(value)
        if not text[:1].isalnum() and not normalise(text).strip() and not may_be_empty:
            raise ValueError(_("empty"))
        if len(text) > max_chars:
            raise _too_long(len(text), max_chars)
        return text

    return check


def _limited(max_chars: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        text = _clean(value).strip()
        if len(text) > max_chars:
            raise _too_long(len(text), max_chars)
        return text

    return check


def _choice(*options: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in options:
            shown = repr(value) if isinstance(value, str) and len(value) <= 50 else _kind_of(value)
            said = _("expected one of %(options)s; got %(given)s")
            raise ValueError(said % {"options": ", ".join(filter(None, options)), "given": shown})
        return value

    return check


_id, _use_case, _model_name = _limited(200), _limited(50), _limited(150)
_kind, _split, _finish_reason = _choice(*Prompt.Kind.values), _choice(*Split.values), _choice(*FINISH_REASONS)


def _uuid(value: Any) -> uuid.UUID:
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(_("expected the UUID of a prompt")) from None


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_text(settings.RESPONSE_MAX_CHARS)(text) for text in values]


def _from_json(value: Any) -> Any:
    """CSV has no nesting: there, JSON stands in the cell."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(_("not JSON: %s") % error) from None


def _no_constant(name: str) -> None:
    raise ValueError(_("%s is not JSON") % name)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in made if names.count(name) > 1)[:100]
        raise ValueError(_("the key %r is there twice") % twice)
    return made


def _json_object(value: Any) -> str:
    """A JSON object, as the text that a column of type jsonb takes."""
    value = _from_json(value)
    if not isinstance(value, dict):
        raise ValueError(_("expected a JSON object, got %s") % _kind_of(value))
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(_("cannot be stored as JSON: %s") % error) from None
    if ESCAPED_NUL.search(text):
        raise ValueError(_("holds a NUL character, which cannot be stored"))
    _clean(text)
    if len(text) > MAX_JSON_BYTES:
        said = _("%(n)s characters of JSON; %(most)s at most")
        raise ValueError(said % {"n": f"{len(text):,}", "most": f"{MAX_JSON_BYTES:,}"})
    return text


def _messages(value: Any) -> list[dict[str, str]]:
    """Chat messages with the last from the user; the limit holds for all of them together."""
    value = _from_json(value)
    if not isinstance(value, list) or not value:
        raise ValueError(_("expected a list of {role, content}, not empty"))
    if len(value) > MAX_MESSAGES:
        raise ValueError(_("%(n)d messages; %(most)d at most") % {"n": len(value), "most": MAX_MESSAGES})
    messages = [_message(one, number) for number, one in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise ValueError(_("the last message must be the user's, not the %s's") % messages[-1]["role"])
    length = sum(len(message["content"]) for message in messages)
    if length > settings.PROMPT_MAX_CHARS:
        raise _too_long(length, settings.PROMPT_MAX_CHARS)
    return messages


def _message(value: Any, number: int) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise ValueError(_("message %d: expected {role, content}") % (number + 1))
    try:
        content = _text(settings.PROMPT_MAX_CHARS)(value["content"])
    except ValueError as error:
        raise ValueError(_("message %(n)d: content: %(problem)s") % {"n": number + 1, "problem": error}) from None
    if value["role"] not in ROLES:
        said = _("message %(n)d: role: expected one of %(roles)s")
        raise ValueError(said % {"n": number + 1, "roles": ", ".join(ROLES)})
    return {"role": value["role"], "content": content}


# Of the fields that may be left out.
PROMPT_CHECKS: Mapping[str, Check] = {
    "external_id": _id,
    "kind": _kind,
    "use_case": _use_case,
    "author": _id,
    "organization": _id,
    "split": _split,
    "metadata": _json_object,
}
RESPONSE_PART_CHECKS: Mapping[str, Check] = {
    "finish_reason": _finish_reason,
    "external_id": _id,
    "sampling": _json_object,
}
RESPONSE_CHECKS: Mapping[str, Check] = {
    "finish_reason": _finish_reason,
    "response_external_id": _id,
    "sampling": _json_object,
}
