"""Instructions: writing, publishing, acknowledging. They are about a kind of task, or about final evaluations (models' Subject)."""

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.answers import bounded, clean_text
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Acknowledgement, Instructions, InstructionsDraft, Subject, Task, User

MAX_CHARS = 100_000
NOTE_MAX_CHARS = 500
DEFAULTS = settings.BASE_DIR / "labeling" / "defaults"


def default_text(kind: str) -> dict[str, str]:
    """The text and examples that Heed ships for a subject: the priorities that the paper published (B.2), in our words."""
    return {
        "text": (DEFAULTS / f"{kind}.md").read_text(encoding="utf-8"),
        "examples": (DEFAULTS / f"{kind}_examples.md").read_text(encoding="utf-8"),
    }


def current(kind: str) -> Instructions | None:
    """The version in force for a subject."""
    return Instructions.objects.filter(kind=kind).order_by("-version").first()


def for_task(task: Task) -> Instructions | None:
    """The version in force for a task: an evaluation's own instructions, else those of its kind."""
    found = current(Subject.EVALUATION) if task.batch.is_evaluation else None
    return found or current(task.kind)


def ensure_evaluation(*, by: User | None) -> None:
    """Have instructions for final evaluations in force: those that Heed ships, if nobody has published any. Needs a transaction."""
    InstructionsDraft.objects.get_or_create(kind=Subject.EVALUATION)
    draft = InstructionsDraft.objects.select_for_update().get(kind=Subject.EVALUATION)
    if current(Subject.EVALUATION) is None:
        said = default_text(Subject.EVALUATION)
        Instructions.objects.create(kind=Subject.EVALUATION, version=1, published_by=by, **said)
        draft.version += 1  # whoever is writing a first version is told
        draft.save(update_fields=["version"])


def draft_of(kind: str) -> InstructionsDraft:
    """What the next version says so far (unsaved if nobody has begun): the draft, else what is in force, else the default."""
    draft = InstructionsDraft.objects.filter(kind=kind).first() or InstructionsDraft(kind=kind)
    if not draft.is_open:
        published = current(kind)
        said = {"text": published.text, "examples": published.examples} if published else default_text(kind)
        draft.text, draft.examples, draft.note = said["text"], said["examples"], ""
    return draft


@transaction.atomic
def save_draft(*, kind: str, text: str, examples: str, note: str, seen: int, by: User) -> InstructionsDraft:
    """Keep what is being written. Raises Conflict if somebody saved or published since version `seen` of the draft."""
    draft = _locked_draft(kind, seen, by)
    draft.text, draft.examples, draft.note = clean_text(text), clean_text(examples), _note(note)
    draft.version, draft.is_open, draft.saved_by, draft.saved_at = draft.version + 1, True, by, timezone.now()
    draft.save()
    return draft


def _note(note: str) -> str:
    return bounded(note, NOTE_MAX_CHARS, _("What changed"), "note")


@transaction.atomic
def publish(
    *, kind: str, text: str, examples: str = "", note: str = "", seen: int | None = None, by: User
) -> Instructions:
    """A new version, in force from now on: labelers acknowledge it before their next task of that kind.

    `seen`: the version of the draft that its writer saw; None publishes whatever others are writing. Publishing what is in force
    already changes nothing. Raises Forbidden, Conflict (somebody saved or published meanwhile), Invalid (no text, too long).
    """
    text, examples, note = clean_text(text), clean_text(examples), _note(note)
    _check_kind(kind)
    newest = current(kind)
    if newest and (newest.text, newest.examples) == (text, examples):
        return newest
    draft = _locked_draft(kind, seen, by)
    if not text.strip():
        raise Invalid(_("The instructions are empty."))
    if max(len(text), len(examples)) > MAX_CHARS:
        raise Invalid(_("The instructions are too long: %(n)d characters at most.") % {"n": MAX_CHARS})
    newest = current(kind)
    published = Instructions.objects.create(
        kind=kind, version=newest.version + 1 if newest else 1, text=text, examples=examples, note=note, published_by=by
    )  # fmt: skip
    draft.text = draft.examples = draft.note = ""
    draft.version, draft.is_open, draft.saved_by, draft.saved_at = draft.version + 1, False, by, timezone.now()
    draft.save()
    return published


def _check_kind(kind: str) -> None:
    if kind not in Subject.values:
        raise Invalid(_("Unknown kind of task: %(kind)s") % {"kind": kind})


def _locked_draft(kind: str, seen: int | None, by: User) -> InstructionsDraft:
    """The draft's row, locked: whoever writes or publishes a kind's instructions does so in order."""
    _check_kind(kind)
    if not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})
    InstructionsDraft.objects.get_or_create(kind=kind)
    draft = InstructionsDraft.objects.select_for_update().get(kind=kind)
    if seen is not None and draft.version != seen:
        who = draft.saved_by or _("Somebody")
        raise Conflict(
            _("%(who)s has saved or published these instructions since you opened them. What you wrote is below.") % {"who": who}
        )  # fmt: skip
    return draft


def acknowledge(*, instructions: Instructions, by: User) -> Acknowledgement:
    """The person has read this version. Twice changes nothing. Raises Conflict if a newer one is in force."""
    newest = current(instructions.kind)
    if newest != instructions:
        raise Conflict(_("There is a newer version of these instructions. Please read that one."))
    return Acknowledgement.objects.get_or_create(instructions=instructions, user=by)[0]
