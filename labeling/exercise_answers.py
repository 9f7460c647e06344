"""Answers to exercises: from a page's fields, what is missing in them, and how far they agree with the reference.

An answer has the shape of the exercise's reference. On the page, responses are named by letter; fields: flag-NAME (yes, no),
place-A and quality-A per letter, text. Absent or empty means unanswered.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from django.utils.translation import gettext as _

from labeling import agreement
from labeling.answers import FLAG_VALUES, LETTERS, clean_text
from labeling.models import Exercise, Part

TEXT_MAX_CHARS = 50_000
QUALITY = range(1, 8)  # the grades of a demonstration in a screening
WORD_OF = {True: "yes", False: "no"}


def flags_of(exercise: Exercise) -> dict[str, str]:
    """The flags that an exercise asks for, with their labels in the form that it was made with."""
    labels = {flag["name"]: flag["label"] for flag in exercise.schema.prompt_flags}
    return {name: labels.get(name, name) for name in exercise.reference.get("prompt_flags", {})}


def letters_of(shown_order: list[str]) -> dict[str, str]:
    """Response id → letter, as one person sees them."""
    return {response: LETTERS[i] for i, response in enumerate(shown_order)}


def from_fields(fields: Mapping[str, str], exercise: Exercise, shown_order: list[str]) -> dict:
    """What the page says, complete or not."""
    if exercise.part == Part.DEMONSTRATION:
        return {"text": clean_text(fields.get("text", ""))}
    if exercise.part == Part.FLAGGING:
        names = exercise.reference.get("prompt_flags", {})
        return {"prompt_flags": {name: FLAG_VALUES.get(fields.get(f"flag-{name}", "")) for name in names}}
    tiers: dict[int, list[str]] = {}
    ratings = {}
    for response, letter in letters_of(shown_order).items():
        if (place := _number(fields.get(f"place-{letter}"))) is not None:
            tiers.setdefault(place, []).append(response)
        if (quality := _number(fields.get(f"quality-{letter}"))) in exercise.schema.quality_range:
            ratings[response] = {"quality": quality}
    return {"tiers": [tiers[place] for place in sorted(tiers)], "ratings": ratings}


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) <= 2 else None


def is_empty(content: dict) -> bool:
    """True if nothing has been said yet."""
    flagged = any(value is not None for value in content.get("prompt_flags", {}).values())
    return not (flagged or content.get("text", "").strip() or content.get("tiers") or content.get("ratings"))


def problems(content: dict, exercise: Exercise, shown_order: list[str]) -> list[str]:
    """What is missing or wrong, in words; empty if it can be handed in."""
    if exercise.part == Part.DEMONSTRATION:
        text = content.get("text", "")
        if len(text) > TEXT_MAX_CHARS:
            return [
                _("Your response has %(n)d characters; the limit is %(limit)d.")
                % {"n": len(text), "limit": TEXT_MAX_CHARS}
            ]
        return [] if text.strip() else [_("Your response is empty: write it first.")]
    if exercise.part == Part.FLAGGING:
        given = content.get("prompt_flags", {})
        missing = [label for name, label in flags_of(exercise).items() if given.get(name) is None]
        return [_("“%(label)s” is not answered yet.") % {"label": label} for label in missing]
    ranked = {response for tier in content.get("tiers", []) for response in tier}
    rated = content.get("ratings", {})
    found = []
    for response, letter in letters_of(shown_order).items():
        if exercise.asks_ratings and response not in rated:
            found.append(_("Response %(letter)s is not rated yet.") % {"letter": letter})
        if response not in ranked:
            found.append(_("Response %(letter)s has no place yet.") % {"letter": letter})
    return found


def score(content: dict, exercise: Exercise) -> tuple[int, int] | None:
    """(agreed, compared) of a complete answer with the reference: flags, or comparisons of responses, ties counted as in
    labeling/agreement.py (a tie agrees with a tie alone). None for a demonstration."""
    if exercise.part == Part.DEMONSTRATION:
        return None
    if exercise.part == Part.FLAGGING:
        expected, given = exercise.reference["prompt_flags"], content["prompt_flags"]
        return sum(given[name] == value for name, value in expected.items()), len(expected)
    compared = agreement.compare(content["tiers"], exercise.reference["tiers"])
    return compared.agreed, compared.comparisons


@dataclass(frozen=True)
class Comparison:
    """Two responses by letter: what one person says of them, and what the reference says (">", "=", "<")."""

    left: str
    right: str
    given: str
    expected: str

    @property
    def agrees(self) -> bool:
        return self.given == self.expected


def comparisons(content: dict, exercise: Exercise, shown_order: list[str]) -> list[Comparison]:
    """Every two responses of a ranking, in the order of their letters."""
    given, expected = (_places(tiers) for tiers in (content["tiers"], exercise.reference["tiers"]))
    letters = list(letters_of(shown_order).items())
    return [
        Comparison(left, right, _sign(given, a, b), _sign(expected, a, b))
        for i, (a, left) in enumerate(letters)
        for b, right in letters[i + 1 :]
    ]


def _places(tiers: list[list[str]]) -> dict[str, int]:
    return {response: place for place, tier in enumerate(tiers, start=1) for response in tier}


def _sign(places: dict[str, int], a: str, b: str) -> str:
    return "=" if places[a] == places[b] else ">" if places[a] < places[b] else "<"


# For pages -----------------------------------------------------------------------------------------------------


def form_rows(content: dict, exercise: Exercise, shown_order: list[str]) -> dict:
    """What the form needs: flags with their answers, responses by letter with place and rating, the text."""
    given = content.get("prompt_flags", {})
    places, ratings = _places(content.get("tiers", [])), content.get("ratings", {})
    texts = {response["id"]: response["text"] for response in exercise.responses}
    flags = [] if exercise.part != Part.FLAGGING else [
        {"name": name, "label": label, "value": WORD_OF.get(given.get(name), "")} for name, label in flags_of(exercise).items()
    ]  # fmt: skip
    cards = [
        {
            "letter": letter,
            "text": texts[response],
            "place": places.get(response, ""),
            "quality": ratings.get(response, {}).get("quality", ""),
        }
        for response, letter in letters_of(shown_order).items()
    ]
    return {"flags": flags, "cards": cards, "text": content.get("text", "")}


def shown(content: dict, exercise: Exercise, shown_order: list[str]) -> dict:
    """An answer to read: tiers of letters with text and rating, flags in words, or the text."""
    letters = letters_of(shown_order)
    texts = {response["id"]: response["text"] for response in exercise.responses}
    ratings = content.get("ratings", {})
    tiers = [
        [{"letter": letters[r], "text": texts[r], "quality": ratings.get(r, {}).get("quality")} for r in tier if r in letters]
        for tier in content.get("tiers", [])
    ]  # fmt: skip
    given = content.get("prompt_flags", {})
    flags = (
        [] if not given else [{"label": label, "value": given.get(name)} for name, label in flags_of(exercise).items()]
    )
    return {"tiers": tiers, "flags": flags, "text": content.get("text", "")}
