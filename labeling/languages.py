"""Languages: which one a text is in, told offline, and what each is called."""

from functools import cache
from typing import Any

from django.conf.locale import LANG_INFO

READ_CHARS = 400  # more tell it no better, and cost
SURE_FROM = 0.3  # of the probability, which is low for a few words even where they are told rightly

# What language_of may say: the languages that labelers can name as theirs and batches can ask for.
CODES = [
    "af", "am", "an", "ar", "as", "az", "be", "bg", "bn", "br", "bs", "ca", "cs", "cy", "da", "de", "dz", "el", "en",
    "eo", "es", "et", "eu", "fa", "fi", "fo", "fr", "ga", "gl", "gu", "he", "hi", "hr", "ht", "hu", "hy", "id", "is",
    "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "ku", "ky", "la", "lb", "lo", "lt", "lv", "mg", "mk", "ml", "mn",
    "mr", "ms", "mt", "nb", "ne", "nl", "nn", "no", "oc", "or", "pa", "pl", "ps", "pt", "qu", "ro", "ru", "rw", "se",
    "si", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "ug", "uk", "ur", "vi", "vo", "wa", "xh",
    "zh", "zu",
]  # fmt: skip
UNKNOWN_TO_DJANGO = {
    "am": "አማርኛ", "an": "aragonés", "as": "অসমীয়া", "dz": "རྫོང་ཁ", "fo": "føroyskt", "gu": "ગુજરાતી", "ht": "kreyòl ayisyen",
    "jv": "basa Jawa", "ku": "kurdî", "la": "Latina", "lo": "ລາວ", "mg": "malagasy", "mt": "Malti", "oc": "occitan", "or": "ଓଡ଼ିଆ",
    "ps": "پښتو", "qu": "Runasimi", "rw": "Ikinyarwanda", "se": "davvisámegiella", "si": "සිංහල", "tl": "Tagalog", "vo": "Volapük",
    "wa": "walon", "xh": "isiXhosa", "zh": "中文", "zu": "isiZulu",
}  # fmt: skip


def name_of(code: str) -> str:
    """What a language calls itself."""
    return UNKNOWN_TO_DJANGO.get(code) or str(LANG_INFO[code]["name_local"])


def choices() -> list[tuple[str, str]]:
    """Every code with its name and itself ("Deutsch (de)"), by name."""
    named = ((code, f"{name_of(code)} ({code})") for code in CODES)
    return sorted(named, key=lambda one: one[1].casefold())


def language_of(text: str) -> str:
    """The ISO 639 code of the language (en, de, zh); empty where it cannot be told: a few words, code, numbers."""
    name, probability = _identifier().classify(text[:READ_CHARS])
    return name if probability >= SURE_FROM and name != "zxx" else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second, and 100 MB: only where prompts are checked

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
