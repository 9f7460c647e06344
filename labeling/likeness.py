"""Near copies and long common beginnings: keys by which a text's likes are looked up, and the comparison itself. Pure functions.

A key is a 64-bit number. Texts that share none are not alike (with the chances below); texts that share one are compared.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

NEAR_FROM = 0.7  # Jaccard index of the two sets of shingles
SHINGLE_WORDS = 3
COMPARED_FROM_WORDS = (
    25  # in shorter texts one word makes another question: only the same words in the same order count
)
# A pair of index s shares a band with probability 1 − (1 − s⁵)¹²: 0.89 at 0.7, 0.99 at 0.8, 0.03 at 0.3.
BANDS, ROWS = 12, 5
SEED = 1  # never change it, nor the lines above: keys that are stored were made with them
BEGINNING_FROM_CHARS = 200
BEGINNING_SHARE = 2 / 3  # of the shorter text. An instruction that many prompts begin with is not a copy.
BEGINNING_STEP = 1.5
COMPARED_TO_CHARS = 40_000
WORDS = re.compile(r"\w+")
# Scripts that put no spaces between words: each character counts as one.
UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff])")


def flat(messages: Sequence[dict[str, str]]) -> str:
    """What is compared: the conversation without instructions of the system, without differences of case and spacing."""
    text = "\n".join(message["content"] for message in messages if message["role"] != "system")
    return " ".join(text.casefold().split())[:COMPARED_TO_CHARS]


def keys_of(text: str) -> list[int]:
    """The keys of a flat text: its bands and its beginnings, or the text as a whole where it is short."""
    shingles = shingles_of(text)
    if not shingles:
        return [_key("same", text.rstrip(" .!?"))]
    return [*_bands(shingles), *(_key("begins", text[:length]) for length in _lengths(len(text)))]


def is_near(a: str, b: str) -> bool:
    """True if two flat texts are near copies: the same shingles but for some, or, if short, the same but for the full stop."""
    some, others = shingles_of(a), shingles_of(b)
    if not some or not others:
        return a.rstrip(" .!?") == b.rstrip(" .!?")
    return len(some & others) >= NEAR_FROM * len(some | others)


def begin_alike(a: str, b: str) -> bool:
    """True if two flat texts share a beginning that is long in itself and most of the shorter one."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return shared >= BEGINNING_FROM_CHARS and shared >= BEGINNING_SHARE * min(len(a), len(b))


def shingles_of(text: str) -> frozenset[str]:
    """Every run of three words; none of a text too short to be compared so."""
    words = WORDS.findall(UNSPACED.sub(r" \1 ", text))
    if len(words) < COMPARED_FROM_WORDS:
        return frozenset()
    return frozenset(" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))


def _lengths(chars: int) -> list[int]:
    lengths, length = [], float(BEGINNING_FROM_CHARS)
    while length <= chars:
        lengths.append(int(length))
        length *= BEGINNING_STEP
    return lengths


@cache
def _empty_sketch() -> Any:
    from datasketch.minhash import MinHash  # half a second: only where copies are looked for

    return MinHash(num_perm=BANDS * ROWS, seed=SEED, scheme="affine32")


def _bands(shingles: frozenset[str]) -> list[int]:
    sketch = _empty_sketch().copy()
    sketch.update_batch([shingle.encode() for shingle in shingles])
    values = sketch.hashvalues.astype("<u4")
    edges = pairwise(range(0, BANDS * ROWS + 1, ROWS))
    return [_key(f"band{n}", values[low:high].tobytes()) for n, (low, high) in enumerate(edges)]


def _key(kind: str, content: str | bytes) -> int:
    """A signed 64-bit number, as PostgreSQL's bigint."""
    content = content.encode() if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=kind.encode()).digest(), "big", signed=True)
