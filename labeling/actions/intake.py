"""Intake: every prompt that comes in waits until it was checked, and is held for a person where something is found.

The doors (imports, gateway, playground, labelers' writing, API) store prompts as waiting, normalised, and call `soon` or `after_import`.
Checks are safe to repeat and to run in several processes at once: a chunk of prompts is checked and marked in one transaction.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import likeness, locks, personal_data
from labeling.answers import bounded
from labeling.errors import Conflict, Invalid
from labeling.languages import language_of
from labeling.models import Finding, Import, Intake, IntakeDecision, Prompt, Task, User

log = logging.getLogger(__name__)

AT_ONCE = 200  # prompts in a transaction
INLINE = 400  # prompts of an import that are checked while whoever brought them waits: about a second
CANDIDATES = 4  # that a prompt is compared with, and that are looked up by a key: a million may begin alike
COMMENT_CHARS = 2000
Reason, Verdict = Finding.Reason, IntakeDecision.Verdict


# ---- when prompts came ------------------------------------------------------------------------------------------------


def soon() -> None:
    """Have the worker check what waits, once this transaction is through. (It looks every minute in any case.)"""
    transaction.on_commit(_order_checks, robust=True)


def _order_checks() -> None:
    from labeling import jobs  # jobs import this module

    jobs.order(jobs.check_prompts)


def after_import(*, record: Import) -> None:
    """Check the prompts of an import: a few at once, many by the worker. They are stored whatever comes of it.

    Where prompts were held or have to wait, `record.counts` says how many (`prompts_held`, `prompts_waiting`); in memory alone.
    """
    new = record.counts.get("prompts_new", 0)
    if not new:
        return
    if new <= INLINE:
        try:
            while _check_chunk(Prompt.objects.filter(imported_in=record), after=0):
                pass
        except Exception:
            log.exception("import %s: its prompts could not be checked now; the worker tries again", record.pk)
        record.refresh_from_db(fields=["checked", "held"])
    counts = {"prompts_held": record.held, "prompts_waiting": new - record.checked}
    record.counts = record.counts | {name: count for name, count in counts.items() if count}
    if record.checked < new:
        soon()


def finish_import(*, record: Import, progress: Callable[[int], None] = lambda checked: None) -> None:
    """Check the prompts of an import here and now, and wait for those that a worker is checking. As `after_import`, it tells the counts."""
    new = record.counts.get("prompts_new", 0)
    while record.checked < new:
        if chunk := _check_chunk(Prompt.objects.filter(imported_in=record), after=0):
            progress(len(chunk))
        else:
            time.sleep(0.05)
        record.refresh_from_db(fields=["checked", "held"])
    record.counts.pop("prompts_waiting", None)
    record.counts |= {"prompts_held": record.held} if record.held else {}


# ---- checking ---------------------------------------------------------------------------------------------------------


def check_waiting(*, seconds: float | None = None, progress: Callable[[int], None] = lambda checked: None) -> bool:
    """Check prompts that wait, oldest first, for so many seconds or until none is left; True if none is.

    `progress` is told how many were checked, chunk by chunk. Prompts that another process checks just now are left to it.
    """
    until, after = time.monotonic() + seconds if seconds is not None else None, 0
    while until is None or time.monotonic() < until:
        chunk = _check_chunk(Prompt.objects.all(), after=after)
        if not chunk:
            return True
        progress(len(chunk))
        after = chunk[-1]  # not from the beginning again: what is done lies there as dead rows until it is vacuumed
    return False


@dataclass
class Look:
    """A prompt under check: what was found, and what others are compared with."""

    prompt: Prompt
    spans: list[dict]
    text: str
    keys: list[int]
    language: str
    findings: dict[str, Finding] = field(default_factory=dict)

    def hold(self, reason: str, *, spans: Sequence[dict] = (), like: int | None = None) -> None:
        """Note a reason to hold the prompt back."""
        self.findings[reason] = Finding(prompt=self.prompt, reason=reason, spans=list(spans), like_id=like)

    @property
    def is_copy(self) -> bool:
        return bool(self.findings.keys() & {Reason.NEAR_COPY, Reason.SAME_BEGINNING})


@transaction.atomic
def _check_chunk(prompts: QuerySet[Prompt], *, after: int) -> list[int]:
    """Check some of the prompts that wait and mark them; their keys, in order. Empty when there are none to be had."""
    waiting = prompts.filter(intake=Intake.WAITING, pk__gt=after).select_related("author").order_by("pk")
    chunk = list(waiting.select_for_update(skip_locked=True, no_key=True, of=("self",))[:AT_ONCE])
    looks = [_look(prompt) for prompt in chunk]
    if looks:
        locks.hold("intake")  # what is compared with, and counted, must not change under us; the slow part was before
        _find_copies(looks)
        _find_too_many(looks)
        _mark(looks)
    return [prompt.pk for prompt in chunk]


def _look(prompt: Prompt) -> Look:
    """What can be told from the prompt alone."""
    spans = [
        {"message": number, "start": found.start, "end": found.end, "kind": found.kind}
        for number, message in enumerate(prompt.messages)
        for found in personal_data.find(message["content"])
    ]
    text = likeness.flat(prompt.messages)
    look = Look(prompt, spans, text, likeness.keys_of(text), language_of(prompt.text))
    if spans:
        look.hold(Reason.PERSONAL_DATA, spans=spans)
    return look


# ---- copies -----------------------------------------------------------------------------------------------------------

LIKES = """
SELECT asked.prompt, found.prompt_id, count(*)
  FROM unnest(%s::bigint[], %s::bigint[]) AS asked(prompt, key),
       LATERAL (SELECT prompt_id FROM labeling_likenesskey k WHERE k.key = asked.key ORDER BY prompt_id LIMIT %s) found
 WHERE found.prompt_id <> asked.prompt
 GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2
"""


def _find_copies(looks: list[Look]) -> None:
    """Hold copies of what came before, in the database or in this chunk. A copy is itself no original: it adds no keys."""
    stored = _stored_candidates(looks)
    here: dict[int, list[Look]] = defaultdict(list)  # key → those of this chunk that are no copies
    for look in looks:
        known = Prompt.objects.filter(pk__in=stored[look.prompt.pk]).order_by("pk") if stored[look.prompt.pk] else ()
        others = [(other, likeness.flat(other.messages)) for other in known]
        near = {each.prompt.pk: each for key in look.keys for each in here[key][:CANDIDATES]}
        others += [(each.prompt, each.text) for each in list(near.values())[:CANDIDATES]]
        _compare(look, others)
        if not look.is_copy:
            for key in look.keys:
                here[key].append(look)


def _stored_candidates(looks: list[Look]) -> dict[int, list[int]]:
    asked = [(look.prompt.pk, key) for look in looks for key in look.keys]
    with connection.cursor() as cursor:
        cursor.execute(LIKES, [[pk for pk, _key in asked], [key for _pk, key in asked], CANDIDATES])
        rows = cursor.fetchall()
    found: dict[int, list[int]] = defaultdict(list)
    for pk, other, _shared in rows:
        if len(found[pk]) < CANDIDATES:
            found[pk].append(other)
    return found


def _compare(look: Look, others: Iterable[tuple[Prompt, str]]) -> None:
    for other, text in others:
        writing = look.prompt.metadata.get("writing")
        if writing and writing == other.metadata.get("writing"):
            continue  # the pairs of one few-shot prompt: each holds all the others
        if likeness.is_near(look.text, text):
            look.hold(Reason.NEAR_COPY, like=other.pk)
            return
        if likeness.begin_alike(look.text, text):
            look.hold(Reason.SAME_BEGINNING, like=other.pk)
            return


# ---- too many of one --------------------------------------------------------------------------------------------------


def _find_too_many(looks: list[Look]) -> None:
    """Hold what is more than the limits allow of one author or organization. What labelers write for us is not limited."""
    authors, organizations = Counter[int](), Counter[str]()
    limited = Prompt.objects.opened().exclude(source=Prompt.Source.LABELER)
    for look in looks:
        author, organization = look.prompt.author_id, look.prompt.organization
        if look.findings or look.prompt.source == Prompt.Source.LABELER:
            continue
        if author and _is_full(limited.filter(author=author), authors, author, settings.PROMPTS_PER_AUTHOR):
            look.hold(Reason.AUTHOR_FULL)
        elif organization and _is_full(
            limited.filter(organization=organization), organizations, organization, settings.PROMPTS_PER_ORGANIZATION
        ):
            look.hold(Reason.ORGANIZATION_FULL)
        else:
            authors[author or 0] += 1
            organizations[organization] += 1


def _is_full(rows: QuerySet[Prompt], counts: Counter, name: int | str, limit: int) -> bool:
    if name not in counts and limit:
        counts[name] = rows[:limit].count()
    return 0 < limit <= counts[name]


# ---- marking ----------------------------------------------------------------------------------------------------------

MARK = """
UPDATE labeling_prompt p SET intake = made.intake, language = made.language
  FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS made(id, intake, language) WHERE p.id = made.id
"""
KEEP_KEYS = """
INSERT INTO labeling_likenesskey (key, prompt_id) SELECT * FROM unnest(%s::bigint[], %s::bigint[]) ON CONFLICT DO NOTHING
"""


def _mark(looks: list[Look]) -> None:
    states = [Intake.HELD if look.findings else Intake.OPEN for look in looks]
    keys = [(key, look.prompt.pk) for look in looks if not look.is_copy for key in look.keys]
    with connection.cursor() as cursor:
        cursor.execute(MARK, [[look.prompt.pk for look in looks], states, [look.language for look in looks]])
        cursor.execute(KEEP_KEYS, [[key for key, _pk in keys], [pk for _key, pk in keys]])
    Finding.objects.bulk_create(finding for look in looks for finding in look.findings.values())
    checked = Counter(look.prompt.imported_in_id for look in looks)
    held = Counter(look.prompt.imported_in_id for look in looks if look.findings)
    for pk in sorted(filter(None, checked)):
        Import.objects.filter(pk=pk).update(checked=F("checked") + checked[pk], held=F("held") + held[pk])


# ---- deciding ---------------------------------------------------------------------------------------------------------


RELEASED = "released"
"""The state of what a person has let through: open, unlike what was never held."""


def held(*, reason: str = "", record: int | None = None, state: str = Intake.HELD) -> QuerySet[Prompt]:
    """Prompts that are held back (or were refused, or RELEASED), oldest first; for one reason, of one import, or all."""
    prompts = Prompt.objects.filter(intake=Intake.OPEN if state == RELEASED else state)
    if state == RELEASED:
        prompts = prompts.filter(Exists(IntakeDecision.objects.filter(prompt=OuterRef("pk"), verdict=Verdict.RELEASED)))
    if record is not None:
        prompts = prompts.filter(imported_in=record)
    if reason:
        prompts = prompts.filter(Exists(Finding.objects.filter(prompt=OuterRef("pk"), reason=reason)))
    return prompts.order_by("pk")


@transaction.atomic
def decide(*, prompts: QuerySet[Prompt] | Iterable[UUID], verdict: str, comment: str, by: User | None) -> int:
    """Let prompts through, or refuse them; how many changed. One that is so decided already stays as it is.

    What was refused may be released later; what was let through may be refused as long as no task asks for it. Raises Invalid without
    a reason in words, Conflict for prompts that are not there to be decided (their checks still run, or they have tasks); then none
    is decided.
    """
    comment = bounded(comment, COMMENT_CHARS, _("Reason"), "comment").strip()
    if verdict not in Verdict.values:
        raise Invalid(
            _("verdict %(said)r: expected one of %(known)s") % {"said": verdict, "known": ", ".join(Verdict.values)}
        )
    if not comment:
        raise Invalid(_("Say why, in a few words."), [{"place": "comment", "message": _("is empty")}])
    wanted = prompts if isinstance(prompts, QuerySet) else Prompt.objects.filter(uuid__in=set(prompts))
    target = Intake.OPEN if verdict == Verdict.RELEASED else Intake.REFUSED
    changing = list(wanted.exclude(intake=target).order_by("pk").values_list("pk", flat=True))
    now = timezone.now()
    for at in range(0, len(changing), 1000):
        keys = _lock_decidable(changing[at : at + 1000], target)
        Prompt.objects.filter(pk__in=keys).update(intake=target)
        made = [
            IntakeDecision(prompt_id=pk, verdict=verdict, comment=comment, decided_by=by, decided_at=now) for pk in keys
        ]
        IntakeDecision.objects.bulk_create(made)
    return len(changing)


def _lock_decidable(keys: list[int], target: str) -> list[int]:
    """The prompts, locked against new tasks and against other deciders. Raises Conflict naming the first that may not be decided."""
    rows = Prompt.objects.select_for_update().filter(pk__in=keys).order_by("pk").values_list("pk", "uuid", "intake")
    for pk, uuid, state in (locked := [row for row in rows if row[2] != target]):
        if state == Intake.WAITING:
            raise Conflict(_("Prompt %s is still being checked. Try again in a moment.") % uuid)
        if state == Intake.ERASED:
            raise Conflict(_("Prompt %s was erased.") % uuid)
        if state == Intake.OPEN and Task.objects.filter(prompt=pk).exists():
            raise Conflict(_("Prompt %s is labeled already: it cannot be refused any more.") % uuid)
    return [pk for pk, _uuid, _state in locked]
