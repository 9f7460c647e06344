"""The figures of an evaluation by people, from its rankings: who is preferred to whom, ratings, flags; all in all, by use case, by group.

They are over the newest revision of what was accepted or not reviewed yet, as in an export: gold, surplus, returned, rejected and erased
work is left out. Methods and intervals: labeling/clusters.py, clustered by prompt.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import nan

import numpy as np
from django.db.models import Count, F, Max, Q, QuerySet, Sum

from labeling import clusters
from labeling.models import Kind, LabelSchema, Revision, Submission, TaskResponse

AT_ONCE = 2000
DIGITS = 6
ALL, USE_CASE, GROUP = "all", "use_case", "group"  # kinds of slices
COUNTED = (Submission.Status.SUBMITTED, Submission.Status.ACCEPTED)


def counted(rows: QuerySet[Submission]) -> QuerySet[Submission]:
    """Of these submissions those that an evaluation's figures are over."""
    return rows.filter(kind=Kind.RANKING, is_gold=False, is_surplus=False, erased_at=None, status__in=COUNTED)


def stamp(rows: QuerySet[Submission]) -> str:
    """What tells that labels have come, were changed or decided on since."""
    statuses = {status: Count("id", filter=Q(status=status)) for status in Submission.Status.values}
    found = rows.aggregate(
        revisions=Sum("revision_count"), last=Max("updated_at"), erased=Count("erased_at"), **statuses
    )
    return " ".join(f"{name}={value}" for name, value in found.items())


def figures(rows: QuerySet[Submission]) -> dict:
    """{"stamp", "models": names, "slices": [{"kind", "name", "prompts", "labelers", "rankings", "policies", "pairs"}]}, first all.

    policies: [{"model", "rating", "flags"}], pairs: [{"first", "second", "win_rate", "ties"}]; each figure {"value", "low", "high",
    "count", "prompts"}. Every two policies stand there both ways round.
    """
    stamped = stamp(rows)  # first: what comes meanwhile makes it look old, never new
    rows = counted(rows)
    judged = Judged.of(rows)
    schema = LabelSchema.objects.filter(pk__in=rows.values("schema")[:1]).first() or LabelSchema.latest()
    scale = schema.quality_range
    return {
        "stamp": stamped,
        "models": judged.models,
        "slices": [
            {"kind": kind, "name": name, **_slice(judged, chosen, scale)}
            for kind, name, chosen in judged.slices()
            if chosen.any()
        ],
    }


@dataclass
class Judged:
    """N rankings of M policies. `places` and `ratings` (N, M), NaN where there is none; `flags` by name (N, M): 1 yes, 0 no, NaN open."""

    models: list[str]
    places: np.ndarray
    ratings: np.ndarray
    flags: dict[str, np.ndarray]
    prompts: np.ndarray
    labelers: np.ndarray
    use_cases: list[str]
    groups: list[str]

    @classmethod
    def of(cls, rows: QuerySet[Submission]) -> "Judged":
        model_of = _model_of(rows)
        models = sorted(set(model_of.values()))
        column_of = {name: models.index(model) for name, model in model_of.items()}
        places, ratings, flags = _Cells(len(models)), _Cells(len(models)), _Flags(len(models))
        facts = []
        for row, (*fact, tiers, rated) in enumerate(_newest(rows)):
            facts.append(fact)
            places.add(
                {
                    column_of[name]: place
                    for place, tier in enumerate(tiers, start=1)
                    for name in tier
                    if name in column_of
                }
            )
            given = {column_of[name]: each for name, each in rated.items() if name in column_of}
            ratings.add({column: each["quality"] for column, each in given.items() if each.get("quality") is not None})
            flags.add(row, {column: each.get("flags", {}) for column, each in given.items()})
        prompts, use_cases, labelers, groups = zip(*facts, strict=True) if facts else ((), (), (), ())
        return cls(
            models=models,
            places=places.table(),
            ratings=ratings.table(),
            flags=flags.tables(),
            prompts=np.unique(np.array(prompts, np.int64), return_inverse=True)[1].reshape(-1),
            labelers=np.array(labelers, np.int64),
            use_cases=list(use_cases),
            groups=list(groups),
        )

    def slices(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """(kind, name, which rankings): all of them, then by use case, then by labeler group."""
        yield ALL, "", np.full(len(self.prompts), True)
        for kind, named in ((USE_CASE, self.use_cases), (GROUP, self.groups)):
            values = np.array(named, object)
            for name in sorted(set(named)):
                yield kind, name, values == name


def _model_of(rows: QuerySet[Submission]) -> dict[str, str]:
    """The model of every response that these rankings are over, by the response's UUID."""
    found = TaskResponse.objects.filter(task__in=rows.values("task_id"), response__model_version__isnull=False)
    named = found.values_list("response__uuid", "response__model_version__name")
    return {str(uuid): model for uuid, model in named.iterator(chunk_size=AT_ONCE)}


def _newest(rows: QuerySet[Submission]) -> Iterator[tuple]:
    """(prompt, its use case, labeler, their group, tiers, ratings) of each ranking as it stands."""
    newest = Revision.objects.filter(submission__in=rows, number=F("submission__revision_count"))
    names = ("task__prompt_id", "task__prompt__use_case", "labeler_id", "labeler_group")
    wanted = [f"submission__{name}" for name in names]
    yield from newest.order_by("submission_id").values_list(*wanted, "tiers", "ratings").iterator(chunk_size=AT_ONCE)


class _Cells:
    """A table of numbers that grows by rows; four bytes a cell, since there may be millions."""

    def __init__(self, width: int, rows: int = 0):
        self.width, self.blank = width, array("f", [nan]) * width
        self.cells = self.blank * rows

    def add(self, found: dict[int, float]) -> None:
        """A row, from column → number."""
        self.cells.extend(self.blank)
        for column, value in found.items():
            self.cells[len(self.cells) - self.width + column] = value

    def table(self) -> np.ndarray:
        return np.array(self.cells, np.float32).reshape(-1, self.width) if self.width else np.empty((0, 0))


class _Flags:
    """A table for each flag; one that turns up late was open before."""

    def __init__(self, width: int):
        self.width = width
        self.of: dict[str, _Cells] = {}

    def add(self, row: int, found: dict[int, dict[str, bool | None]]) -> None:
        """A row, from column → flag → answer."""
        answers: dict[str, dict[int, float]] = {flag: {} for flag in self.of}
        for column, flags in found.items():
            for flag, answer in flags.items():
                if answer is not None:
                    answers.setdefault(flag, {})[column] = float(answer)
        for flag, given in answers.items():
            self.of.setdefault(flag, _Cells(self.width, row)).add(given)

    def tables(self) -> dict[str, np.ndarray]:
        return {flag: cells.table() for flag, cells in sorted(self.of.items())}


def _slice(judged: Judged, chosen: np.ndarray, scale: range) -> dict:
    prompts = judged.prompts[chosen]
    return {
        "prompts": len(set(prompts.tolist())),
        "labelers": len(set(judged.labelers[chosen].tolist())),
        "rankings": int(chosen.sum()),
        "policies": [
            {
                "model": model,
                "rating": _shown(clusters.mean(judged.ratings[chosen, i], prompts, least=scale[0], most=scale[-1])),
                "flags": {
                    flag: _shown(clusters.share(answers[chosen, i], prompts)) for flag, answers in judged.flags.items()
                },
            }
            for i, model in enumerate(judged.models)
        ],
        "pairs": list(_pairs(judged, chosen, prompts)),
    }


def _pairs(judged: Judged, chosen: np.ndarray, prompts: np.ndarray) -> Iterator[dict]:
    """Each policy against each other one, whether or not they were ever compared."""
    for i, first in enumerate(judged.models):
        for j, second in enumerate(judged.models):
            if i != j:
                before = (
                    judged.places[chosen, j] - judged.places[chosen, i]
                )  # above 0: the first is better; NaN: not both there
                won = clusters.share((np.sign(before) + 1) / 2, prompts)
                yield {"first": first, "second": second, "win_rate": _shown(won), "ties": int((before == 0).sum())}


def _shown(figure: clusters.Figure) -> dict:
    ends = {name: getattr(figure, name) for name in ("value", "low", "high")}
    rounded = {name: None if end is None else round(end, DIGITS) for name, end in ends.items()}
    return rounded | {"count": figure.count, "prompts": figure.clusters}
