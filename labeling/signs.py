"""Signs that a text was not written, or a ranking not read: speed, pasted text, near-copies. Pure functions.

They are signs, no proof: a fast typist, a quotation and a rewriting task set them off too. A person looks at the rows.
"""

from collections.abc import Mapping

from rapidfuzz import fuzz

TYPED_AT_MOST = 15.0  # characters per second that are kept up while writing: about 180 words a minute
READ_AT_MOST = 120.0  # characters per second of reading, all responses once: about 1,400 words a minute
PASTED_AT_LEAST = 0.5  # of the text
NEAR_COPY_FROM = 0.9
COMPARED_FROM_CHARS = 60  # shorter texts are alike by chance
COMPARED_TO_CHARS = 20_000
GRAM_CHARS = 12


def speed(characters: int, seconds: int) -> float | None:
    """Characters per second; None where no time was counted (scripts off, or work of under a second)."""
    return characters / seconds if seconds else None


def near_copy(text: str, sources: Mapping[str, str]) -> tuple[float | None, str]:
    """(likeness, name) of the source that a text is most like: 1 where one holds the other whole. (None, "") if all are short."""
    text, best, best_name = _flat(text), None, ""
    if len(text) < COMPARED_FROM_CHARS:
        return None, ""
    grams = _grams(text)
    for name, source in sources.items():
        source = _flat(source)
        if len(source) < COMPARED_FROM_CHARS:
            continue
        others = _grams(source)
        held = len(grams & others) / min(len(grams), len(others))
        likeness = max(held, fuzz.ratio(text, source) / 100)
        if best is None or likeness > best:
            best, best_name = likeness, name
    return best, best_name


def _flat(text: str) -> str:
    """Without differences of spacing and case, at most so long that comparing takes milliseconds."""
    return " ".join(text.split()).lower()[:COMPARED_TO_CHARS]


def _grams(text: str) -> set[str]:
    """Every run of so many characters: fit for languages that put no spaces between words, too."""
    return {text[i : i + GRAM_CHARS] for i in range(len(text) - GRAM_CHARS + 1)}
