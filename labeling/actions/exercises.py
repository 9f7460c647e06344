"""Exercises: making, loading, changing, retiring them; and practice."""

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import exercise_answers
from labeling.actions import hours
from labeling.actions.tasks import lock_labeler
from labeling.answers import LETTERS, clean_text
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Attempt, Exercise, LabelSchema, Part, Prompt, Purpose, Screening, User

DEFAULT_FILE = settings.BASE_DIR / "labeling" / "defaults" / "exercises.jsonl"
FIELDS = {"purpose", "part", "prompt", "messages", "responses", "reference", "reference_by", "explanation"}


# What an exercise may be ---------------------------------------------------------------------------------------


def checked(row: dict, schema: LabelSchema | None = None) -> dict[str, Any]:
    """The fields of an exercise, from a row of a file or a form. Raises Invalid naming the field.

    `prompt` (text) or `messages`; `responses`: {id: text} or [{"id", "text"}]; `reference` in the shape of an answer.
    `schema`: the version it was made with, kept while it fits; without one that fits, the newest that does.
    """
    if unknown := set(row) - FIELDS:
        raise Invalid(_("unknown field: %s") % ", ".join(sorted(unknown)))
    purpose, part = row.get("purpose"), row.get("part")
    _require(purpose in Purpose.values, _("purpose: expected one of %s") % ", ".join(Purpose.values))
    _require(part in Part.values, _("part: expected one of %s") % ", ".join(Part.values))
    fields: dict[str, Any] = {
        "purpose": purpose,
        "part": part,
        "messages": _messages(row),
        "responses": _responses(row.get("responses") or {}),
        "reference_by": _text(row, "reference_by"),
        "explanation": _text(row, "explanation"),
    }
    _require(len(fields["reference_by"]) <= 200, _("reference_by: has more than 200 characters"))
    fields["reference"] = _reference(row.get("reference") or {}, str(part), fields["responses"], str(purpose))
    digest = json.dumps({**fields, "reference_by": ""}, sort_keys=True, ensure_ascii=False)
    fields["schema"] = _schema_of(fields["reference"], schema)
    return fields | {"content_sha256": hashlib.sha256(digest.encode()).hexdigest()}


def _schema_of(reference: dict, made_with: LabelSchema | None) -> LabelSchema:
    """The form whose flags and scale the reference is of. Flags that no version knows are asked under the newest."""
    versions = list(LabelSchema.objects.order_by("-version"))
    rated = {rating["quality"] for rating in reference.get("ratings", {}).values()}
    on_scale = [each for each in [made_with, *versions] if each and rated <= set(each.quality_range)]
    newest = versions[0].quality_range
    _require(on_scale, _("reference.ratings: each response needs a quality from %(low)d to %(high)d")
             % {"low": newest[0], "high": newest[-1]})  # fmt: skip
    flags = set(reference.get("prompt_flags", {}))
    return next((s for s in on_scale if flags <= {flag["name"] for flag in s.prompt_flags}), versions[0])


def _require(holds: object, message: str) -> None:
    if not holds:
        raise Invalid(message)


def _text(row: dict, name: str) -> str:
    value = row.get(name) or ""
    _require(isinstance(value, str), _("%s: must be text") % name)
    return clean_text(value)


def _messages(row: dict) -> list[dict]:
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt") or ""}]
    _require(isinstance(messages, list) and messages, _("messages: must be a list of {role, content}"))
    for message in messages:
        whole = (
            isinstance(message, dict) and set(message) == {"role", "content"} and isinstance(message["content"], str)
        )
        _require(
            whole and message["role"] in {"system", "user", "assistant"},
            _("messages: must be a list of {role, content}"),
        )
    _require(messages[-1]["content"].strip(), _("prompt: is empty"))
    return [{"role": m["role"], "content": clean_text(m["content"])} for m in messages]


def _responses(given: Any) -> list[dict]:
    rows = [{"id": key, "text": text} for key, text in given.items()] if isinstance(given, dict) else given
    wanted = _("responses: must be {id: text}, or a list of {id, text}")
    _require(isinstance(rows, list), wanted)
    for each in rows:
        _require(isinstance(each, dict) and set(each) == {"id", "text"}, wanted)
        _require(isinstance(each["id"], str) and isinstance(each["text"], str) and each["id"], wanted)
    _require(len({each["id"] for each in rows}) == len(rows), _("responses: an id stands twice"))
    return [{"id": each["id"], "text": clean_text(each["text"])} for each in rows]


def _reference(given: Any, part: str, responses: list[dict], purpose: str) -> dict:
    _require(isinstance(given, dict), _("reference: must be an object"))
    if part == Part.DEMONSTRATION:
        text = given.get("text") or ""
        _require(isinstance(text, str), _("reference.text: must be text"))
        _require(
            text.strip() or purpose == Purpose.SCREENING,
            _("reference.text: practice needs a demonstration to compare with"),
        )
        return {"text": clean_text(text)} if text else {}
    if part == Part.FLAGGING:
        flags = given.get("prompt_flags")
        _require(isinstance(flags, dict) and flags, _("reference.prompt_flags: must name at least one flag"))
        _require(all(isinstance(v, bool) for v in flags.values()), _("reference.prompt_flags: must be true or false"))
        return {"prompt_flags": flags}
    ids = sorted(each["id"] for each in responses)
    _require(2 <= len(ids) <= len(LETTERS), _("responses: a ranking needs 2 to %d") % len(LETTERS))
    tiers = given.get("tiers")
    whole = isinstance(tiers, list) and all(
        isinstance(t, list) and t and all(isinstance(r, str) for r in t) for t in tiers
    )
    _require(whole and sorted(r for t in tiers for r in t) == ids, _("reference.tiers: must hold each response once"))
    return {"tiers": tiers} | _reference_ratings(given.get("ratings") or {}, ids)


def _reference_ratings(given: Any, ids: list[str]) -> dict:
    if not given:
        return {}
    whole = isinstance(given, dict) and sorted(given) == ids
    _require(whole and all(isinstance(r, dict) and type(r.get("quality")) is int for r in given.values()),
             _("reference.ratings: each response needs a quality"))  # fmt: skip
    return {"ratings": {key: {"quality": rating["quality"]} for key, rating in given.items()}}


# Making and changing -------------------------------------------------------------------------------------------


def _check_researcher(by: User | None) -> None:
    if by is not None and not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})


@transaction.atomic
def add(*, row: dict, by: User | None) -> Exercise:
    """A new exercise; one that says the same and is given out is answered with. Raises Invalid, Forbidden."""
    _check_researcher(by)
    fields = checked(row)
    found = Exercise.objects.filter(content_sha256=fields["content_sha256"], retired_at=None).first()
    return found or Exercise.objects.create(**fields, created_by=by)


@transaction.atomic
def change(*, exercise: Exercise, row: dict, by: User) -> Exercise:
    """The exercise with other content: itself while nobody has begun it, else another in its place, and it is retired.

    Raises Invalid, Conflict (it is retired, or says what another one says).
    """
    _check_researcher(by)
    locked = Exercise.objects.select_for_update().get(pk=exercise.pk)
    if locked.retired_at:
        raise Conflict(_("This exercise is retired."))
    fields = checked(row, locked.schema)
    if fields["content_sha256"] == locked.content_sha256 and fields["reference_by"] == locked.reference_by:
        return locked
    twin = Exercise.objects.filter(content_sha256=fields["content_sha256"], retired_at=None).exclude(pk=locked.pk)
    if twin.exists():
        raise Conflict(_("There is an exercise that says just this already."))
    if locked.attempts.exists() and fields["content_sha256"] != locked.content_sha256:
        Exercise.objects.filter(pk=locked.pk).update(retired_at=timezone.now())
        return Exercise.objects.create(**fields, replaces=locked, created_by=by)
    for name, value in fields.items():
        setattr(locked, name, value)
    locked.save()
    return locked


@transaction.atomic
def set_retired(*, exercise: Exercise, is_retired: bool, by: User) -> None:
    """Give it out no more, or again. Attempts that were begun stay. Doing it twice changes nothing."""
    _check_researcher(by)
    locked = Exercise.objects.select_for_update().get(pk=exercise.pk)
    if bool(locked.retired_at) == is_retired:
        return
    twin = Exercise.objects.filter(content_sha256=locked.content_sha256, retired_at=None).exclude(pk=locked.pk)
    if not is_retired and twin.exists():
        raise Conflict(_("There is an exercise that says just this already."))
    locked.retired_at = timezone.now() if is_retired else None
    locked.save(update_fields=["retired_at"])


def read_file(path: Path) -> list[dict]:
    """The rows of a JSONL file, checked. Raises Invalid with every wrong line: file, line, field."""
    rows, wrong = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _require(isinstance(row, dict), "must be a JSON object")
            checked(row)
            rows.append(row)
        except (ValueError, Invalid) as error:
            wrong.append(f"{path.name} line {number}: {error}")
    if wrong:
        raise Invalid("\n".join(wrong[:100]))
    return rows


@transaction.atomic
def load(*, rows: Iterable[dict], by: User | None) -> int:
    """All rows or none; those that are there already, given out or retired, are passed over. Returns how many are new."""
    new = 0
    for row in rows:
        digest = checked(row)["content_sha256"]
        if not Exercise.objects.filter(content_sha256=digest).exists():
            add(row=row, by=by)
            new += 1
    return new


# Attempts ------------------------------------------------------------------------------------------------------


def begin(*, exercise: Exercise, user: User, screening=None, position: int = 0) -> Attempt:
    """The person's attempt at an exercise, with its responses shuffled once for them; the one that is there, if any."""
    shown_order = [response["id"] for response in exercise.responses]
    random.shuffle(shown_order)
    made = {"shown_order": shown_order, "position": position}
    return Attempt.objects.get_or_create(exercise=exercise, user=user, screening=screening, defaults=made)[0]


def opened(*, work: Attempt | Screening) -> None:
    """The person has it before them: from here on time counts. Opening it again while they work changes nothing."""
    type(work).objects.filter(pk=work.pk, submitted_at=None, worked_at=None).update(worked_at=timezone.now())


@transaction.atomic
def save_attempt(*, attempt: Attempt, content: dict, page: str = "", is_automatic: bool = False, by: User) -> Attempt:
    """Keep what was typed. An automatic save that comes after its own page was sent by a button changes nothing.

    Raises Forbidden if it is another's, Conflict once it is handed in.
    """
    user = lock_labeler(by)
    locked = Attempt.objects.select_for_update().get(pk=attempt.pk)
    if locked.user_id != by.pk:
        raise Forbidden(_("Attempt %(attempt)s is not yours.") % {"attempt": locked.uuid})
    if locked.submitted_at is not None:
        if locked.content == content:
            return locked
        raise Conflict(_("This was handed in already and can no longer be changed."))
    if is_automatic and page and clean_text(page)[:40] == locked.page:
        return locked
    locked.content, locked.saved_at = content, timezone.now()
    hours.sign(work=locked, now=locked.saved_at, by=user)
    locked.page = locked.page if is_automatic else clean_text(page)[:40]
    locked.save(update_fields=["content", "saved_at", "page", "active_seconds", "worked_at"])
    return locked


def submit_practice(*, attempt: Attempt, content: dict, page: str = "", by: User) -> Attempt:
    """Hand a practice answer in: from now on its explanation is shown. Raises Invalid with what is missing; what was typed is kept."""
    save_attempt(
        attempt=attempt, content=content, page=page, by=by
    )  # a transaction of its own, so that a refusal keeps it
    with transaction.atomic():
        locked = Attempt.objects.select_for_update(of=["self"]).select_related("exercise__schema").get(pk=attempt.pk)
        if locked.submitted_at is None:
            hand_in(locked)
            hours.enter_practice(attempt=locked)
    return locked


def hand_in(attempt: Attempt) -> None:
    """Fix an attempt as it stands, with how far it agrees. Raises Invalid if it is not complete."""
    if found := exercise_answers.problems(attempt.content, attempt.exercise, attempt.shown_order):
        raise Invalid(" ".join(found))
    if scored := exercise_answers.score(attempt.content, attempt.exercise):
        attempt.agreed, attempt.compared = scored
    attempt.submitted_at = timezone.now()
    attempt.save(update_fields=["agreed", "compared", "submitted_at"])


def next_practice(*, kind: str, by: User) -> Attempt | None:
    """The person's next practice for a kind of task, begun; None when all is done."""
    exercise = Exercise.objects.practice_left(by, kind).first()
    return begin(exercise=exercise, user=by) if exercise else None


def prompt_of(exercise: Exercise) -> Prompt:
    """The exercise's messages as a prompt (unsaved), for the templates that show one."""
    return Prompt(messages=exercise.messages)
