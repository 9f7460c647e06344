"""Signs of a policy that came apart, read from its texts alone: nothing said, or the same said again and again. Pure."""

from collections import Counter
from collections.abc import Sequence

NGRAM_WORDS = 4
LOOPS_FROM = 0.5


def repeated_share(text: str, n: int = NGRAM_WORDS) -> float:
    """The share of a text's n-grams of words that stood in it before, 0 to 1; 0 for a text of fewer than n words.

    "a b a b a b" has for n = 2 five n-grams, three of them seen before: 0.6.
    """
    words = text.split()
    ngrams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return 1 - len(ngrams) / ngrams.total() if ngrams else 0.0


def figures(texts: Sequence[str]) -> dict[str, float]:
    """Of texts, one or more: shares of empty ones and of looping ones (half of their n-grams are repeats), mean repeated share."""
    repeats = [repeated_share(text) for text in texts]
    return {
        "empty_share": sum(not text.strip() for text in texts) / len(texts),
        "looping_share": sum(repeat >= LOOPS_FROM for repeat in repeats) / len(texts),
        "repeated_share": sum(repeats) / len(texts),
    }
