"""Writing prompts: drafts that are never lost, and handing one in as prompts of the labeler's own."""

from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.actions import hours, intake
from labeling.actions.drafts import Seen
from labeling.actions.tasks import lock_labeler
from labeling.answers import bounded, clean_text, problem
from labeling.errors import Conflict, Forbidden, Invalid, SavedElsewhere, refuse
from labeling.models import Author, Prompt, Response, UseCase, User, Writing
from labeling.models.prompts import content_digest, split_of
from labeling.models.responses import text_digest
from labeling.normalisation import normalise

DESCRIPTION_MAX_CHARS = 500
PAUSED = gettext_lazy(
    "You are paused: for the moment you are given no new work. Somebody of the team is looking at your recent work and will decide."
)
PAIRS = range(1, 11)
FIELDS = {
    Prompt.Kind.PLAIN: ("text",),
    Prompt.Kind.USER_BASED: ("use_case", "text"),
    Prompt.Kind.FEW_SHOT: ("instruction", *(f"{what}-{n}" for n in PAIRS for what in ("query", "response"))),
}


def begin(*, kind: str, by: User) -> Writing:
    """A draft of this kind: an empty one of theirs, where there is one. Raises Forbidden, Invalid, Conflict while they are paused."""
    if not by.is_labeler:
        raise Forbidden(_("Only labelers write prompts."))
    if kind not in FIELDS:
        raise Invalid(_("Unknown kind of prompt: %s") % kind)
    if by.is_paused:
        raise Conflict(PAUSED)
    empty = Writing.objects.filter(labeler=by, kind=kind, version=0, submitted_at=None).first()
    return empty or Writing.objects.create(labeler=by, kind=kind)


def is_new_work(writing: Writing, by: User) -> bool:
    """True of a draft begun since its labeler was paused. What was begun before may be finished, as a task may."""
    if not by.is_paused:
        return False
    resumed = by.pauses.filter(is_pause=False).last()
    pause = by.pauses.filter(is_pause=True, pk__gt=resumed.pk if resumed else 0).first()
    return pause is not None and writing.created_at > pause.at


def read(fields, kind: str) -> dict:
    """What a form says, in the shape of a writing's content."""
    return {name: text for name in FIELDS[Prompt.Kind(kind)] if (text := clean_text(fields.get(name, "")))}


def save(*, writing: Writing, content: dict, seen: Seen, active_seconds: float = 0, by: User) -> Writing:
    """Keep what is typed. Raises SavedElsewhere if another page has saved since: this is then kept as a draft of its own.

    `active_seconds`: all time worked on this loading of the page.
    """
    with transaction.atomic():
        user = lock_labeler(by)
        locked = _lock(writing, by)
        if locked.submitted_at is None:
            _count(locked, seen.editor, active_seconds, user)
        said = {name: text for name, text in locked.content.items() if name != "editor"}
        if locked.submitted_at or said == content:
            return locked
        saved_by = locked.content.get("editor")
        is_own = bool(seen.editor) and saved_by == seen.editor
        is_behind = seen.is_behind(saved_by, locked.version, seen.revision)
        if not is_behind:
            if seen.version > locked.version or not is_own:
                if seen.knowingly and said:
                    _keep(locked, said)
                locked.version = max(seen.version, locked.version + 1)
                locked.content, locked.saved_at = content | {"editor": seen.editor}, timezone.now()
                locked.save(update_fields=["content", "version", "saved_at"])
            return locked
    set_aside(writing=writing, content=content, by=by)
    raise SavedElsewhere(_("Writing %(writing)s was worked on elsewhere meanwhile.") % {"writing": writing.uuid})


def _count(writing: Writing, page: str, seconds: float, user: User) -> None:
    hours.count(draft=writing, page=page, seconds=seconds, now=timezone.now(), by=user)
    writing.save(update_fields=["active_seconds", "page_seconds"])


@transaction.atomic
def set_aside(*, writing: Writing, content: dict, by: User) -> Writing | None:
    """Keep work that is not the draft as a draft of its own, once; None if there is nothing in it, or if it is here already."""
    locked = _lock(writing, by)
    said = {name: text for name, text in locked.content.items() if name != "editor"}
    return None if not content or said == content else _keep(locked, content)


def _keep(writing: Writing, content: dict) -> Writing:
    mine = Writing.objects.filter(labeler=writing.labeler, kind=writing.kind, content=content)
    return mine.first() or Writing.objects.create(
        labeler=writing.labeler, kind=writing.kind, content=content, version=1
    )


def _lock(writing: Writing, by: User) -> Writing:
    locked = Writing.objects.select_for_update().get(pk=writing.pk)
    if locked.labeler_id != by.pk:
        raise Forbidden(_("Writing %(writing)s is not yours.") % {"writing": writing.uuid})
    return locked


@transaction.atomic
def hand_in(*, writing: Writing, content: dict, page: str = "", active_seconds: float = 0, by: User) -> list[Prompt]:
    """The prompts made of a writing, in the pool as the labeler's own, split by author. Handing in twice changes nothing.

    Plain and user-based make one prompt. K query/response pairs of a few-shot prompt make K, each with the other pairs before its
    query, and the response as a demonstration (InstructGPT, appendix A). Raises Invalid naming what is wrong: empty, too long, or
    a prompt that is here already; Conflict if another text of this writing was handed in, or if it was begun since they were paused.
    `active_seconds`: see save.
    """
    user = lock_labeler(by)
    locked = _lock(writing, by)
    if locked.submitted_at:
        if {name: text for name, text in locked.content.items() if name != "editor"} != content:
            raise Conflict(_("This prompt was handed in already. Write another."))
        return list(Prompt.objects.filter(author__user=by, metadata__writing=str(locked.uuid)))
    if is_new_work(locked, user):
        raise Conflict(PAUSED)
    normal = {name: normalise(text) for name, text in content.items()}  # as typed, it stays in the writing
    problems = _problems(locked.kind, normal)
    asked = [] if problems else _asked(locked.kind, normal)
    problems += _duplicates(asked, by)
    refuse(problems)
    key = f"labeler-{by.pk}"
    author, _made = Author.objects.get_or_create(user=by, defaults={"key": key, "split": split_of(key)})
    try:
        with transaction.atomic():
            prompts = [_make(locked, messages, answer, author, content) for messages, answer, _field in asked]
            intake.soon()
    except IntegrityError:  # somebody has brought the same prompt in this very moment
        raise Invalid(_("This prompt is in the pool already."), _duplicates(asked, by)) from None
    _count(locked, page, active_seconds, user)
    hours.enter_writing(writing=locked)
    locked.content, locked.submitted_at = content, timezone.now()
    locked.save(update_fields=["content", "submitted_at"])
    return prompts


def _make(writing: Writing, messages: list[dict], answer: str, author: Author, content: dict) -> Prompt:
    prompt = Prompt.from_messages(
        messages,
        author=author,
        kind=writing.kind,
        source=Prompt.Source.LABELER,
        use_case=content.get("use_case", ""),
        metadata={"writing": str(writing.uuid)},
    )
    prompt.save()
    if answer:
        digest = text_digest(answer)
        Response.objects.create(
            prompt=prompt,
            text=answer,
            text_sha256=digest,
            origin=Response.Origin.PERSON,
            external_id=f"text:{digest[:40]}",
        )
    return prompt


def _pairs(content: dict) -> list[tuple[int, str, str]]:
    pairs = [(n, content.get(f"query-{n}", ""), content.get(f"response-{n}", "")) for n in PAIRS]
    return [pair for pair in pairs if pair[1].strip() or pair[2].strip()]


def _asked(kind: str, content: dict) -> list[tuple[list[dict], str, str]]:
    """Messages, the response known for them, and the field that asks, of every prompt in a writing."""
    if kind != Prompt.Kind.FEW_SHOT:
        return [([{"role": "user", "content": content["text"]}], "", "text")]
    asked = []
    pairs = _pairs(content)
    for number, query, response in pairs:
        turns = [turn for n, q, r in pairs if n != number for turn in (("user", q), ("assistant", r))]
        turns.append(("user", query))
        messages = [{"role": role, "content": text} for role, text in turns]
        messages[0]["content"] = content["instruction"] + "\n\n" + messages[0]["content"]
        asked.append((messages, response, f"query-{number}"))
    return asked


def _problems(kind: str, content: dict) -> list[dict]:
    problems = []
    if sum(map(len, content.values())) > settings.PROMPT_MAX_CHARS:
        problems.append(problem(_("Your prompt"), _("is longer than %d characters") % settings.PROMPT_MAX_CHARS))
    first = "instruction" if kind == Prompt.Kind.FEW_SHOT else "text"
    if not content.get(first, "").strip():
        place = _("The instruction") if first == "instruction" else _("Your prompt")
        problems.append(problem(place, _("is empty: write it first"), first))
    if kind == Prompt.Kind.USER_BASED and not UseCase.objects.filter(name=content.get("use_case", ""), is_open=True):
        problems.append(problem(_("Use case"), _("is missing: choose one"), "use_case"))
    if kind == Prompt.Kind.FEW_SHOT:
        pairs = _pairs(content)
        for number, query, response in pairs:
            for name, text in (("query", query), ("response", response)):
                if not text.strip():
                    problems.append(
                        problem(_("Pair %d") % number, _("is not whole: it needs both"), f"{name}-{number}")
                    )
        if len(pairs) < 2:
            problems.append(problem(_("Pairs"), _("are too few: write two or more"), f"query-{len(pairs) + 1}"))
        if len({query.strip() for _n, query, _r in pairs}) < len(pairs):
            problems.append(problem(_("Pairs"), _("ask the same twice"), "query-1"))
    return problems


def _duplicates(asked: list[tuple[list[dict], str, str]], by: User) -> list[dict]:
    digests = {content_digest(messages): field for messages, _answer, field in asked}
    known = Prompt.objects.filter(content_sha256__in=digests).values_list("content_sha256", "author__user")
    said = {True: _("is one that you have written already"), False: _("is in the pool already: write another")}
    return [problem(_("Your prompt"), said[user == by.pk], digests[digest]) for digest, user in known]


# Use cases -----------------------------------------------------------------------------------------------------------


def add_use_case(*, name: str, description: str, by: User) -> UseCase:
    """One more to write for. Raises Invalid if it has no name, one that is there, or too long a text."""
    name = clean_text(name).strip()
    if not name or len(name) > 50:
        raise Invalid(_("A use case needs a name of at most 50 characters."))
    description = bounded(description.strip(), DESCRIPTION_MAX_CHARS, _("What it is, for the labelers:"), "description")
    case, is_new = UseCase.objects.get_or_create(name=name, defaults={"description": description, "created_by": by})
    if not is_new:
        raise Invalid(_("There is a use case of that name: %s") % name)
    return case


def open_use_case(*, use_case: UseCase, is_open: bool, by: User) -> None:
    """Offer it to labelers, or not any more; what was written for it stays."""
    UseCase.objects.filter(pk=use_case.pk).update(is_open=is_open)


def of(*, labeler: User, uuid: UUID) -> Writing | None:
    """A labeler's own writing."""
    return Writing.objects.filter(labeler=labeler, uuid=uuid).first()
