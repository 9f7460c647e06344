"""Erasing an author: what they wrote and what hangs on it is redacted; what is counted and paid stays, under nobody's name.

The rows stay where they are, so that counts, hours and lineage hold; their words go. This is the one door through the append-only
triggers (`heed.erasure`), and every pass through it leaves an Erasure.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import Model, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import locks
from labeling.actions.export_rows import Pseudonyms
from labeling.answers import bounded
from labeling.errors import Conflict, Forbidden, refuse
from labeling.models import (
    Adjudication,
    Application,
    Attempt,
    Author,
    Decision,
    Draft,
    DraftCopy,
    Erasure,
    Export,
    Finding,
    GoldAnswer,
    Grade,
    IdempotencyKey,
    IntakeDecision,
    Invitation,
    LabelerPause,
    LikenessKey,
    ModelVersion,
    Prompt,
    PseudonymKey,
    Question,
    QuestionMessage,
    Response,
    Review,
    Revision,
    Role,
    Screening,
    SecondReview,
    Skip,
    Slot,
    Submission,
    Task,
    User,
    Writing,
)
from labeling.models.prompts import split_of

REASON_CHARS = 2000
ERASED = "[erased]"  # in place of words that may not be empty


# ---- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holding:
    """An export that holds something of a person. `prompts` and `labels` are None where its files are not here to be read."""

    export: Export
    prompts: int | None
    labels: int | None


@dataclass(frozen=True)
class Plan:
    """What an erasure would do: rows to redact by what they are, exports that hold the person, models that were trained on those."""

    author: Author
    pseudonym: str
    counts: dict[str, int]
    exports: list[Holding]
    models: list[ModelVersion]


def author_of(*, user: User) -> Author:
    """A person with an account as an author, whether they have written prompts or not."""
    key = f"labeler-{user.pk}"
    return Author.objects.get_or_create(user=user, defaults={"key": key, "split": split_of(key)})[0]


def plan(*, author: Author) -> Plan:
    """What `erase` would do to this author now. Changes nothing."""
    exports = holdings(author)
    affected = models_trained_on([holding.export for holding in exports])
    counts = {name: rows.count() for name, rows in _Rows(author).counted().items()}
    return Plan(author, _pseudonym(author), {name: n for name, n in counts.items() if n}, exports, affected)


class _Rows:
    """All that is by an author, answers a prompt of theirs, or hangs on a task that asks for one."""

    def __init__(self, author: Author):
        user = author.user_id
        self.user = author.user
        self.prompts = Prompt.objects.filter(author=author)
        on_task = Q(task__prompt__author=author)
        by_them = Q(labeler=user) if user else Q(pk__in=[])
        self.tasks = Task.objects.filter(prompt__author=author)
        self.responses = Response.objects.filter(prompt__author=author)
        self.submissions = _either(Submission, on_task, by_them)
        self.own_submissions = Submission.objects.filter(by_them)
        self.reviews = Review.objects.filter(submission__in=self.submissions.values("pk"))
        self.drafts = _either(Draft, on_task, by_them)
        self.draft_copies = _either(DraftCopy, on_task, by_them)
        self.skips = _either(Skip, on_task, by_them)
        self.seats = Slot.objects.filter(on_task).exclude(status=Slot.Status.SUBMITTED)
        self.gold = GoldAnswer.objects.filter(on_task)
        self.adjudications = Adjudication.objects.filter(on_task)
        self.questions = _either(Question, on_task, Q(asker=user) if user else Q(pk__in=[]))
        self.writings = Writing.objects.filter(by_them)
        self.attempts = Attempt.objects.filter(user=user) if user else Attempt.objects.none()
        self.screenings = Screening.objects.filter(user=user) if user else Screening.objects.none()

    def counted(self) -> dict[str, QuerySet]:
        """What a person wants to know before they say yes."""
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "tasks": self.tasks,
            "open_seats": self.seats,
            "submissions": self.submissions,
            "own_submissions": self.own_submissions,
            "reviews": self.reviews,
            "drafts": self.drafts,
            "draft_copies": self.draft_copies,
            "skips": self.skips,
            "gold_answers": self.gold,
            "adjudications": self.adjudications,
            "questions": self.questions,
            "writings": self.writings,
            "attempts": self.attempts,
            "screenings": self.screenings,
            "accounts": User.objects.filter(pk=self.user.pk) if self.user else User.objects.none(),
        }


def _either(model: type[Model], one: Q, other: Q) -> QuerySet:
    """Rows of which one or the other is true, each found by its own index: OR over a join reads the whole table."""
    rows = model._default_manager
    return rows.filter(pk__in=rows.filter(one).values("pk").union(rows.filter(other).values("pk")))


def _pseudonym(author: Author) -> str:
    return str(Pseudonyms(PseudonymKey.secret()).author(author.key, author.user_id))


# ---- earlier exports ----------------------------------------------------------------------------------------------------


def holdings(author: Author) -> list[Holding]:
    """The exports that hold prompts by this author or labels by them, oldest first, as their files tell.

    Of an export whose files are not here it is told that it may: it is younger than the author.
    """
    name, found = _pseudonym(author), []
    for export in Export.objects.filter(status=Export.Status.READY).defer("manifest").order_by("number"):
        try:
            prompts = _count(export.folder / "prompts.parquet", ("author",), name)
            labels = sum(
                _count(export.folder / f"{kind}.parquet", ("labeler",), name) for kind in ("demonstrations", "rankings")
            )
        except OSError:
            if export.finished_at and export.finished_at >= author.created_at:
                found.append(Holding(export, None, None))
            continue
        if prompts or labels:
            found.append(Holding(export, prompts, labels))
    return found


def _count(path: Path, fields: tuple[str, ...], name: str) -> int:
    """How often a name stands in a column of this name, nested or not; row group by row group, that column alone."""
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetFile(path) as file:
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        wanted = [path for path in paths if path.rpartition(".")[2] in fields]
        for group in range(file.num_row_groups):
            for column in file.read_row_group(group, columns=wanted).columns:
                count += sum(_occurrences(chunk, name) for chunk in column.chunks)
    return count


def _occurrences(values, name: str) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    while not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        values = values.flatten()
        values = values[0] if isinstance(values, list) else values
    return pc.sum(pc.equal(values, name)).as_py() or 0


def models_trained_on(exports: list[Export]) -> list[ModelVersion]:
    """The models trained on these exports, and all that were made from those models."""
    found: dict[int, ModelVersion] = {}
    newest = list(ModelVersion.objects.filter(export__in=exports))
    while newest:
        found |= {model.pk: model for model in newest}
        newest = list(ModelVersion.objects.filter(parents__in=newest).exclude(pk__in=found).distinct())
    return [found[pk] for pk in sorted(found)]


# ---- erasing ------------------------------------------------------------------------------------------------------------


def erase(*, author: Author, confirmation: str, reason: str, by: User | None) -> Erasure:
    """Redact an author and all that `plan` tells, for good. `confirmation` is the author's key, typed; `by` None: the shell's operator.

    Kept are rows without words: that there was a prompt, who labeled it, how its responses were ranked, paid hours. Raises Forbidden
    unless an admin asks, Invalid when the key is typed wrongly or no reason is given, Conflict for an admin's own account.
    """
    if by is not None and not by.has_role(Role.ADMIN):
        raise Forbidden(_("Only admins erase authors."))
    reason, problems = bounded(reason.strip(), REASON_CHARS, _("The request"), "reason"), []
    if confirmation.strip() != author.key:
        problems.append({"place": "confirmation", "message": _("is not the author's key, letter by letter")})
    if not reason:
        problems.append({"place": "reason", "message": _("is empty: name the request")})
    refuse(problems)
    if author.user and author.user.has_role(Role.ADMIN):
        raise Conflict(_("This is an admin's account. Take the role away first."))
    with transaction.atomic(), _let_through():
        locks.hold("erasure")  # an export that is being written is announced before, or written anew after
        before = holdings(author)  # reads files: not while rows are locked
        author = Author.objects.select_for_update().get(pk=author.pk)
        rows = _Rows(author)
        made = Erasure.objects.create(pseudonym=_pseudonym(author), reason=reason, erased_by=by)
        list(rows.prompts.select_for_update().order_by("pk").values_list("pk"))
        made.counts = {name: n for name, found in rows.counted().items() if (n := found.count())}
        made.save(update_fields=["counts"])
        made.exports.set([holding.export for holding in before])
        _forget_jobs(author)
        _run(IMPORTS, [author.key])
        IdempotencyKey.objects.forget_answers()  # of everybody: any may tell of the person, and they are gone in a day anyway
        _redact(rows, made)
        if author.user:
            _redact_account(author.user)
        author.delete()
    return made


@contextmanager
def _let_through() -> Iterator[None]:
    """The way through the append-only triggers, for this transaction and no longer."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL heed.erasure = 'on'")
        yield
        cursor.execute("SET LOCAL heed.erasure = 'off'")


def _redact(rows: _Rows, made: Erasure) -> None:
    """Everything that hangs on the prompts first, found through them; the prompts, which then have no author, last."""
    submissions = list(rows.submissions.values_list("pk", flat=True))
    reviews = list(rows.reviews.values_list("pk", flat=True))
    _blank(Revision.objects.filter(submission__in=submissions), "text", "comment")
    said = Revision.objects.filter(submission__in=rows.own_submissions.values("pk"))
    _run(FLATTEN, [list(said.values_list("pk", flat=True))])
    own = Submission.objects.filter(pk__in=list(rows.own_submissions.values_list("pk", flat=True)))
    hidden = {
        "erased_at": made.erased_at,
        "updated_at": made.erased_at,
        "review_reasons": [],
        "has_unread_feedback": False,
    }
    rows.submissions.update(**hidden)
    own.update(status=Submission.Status.REJECTED)  # so that no consensus is made with them
    waiting = Q(status=Submission.Status.SUBMITTED) | Q(status=Submission.Status.RETURNED)
    rows.submissions.filter(waiting).update(
        status=Submission.Status.ACCEPTED
    )  # others' work: nobody can judge it any more
    _blank(Review.objects.filter(pk__in=reviews), "comment")
    _blank(SecondReview.objects.filter(review__in=reviews), "comment")
    _blank(rows.adjudications, "comment")
    _blank(rows.skips, "comment")
    rows.drafts.update(content={})
    _run(COPIES, [list(rows.draft_copies.values_list("pk", flat=True))])
    rows.gold.filter(withdrawn_at=None).update(withdrawn_at=made.erased_at, withdrawn_by=made.erased_by)
    _blank(rows.gold, "explanation")
    _blank(QuestionMessage.objects.filter(question__in=rows.questions.values("pk")), "text")
    rows.questions.update(public_question="", public_answer="", published_at=None, published_by=None, is_open=False)
    rows.writings.update(content={})
    rows.seats.delete()
    rows.tasks.update(is_gold=False, disagreement=None)
    _run(RESPONSES, [list(rows.responses.values_list("pk", flat=True))])
    prompts = list(rows.prompts.values_list("pk", flat=True))
    Finding.objects.filter(prompt__in=prompts).delete()
    LikenessKey.objects.filter(prompt_id__in=prompts).delete()
    _blank(IntakeDecision.objects.filter(prompt__in=prompts), "comment")
    _run(PROMPTS, [prompts])


def _blank(rows: QuerySet, *fields: str) -> None:
    """Put the sign in place of what is said; what was empty stays so."""
    for field in fields:
        rows.exclude(**{field: ""}).exclude(**{f"{field}__isnull": True}).update(**{field: ERASED})


def _run(sql: str, parameters: list) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


# A ranking by somebody who is erased says no more than which responses there were; the ranking of another, of a prompt that is
# erased, holds ids alone and stays.
FLATTEN = """
UPDATE labeling_revision SET ratings = '{}', prompt_flags = '{}', all_bad = false, tiers = CASE WHEN tiers IS NOT NULL THEN
  (SELECT jsonb_build_array(jsonb_agg(e.one)) FROM jsonb_array_elements(tiers) t(tier), jsonb_array_elements(t.tier) e(one)) END
 WHERE id = ANY(%s)
"""
COPIES = """
UPDATE labeling_draftcopy SET content = '{}', content_sha256 = encode(sha256(('erased ' || id)::bytea), 'hex') WHERE id = ANY(%s)
"""
RESPONSES = f"""
UPDATE labeling_response SET text = '{ERASED}', text_sha256 = encode(sha256('{ERASED}'::bytea), 'hex'), sampling = '{{}}',
       external_id = 'erased:' || uuid WHERE id = ANY(%s)
"""  # noqa: S608 constants alone
PROMPTS = f"""
UPDATE labeling_prompt SET messages = '[{{"role": "user", "content": "{ERASED}"}}]', original = NULL, external_id = NULL,
       content_sha256 = encode(sha256(('erased ' || uuid)::bytea), 'hex'), metadata = '{{}}', organization = '', language = '',
       author_id = NULL, intake = 'erased' WHERE id = ANY(%s)
"""  # noqa: S608 constants alone
IMPORTS = (
    "UPDATE labeling_import SET mapping = mapping #- '{constant,author}' WHERE mapping #>> '{constant,author}' = %s"
)
# What is still to be done is left: jobs are given ids of rows alone, so nothing of a person is in them.
JOBS = """
UPDATE procrastinate_jobs SET args = '{}'
 WHERE status NOT IN ('todo', 'doing') AND (strpos(args::text, %s) > 0 OR strpos(args::text, %s) > 0)
"""


def _forget_jobs(author: Author) -> None:
    email = author.user.email if author.user else author.key
    _run(JOBS, [author.key, email])


def _redact_account(user: User) -> None:
    """An account that nobody can use and that names nobody; its hours, roles and seats stay."""
    mine = {"user": user}
    for model in (EmailAddress, SocialAccount, Authenticator):
        model.objects.filter(**mine).delete()
    Slot.objects.filter(labeler=user, status=Slot.Status.LEASED).give_back()
    Invitation.objects.filter(Q(accepted_by=user) | Q(email=user.email)).update(
        email=f"erased-{user.pk}@erased.invalid"
    )
    user.tokens.filter(revoked_at=None).update(revoked_at=timezone.now())
    _forget_sessions(user)
    Application.objects.filter(**mine).update(languages="", availability="")
    Screening.objects.filter(**mine).update(self_assessment={})
    Attempt.objects.filter(**mine).update(content={})
    _blank(Grade.objects.filter(attempt__user=user), "comment")
    _blank(Decision.objects.filter(user=user), "reason", "message")
    _blank(LabelerPause.objects.filter(labeler=user), "reason")
    User.objects.filter(pk=user.pk).update(
        email=f"erased-{user.pk}@erased.invalid",
        name="",
        statement="",
        languages=[],
        skills=[],
        is_active=False,
        password=make_password(None),
        last_login=None,
    )


def _forget_sessions(user: User) -> None:
    """Their conversation in the playground lies there, and forms that they sent too late: encoded, so that each is to be opened."""
    for session in Session.objects.iterator(chunk_size=500):
        if session.get_decoded().get(SESSION_KEY) == str(user.pk):
            session.delete()
