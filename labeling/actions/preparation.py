"""What a labeler does before a task of a kind: read its instructions (again when they change), then practise.

The rankings of a final evaluation have instructions of their own, which take the place of those of rankings. Work in hand is never
held back: seats and drafts that a labeler has already are theirs to finish.
"""

from dataclasses import dataclass

from django.db.models import Exists, Q
from django.utils.translation import gettext as _

from labeling.errors import NotPrepared
from labeling.models import (
    PARTS_OF_KIND,
    Attempt,
    Batch,
    Exercise,
    Instructions,
    Kind,
    Purpose,
    Slot,
    Subject,
    Submission,
    User,
)
from labeling.models.batches import is_for
from labeling.statements import Statement


@dataclass(frozen=True)
class Due:
    """What comes before the next task of a kind (or of a final evaluation: `kind` is a Subject)."""

    kind: str
    instructions: Instructions | None = None
    has_older: bool = False

    def get_kind_display(self) -> str:
        return str(Subject(self.kind).label)

    @property
    def step(self) -> str:
        """What it is: instructions or practice."""
        return "instructions" if self.instructions else "practice"


def due(user: User, *kinds: str, batch_id: int | None = None) -> list[Due]:
    """What the labeler has yet to do before tasks of these kinds (all, if none is named), in this batch if one is named.

    Simulated labelers neither read nor practise.
    """
    if user.is_simulated:
        return []
    wanted = [subject for subject in Subject.values if subject in kinds or not kinds]
    in_force = Instructions.objects.filter(_asked(user, batch_id), kind__in=wanted)
    unread = {each.kind: each for each in in_force.unread_by(user)}
    practice = _practice_due(user, [kind for kind in wanted if kind in Kind.values and kind not in unread])
    known = set(user.acknowledgements.values_list("instructions__kind", flat=True)) if unread else set()
    return [Due(kind, unread.get(kind), kind in known) for kind in wanted if kind in unread or kind in practice]


def _asked(user: User, batch_id: int | None) -> Q:
    """Whose instructions count: in a batch, an evaluation's instead of those of rankings, or none of evaluations; anywhere else, an
    evaluation's too while one is open to this labeler's group."""
    evaluations = Batch.objects.filter(purpose=Batch.Purpose.EVALUATION)
    if batch_id is None:
        is_open = Exists(evaluations.filter(is_for(user), status=Batch.Status.ACTIVE))
        return ~Q(kind=Subject.EVALUATION) | Q(is_open)
    is_one = Exists(evaluations.filter(pk=batch_id))
    return Q(kind=Subject.EVALUATION) & Q(is_one) | ~Q(kind=Subject.EVALUATION) & ~Q(is_one)


def _practice_due(user: User, kinds: list[str]) -> set[str]:
    """Kinds with practice that this labeler has not done, unless they have handed in a task of that kind before."""
    done = Attempt.objects.filter(user=user, screening=None, submitted_at__isnull=False)
    left = Exercise.objects.live(Purpose.PRACTICE).exclude(pk__in=done.values("exercise"))
    parts = set(left.order_by().values_list("part", flat=True).distinct())
    candidates = {kind for kind in kinds if parts & set(PARTS_OF_KIND[Kind(kind)])}
    return {kind for kind in candidates if not Submission.objects.filter(labeler=user, kind=kind).exists()}


# Whether anything comes before a seat, in one statement that every claim asks; `due` says what.
IS_DUE = Statement(
    "is_due",
    """
SELECT EXISTS (SELECT 1 FROM (
         SELECT id FROM labeling_instructions
          WHERE kind = (SELECT CASE purpose WHEN 'evaluation' THEN 'evaluation' ELSE kind END FROM labeling_batch WHERE id = %(batch)s)
          ORDER BY version DESC LIMIT 1) i
        WHERE NOT EXISTS (SELECT 1 FROM labeling_acknowledgement a WHERE a.instructions_id = i.id AND a.user_id = %(user)s))
    OR EXISTS (SELECT 1 FROM labeling_exercise e
                WHERE e.purpose = 'practice' AND e.retired_at IS NULL AND e.part = ANY(%(parts)s)
                  AND NOT EXISTS (SELECT 1 FROM labeling_attempt a WHERE a.exercise_id = e.id AND a.user_id = %(user)s
                                     AND a.screening_id IS NULL AND a.submitted_at IS NOT NULL)
                  AND NOT EXISTS (SELECT 1 FROM labeling_submission o WHERE o.labeler_id = %(user)s AND o.kind = %(kind)s))
""",
    batch="bigint",
    kind="text",
    user="bigint",
    parts="text[]",
)


def check_prepared(*, slot: Slot, by: User) -> None:
    """Raises NotPrepared, which says what is due, unless the labeler may take this seat."""
    parts = [part.value for part in PARTS_OF_KIND[Kind(slot.kind)]]
    if by.is_simulated or IS_DUE.rows(batch=slot.batch_id, kind=slot.kind, user=by.pk, parts=parts) == [(False,)]:
        return
    kinds = (slot.kind, Subject.EVALUATION) if slot.kind == Kind.RANKING else (slot.kind,)
    for each in sorted(
        due(by, *kinds, batch_id=slot.batch_id), key=lambda each: each.step
    ):  # instructions, then practice
        said = _("Read the instructions first.") if each.instructions else _("Do the practice first.")
        raise NotPrepared(said, kind=each.kind, step=each.step)
