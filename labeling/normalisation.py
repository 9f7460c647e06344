"""One form for texts that look alike, so that they are compared, counted and labeled as one."""

import re
import unicodedata

# C0 without tab and line feed, delete, C1; byte order marks and zero-width spaces; overrides of reading direction, which show a
# text other than it is. Zero-width joiners stay: emoji and several scripts are written with them.
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
SEEN_ASCII = bytes([0x09, 0x0A, *range(0x20, 0x7F)])


def normalise(text: str) -> str:
    """The text in Unicode NFC, with Unix line ends and without control characters. Normalised twice, it is the same.

    Nothing that a reader sees is changed; compatibility forms (ligatures, full-width letters) stay as they are.
    """
    if text.isascii() and not text.encode().translate(None, SEEN_ASCII):  # many times faster than to search by UNSEEN
        return text
    return unicodedata.normalize("NFC", UNSEEN.sub("", LINE_ENDS.sub("\n", text)))


def normalise_messages(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]] | None]:
    """The messages normalised, and as they came, if more than line ends is different; else None."""
    contents = [normalise(message["content"]) for message in messages]
    pairs = [(one["content"], made) for one, made in zip(messages, contents, strict=True) if one["content"] != made]
    if not pairs:
        return messages, None
    normal = [{"role": one["role"], "content": made} for one, made in zip(messages, contents, strict=True)]
    is_changed = any(LINE_ENDS.sub("\n", came) != made for came, made in pairs)
    return normal, messages if is_changed else None
