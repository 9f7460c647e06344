"""What a labeler does before a task of a kind: read its instructions (again when they change), then practise.

Work in hand is never held back: seats and drafts that a labeler has already are theirs to finish.
"""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from labeling.errors import NotPrepared
from labeling.models import PARTS_OF_KIND, Attempt, Exercise, Instructions, Kind, Purpose, Submission, User


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
    """What the labeler has yet to do before tasks of these kinds (all, if none is named). Simulated labelers neither read nor practise."""
    if user.is_simulated:
        return []
    wanted = [kind for kind in Kind.values if kind in kinds or not kinds]
    unread = {each.kind: each for each in Instructions.objects.filter(kind__in=wanted).unread_by(user)}
    practice = _practice_due(user, [kind for kind in wanted if kind not in unread])
    known = set(user.acknowledgements.values_list("instructions__kind", flat=True)) if unread else set()
    return [Due(kind, unread.get(kind), kind in known) for kind in wanted if kind in unread or kind in practice]


def _practice_due(user: User, kinds: list[str]) -> set[str]:
    """Kinds with practice that this labeler has not done, unless they have handed in a task of that kind before."""
    done = Attempt.objects.filter(user=user, screening=None, submitted_at__isnull=False)
    left = Exercise.objects.live(Purpose.PRACTICE).exclude(pk__in=done.values("exercise"))
    parts = set(left.order_by().values_list("part", flat=True).distinct())
    candidates = {kind for kind in kinds if parts & set(PARTS_OF_KIND[Kind(kind)])}
    return {kind for kind in candidates if not Submission.objects.filter(labeler=user, kind=kind).exists()}


def check_prepared(*, kind: str, by: User) -> None:
    """Raises NotPrepared, which says what is due, unless the labeler may take tasks of this kind."""
    for each in due(by, kind):
        said = _("Read the instructions first.") if each.instructions else _("Do the practice first.")
        raise NotPrepared(said, kind=kind, step=each.step)
