"""Prompts that come by the gateway and the playground: the one door by which they are kept for labeling.

Whoever asks has agreed (consent, no opt-out) before `capture` is called.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import IntegrityError, transaction

from labeling.actions import intake
from labeling.actions.import_rows import check_row
from labeling.actions.people import digest
from labeling.models import Author, GatewayKey, Group, Prompt, Role, User
from labeling.models.prompts import split_of


class Outcome(StrEnum):
    """What became of a prompt."""

    CAPTURED = "captured"
    WITHDRAWN = "consent was taken back meanwhile"
    UNUSABLE = "not a prompt that can be stored"
    TOO_LONG = "too long"
    DUPLICATE = "here already"
    AUTHOR_FULL = "the author has as many as are kept of one"


@dataclass(frozen=True)
class Asker:
    """Who wrote a prompt: the end user of an organization (`user` empty: the organization as one author), or a person."""

    key_id: int | None = None
    organization: str = ""
    user: str = ""
    person_id: int | None = None

    @property
    def author_key(self) -> str:
        """The same for the same author, for ever; differs between organizations; at most 200 characters."""
        if self.person_id is not None:
            return f"person:{self.person_id}"
        readable = f"gateway:{quote(self.organization, safe=' ')}/{quote(self.user, safe=' ')}"
        return readable if len(readable) <= 200 else f"gateway:sha256:{digest(readable)}"


@transaction.atomic
def capture(*, messages: list[dict[str, str]], asker: Asker, metadata: dict[str, Any] | None = None) -> Outcome:
    """Keep a prompt that somebody asked the serving policy, and say what became of it. Asked twice it is one prompt.

    It waits for intake's checks, as every prompt. Beyond the limit of an author nothing is stored.
    """
    if not _still_agrees(asker):
        return Outcome.WITHDRAWN
    row = {"messages": messages, "organization": asker.organization, "metadata": metadata or {}}
    item = check_row(row, with_responses=False, complain=lambda *_: None, seen_unknown=set())
    if item is None:
        return Outcome.UNUSABLE
    if sum(len(message["content"]) for message in item.messages) > settings.CAPTURE_MAX_CHARS:
        return Outcome.TOO_LONG
    if Prompt.objects.filter(content_sha256=item.content_sha256).exists():
        return Outcome.DUPLICATE
    author = _author(asker)
    if author.prompts.count() >= settings.PROMPTS_PER_AUTHOR > 0:
        return Outcome.AUTHOR_FULL
    prompt = Prompt.from_messages(
        item.messages,
        author=author,
        organization=item.organization,
        metadata=metadata or {},
        source=Prompt.Source.PLAYGROUND,
        original=item.original,
    )
    try:
        with transaction.atomic():
            prompt.save()
    except IntegrityError:  # the same prompt by another author in this moment
        return Outcome.DUPLICATE
    intake.soon()
    return Outcome.CAPTURED


def _still_agrees(asker: Asker) -> bool:
    """Prompts may wait for the database; what was agreed to when they were asked may not hold any more."""
    if asker.key_id is not None:
        return GatewayKey.objects.filter(pk=asker.key_id, may_train=True).exists()
    person = User.objects.filter(pk=asker.person_id).first() if asker.person_id is not None else None
    return person is not None and may_train_on(person)


def may_train_on(person: User) -> bool:
    """False for held-out labelers: nothing of theirs is trained on."""
    return person.is_active and not (person.group == Group.HELD_OUT and person.has_role(Role.LABELER))


def _author(asker: Asker) -> Author:
    """The author's row, locked, so that two of their prompts are not counted at once."""
    if asker.person_id is not None and (known := Author.objects.filter(user_id=asker.person_id).first()):
        key = known.key
    else:
        key = asker.author_key
        fields = {"organization": asker.organization, "user_id": asker.person_id, "split": split_of(key)}
        Author.objects.get_or_create(key=key, defaults=fields)
    return Author.objects.select_for_update().get(key=key)
