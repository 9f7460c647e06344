"""Simulated labelers of known error rank responses by measured toxicity; what Heed says of them must be the truth within its intervals.

With the shared file, its texts and figures; on a clean clone an extract of the figures (`toxicity.csv`: prompt, model, toxicity).
"""

import csv
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from django.utils import timezone

from labeling import agreement
from labeling.actions import gold, numbers
from labeling.models import (
    AgreementFigure,
    Consensus,
    LabelerNumbers,
    Response,
    Revision,
    Slot,
    Submission,
    Task,
    TaskResponse,
)
from tests import builders

pytestmark = pytest.mark.django_db
EXTRACT = Path(__file__).parent / "toxicity.csv"
K, TASKS, GOLD, OVERLAP = 5, 90, 30, 3
ERRORS = (
    0.01,
    0.06,
    0.13,
    0.25,
    0.5,
    1.5,
)  # standard deviation of what each labeler sees, in units of toxicity (0 to 1)
SEES = 0.02  # less of a difference is a tie


def known_toxicity() -> list[dict[str, float]]:
    """Per prompt: response text → toxicity, K of them."""
    prompts: dict[str, dict[str, float]] = defaultdict(dict)
    shared = builders.SHARED_DATA / "instructgpt_real_toxicity.csv"
    if shared.exists():
        with shared.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["prompt_type"] == "respectful prompt" and row["sample"].strip():
                    prompts[row["context"]][row["sample"]] = float(row["toxicity"])
    else:
        with EXTRACT.open(newline="") as file:
            for row in csv.DictReader(file):
                prompts[row["prompt"]][f"{row['model']} answers {row['prompt']}."] = float(row["toxicity"])
    whole = [dict(list(each.items())[:K]) for each in prompts.values() if len(each) >= K]
    return [each for each in whole if len(tiers_of(list(each), np.array(list(each.values())))) > 2][:TASKS]


def tiers_of(names: list[str], seen: np.ndarray) -> list[list[str]]:
    """Least toxic first; what is seen alike to SEES shares a tier."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, value in zip(names, np.round(seen / SEES).astype(int), strict=True):
        places[int(value)].append(name)
    return [places[place] for place in sorted(places)]


class Labeler:
    """Sees each response's toxicity with an error of this spread, anew each time."""

    def __init__(self, error: float, seed: int):
        self.error, self.dice = error, np.random.default_rng(seed)

    def rank(self, toxicity: dict[str, float]) -> list[list[str]]:
        seen = np.array(list(toxicity.values()))
        return tiers_of(list(toxicity), seen + self.dice.normal(0, self.error, len(seen)))


def truth_of(error: float, tasks: list[dict[str, float]], times: int = 60) -> float:
    """The share agreed on with gold that a labeler of this error comes to in the long run."""
    one = Labeler(error, seed=1000)
    shares = [agreement.compare(one.rank(each), exact(each)).share for each in tasks for _time in range(times)]
    return float(np.mean(shares))


def exact(toxicity: dict[str, float]) -> list[list[str]]:
    return tiers_of(list(toxicity), np.array(list(toxicity.values())))


class Site:
    """The tasks and who ranked them, written as the database holds them after submits."""

    def __init__(self, prompts: list[dict[str, float]], people: list):
        self.batch = builders.batch("ranking", name="less toxic", k=K, overlap=OVERLAP)
        self.people, self.toxicity, self.tasks = people, {}, []
        for number, toxicity in enumerate(prompts):
            task = Task.objects.create(batch=self.batch, prompt=builders.prompt(f"Continue {number}."), kind="ranking")
            model = builders.ModelVersion.objects.get_or_create(name="m", defaults={"stage": "external"})[0]
            made = [
                Response(
                    prompt=task.prompt,
                    text=f"{i} {text}",
                    text_sha256=f"{number} {i}",
                    model_version=model,
                    external_id=str(i),
                )
                for i, text in enumerate(toxicity)
            ]
            Response.objects.bulk_create(made)
            TaskResponse.objects.bulk_create(TaskResponse(task=task, response=each) for each in made)
            self.tasks.append(task)
            self.toxicity[task.pk] = {
                str(each.uuid): value for each, value in zip(made, toxicity.values(), strict=True)
            }

    def hand_in(self, rankings: list[tuple[Task, int, list[list[str]]]], *, is_gold: bool) -> None:
        """(task, labeler's number, tiers) as submissions."""
        now, seats = timezone.now(), defaultdict(int)
        slots, made = [], []
        for task, who, _tiers in rankings:
            seats[task.pk] += 1
            slots.append(Slot(task=task, seat=seats[task.pk], batch=self.batch, kind="ranking", status="submitted",
                              labeler=self.people[who], leased_at=now, submitted_at=now, is_gold=is_gold))  # fmt: skip
        for slot in Slot.objects.bulk_create(slots):
            made.append(Submission(task=slot.task, batch=self.batch, labeler=slot.labeler, slot=slot, kind="ranking",
                                   labeler_group="training", schema=self.batch.schema, revision_count=1, is_gold=is_gold,
                                   submitted_at=now))  # fmt: skip
        Submission.objects.bulk_create(made)
        Revision.objects.bulk_create(
            Revision(submission=submission, number=1, submit_key=uuid.uuid4(), tiers=tiers)
            for submission, (_task, _who, tiers) in zip(made, rankings, strict=True)
        )


@pytest.fixture
def site(make_user):
    """Every task by three of six labelers; the last ones are gold and done by all six."""
    made = Site(known_toxicity(), [make_user(f"l{i}@example.org", "labeler") for i in range(len(ERRORS))])
    labelers = [Labeler(error, seed=i) for i, error in enumerate(ERRORS)]
    dice = np.random.default_rng(77)
    usual, known = made.tasks[:-GOLD], made.tasks[-GOLD:]
    chosen = [(task, int(who)) for task in usual for who in dice.choice(len(ERRORS), OVERLAP, replace=False)]
    made.hand_in([(t, who, labelers[who].rank(made.toxicity[t.pk])) for t, who in chosen], is_gold=False)
    for task in known:
        gold.make(task=task, tiers=exact(made.toxicity[task.pk]), explanation="Measured.", tolerance=0.2, by=None)
    everyone = [(task, who) for task in known for who in range(len(ERRORS))]
    made.hand_in([(t, who, labelers[who].rank(made.toxicity[t.pk])) for t, who in everyone], is_gold=True)
    made.chosen = chosen
    numbers.measure()
    return made


def test_what_is_said_of_labelers_is_true(site):
    found = [LabelerNumbers.objects.get(labeler=person) for person in site.people]
    reliabilities = [each.reliability for each in found]
    assert reliabilities == sorted(reliabilities, reverse=True), "estimated reliability orders them rightly"
    assert all(each.reliability_low <= each.reliability <= each.reliability_high for each in found)

    toxicity = [site.toxicity[task.pk] for task in site.tasks]
    truths = [truth_of(error, toxicity) for error in ERRORS]
    assert truths == sorted(truths, reverse=True) and truths[0] - truths[-1] > 0.25, "they do differ"
    within = [each.gold_low <= truth <= each.gold_high for each, truth in zip(found, truths, strict=True)]
    assert sum(within) >= len(ERRORS) - 1, [(e.gold_low, t, e.gold_high) for e, t in zip(found, truths, strict=True)]
    assert max(abs(each.gold - truth) for each, truth in zip(found, truths, strict=True)) < 0.08
    assert [each.gold_count for each in found] == [GOLD] * len(ERRORS)
    assert found[0].gold_passed > found[-1].gold_passed


def test_agreement_is_within_its_interval_of_the_truth(site):
    """The truth: the same pairs of labelers on the same tasks, ranked anew many times."""
    of_task: dict[int, list[int]] = defaultdict(list)
    for task, who in site.chosen:
        of_task[task.pk].append(who)
    labelers = [Labeler(error, seed=500 + i) for i, error in enumerate(ERRORS)]
    shares = []
    for _time in range(20):
        for pk, people in of_task.items():
            ranked = [labelers[who].rank(site.toxicity[pk]) for who in people]
            shares += [agreement.compare(ranked[i], ranked[j]).share for i in range(OVERLAP) for j in range(i)]
    figure = AgreementFigure.objects.get(report__batch=site.batch, measure="share", between="all")
    assert figure.low <= np.mean(shares) <= figure.high, (figure.low, np.mean(shares), figure.high)
    assert (figure.tasks, figure.count) == (len(site.tasks) - GOLD, 3 * (len(site.tasks) - GOLD))


def test_consensus_is_nearer_to_the_truth_than_its_labelers(site):
    rankings = defaultdict(list)
    for revision in Revision.objects.filter(submission__is_gold=False).select_related("submission"):
        truth = exact(site.toxicity[revision.submission.task_id])
        rankings[revision.submission.task_id].append(agreement.compare(revision.tiers, truth).tau_b or 0)
    agreed = [
        agreement.compare(each.tiers, exact(site.toxicity[each.task_id])).tau_b or 0 for each in Consensus.objects.all()
    ]
    assert len(agreed) == len(site.tasks) - GOLD
    assert np.mean(agreed) > np.mean([np.mean(each) for each in rankings.values()]) + 0.05
