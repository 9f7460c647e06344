"""Answers: what a labeler says about a task, cleaned and checked before it becomes a revision.

An answer is a dict in the shape of a Revision's fields: `text` for a demonstration; `tiers`, `ratings` and `all_bad` for a
ranking; `prompt_flags` and `comment` for both. Responses are named by UUID here and by letter on the page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from labeling.errors import Invalid, refuse
from labeling.models import Kind, LabelSchema

LETTERS = "ABCDEFGHIJKL"
COMMENT_MAX_CHARS = 10_000
FLAG_VALUES = {"yes": True, "no": False}


@dataclass(frozen=True)
class Card:
    """One distinct text among a task's responses, as shown: all responses with this text, first shown first."""

    letters: tuple[str, ...]
    uuids: tuple[str, ...]
    text: str = ""

    @property
    def letter(self) -> str:
        return self.letters[0]

    @property
    def label(self) -> str:
        return " = ".join(self.letters)


def cards_of(shown_order: list[str], texts: Mapping[str, str]) -> list[Card]:
    """Cards in shown order; `texts` maps a response's UUID to its text (or its digest): equal ones share a card."""
    groups: dict[str, list[int]] = {}
    for position, uuid in enumerate(shown_order):
        groups.setdefault(texts[uuid], []).append(position)
    return [
        Card(tuple(LETTERS[i] for i in positions), tuple(shown_order[i] for i in positions), text)
        for text, positions in groups.items()
    ]


def clean_text(text: str) -> str:
    """Text that PostgreSQL can keep: no NUL, no lone surrogates, Unix line ends (browsers send CRLF)."""
    text = text.replace("\x00", "").replace("\r\n", "\n")
    return text.encode("utf-8", "replace").decode()


# From the page -------------------------------------------------------------------------------------------------


def from_fields(
    fields: Mapping[str, str], kind: str, cards: list[Card], schema: LabelSchema
) -> tuple[dict, list[dict]]:
    """The answer in a page's form fields, and what is wrong with their names. Absent or empty means unanswered.

    Fields: text; place-A, quality-A, flag-A-NAME per letter; prompt-NAME; all_bad; comment.
    """
    answer = {
        "prompt_flags": {
            f["name"]: FLAG_VALUES.get(fields.get(f"prompt-{f['name']}", "")) for f in schema.prompt_flags
        },
        "comment": clean_text(fields.get("comment", "")),
    }
    if kind == Kind.DEMONSTRATION:
        return answer | {"text": clean_text(fields.get("text", ""))}, []
    known = {card.letter: card for card in cards}
    problems = _unknown_fields(fields, known, {flag["name"] for flag in schema.response_flags})
    places: dict[int, list[str]] = {}
    ratings = {}
    for letter, card in known.items():
        if (place := _whole_number(fields.get(f"place-{letter}"))) is not None:
            places.setdefault(place, []).append(card.uuids[0])
        ratings[card.uuids[0]] = {
            "quality": _whole_number(fields.get(f"quality-{letter}")),
            "flags": {
                f["name"]: FLAG_VALUES.get(fields.get(f"flag-{letter}-{f['name']}", "")) for f in schema.response_flags
            },
        }
    tiers = [places[place] for place in sorted(places)]
    return answer | {"tiers": tiers, "ratings": ratings, "all_bad": bool(fields.get("all_bad"))}, problems


def _unknown_fields(fields: Mapping[str, str], known: Mapping[str, Card], flags: set[str]) -> list[dict]:
    """What names no response or flag of this task, and flags that say neither yes nor no."""
    problems = []
    for name, value in fields.items():
        what, _dash, rest = name.partition("-")
        if what not in {"place", "quality", "flag"}:
            continue
        letter, _dash, flag = rest.partition("-")
        place = _("Response %s") % letter
        if letter not in known:
            problems.append(problem(place, _("is not a response of this task")))
        elif what == "flag" and flag not in flags:
            problems.append(problem(place, _("unknown flag %r") % flag))
        elif what == "flag" and value not in {"", *FLAG_VALUES}:
            problems.append(
                problem(place, _("flag %(flag)s: %(value)r is neither yes nor no") % {"flag": flag, "value": value})
            )
    return problems


def to_fields(answer: dict, cards: list[Card]) -> dict[str, str]:
    """The form fields that say this answer: the inverse of from_fields. Unanswered ones are left out."""
    fields = {
        f"prompt-{name}": "yes" if value else "no"
        for name, value in answer.get("prompt_flags", {}).items()
        if value is not None
    }
    for name in ("text", "comment"):
        if answer.get(name):
            fields[name] = answer[name]
    if answer.get("all_bad"):
        fields["all_bad"] = "on"
    letter_of = {uuid: card.letter for card in cards for uuid in card.uuids}
    for place, tier in enumerate(answer.get("tiers") or [], start=1):
        fields |= {f"place-{letter_of[uuid]}": str(place) for uuid in tier if uuid in letter_of}
    for uuid, rating in (answer.get("ratings") or {}).items():
        if letter := letter_of.get(uuid):
            if rating.get("quality") is not None:
                fields[f"quality-{letter}"] = str(rating["quality"])
            given = {name: value for name, value in rating.get("flags", {}).items() if value is not None}
            fields |= {f"flag-{letter}-{name}": "yes" if value else "no" for name, value in given.items()}
    return fields


def _whole_number(value: str | None) -> int | None:
    """The number in a field of at most three digits, or None."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) <= 3 else None


def is_empty(answer: dict) -> bool:
    """True if nothing has been said yet."""
    rated = any(
        r.get("quality") or any(f is not None for f in r.get("flags", {}).values())
        for r in answer.get("ratings", {}).values()
    )
    flagged = any(value is not None for value in answer.get("prompt_flags", {}).values())
    return not (rated or flagged or any(answer.get(name) for name in ("text", "tiers", "comment", "all_bad")))


# For people -------------------------------------------------------------------------------------------------


def shown(answer: dict, cards: list[Card], schema: LabelSchema) -> dict:
    """What the template needs of an answer: letters, never ids; only what was answered."""
    card_of = {card.uuids[0]: card for card in cards}
    labels = {flag["name"]: flag["label"] for flag in [*schema.response_flags, *schema.prompt_flags]}
    ratings = answer.get("ratings") or {}
    tiers: list[list[dict]] = []
    for tier in answer.get("tiers") or []:
        tiers.append([])
        for card in [card_of[response_uuid] for response_uuid in tier if response_uuid in card_of]:
            rating = ratings.get(card.uuids[0], {})
            tiers[-1].append(
                {
                    "label": card.label,
                    "letter": card.letter,
                    "text": card.text,
                    "quality": rating.get("quality"),
                    "flags": _answered(rating.get("flags", {}), labels),
                }
            )
    return {
        "text": answer.get("text"),
        "tiers": tiers,
        "all_bad": answer.get("all_bad"),
        "prompt_flags": _answered(answer.get("prompt_flags") or {}, labels),
        "comment": answer.get("comment"),
    }


def _answered(flags: dict, labels: dict[str, str]) -> list[dict]:
    return [{"label": labels.get(name, name), "value": value} for name, value in flags.items() if value is not None]


# Checks --------------------------------------------------------------------------------------------------------


def problem(place: str, message: str, field: str = "") -> dict:
    """One thing that is wrong: where, what, and the page's field to mend it in."""
    return {"place": place, "message": message, "field": field}


def checked(
    answer: dict, *, kind: str, cards: list[Card], schema: LabelSchema, problems: list[dict] | None = None
) -> dict:
    """The Revision fields of a complete answer; identical responses left out are placed and rated with their twin.

    Raises Invalid naming every place that is wrong: a response left out, unknown, ranked twice, or apart from its twin;
    a missing rating, an unknown flag, an empty or too long text.
    """
    problems = list(problems or [])
    fields: dict[str, Any] = {
        "prompt_flags": _flags(answer.get("prompt_flags"), schema.prompt_flags, _("Prompt flags"), problems, "prompt-")
    }
    fields["comment"] = _bounded(answer.get("comment") or "", COMMENT_MAX_CHARS, _("Comment"), "comment", problems)
    if kind == Kind.DEMONSTRATION:
        fields["text"] = _bounded(
            answer.get("text") or "", settings.RESPONSE_MAX_CHARS, _("Your response"), "text", problems
        )
        if not fields["text"].strip():
            problems.append(problem(_("Your response"), _("is empty: write it first"), "text"))
    else:
        fields["tiers"] = _tiers(answer.get("tiers"), cards, problems)
        fields["ratings"] = _ratings(answer.get("ratings"), cards, schema, problems)
        fields["all_bad"] = bool(answer.get("all_bad"))
    refuse(problems)
    return fields


def bounded(text: str, limit: int, place: str, field: str) -> str:
    """The text as it can be kept, and whole. Raises Invalid naming place and field if it is longer: nothing typed is ever cut."""
    problems: list[dict] = []
    text = _bounded(text, limit, place, field, problems)
    if problems:
        raise Invalid(f"{place} {problems[0]['message']}.", problems)
    return text


def _bounded(text: object, limit: int, place: str, field: str, problems: list[dict]) -> str:
    if not isinstance(text, str):
        problems.append(problem(place, _("must be text"), field))
        return ""
    text = clean_text(text)
    if len(text) > limit:
        problems.append(
            problem(place, _("has %(n)d characters; the limit is %(limit)d") % {"n": len(text), "limit": limit}, field)
        )
    return text


def _flags(given: object, flags: list[dict], place: str, problems: list[dict], field: str) -> dict[str, bool | None]:
    """Every flag of the schema, null where unanswered, which some may not be. `field`: how their fields' names begin."""
    given = given if given is not None else {}
    if not isinstance(given, Mapping):
        problems.append(problem(place, _("must be a mapping of flag to true, false or null")))
        return {}
    names = [flag["name"] for flag in flags]
    for name, value in given.items():
        if name not in names:
            problems.append(problem(place, _("unknown flag %r") % name))
        elif value not in (True, False, None) or (isinstance(value, int) and not isinstance(value, bool)):
            problems.append(
                problem(
                    place,
                    _("flag %(name)s: %(value)r is neither true, false nor null") % {"name": name, "value": value},
                )
            )
    problems += [
        problem(place, _("“%s” is not answered") % flag["label"], field + flag["name"])
        for flag in flags
        if flag.get("required") and given.get(flag["name"]) is None
    ]
    return {name: given.get(name) for name in names}


def _tiers(given: object, cards: list[Card], problems: list[dict]) -> list[list[str]]:
    if not isinstance(given, list) or not all(
        isinstance(t, list) and all(isinstance(u, str) for u in t) for t in given
    ):
        problems.append(problem(_("Ranking"), _("must be a list of lists of response ids")))
        return []
    card_of = {uuid: card for card in cards for uuid in card.uuids}
    tiers: list[list[str]] = []
    place_of: dict[str, int] = {}  # of a card, by its letter
    seen: set[str] = set()
    for number, tier in enumerate((t for t in given if t), start=1):
        tiers.append([])
        for uuid in tier:
            card = card_of.get(uuid)
            if card is None:
                problems.append(problem(_("Place %d") % number, _("%s is not a response of this task") % uuid))
            elif uuid in seen:
                problems.append(problem(_("Response %s") % card.label, _("is ranked twice"), f"place-{card.letter}"))
            elif place_of.setdefault(card.letter, number) != number:
                problems.append(
                    problem(
                        _("Response %s") % card.label, _("are identical and must share a place"), f"place-{card.letter}"
                    )
                )
            elif not tiers[-1] or card.uuids[0] not in tiers[-1]:
                tiers[-1].extend(card.uuids)
            seen.add(uuid)
    problems += [
        problem(_("Response %s") % card.label, _("is not ranked yet"), f"place-{card.letter}")
        for card in cards
        if card.letter not in place_of
    ]
    return tiers


def checked_tiers(given: object, cards: list[Card]) -> list[list[str]]:
    """The tiers of a whole ranking, twins with their twin. Raises Invalid naming every place that is wrong."""
    problems: list[dict] = []
    tiers = _tiers(given, cards, problems)
    refuse(problems)
    return tiers


def _ratings(given: object, cards: list[Card], schema: LabelSchema, problems: list[dict]) -> dict[str, dict]:
    if not isinstance(given, Mapping):
        problems.append(problem(_("Ratings"), _("must be a mapping of response id to rating")))
        return {}
    known = {uuid for card in cards for uuid in card.uuids}
    problems += [
        problem(_("Ratings"), _("%s is not a response of this task") % uuid) for uuid in given if uuid not in known
    ]
    ratings = {}
    for card in cards:
        place = _("Response %s") % card.label
        twin: dict = next((given[uuid] for uuid in card.uuids if given.get(uuid)), {})
        quality = twin.get("quality")
        if quality is None:
            problems.append(problem(place, _("is not rated yet"), f"quality-{card.letter}"))
        for uuid in card.uuids:
            ratings[uuid] = _rating(given.get(uuid) or twin, place, card, schema, problems)
    return ratings


def _rating(rating: dict, place: str, card: Card, schema: LabelSchema, problems: list[dict]) -> dict:
    quality = rating.get("quality")
    if quality is not None and (
        isinstance(quality, bool) or not isinstance(quality, int) or quality not in schema.quality_range
    ):
        low, high = schema.quality_range[0], schema.quality_range[-1]
        message = _("rating %(value)r is not a whole number from %(low)d to %(high)d")
        problems.append(
            problem(place, message % {"value": quality, "low": low, "high": high}, f"quality-{card.letter}")
        )
    return {
        "quality": quality,
        "flags": _flags(rating.get("flags"), schema.response_flags, place, problems, f"flag-{card.letter}-"),
    }
