"""Every page of the console and of a labeler's day, opened as its people open it: how long the server takes, how many queries.

Pages are found by their addresses: a new one is measured, and held to a constant number of queries by tests/labeling/test_pages.py,
without being named here, if it is named for its model and tests/bench/load.py makes rows of that.
"""

import gc
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

from django.apps import apps
from django.db import connection, models
from django.db.models import Count
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from labeling.actions import statistics as actions
from labeling.actions import tasks
from labeling.models import Author, Batch, Export, ModelVersion, Question, SecondReview, Skip, Submission, Task, User

ELSEWHERE = ("admin/", "accounts/", "api/", "invitation/", "favicon", "healthz")
# Sends files, whose length is their own.
FILES = {"export_zip", "export_file"}
THEIRS = ("labeler", "asker", "author", "applicant", "user")  # what a labeler's own rows say of them
RUNS = 20


@dataclass(frozen=True)
class Visit:
    """A page, and who opens it."""

    name: str
    path: str
    is_labelers: bool


@dataclass
class Seen:
    """What opening a page took."""

    visit: Visit
    queries: int
    seconds: list[float] = field(default_factory=list)
    status: int = 200

    @property
    def median_ms(self) -> float:
        return 1000 * statistics.median(self.seconds)

    @property
    def p95_ms(self) -> float:
        """The shortest time within which 95 of 100 openings were answered (nearest rank)."""
        return 1000 * sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]


class Site:
    """Pages over the rows that are there (tests/bench/load.py), and the people who open them."""

    def __init__(self) -> None:
        self.chief = self._person("chief@load.example", "admin", "reviewer", "researcher")
        busiest = User.objects.filter(roles__role="labeler", email__endswith="@load.example", group="training")
        busiest = busiest.filter(pk__in=Question.objects.values("asker"))
        self.labeler = busiest.annotate(n=Count("submissions")).order_by("-n", "id")[0]
        self.export = Export.objects.first() or Export.objects.create(status="failed")
        self.task = self._begun()
        if not self.labeler.skips.exists():  # an empty list would need a query less
            passed = Task.objects.exclude(slots__labeler=self.labeler).exclude(submissions__labeler=self.labeler)
            Skip.objects.create(task=passed.order_by("-id")[0], labeler=self.labeler, reason="unclear")
        local = {"SERVER_NAME": "127.0.0.1"}  # an allowed host of the bench and of the tests alike
        self.clients = {True: Client(**local), False: Client(**local)}
        self.unopened: list[str] = []
        self.clients[True].force_login(self.labeler)
        self.clients[False].force_login(self.chief)

    @staticmethod
    def _person(email: str, *roles: str) -> User:
        person = User.objects.filter(email=email).first() or User.objects.create_user(email)
        for role in roles:
            person.grant(role)
        return person

    # ---- rows that pages are about ----

    @cached_property
    def batch(self) -> Batch:
        """The largest batch."""
        return Batch.objects.annotate(n=Count("tasks")).order_by("-n", "id")[0]

    @cached_property
    def evaluation(self) -> Batch:
        """The newest evaluation."""
        return Batch.objects.filter(purpose=Batch.Purpose.EVALUATION).order_by("-id")[0]

    @cached_property
    def submission(self) -> Submission:
        """A ranking that waits for review, of a task that others have done too."""
        return Submission.objects.filter(kind="ranking", status="submitted", origin="person").order_by("-id")[0]

    @cached_property
    def own(self) -> Submission:
        return Submission.objects.filter(labeler=self.labeler, kind="ranking").order_by("-id")[0]

    def _begun(self) -> Task:
        """What the labeler is working on."""
        slot = tasks.claim_next(kind="ranking", by=self.labeler)
        assert slot is not None
        return slot.task

    def arguments(self, name: str, needed: list[str], is_labelers: bool) -> dict | None:
        """What stands in the address of a page: rows chosen here, else the newest of the model that it is named for; None if none."""
        given = {}
        for one in needed:
            chosen = self._chosen(name, one)
            if chosen is None:
                model = _model_of(one.removesuffix("_uuid") if one.endswith("_uuid") else name)
                row = self._newest(model, is_labelers) if model else None
                chosen = row and getattr(row, "pk" if one == "pk" else "uuid", None)
            if chosen is None:
                return None
            given[one] = chosen
        return given

    def _chosen(self, name: str, argument: str) -> UUID | int | str | None:
        rows = {
            "task_uuid": lambda: self.task.uuid,
            "submission_uuid": lambda: self.own.uuid,
            "review uuid": lambda: self.submission.uuid,
            "batch pk": lambda: self.batch.pk,
            "batch_evaluation pk": lambda: self.evaluation.pk,
            "batch_evaluation_rows pk": lambda: self.evaluation.pk,
            "batch_evaluation_csv pk": lambda: self.evaluation.pk,
            "model_version pk": lambda: ModelVersion.objects.order_by("id")[0].pk,
            "person pk": lambda: self.labeler.pk,
            "labeler pk": lambda: self.labeler.pk,
            "erasure_new pk": lambda: Author.objects.order_by("id").values_list("pk", flat=True).first(),
            "gold_new uuid": lambda: self.submission.task.uuid,
            "kind": lambda: "ranking",
            "part": lambda: "ranking",
            "policy_pair first": lambda: ModelVersion.objects.order_by("id")[0].pk,
            "policy_pair second": lambda: ModelVersion.objects.order_by("id")[1].pk,
            "dashboard_csv name": lambda: "throughput",
            "second_review pk": lambda: (
                SecondReview.objects.filter(verdict="").order_by("-id").values_list("pk", flat=True).first()
            ),
            "task_adjudication uuid": lambda: self.submission.task.uuid,
        }
        row = rows.get(argument) or rows.get(f"{name} {argument}")
        return row() if row else None

    def _newest(self, model: type[models.Model], is_labelers: bool) -> models.Model | None:
        """The newest row; for a labeler's page the newest of theirs."""
        rows = model._default_manager.order_by("-pk")
        people = [each.name for each in model._meta.fields if each.related_model is User and each.name in THEIRS]
        return rows.filter(**{people[0]: self.labeler}).first() if is_labelers and people else rows.first()

    def variants(self, name: str) -> list[str]:
        """Query strings with which a page is tried besides none: filters that pass much, or little, and the last page."""
        last = 10**6
        batch, person = self.batch.pk, self.labeler.pk
        return {
            "reviews": [
                "status=any", f"status=any&page={last}", f"status=any&batch={batch}", f"status=any&labeler={person}",
                f"status=any&task={self.submission.task.uuid}", f"status=accepted&kind=demonstration&batch={batch}",
                "status=any&surplus=yes", "status=rejected&origin=simulated", "status=any&since=2000-01-01",
            ],
            "review": ["status=any", f"batch={batch}", f"labeler={person}&models=1"],
            "reviews_next": [f"batch={batch}", f"labeler={person}"],
            "batch": [f"page={last}"],
            "batch_evaluation": ["part=group:held_out"],
            "labeler": ["rows=agreement", "rows=skips", f"page={last}"],
            "labelers": ["sort=agreement&group=held_out", f"page={last}"],
            "agreement_report": [f"batch={batch}"],
            "agreement_labelers": [f"batch={batch}", f"labeler={self.labeler.pk}"],
            "agreement_rows": [f"batch={batch}", f"batch={batch}&between=between&page={last}", f"measure=quality&batch={batch}"],
            "gold": [f"batch={batch}"],
            "adjudications": ["settled=1", f"page={last}"],
            "second_review_list": ["all=1", f"all=1&page={last}"],
            "hours_all": ["since=2000-01-01", "since=2000-01-01&by=day", f"labeler={person}&by=day&since=2000-01-01"],
            "hours": ["since=2000-01-01"],
            "history": ["status=accepted", f"kind=ranking&page={last}"],
            "people": ["search=labeler-1", "role=labeler&group=held_out", f"page={last}"],
            "model_versions": ["stage=external"],
        }.get(name, [])  # fmt: skip

    def visits(self) -> Iterator[Visit]:
        """Every page with its variants; `unopened` gathers those whose address cannot be made, or is refused."""
        for name, route, needed in routes():
            is_labelers = not route.startswith("console/")
            arguments = self.arguments(name, needed, is_labelers)
            path = reverse(name, kwargs=arguments) if arguments is not None else ""
            if not path or self.clients[is_labelers].get(path).status_code not in (200, 302):
                self.unopened.append(name)
                continue
            for query in ["", *self.variants(name)]:
                yield Visit(name, f"{path}?{query}" if query else path, is_labelers)

    def open(self, visit: Visit, runs: int = RUNS) -> Seen:
        """Once to warm up, then so often. Raises AssertionError if it is refused."""
        client = self.clients[visit.is_labelers]
        with counted() as count:
            answer = client.get(visit.path)
        assert answer.status_code in (200, 302), f"{visit.path}: {answer.status_code}"
        with counted() as count:
            client.get(visit.path)
        seen = Seen(visit, count[0], status=answer.status_code)
        for _ in range(runs):
            began = time.perf_counter()
            client.get(visit.path)
            seen.seconds.append(time.perf_counter() - began)
        return seen


def _model_of(name: str) -> type[models.Model] | None:
    """The model whose name a page's name begins with: question_review is about a Question."""
    by_name = {model.__name__.lower(): model for model in apps.get_app_config("labeling").get_models()}
    parts = name.split("_")
    heads = ("".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((by_name[head] for head in heads if head in by_name), None)


def routes() -> Iterator[tuple[str, str, list[str]]]:
    """(name, route, arguments) of every address of the console and of labelers that has a name."""
    for pattern in get_resolver().url_patterns:
        route = str(pattern.pattern)
        if not isinstance(pattern, URLPattern) or not pattern.name or route.startswith(ELSEWHERE):
            continue
        if pattern.name not in FILES and "GET" in methods(pattern.callback):
            yield pattern.name, route, list(pattern.pattern.converters)


def methods(view: Callable | None) -> list[str]:
    """The methods that a view answers, as its decorator says."""
    while view is not None:
        if found := inspect.getclosurevars(view).nonlocals.get("request_method_list"):
            return found
        view = getattr(view, "__wrapped__", None)
    return ["GET"]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The number of queries inside, transaction statements left out: [n]."""
    count = [0]

    def count_one(execute, sql, params, many, context):
        count[0] += not sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK TO"))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count_one):
        yield count


def measure(submissions: int, runs: int = RUNS) -> Iterator[dict]:
    """A row per page and variant over the rows that are there, the statistics that the pages show computed first."""
    site = Site()
    labelers = User.objects.filter(roles__role="labeler").count()
    visits = list(site.visits())  # opening a page asks for its statistic
    for statistic in actions.outdated():
        actions.refresh(statistic=statistic)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    gc.collect()
    gc.freeze()  # as labeling/wsgi.py does: else the rows made for the measuring are looked through at every full collection
    for visit in visits:
        seen = site.open(visit, runs)
        query = visit.path.partition("?")[2]
        name = f"page {visit.name}" + (f" ?{query}" if query else "")
        sizes = {"submissions": submissions, "labelers": labelers}
        figures = {"median_ms": round(seen.median_ms, 1), "queries": seen.queries}
        beside = {"peer": None, "ratio": None, "ratio_min": None, "ratio_max": None}
        row = {"name": name, "params": sizes | figures, "unit": "ms (p95)", "ours": round(seen.p95_ms, 1)}
        yield row | beside | {"runs": runs}
