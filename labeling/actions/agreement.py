"""Agreement between labelers: pairs of rankings compared as they come in, and reports on batches, and on all of them together.

Pairs are of two people (or two simulated labelers), never on gold seats. A report is about people; about simulated labelers
only where no people have labeled.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from django.db import transaction
from django.db.models import Count, F, Max
from django.utils import timezone

from labeling import agreement
from labeling.agreement import Figure, Pairs, Rankings
from labeling.models import (
    AgreementFigure,
    AgreementPair,
    AgreementReport,
    Batch,
    Between,
    Group,
    Origin,
    Revision,
    Submission,
)

REST = 10  # a report is made again after so many times what it cost
GROUP_CODES = {Group.TRAINING: 0, Group.HELD_OUT: 1}


@dataclass(frozen=True)
class Ranked:
    """A ranking as handed in last, for comparing."""

    submission_id: int
    task_id: int
    batch_id: int
    labeler_id: int
    group: str
    origin: str
    tiers: list[list[str]] = field(hash=False)


# Pairs -----------------------------------------------------------------------------------------------------------------


def replace_pairs(task_ids: Iterable[int], rows: list[Ranked]) -> list[AgreementPair]:
    """Compare the tasks' rankings anew, all at once. Inside the caller's transaction."""
    found = agreement.pairs_of(Rankings.of(((row.task_id, row.origin), row.tiers) for row in rows))
    pairs = [_pair(rows, found, number) for number in range(len(found))]
    AgreementPair.objects.filter(task__in=list(task_ids)).delete()
    return AgreementPair.objects.bulk_create(pairs, batch_size=2000)


def _pair(rows: list[Ranked], found: Pairs, number: int) -> AgreementPair:
    first, second = rows[found.first[number]], rows[found.second[number]]
    compared = found.of_one(number)
    return AgreementPair(
        batch_id=first.batch_id,
        task_id=first.task_id,
        first_id=first.submission_id,
        second_id=second.submission_id,
        first_labeler_id=first.labeler_id,
        second_labeler_id=second.labeler_id,
        between=first.group if first.group == second.group else Between.GROUPS,
        origin=first.origin,
        agreed=compared.agreed,
        comparisons=compared.comparisons,
        agreed_untied=compared.agreed_untied,
        untied=compared.untied,
        share=compared.share or 0.0,
        tau_b=compared.tau_b,
    )


# Reports ---------------------------------------------------------------------------------------------------------------


def report_due(*, everything: bool = False) -> int:
    """Make the reports whose labels have changed, costly ones more seldom; how many. `everything`: whatever they cost."""
    newest = dict(
        _handed_in()
        .values_list("submission__task__batch")
        .annotate(newest=Max("id"))
        .values_list("submission__task__batch", "newest")
    )
    newest = {None: max(newest.values()), **newest} if newest else {}
    known = {report.batch_id: report for report in AgreementReport.objects.all()}
    due = [pk for pk, revision in newest.items() if everything or _is_due(known.get(pk), revision)]
    for pk in due:
        report(batch=Batch.objects.get(pk=pk) if pk else None, newest_revision=newest[pk])
    return len(due)


def _is_due(known: AgreementReport | None, newest_revision: int) -> bool:
    if known is None:
        return True
    rested = timezone.now() - known.computed_at > timedelta(seconds=REST * known.seconds)
    return known.newest_revision != newest_revision and rested


def _handed_in():
    return Revision.objects.filter(submission__is_gold=False)


def report(*, batch: Batch | None, newest_revision: int = 0) -> AgreementReport:
    """Measure agreement in a batch, or in all, and keep it in place of the report before."""
    now, began = timezone.now(), time.monotonic()
    within = {"task__batch": batch} if batch else {}
    people = Submission.objects.filter(is_gold=False, origin=Origin.PERSON, **within)
    origin = Origin.PERSON if people.exists() else Origin.SIMULATED
    rows = Submission.objects.filter(is_gold=False, origin=origin, **within)
    shared = rows.values("task").annotate(n=Count("id")).filter(n__gt=1)
    figures = list(_figures(batch, origin))
    with transaction.atomic():
        made, _is_new = AgreementReport.objects.update_or_create(
            batch=batch,
            defaults={
                "origin": origin,
                "submissions": rows.count(),
                "shared_tasks": shared.count(),
                "newest_revision": newest_revision,
                "computed_at": now,
                "seconds": time.monotonic() - began,
            },
        )
        made.figures.all().delete()
        AgreementFigure.objects.bulk_create(
            AgreementFigure(report=made, measure=measure, between=between, **vars(figure))
            for measure, between, figure in figures
        )
    return made


def _figures(batch: Batch | None, origin: str) -> Iterator[tuple[str, str, Figure]]:
    """(measure, between, figure); those that nothing could be paired for are left out."""
    pairs, between = _stored_pairs(batch, origin)
    for name in Between:
        chosen = pairs.where(np.flatnonzero(between == name) if name != Between.ALL else np.arange(len(pairs)))
        if len(chosen):
            yield "share", name, agreement.share_agreed(chosen)
            yield "share_untied", name, agreement.share_agreed(chosen, ties=False)
            yield "tau_b", name, agreement.mean_tau_b(chosen)
    for measure, judged in _judgments(batch, origin).items():
        for name in Between:
            figure = judged.alpha(name, "ordinal" if measure == "quality" else "nominal")
            if figure.count:
                yield measure, name, figure


def _stored_pairs(batch: Batch | None, origin: str) -> tuple[Pairs, np.ndarray]:
    names = ("task_id", "first_id", "second_id", "agreed", "comparisons", "agreed_untied", "untied", "tau_b", "between")
    rows = AgreementPair.objects.filter(origin=origin, **({"batch": batch} if batch else {})).order_by("id")
    columns = list(zip(*rows.values_list(*names), strict=True)) or [()] * len(names)
    numbers = [np.array(column, np.int64) for column in columns[:7]]
    tau = np.array([np.nan if value is None else value for value in columns[7]], float)
    task, first, second, agreed, comparisons, agreed_untied, untied = numbers
    return Pairs(task, first, second, agreed, comparisons, agreed_untied, untied, tau), np.array(columns[8], str)


@dataclass
class Judgments:
    """One measure's values as given: per judgment its task, what was judged, the value, and the judge's group."""

    tasks: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def alpha(self, between: str, level: agreement.Level) -> Figure:
        """Krippendorff's α among all, within a group, or (each judgment of one group beside each of the other) between them."""
        tasks, units, values, groups = (np.array(each, np.int64) for each in vars(self).values())
        if between == Between.GROUPS:
            first, second = agreement.pairs_across(units, groups)
            pair = np.arange(len(first))
            tasks, units = np.tile(tasks[first], 2), np.tile(pair, 2)
            values = np.concatenate([values[first], values[second]])
        elif between != Between.ALL:
            chosen = groups == GROUP_CODES[Group(between)]
            tasks, units, values = tasks[chosen], units[chosen], values[chosen]
        return agreement.krippendorff_alpha(tasks, units, values, level=level)


def _judgments(batch: Batch | None, origin: str) -> dict[str, Judgments]:
    """Ratings and flags as handed in last, on tasks that two or more have handed in; what is unanswered is left out."""
    found: dict[str, Judgments] = {}
    codes: dict[str, int] = {}
    for task, group, ratings, prompt_flags in _answers(batch, origin):
        for measure, unit, value in _values(task, ratings, prompt_flags):
            judged = found.setdefault(measure, Judgments())
            judged.tasks.append(task)
            judged.units.append(codes.setdefault(unit, len(codes)))
            judged.values.append(value)
            judged.groups.append(GROUP_CODES[Group(group)])
    return {measure: found[measure] for measure in sorted(found, key=lambda name: (name != "quality", name))}


def _answers(batch: Batch | None, origin: str) -> Iterator[tuple[int, str, dict, dict]]:
    rows = _handed_in().filter(number=F("submission__revision_count"), submission__origin=origin)
    if batch:
        rows = rows.filter(submission__task__batch=batch)
    shared = (
        Submission.objects.filter(is_gold=False, origin=origin).values("task").annotate(n=Count("id")).filter(n__gt=1)
    )
    rows = rows.filter(submission__task__in=shared.values("task"))
    names = ("submission__task", "submission__labeler_group", "ratings", "prompt_flags")
    return rows.values_list(*names).iterator(chunk_size=2000)


def _values(task: int, ratings: dict, prompt_flags: dict) -> Iterator[tuple[str, str, int]]:
    """(measure, what was judged, value) of one answer."""
    for response, rating in ratings.items():
        if rating.get("quality") is not None:
            yield "quality", f"{task} {response}", rating["quality"]
        for flag, value in (rating.get("flags") or {}).items():
            if value is not None:
                yield f"flag:{flag}", f"{task} {response}", int(value)
    for flag, value in prompt_flags.items():
        if value is not None:
            yield f"prompt_flag:{flag}", str(task), int(value)
