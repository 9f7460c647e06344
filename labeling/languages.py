"""Which language a text is in, told offline."""

from functools import cache
from typing import Any

READ_CHARS = 400  # more tell it no better, and cost
SURE_FROM = 0.3  # of the probability, which is low for a few words even where they are told rightly


def language_of(text: str) -> str:
    """The ISO 639 code of the language (en, de, zh); empty where it cannot be told: a few words, code, numbers."""
    name, probability = _identifier().classify(text[:READ_CHARS])
    return name if probability >= SURE_FROM and name != "zxx" else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second, and 100 MB: only where prompts are checked

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
