"""Drafts: keeping what a labeler types, whatever pages it comes from, and losing none of it.

A task has one draft per labeler. Whatever cannot become the draft, or is replaced in it by choice, is set aside as a copy.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions import hours
from labeling.actions.tasks import Seat, keep_seat, lock_labeler
from labeling.errors import Conflict, Forbidden, Invalid, SavedElsewhere
from labeling.models import Draft, DraftCopy, Revision, Submission, Task, User
from labeling.statements import Statement

OF_THE_PAGE = {"editor", "put_back"}  # what a draft's content holds beside the answer


@dataclass(frozen=True)
class Seen:
    """What a page knew when it sent its work, so that a stale one never undoes newer work.

    A page names itself (`editor`, another at each loading; one without a script cannot), numbers its saves upwards (`version`), and
    says which save of the draft it last heard of (`base`) and how many revisions had been handed in then (`revision`). `takes`: the
    pages whose work it goes on with, found on the computer, each with the last save that it had sent then. `knowingly`: its
    labeler has been told that there is other work.
    """

    base: int
    version: int
    revision: int
    editor: str = ""
    takes: tuple[tuple[str, int], ...] = ()
    knowingly: bool = False

    def is_behind(self, saved_by: str | None, version: int, revisions: int) -> bool:
        """True if another page has saved since; `saved_by`, `version`, `revisions`: what is here now."""
        if self.editor and saved_by == self.editor:
            return False
        if any(saved_by == editor and version <= known for editor, known in self.takes):
            return False
        return (version, revisions) != (self.base, self.revision)

    def check(self, draft: Draft, submission: Submission | None) -> None:
        """Raise SavedElsewhere if another page has saved since."""
        revisions = submission.revision_count if submission else 0
        if self.is_behind(draft.content.get("editor"), draft.version, revisions):
            raise SavedElsewhere(
                _("Task %(task)s was worked on elsewhere meanwhile: version %(version)s, yours began at %(base)s.")
                % {"task": draft.task.uuid, "version": draft.version, "base": self.base}
            )


def save_draft(
    *, task: Task, content: dict, seen: Seen, active_seconds: float = 0, paste_chars: int = 0, by: User
) -> tuple[Draft, Seat]:
    """Keep the answer so far, and the seat with it. Kept even when the seat is lost or the work was handed in already.

    Of two saves by one page the later wins, in whatever order they arrive; the same answer again changes nothing. Raises SavedElsewhere
    if another page has saved since: its work stays the draft, and this is set aside. `active_seconds`: all time worked on this
    loading of the page; `paste_chars`: the characters pasted into its text.
    """
    try:
        return _save(task, content, seen, active_seconds, paste_chars, by)
    except SavedElsewhere:
        set_aside(task=task, content=content, by=by)
        raise


@transaction.atomic
def _save(
    task: Task, content: dict, seen: Seen, active_seconds: float, paste_chars: int, by: User
) -> tuple[Draft, Seat]:
    user = lock_labeler(by)
    draft = Draft.objects.select_for_update().filter(task=task, labeler=user).first()
    submission = Submission.objects.filter(task=task, labeler=user).first()
    marked = content | {"editor": seen.editor}
    if draft is None:
        return _late_save(task, marked, seen.version, submission, user), "submitted"
    seen.check(draft, submission)
    now = timezone.now()
    is_own = bool(seen.editor) and draft.content.get("editor") == seen.editor
    # Only one page's saves have an order among them: another's number says nothing.
    if (seen.version > draft.version or not is_own) and not _is_same(content, draft.content):
        if seen.knowingly:
            keep_copy(draft)
        version = max(seen.version, draft.version + 1)
        draft.content, draft.version, draft.saved_at = marked, version, now
    hours.count(draft=draft, page=seen.editor, seconds=active_seconds, now=now, by=user)
    draft.paste_chars = max(draft.paste_chars, paste_chars)
    draft.content.pop("put_back", None)
    draft.save()
    return draft, keep_seat(task, user)


def _answer(content: dict) -> dict:
    return {name: value for name, value in content.items() if name not in OF_THE_PAGE}


def _is_same(content: dict, other: dict) -> bool:
    return _said(_answer(content)) == _said(_answer(other))


def _said(answer: object) -> object:
    """An answer without what is not answered, which may be absent, null or empty."""
    if not isinstance(answer, dict):
        return answer
    said = {name: _said(value) for name, value in answer.items()}
    return {
        name: value for name, value in said.items() if value is not None and value != "" and value != [] and value != {}
    }


def _late_save(task: Task, content: dict, version: int, submission: Submission | None, user: User) -> Draft:
    """A save that arrives after its submit: what was handed in needs no draft; anything else is kept, as a correction begun."""
    if submission is None:
        raise Forbidden(_("Task %(task)s is not open before you.") % {"task": task.uuid})
    draft = Draft(task=task, labeler=user, shown_order=submission.shown_order, content=content, version=version)
    if not says_the_same(content, submission):
        draft.save()
    return draft


def says_the_same(content: dict, submission: Submission) -> bool:
    """True if an answer equals the submission's newest revision."""
    return _sayer(submission)(content)


def _sayer(submission: Submission) -> Callable[[dict], bool]:
    """says_the_same for any number of answers: revision and responses are read once."""
    current, cards = submission.current, cards_of(submission.task_id, submission.shown_order)

    def says(content: dict) -> bool:
        try:
            fields = answers.checked(content, kind=submission.kind, cards=cards, schema=submission.schema)
        except Invalid:
            return False
        return is_said(current, fields)

    return says


def is_said(revision: Revision, fields: dict) -> bool:
    """True if a revision holds this checked answer."""
    return all(getattr(revision, name) == value for name, value in fields.items())


def cards_of(task_id: int, shown_order: list[str]) -> list[answers.Card]:
    """The task's responses as shown, told apart by the digests of their texts: enough to check an answer."""
    if not shown_order:
        return []
    return answers.cards_of(shown_order, dict(DIGESTS.rows(task=task_id)))


DIGESTS = Statement(
    "digests",
    "SELECT r.uuid::text, r.text_sha256 FROM labeling_taskresponse o JOIN labeling_response r ON r.id = o.response_id"
    " WHERE o.task_id = %(task)s",
    task="bigint",
)


# Copies --------------------------------------------------------------------------------------------------------


@transaction.atomic
def set_aside(*, task: Task, content: dict, by: User) -> DraftCopy | None:
    """Keep work that cannot be the draft, as a copy to look at and to go on with. Once, however often it is sent.

    None if there is nothing in it, or if it is what the draft or the submission says. Raises Forbidden if the task was never theirs.
    """
    user = lock_labeler(by)
    draft = Draft.objects.filter(task=task, labeler=user).first()
    submission = Submission.objects.filter(task=task, labeler=user).first()
    if draft is None and submission is None:
        raise Forbidden(_("Task %(task)s was not given to you.") % {"task": task.uuid})
    if draft and _is_same(content, draft.content):
        return None
    if submission and says_the_same(content, submission):
        return None
    return _keep_copy(task, content, user)


def other_versions(*, task: Task, by: User) -> list[DraftCopy]:
    """The labeler's work on the task that neither the draft nor the submission says, newest first; twenty at most."""
    draft = Draft.objects.filter(task=task, labeler=by).first()
    submission = Submission.objects.filter(task=task, labeler=by).first()
    copies = list(DraftCopy.objects.filter(task=task, labeler=by).order_by("-created_at", "-pk")[:20])
    if draft is not None:
        copies = [copy for copy in copies if not _is_same(copy.content, draft.content)]
    if submission is not None and copies:
        is_handed_in = _sayer(submission)
        copies = [copy for copy in copies if not is_handed_in(copy.content)]
    return copies


def keep_copy(draft: Draft) -> None:
    """Set aside what a draft holds before it is replaced or goes, unless the labeler's submission says the same."""
    submission = Submission.objects.filter(task_id=draft.task_id, labeler_id=draft.labeler_id).first()
    if submission is None or not says_the_same(draft.content, submission):
        _keep_copy(draft.task, draft.content, draft.labeler)


def _keep_copy(task: Task, content: dict, user: User) -> DraftCopy | None:
    answer = _answer(content)
    if answers.is_empty(answer):
        return None
    digest = hashlib.sha256(json.dumps(_said(answer), sort_keys=True).encode()).hexdigest()
    return DraftCopy.objects.get_or_create(
        task=task, labeler=user, content_sha256=digest, defaults={"content": answer}
    )[0]


@transaction.atomic
def use_copy(*, copy: DraftCopy, by: User) -> Draft:
    """Go on with a copy: it becomes the draft, and what was the draft is set aside.

    Raises Forbidden if it is another's, Conflict if the submission can no longer be changed.
    """
    user = lock_labeler(by)
    if copy.labeler_id != user.pk:
        raise Forbidden(_("Copy %(copy)s is not yours.") % {"copy": copy.pk})
    submission = Submission.objects.filter(task_id=copy.task_id, labeler=user).first()
    if submission and not submission.is_open_to_change:
        raise Conflict(_("This has been reviewed and can no longer be changed."))
    draft = Draft.objects.select_for_update().filter(task_id=copy.task_id, labeler=user).first()
    if draft is not None:
        keep_copy(draft)
    elif submission is not None:
        draft = Draft(task_id=copy.task_id, labeler=user, shown_order=submission.shown_order)
    else:
        raise Forbidden(_("Task %(task)s is not open before you.") % {"task": copy.task_id})
    draft.content, draft.version, draft.saved_at = copy.content, draft.version + 1, timezone.now()
    draft.save()
    return draft
