"""What a labeler does before a task of a kind: read its instructions (again when they change), then practise.

Work in hand is never held back: seats and drafts that a labeler has already are theirs to finish.
"""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from labeling.errors import NotPrepared
from labeling.models import Instructions, Kind, User


@dataclass(frozen=True)
class Due:
    """What comes before the next task of a kind."""

    kind: str
    instructions: Instructions | None = None
    has_older: bool = False

    def get_kind_display(self) -> str:
        return str(Kind(self.kind).label)

    @property
    def step(self) -> str:
        """What it is: instructions or practice."""
        return "instructions" if self.instructions else "practice"


def due(user: User, *kinds: str) -> list[Due]:
    """What the labeler has yet to do before tasks of these kinds (all, if none is named). Simulated labelers do not read."""
    if user.is_simulated:
        return []
    newest = Instructions.objects.filter(kind__in=kinds or Kind.values).current()
    known = set(user.acknowledgements.values_list("instructions_id", flat=True))
    unread = {each.kind: each for each in newest if each.pk not in known}
    if not unread:
        return []
    read_kinds = set(user.acknowledgements.values_list("instructions__kind", flat=True))
    return [Due(kind, unread[kind], kind in read_kinds) for kind in Kind.values if kind in unread]


def check_prepared(*, kind: str, by: User) -> None:
    """Raises NotPrepared, which says what is due, unless the labeler may take tasks of this kind."""
    for each in due(by, kind):
        raise NotPrepared(_("Read the instructions first."), kind=kind, step=each.step)
