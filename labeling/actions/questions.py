"""Questions: asking, answering, and making an answer known to every labeler."""

from uuid import UUID, uuid5

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.actions.tasks import lock_labeler
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Draft, Kind, Question, QuestionMessage, Role, Submission, Task, User

MAX_CHARS = 5_000


@transaction.atomic
def ask(*, text: str, key: UUID, kind: str = "", task: Task | None = None, by: User) -> Question:
    """A new thread, on a task that was given to this labeler or on the instructions of a kind. The same text under the same
    `key` again: the same thread. Another text under it, from a form that was gone back to, is a thread of its own.

    Raises Invalid for an empty or too long text or an unknown kind, Forbidden for a task that is not theirs.
    """
    if not by.is_labeler:
        raise Forbidden(_("%(by)s is not a labeler.") % {"by": by})
    lock_labeler(by)  # of a double click the second waits here
    text = _checked(text)
    key, sent = _sent(key, text, by)
    if sent:
        return sent.question
    if task is not None:
        _check_given(task, by)
    elif kind not in Kind.values:
        raise Invalid(_("Choose what the question is about."), [answers.problem(_("About"), _("is missing"), "kind")])
    question = Question.objects.create(asker=by, task=task, kind=task.kind if task else kind)
    QuestionMessage.objects.create(question=question, author=by, is_answer=False, text=text, key=key)
    return question


@transaction.atomic
def reply(*, question: Question, text: str, key: UUID, by: User) -> QuestionMessage:
    """Go on with a thread: the asker asks on, and it is open again; a reviewer or researcher answers, and the asker is told.

    Raises Forbidden for anyone else, Invalid for an empty or too long text. The same text under the same `key` again changes nothing.
    """
    is_answer = question.asker_id != by.pk
    if is_answer:
        _check_team(by)
    lock_labeler(by)
    text = _checked(text)
    key, sent = _sent(key, text, by)
    if sent:
        return sent
    question = Question.objects.select_for_update().get(pk=question.pk)
    message = QuestionMessage.objects.create(question=question, author=by, is_answer=is_answer, text=text, key=key)
    question.is_open, question.is_unread = not is_answer, is_answer
    if not is_answer:
        question.asked_at = message.created_at
    question.save(update_fields=["is_open", "is_unread", "asked_at"])
    return message


@transaction.atomic
def publish(*, question: Question, public_question: str, public_answer: str, by: User) -> None:
    """Show question and answer to every labeler, in these words. Publishing again replaces the words.

    Raises Forbidden unless by a reviewer or researcher, Invalid if a text is empty or too long, Conflict before the first answer.
    """
    _check_team(by)
    asked = _checked(public_question, _("Question for all"), "public_question")
    answer = _checked(public_answer, _("Answer for all"), "public_answer")
    question = Question.objects.select_for_update().get(pk=question.pk)
    if not question.messages.filter(is_answer=True).exists():
        raise Conflict(_("Answer the question before you show it to all."))
    question.public_question, question.public_answer = asked, answer
    question.published_at, question.published_by = question.published_at or timezone.now(), by
    question.save(update_fields=["public_question", "public_answer", "published_at", "published_by"])


@transaction.atomic
def withdraw(*, question: Question, by: User) -> None:
    """Show it to its asker alone again; the words for all stay, should it be published anew. Doing it twice changes nothing."""
    _check_team(by)
    Question.objects.filter(pk=question.pk).update(published_at=None, published_by=None)


def mark_read(*, question: Question, by: User) -> None:
    """The asker has opened the answer."""
    Question.objects.filter(pk=question.pk, asker=by, is_unread=True).update(is_unread=False)


def _sent(key: UUID, text: str, by: User) -> tuple[UUID, QuestionMessage | None]:
    """The key to keep this text under, and the message if it arrived before. A used key with another text makes a key of both."""
    rows = QuestionMessage.objects.select_related("question").filter(author=by)
    first = rows.filter(key=key).first()
    if first is None or first.text == text:
        return key, first
    key = uuid5(key, text)
    return key, rows.filter(key=key).first()


def _check_team(by: User) -> None:
    if not by.has_role(Role.REVIEWER, Role.RESEARCHER):
        raise Forbidden(_("%(by)s neither reviews nor researches.") % {"by": by})


def _check_given(task: Task, by: User) -> None:
    mine = {"task": task, "labeler": by}
    if not (Draft.objects.filter(**mine).exists() or Submission.objects.filter(**mine).exists()):
        raise Forbidden(_("Task %(task)s was not given to you.") % {"task": task.uuid})


def _checked(text: str, place: str = "", field: str = "text") -> str:
    place = place or _("Your message")
    text = answers.clean_text(text).strip()
    if not text:
        raise Invalid(f"{place} " + _("is empty"), [answers.problem(place, _("is empty: write it first"), field)])
    if len(text) > MAX_CHARS:
        said = _("has %(n)d characters; the limit is %(limit)d") % {"n": len(text), "limit": MAX_CHARS}
        raise Invalid(f"{place} {said}", [answers.problem(place, said, field)])
    return text
