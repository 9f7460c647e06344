"""A large installation's rows, made up and copied in: labelers, batches, prompts, responses of policies, and what was said of them.

Rankings, demonstrations, reviews, skips, drafts and free seats over ten weeks. Everything passes the database's own constraints and
triggers. Columns that this file does not name get their model's default, so that it outlives changes of the tables.
"""

import json
import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, models, transaction
from django.utils import timezone

from labeling.models import (
    Author,
    Batch,
    Draft,
    Group,
    Intake,
    Kind,
    LabelSchema,
    ModelVersion,
    Prompt,
    Question,
    QuestionMessage,
    Response,
    Review,
    Revision,
    SecondReview,
    Skip,
    Slot,
    Submission,
    Task,
    TaskResponse,
    User,
    UserRole,
    WorkEntry,
)
from labeling.models.prompts import content_digest, split_of
from labeling.models.responses import text_digest

WEEKS = 10
K, RESPONSES_PER_PROMPT, OVERLAP = 4, 6, 2
POLICIES = [f"policy-{i:02d}" for i in range(12)]  # the higher, the better
SUBMISSIONS_PER_BATCH = 2500
ANSWERS = (None, False, False, True)
WORDS = [f"word{i}" for i in range(1000)]


@dataclass
class Loaded:
    """How many rows were made, by model name."""

    rows: dict[str, int] = field(default_factory=dict)


def fill(*, submissions: int, labelers: int = 200, seed: int = 0) -> Loaded:
    """Add about so many submissions (a little more: tasks are done whole) by this many labelers to what is there. One transaction."""
    with transaction.atomic():
        made = _Load(submissions, labelers, seed).run()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return made


class _Load:
    def __init__(self, submissions: int, labelers: int, seed: int):
        self.rng = random.Random(f"{seed} {next_id(Submission)}")  # another filling makes other rows
        self.now = timezone.now()
        self.wanted = submissions
        self.schema = LabelSchema.latest()
        self.flags = [flag["name"] for flag in self.schema.response_flags]
        self.made = Loaded()
        self.labelers, self.reviewers = self._people(labelers)
        self.authors = self._authors()
        self.policies = self._policies()
        self.tables: dict[type[models.Model], list[tuple]] = {}

    def run(self) -> Loaded:
        """Rows are gathered by table and copied in the order of their foreign keys."""
        self._evaluation(max(4, self.wanted // 40))
        plan = self._plan()
        prompts = self._prompts(max(5 * tasks // 4 for _kind, _overlap, tasks in plan) + 2)
        for number, (kind, overlap, tasks) in enumerate(plan):
            self._batch(number, len(plan), kind, overlap, tasks, prompts)
        for model, columns in COLUMNS.items():
            rows = self.tables.get(model, [])
            copy_rows(model, columns, rows)
            self.made.rows[model.__name__] = len(rows)
        self._questions(self.wanted // 200 + 2)
        self._second_reviews(self.wanted // 20 + 4)
        return self.made

    def _evaluation(self, tasks: int) -> None:
        """Four policies compared on prompts of the test split by held-out labelers who do nothing else; most of it done.

        With dice of its own: what follows is the same with it and without.
        """
        dice, self.rng = self.rng, random.Random(f"evaluation {next_id(Submission)}")
        there = User.objects.filter(email__endswith="@evaluation.example").count()
        self.evaluators = [
            User(email=f"{there + i}@evaluation.example", password="!", group=Group.HELD_OUT)
            for i in range(OVERLAP + 1)
        ]
        User.objects.bulk_create(self.evaluators)
        UserRole.objects.bulk_create(UserRole(user=user, role="labeler") for user in self.evaluators)
        prompts = self._prompts(tasks + tasks // 4 + 2, test_by=range(K))
        batch = {"purpose": Batch.Purpose.EVALUATION, "group": Group.HELD_OUT, "query": {"model_names": POLICIES[:K]}}
        self._batch(0, 1, Kind.RANKING, OVERLAP, tasks, prompts, **batch)
        self.rng = dice

    def _questions(self, count: int) -> None:
        """Threads on the newest tasks; half are answered, a quarter shown to all."""
        given = Submission.objects.order_by("-id").values_list("task_id", "labeler_id", "kind")
        by, now, threads = self.reviewers[0], self.now, []
        for i, (task, labeler, kind) in enumerate(given[:count]):
            shown = {"published_at": now, "published_by": by, "public_question": "Why?", "public_answer": self._text()}
            more = shown if i % 4 == 0 else {}
            threads.append(
                Question(task_id=task, asker_id=labeler, kind=kind, is_open=i % 2 == 1, asked_at=now, **more)
            )
        Question.objects.bulk_create(threads)
        said = [(each, each.asker_id, False) for each in threads]
        said += [(each, by.pk, True) for each in threads if not each.is_open]
        QuestionMessage.objects.bulk_create(
            QuestionMessage(question=question, author_id=person, is_answer=is_answer, text="Why?", key=self._uuid())
            for question, person, is_answer in said
        )

    def _second_reviews(self, count: int) -> None:
        """The newest verdicts, looked at again by another; one in five waits still, one in five differs."""
        first, second = self.reviewers[:2]
        given = Review.objects.filter(reviewer=first).order_by("-id").values_list("pk", "verdict")[:count]
        rows = []
        for i, (pk, verdict) in enumerate(given):
            other = "accepted" if verdict != "accepted" else "returned"
            said = {"verdict": other if i % 5 == 1 else verdict, "reviewer": second, "decided_at": self.now}
            rows.append(
                SecondReview(review_id=pk, first_verdict=verdict, first_reviewer=first, **(said if i % 5 else {}))
            )
        SecondReview.objects.bulk_create(rows, ignore_conflicts=True)

    def _plan(self) -> list[tuple[str, int, int]]:
        """(kind, overlap, tasks that are done) of each batch: one holds two fifths of everything; every fourth asks for demonstrations."""
        count = max(3, self.wanted // SUBMISSIONS_PER_BATCH)
        sizes = [2 * self.wanted // 5] + [3 * self.wanted // 5 // (count - 1) + 1] * (count - 1)
        kinds = [(Kind.DEMONSTRATION, 1) if i % 4 == 1 else (Kind.RANKING, OVERLAP) for i in range(count)]
        return [(kind, overlap, -(-size // overlap)) for size, (kind, overlap) in zip(sizes, kinds, strict=True)]

    # ---- who and what there is ----

    def _people(self, labelers: int) -> tuple[list[User], list[User]]:
        begun = User.objects.count()
        there = list(User.objects.filter(email__endswith="@load.example", roles__role="labeler").order_by("id"))
        new = [
            User(
                email=f"labeler-{begun + i}@load.example",
                name=f"Labeler {begun + i}",
                password="!",
                group=Group.HELD_OUT if i % 5 == 4 else Group.TRAINING,
                is_simulated=i % 20 == 19,
            )
            for i in range(labelers - len(there))
        ]
        reviewers = [User(email=f"reviewer-{begun + i}@load.example", password="!") for i in range(5)]
        User.objects.bulk_create([*new, *reviewers])
        UserRole.objects.bulk_create(
            [UserRole(user=user, role="labeler") for user in new]
            + [UserRole(user=user, role="reviewer") for user in reviewers]
        )
        return there + new, reviewers

    def _authors(self) -> list[Author]:
        """One author for each labeler, and three times as many outside."""
        keys = [(f"labeler {user.pk}", user) for user in self.labelers]
        keys += [(f"outside {i}", None) for i in range(3 * len(self.labelers))]
        there = set(Author.objects.values_list("key", flat=True))
        new = [Author(key=key, user=user, split=split_of(key)) for key, user in keys if key not in there]
        Author.objects.bulk_create(new)
        return list(Author.objects.order_by("id"))

    def _policies(self) -> list[ModelVersion]:
        return [ModelVersion.objects.get_or_create(name=name, defaults={"stage": "external"})[0] for name in POLICIES]

    def _text(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=60)) + f" {self.rng.getrandbits(64):x}"

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128), version=4)

    def _prompts(self, count: int, test_by: range | None = None) -> list[tuple[int, list[tuple[int, str, int]]]]:
        """(id, [(response's id, its UUID, its policy's number)]) of each prompt. `test_by`: nobody's, of the test split, with a
        response of each of these policies."""
        prompt_id, response_id = self._next(Prompt), self._next(Response)
        made = []
        for i in range(count):
            messages = [{"role": "user", "content": self._text()}]
            digest = content_digest(messages)
            case = ("generation", "open_qa", "chat", "rewrite", "extract")[i % 5]
            author = self.rng.choice(self.authors)
            row = (
                prompt_id,
                self._uuid(),
                json.dumps(messages),
                digest,
                author.split if test_by is None else "test",
                case,
                author.pk if test_by is None else None,
                Intake.OPEN.value,
            )
            self._add(Prompt, *row)
            responses = []
            for policy in test_by or self.rng.sample(range(len(POLICIES)), RESPONSES_PER_PROMPT):
                text, name = self._text(), self._uuid()
                digest = text_digest(text)
                self._add(
                    Response, response_id, name, prompt_id, text, digest, self.policies[policy].pk, str(name)
                )  # fmt: skip
                responses.append((response_id, str(name), policy))
                response_id += 1
            made.append((prompt_id, responses))
            prompt_id += 1
        return made

    def _add(self, model: type[models.Model], *values: Any) -> None:
        self.tables.setdefault(model, []).append(values)

    # ---- what was done ----

    def _batch(self, number: int, of: int, kind: str, overlap: int, tasks: int, prompts: list, **more: Any) -> None:
        """A batch with this many tasks done; the newest are active and have a quarter as many tasks left."""
        is_active = number == 0 or number >= of * 2 // 3
        first_day = self.now - timedelta(weeks=WEEKS)
        began = first_day if number == 0 else first_day + timedelta(weeks=WEEKS - 3) * number / of
        days = WEEKS * 7 if number == 0 else 21
        batch = Batch.objects.create(
            name=f"load {Batch.objects.count()}",
            kind=kind,
            status=Batch.Status.ACTIVE if is_active else Batch.Status.CLOSED,
            schema=self.schema,
            responses_per_task=K if kind == Kind.RANKING else None,
            overlap=overlap,
            counts={"tasks": tasks},
            created_at=began,
            **{"group": "held_out" if number % 7 == 6 else ""} | more,
        )
        task_id = self._next(Task)
        for i in range(tasks + (tasks // 4 + 1 if is_active else 0)):
            prompt_id, responses = prompts[(i + 97 * number) % len(prompts)]
            self._add(Task, task_id + i, self._uuid(), batch.pk, prompt_id, kind, began)
            chosen = self.rng.sample(responses, K) if kind == Kind.RANKING else []
            for response in chosen:
                self._add(TaskResponse, self._next(TaskResponse), task_id + i, response[0])
            at = began + timedelta(days=days) * min(i / tasks, 1) * 0.999
            self._seats(batch, task_id + i, chosen, at, is_done=i < tasks)

    def _seats(self, batch: Batch, task_id: int, responses: list, at: datetime, is_done: bool) -> None:
        crowd = [user for user in self.labelers if batch.group in ("", user.group)] if batch.group else self.labelers
        crowd = self.evaluators if batch.purpose == Batch.Purpose.EVALUATION else crowd
        people = self.rng.sample(crowd, batch.overlap + 1)
        for seat, labeler in enumerate(people[: batch.overlap], start=1):
            slot_id = self._next(Slot)
            head = (slot_id, task_id, seat, batch.pk, batch.kind, 0)
            if not is_done:
                self._add(Slot, *head, "open", None, None, None)
                continue
            done_at = min(at + timedelta(minutes=self.rng.randrange(600)), self.now)
            self._add(Slot, *head, "submitted", labeler.pk, done_at - timedelta(minutes=5), done_at)
            self._submission(batch, task_id, slot_id, labeler, responses, done_at)
        if self.rng.random() < 0.03:
            self._add(Skip, self._next(Skip), task_id, people[-1].pk, self.rng.choice(Skip.Reason.values[:4]), at)
        elif not is_done and self.rng.random() < 0.05:
            order = json.dumps([name for _pk, name, _policy in responses])
            self._add(Draft, self._next(Draft), task_id, people[-1].pk, order, json.dumps({"comment": "begun"}))

    def _submission(self, batch: Batch, task_id: int, slot_id: int, labeler: User, responses: list, at) -> None:
        pk = self._next(Submission)
        revisions = 2 if self.rng.random() < 0.1 else 1
        age = (self.now - at).days
        status = self.rng.choices(
            ["accepted", "submitted", "returned", "rejected"], [8, 1, 0.3, 0.2] if age > 3 else [1, 8, 0.3, 0.1]
        )[0]
        order = [name for _pk, name, _policy in responses]
        self.rng.shuffle(order)
        origin = "simulated" if labeler.is_simulated else "person"
        seconds = self.rng.randrange(60, 900)
        self._add(
            Submission, pk, self._uuid(), task_id, labeler.pk, slot_id, batch.kind, status, labeler.group, origin,
            self.schema.pk, json.dumps(order), revisions, seconds, at, at,
        )  # fmt: skip
        for number in range(1, revisions + 1):
            revision_id = self._next(Revision)
            text, tiers, ratings = None, None, {}
            if batch.kind == Kind.DEMONSTRATION:
                text = self._text()
            else:
                tiers, ratings = self._ranking(labeler, responses)
            given = json.dumps(tiers) if tiers else None
            row = (revision_id, pk, number, self._uuid(), text, given, json.dumps(ratings), at)
            self._add(Revision, *row)
            activity, worked = (batch.kind, seconds) if number == 1 else ("correction", 40)
            self._add(WorkEntry, self._next(WorkEntry), labeler.pk, activity, worked, revision_id, at)
            last = number == revisions
            if not last or status != "submitted":
                verdict = status if last else "returned"
                reviewer = self.rng.choice(self.reviewers).pk
                comment = "Please look again." if verdict == "returned" else ""
                later = at + timedelta(hours=self.rng.randrange(1, 48))
                self._add(Review, self._next(Review), pk, revision_id, verdict, comment, reviewer, later)

    def _ranking(self, labeler: User, responses: list) -> tuple[list[list[str]], dict]:
        """By the policies' numbers, with an error of this labeler's own; those that come out alike are tied."""
        error = 1 + labeler.pk % 5
        seen = {name: round((policy + self.rng.gauss(0, error)) / 3) for _pk, name, policy in responses}
        tiers: dict[int, list[str]] = {}
        for name, level in seen.items():
            tiers.setdefault(level, []).append(name)
        ratings = {
            name: {
                "quality": max(1, min(7, level + 3)),
                "flags": dict(zip(self.flags, self.rng.choices(ANSWERS, k=len(self.flags)), strict=True)),
            }
            for name, level in seen.items()
        }
        return [tiers[level] for level in sorted(tiers, reverse=True)], ratings

    def _next(self, model: type[models.Model]) -> int:
        rows = self.tables.setdefault(model, [])
        return rows[-1][0] + 1 if rows else next_id(model)


COLUMNS: dict[type[models.Model], list[str]] = {
    Prompt: ["id", "uuid", "messages", "content_sha256", "split", "use_case", "author_id", "intake"],
    Response: ["id", "uuid", "prompt_id", "text", "text_sha256", "model_version_id", "external_id"],
    Task: ["id", "uuid", "batch_id", "prompt_id", "kind", "created_at"],
    TaskResponse: ["id", "task_id", "response_id"],
    Slot: [
        "id", "task_id", "seat", "batch_id", "kind", "turn", "status", "labeler_id", "leased_at", "submitted_at",
    ],
    Submission: [
        "id", "uuid", "task_id", "labeler_id", "slot_id", "kind", "status", "labeler_group", "origin", "schema_id",
        "shown_order", "revision_count", "active_seconds", "submitted_at", "updated_at",
    ],
    Revision: ["id", "submission_id", "number", "submit_key", "text", "tiers", "ratings", "created_at"],
    Review: ["id", "submission_id", "revision_id", "verdict", "comment", "reviewer_id", "created_at"],
    Skip: ["id", "task_id", "labeler_id", "reason", "created_at"],
    WorkEntry: ["id", "labeler_id", "activity", "seconds", "revision_id", "ended_at"],
    Draft: ["id", "task_id", "labeler_id", "shown_order", "content"],
}  # fmt: skip


def next_id(model: type[models.Model]) -> int:
    """The first id that is free."""
    return (model._default_manager.aggregate(last=models.Max("pk"))["last"] or 0) + 1


def copy_rows(model: type[models.Model], columns: list[str], rows: Iterable[tuple]) -> None:
    """COPY rows of these columns (ids among them) into a model's table; its other columns get their defaults."""
    given = set(columns)
    rest = [column for column in model._meta.concrete_fields if column.attname not in given]
    rest = [column for column in rest if not column.generated and column.db_default is models.NOT_PROVIDED]
    names = ", ".join(f'"{name}"' for name in [*columns, *(column.column for column in rest)])
    with connection.cursor() as cursor:
        with cursor.copy(f'COPY "{model._meta.db_table}" ({names}) FROM STDIN') as copy:
            for row in _with_defaults(rows, rest):
                copy.write_row(row)
        cursor.execute(
            f"SELECT setval(pg_get_serial_sequence('{model._meta.db_table}', 'id'),"
            f' (SELECT greatest(max(id), 1) FROM "{model._meta.db_table}"))'
        )


def _with_defaults(rows: Iterable[tuple], rest: list) -> Iterator[tuple]:
    """Each row and the other columns' defaults, asked for anew only where they differ from row to row."""
    asked = {column.attname: callable(column.default) and column.default not in (dict, list) for column in rest}
    same = {column.attname: _stored(column) for column in rest if not asked[column.attname]}
    for row in rows:
        yield (*row, *(_stored(c) if asked[c.attname] else same[c.attname] for c in rest))


def _stored(column: models.Field) -> Any:
    value = column.get_default()
    return json.dumps(value) if isinstance(column, models.JSONField) and value is not None else value
