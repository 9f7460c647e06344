"""The lines of open seats that labelers are served from, one for each batch, and how far down them each labeler has looked.

A batch's line begins with seats that were given back or added later, in the order in which that happened (`turn` > 0); then come
those that were laid out with it (`turn` 0): the first seat of every task, then every second. Between batches: the highest priority,
then the oldest.

In a line lie seats that this labeler may not take: on tasks that they have done, passed on, seen others' answers to or written the
prompt of. Whoever walks over them at every claim pays for their own history, so a labeler has a Bookmark in each batch: nothing before
it is for them. It stays right because a seat on a task is never for a labeler again once it is not (what they put back or lost is found
by its draft), and because a seat that opens gets a number higher than all before it, by a trigger. docs/decisions/assignment.md has the
argument and figures.
"""

from dataclasses import dataclass

from django.db import connection

from labeling.models import Bookmark, Slot, User
from labeling.statements import Statement, columns_of, row_of

WORTH_A_BOOKMARK = (
    200  # seats walked over in vain; fewer cost less than writing it down, and many may only be in others' hands
)
END = (2**15 - 1, 2**63 - 1)  # no seat lies behind it: nothing joins the seats that were laid out with a batch
LOCKS = 0x4C494E45  # the first key of the advisory locks on lines; the second is the batch

# One statement over all of a labeler's tables, evaluated seat by seat: a join could be turned into a hash of their whole history.
THEIRS = """EXISTS (
    SELECT 1 FROM labeling_submission o WHERE o.task_id = s.task_id AND o.labeler_id = %(labeler)s
    UNION ALL SELECT 1 FROM labeling_skip o WHERE o.task_id = s.task_id AND o.labeler_id = %(labeler)s
    UNION ALL SELECT 1 FROM labeling_slot o WHERE o.task_id = s.task_id AND o.labeler_id = %(labeler)s
    UNION ALL SELECT 1 FROM labeling_look o WHERE o.task_id = s.task_id AND o.labeler_id = %(labeler)s
    UNION ALL SELECT 1 FROM labeling_draft o WHERE o.task_id = s.task_id AND o.labeler_id = %(labeler)s
                       AND o.content @> '{"put_back": true}'
    UNION ALL SELECT 1 FROM labeling_task t JOIN labeling_prompt p ON p.id = t.prompt_id JOIN labeling_author a ON a.id = p.author_id
               WHERE t.id = s.task_id AND a.user_id = %(labeler)s)"""

RETURNED = "s.batch_id = {batch} AND s.status = 'open' AND s.turn > 0 AND s.turn > {turn}"
LAID_OUT = "s.batch_id = {batch} AND s.status = 'open' AND s.turn = 0 AND (s.seat, s.id) > ({seat}, {slot})"

LINES = Statement(
    "lines",
    f"""
SELECT b.id, coalesce(m.turn, 0), coalesce(m.seat, 0), coalesce(m.slot, 0), b.gold_percent, r.id IS NOT NULL, l.id IS NOT NULL
  FROM labeling_batch b LEFT JOIN labeling_bookmark m ON m.batch_id = b.id AND m.labeler_id = %(labeler)s
  LEFT JOIN LATERAL (SELECT s.id FROM labeling_slot s
      WHERE {RETURNED.format(batch="b.id", turn="coalesce(m.turn, 0)")} ORDER BY s.turn LIMIT 1) r ON true
  LEFT JOIN LATERAL (SELECT s.id FROM labeling_slot s
      WHERE {LAID_OUT.format(batch="b.id", seat="coalesce(m.seat, 0)", slot="coalesce(m.slot, 0)")}
      ORDER BY s.seat, s.id LIMIT 1) l ON true
 WHERE b.status = 'active' AND b."group" IN ('', %(group)s) AND (b.language = '' OR b.language = ANY(%(languages)s))
   AND b.skills <@ %(skills)s AND (%(kind)s = '' OR b.kind = %(kind)s)
   AND (%(batch)s IS NULL OR b.id = %(batch)s) AND (r.id IS NOT NULL OR l.id IS NOT NULL)
 ORDER BY b.priority DESC, b.id
""",  # noqa: S608
    labeler="bigint",
    group="text",
    languages="varchar[]",
    skills="varchar[]",
    kind="text",
    batch="bigint",
)

# Keeps the planner from walking another index and sorting: each condition and order is that of one partial index.
PARTS = {
    True: (RETURNED.format(batch="%(batch)s", turn="%(turn)s"), "s.turn", "s.turn"),
    False: (LAID_OUT.format(batch="%(batch)s", seat="%(seat)s", slot="%(slot)s"), "s.seat, s.id", "(s.seat, s.id)"),
}


def _taking(name: str, where: str, order: str, place: str) -> Statement:
    """The first seat that is for the labeler, locked, and how many were walked over, counted up to `worth`."""
    # Cut first, compared then: an index is read from a row comparison on, but up to one only by its first column, which is to its end.
    first = f"SELECT {order} FROM labeling_slot s WHERE {where} ORDER BY {order} LIMIT %(worth)s"  # noqa: S608
    passed = f"SELECT 1 FROM ({first}) s WHERE {place} < {place.replace('s.', 'f.')}"  # noqa: S608
    return Statement(
        name,
        f"SELECT {columns_of(Slot, 'f')}, (SELECT count(*) FROM ({passed}) p) FROM labeling_slot f WHERE f.id = ("  # noqa: S608
        f"SELECT s.id FROM labeling_slot s WHERE {where} AND NOT {THEIRS} ORDER BY {order} LIMIT 1 FOR UPDATE SKIP LOCKED)",
        labeler="bigint",
        batch="bigint",
        turn="bigint",
        seat="smallint",
        slot="bigint",
        worth="bigint",
    )


TAKE = {True: _taking("take_returned", *PARTS[True]), False: _taking("take_laid_out", *PARTS[False])}


@dataclass(frozen=True)
class Line:
    """The seats given back to a batch (`is_returned`), or laid out with it, that lie behind a labeler's bookmark."""

    labeler: int
    batch: int
    is_returned: bool
    turn: int
    seat: int
    slot: int

    def take(self) -> tuple[Slot | None, bool]:
        """The first seat that is for the labeler, locked, and whether so many were walked over that a bookmark is worth it. Seats
        that others are taking just now are passed by."""
        found = TAKE[self.is_returned].row(worth=WORTH_A_BOOKMARK, **vars(self))
        if found is None:
            return None, True
        *values, passed = found
        return row_of(Slot, values), passed >= WORTH_A_BOOKMARK

    def remember(self) -> None:
        """Move the labeler's bookmark up to the first seat that is for them, or to the end. Must be its transaction's last act.

        While a seat of the batch is being opened, not yet to be seen, nothing is moved: whoever opens one holds the lock shared
        from before it is numbered until it can be seen.
        """
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [LOCKS, self.batch])
            if cursor.fetchone()[0]:
                cursor.execute(self._first(), vars(self))
                self._move(cursor.fetchone())

    def _first(self) -> str:
        where, order, _place = PARTS[self.is_returned]
        return (
            f"SELECT s.turn, s.seat, s.id FROM labeling_slot s WHERE {where} AND NOT {THEIRS} ORDER BY {order} LIMIT 1"  # noqa: S608
        )

    def _move(self, first: tuple[int, int, int] | None) -> None:
        """To just before a seat's (turn, seat, id), or to the end of the line as it is now."""
        mark = Bookmark(labeler_id=self.labeler, batch_id=self.batch, turn=self.turn, seat=self.seat, slot=self.slot)
        if not self.is_returned:
            mark.seat, mark.slot = (first[1], first[2] - 1) if first else END
        elif first:
            mark.turn = first[0] - 1
        else:
            newest = Slot.objects.filter(batch_id=self.batch, status=Slot.Status.OPEN, turn__gt=0).order_by("-turn")
            mark.turn = newest.values_list("turn", flat=True).first() or self.turn
        moved = ["turn"] if self.is_returned else ["seat", "slot"]
        Bookmark.objects.bulk_create(
            [mark], update_conflicts=True, unique_fields=["labeler", "batch"], update_fields=moved
        )


def first_open(user: User, *, kind: str = "", batch_id: int | None = None) -> tuple[Slot | None, bool, list[Line]]:
    """The labeler's best open seat, locked; whether its batch mixes gold in; the lines in which a bookmark is worth remembering once
    the seat is leased.

    Costs one index probe for each active batch, one walk behind a bookmark, and nothing for a line in which nothing is left.
    """
    wanted: dict[str, object] = {"labeler": user.pk, "kind": kind, "batch": batch_id}
    wanted |= {"group": user.group, "languages": user.languages, "skills": user.skills}
    passed = []
    for batch, turn, seat, slot, gold_percent, *holds in LINES.rows(**wanted):
        for is_returned in (True, False):
            if not holds[not is_returned]:
                continue
            line = Line(user.pk, batch, is_returned, turn, seat, slot)
            found, is_worth_it = line.take()
            passed += [line] if is_worth_it else []
            if found is not None:
                return found, gold_percent > 0, passed
    return None, False, passed
