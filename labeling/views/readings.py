"""A submission made ready to be read: letters, tiers, ratings, and what changed between revisions."""

import difflib
import re
from dataclasses import dataclass, field

from django.utils.translation import gettext as _

from labeling.answers import LETTERS
from labeling.models import Revision, Submission

MAX_DIFF_TOKENS = 4000  # beyond, lines are compared instead of words: the comparison's cost is quadratic


@dataclass
class RatedResponse:
    """One response of a ranking as its labeler saw and judged it. `tier` 1 is the best."""

    letter: str
    text: str
    model: str
    finish_reason: str
    tier: int
    quality: int | None
    yes: list[str] = field(default_factory=list)
    no: list[str] = field(default_factory=list)
    same_as: str = ""


@dataclass
class Change:
    """A stretch of text: kept, added or removed."""

    kind: str
    text: str


def letters_of(submission: Submission) -> dict[str, str]:
    """Response UUID → the letter under which the labeler saw it."""
    return dict(zip(submission.shown_order, LETTERS, strict=False))


def tiers_in_letters(tiers: list[list[str]], letters: dict[str, str]) -> list[list[str]]:
    """Tiers with letters for UUIDs; "?" for a response that has none."""
    return [sorted(letters.get(uuid, "?") for uuid in tier) for tier in tiers]


def tier_numbers(tiers: list[list[str]]) -> dict[str, int]:
    """Response UUID → its tier, 1 the best."""
    return {uuid: number for number, tier in enumerate(tiers, start=1) for uuid in tier}


def rated_responses(submission: Submission, revision: Revision, responses: list) -> list[RatedResponse]:
    """The responses of a ranking, best first; within a tier by letter. `responses` come with their model version."""
    letters, tiers = letters_of(submission), tier_numbers(revision.tiers or [])
    labels = {flag["name"]: flag["label"] for flag in submission.schema.response_flags}
    rated: list[RatedResponse] = []
    seen: dict[str, str] = {}
    for response in sorted(responses, key=lambda r: letters.get(str(r.uuid), "?")):
        uuid = str(response.uuid)
        rating = revision.ratings.get(uuid) or {}
        flags = rating.get("flags") or {}
        letter = letters.get(uuid, "?")
        rated.append(
            RatedResponse(
                letter=letter,
                text=response.text,
                model=response.model_version.name if response.model_version else "",
                finish_reason=response.finish_reason,
                tier=tiers[uuid],
                quality=rating.get("quality"),
                yes=[labels.get(name, name) for name, value in flags.items() if value is True],
                no=[labels.get(name, name) for name, value in flags.items() if value is False],
                same_as=seen.get(response.text, ""),
            )
        )
        seen.setdefault(response.text, letter)
    return sorted(rated, key=lambda r: (r.tier, r.letter))


def prompt_flags(submission: Submission, revision: Revision) -> list[str]:
    """Labels of the flags that the labeler set on the prompt."""
    labels = {flag["name"]: flag["label"] for flag in submission.schema.prompt_flags}
    return [labels.get(name, name) for name, value in revision.prompt_flags.items() if value is True]


def text_changes(old: str, new: str) -> list[Change]:
    """What was added and removed from one text to the next, word by word (line by line when long)."""
    a, b = _tokens(old), _tokens(new)
    changes = []
    for operation, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if operation == "equal":
            changes.append(Change("kept", "".join(a[a0:a1])))
            continue
        if a0 < a1:
            changes.append(Change("removed", "".join(a[a0:a1])))
        if b0 < b1:
            changes.append(Change("added", "".join(b[b0:b1])))
    return changes


def _tokens(text: str) -> list[str]:
    words = re.findall(r"\s+|\w+|[^\w\s]", text)
    return words if len(words) <= MAX_DIFF_TOKENS else text.splitlines(keepends=True)


def ranking_changes(old: Revision, new: Revision, submission: Submission) -> list[str]:
    """What a labeler changed from one ranking to the next, one line each."""
    letters = letters_of(submission)
    lines = []
    if old.tiers != new.tiers:
        lines.append(
            _("ranking: %(old)s → %(new)s")
            % {"old": tiers_text(old.tiers or [], letters), "new": tiers_text(new.tiers or [], letters)}
        )
    if old.all_bad != new.all_bad:
        lines.append(_("all bad: yes") if new.all_bad else _("all bad: no"))
    for uuid, letter in sorted(letters.items(), key=lambda pair: pair[1]):
        lines += _rating_changes(letter, old.ratings.get(uuid) or {}, new.ratings.get(uuid) or {})
    lines += _flag_changes(_("prompt"), old.prompt_flags, new.prompt_flags)
    if old.comment != new.comment:
        lines.append(_("comment: %(text)s") % {"text": new.comment or "—"})
    return lines


def tiers_text(tiers: list[list[str]], letters: dict[str, str]) -> str:
    """A ranking on one line: "A = C > B"."""
    return " > ".join(" = ".join(tier) for tier in tiers_in_letters(tiers, letters))


def _rating_changes(letter: str, old: dict, new: dict) -> list[str]:
    before, after = old.get("quality"), new.get("quality")
    lines = (
        [_("%(letter)s: quality %(old)s → %(new)s") % {"letter": letter, "old": before or "—", "new": after or "—"}]
        if before != after
        else []
    )
    return lines + _flag_changes(letter, old.get("flags") or {}, new.get("flags") or {})


def _flag_changes(what: str, old: dict, new: dict) -> list[str]:
    words = {True: _("yes"), False: _("no"), None: _("unanswered")}
    return [
        f"{what}: {name} {words[old.get(name)]} → {words[new.get(name)]}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def reason_words(reason: dict) -> str:
    """One reason of a review priority, in words with its figure."""
    value = reason["value"]
    said = {
        "disagreement": _("differs from others on %(share)s of comparisons") % {"share": percent(value)},
        "gold_missed": _("gold answer missed: %(share)s agreed on") % {"share": percent(value)},
        "low_reliability": _("reliability of the labeler %(share)s") % {"share": percent(value)},
        "never_reviewed": _("labeler never reviewed"),
        "too_fast": _("too fast: %(n)d characters a second") % {"n": value or 0},
        "model_conflict": _("contradicted by the model: %(share)s") % {"share": percent(value)},
    }
    return said.get(reason["reason"], reason["reason"])


def percent(share: float | None) -> str:
    """A share from 0 to 1 in hundredths, rounded: "43 %"; "–" where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"
