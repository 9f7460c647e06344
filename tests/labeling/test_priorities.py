"""Priorities: what makes a look worth more, by hand; kept up to date; the queue in that order."""

import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling import jobs, priorities
from labeling.actions import priorities as actions
from labeling.actions import reviews, submissions, tasks
from labeling.models import Draft, GoldAnswer, LabelerNumbers, Review, Submission
from labeling.priorities import Facts
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, response_ids, submit

pytestmark = pytest.mark.django_db


def names(submission) -> dict[str, float]:
    submission.refresh_from_db()
    return {one["reason"]: one["points"] for one in submission.review_reasons}


# ---- the score ------------------------------------------------------------------------------------------------------


def test_points_by_hand():
    facts = Facts(disagreement=0.5, gold_share=0.4, is_gold_missed=True, reliability=0.65, is_never_reviewed=True)
    given = priorities.reasons(facts)
    assert [(one["reason"], one["points"]) for one in given] == [
        ("gold_missed", 30), ("never_reviewed", 25), ("disagreement", 20), ("low_reliability", 12)]  # fmt: skip
    assert priorities.points(given) == 87
    assert [one["value"] for one in given] == [0.4, None, 0.5, 0.65]
    assert priorities.reasons(Facts(is_too_fast=True, model_conflict=0.5))[1]["points"] == 10
    assert priorities.reasons(Facts()) == priorities.reasons(Facts(disagreement=0.0, reliability=0.9)) == []
    assert priorities.points(priorities.reasons(Facts(reliability=0.2))) == 30  # no worse than chance


@pytest.mark.parametrize(
    ("read", "written", "seconds", "fast"),
    [(1200, 0, 9, True), (1200, 0, 10, False), (0, 150, 9, True), (1200, 150, 19, True), (1200, 150, 20, False), (9999, 0, 0, False)],
)  # fmt: skip
def test_nobody_reads_120_or_writes_15_characters_a_second(read, written, seconds, fast):
    assert priorities.is_too_fast(read=read, written=written, seconds=seconds) is fast


# ---- kept up to date ------------------------------------------------------------------------------------------------


def hand_in(task, labeler, tiers, seconds=600) -> Submission:
    """Through the action that pages use."""
    slot = tasks.claim_next(batch_id=task.batch_id, by=labeler)
    assert slot.task == task
    Draft.objects.filter(task=task, labeler=labeler).update(active_seconds=seconds)
    answer = {"tiers": tiers, "ratings": {u: {"quality": 4, "flags": {}} for tier in tiers for u in tier}}
    return submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer, by=labeler)


def test_a_submit_gives_everything_that_waits_on_the_task_its_points(labeler, labeler2, make_user):
    task = make_ranking_batch(k=3, overlap=3).tasks.get()
    a, b, c = response_ids(task)
    first = hand_in(task, labeler, [[a], [b], [c]])
    assert names(first) == {"never_reviewed": 25}
    second = hand_in(task, labeler2, [[c], [b], [a]])
    assert names(first) == names(second) == {"never_reviewed": 25, "disagreement": 40}
    third = hand_in(task, make_user("l3@example.org", "labeler"), [[a], [b, c]])
    # Of three comparisons, the third differs from the first on one (b against c) and from the second on all.
    assert names(third)["disagreement"] == pytest.approx(40 * (1 / 3 + 1) / 2, abs=0.1)
    assert names(first)["disagreement"] == pytest.approx(40 * (1 + 1 / 3) / 2, abs=0.1)
    assert names(second)["disagreement"] == 40
    assert second.disagreement == 1


def test_a_rejected_ranking_is_nobodys_measure(labeler, labeler2, reviewer):
    task = make_ranking_batch(k=2, overlap=2).tasks.get()
    a, b = response_ids(task)
    first, second = submit(task, labeler, tiers=[[a], [b]]), submit(task, labeler2, tiers=[[b], [a]])
    reviews.review(submission=second, revision=1, verdict="rejected", by=reviewer)
    actions.refresh_some()
    assert "disagreement" not in names(first)


def test_an_impossible_pace(labeler):
    batch = make_demonstration_batch(prompts=2)
    fast, fair = (submit(task, labeler, text="x" * 3000) for task in batch.tasks.all())
    Submission.objects.filter(pk=fast.pk).update(active_seconds=20)
    Submission.objects.filter(pk=fair.pk).update(active_seconds=900)
    actions.refresh_some()
    assert names(fast) == {"too_fast": 35, "never_reviewed": 25}
    assert names(fair) == {"never_reviewed": 25}
    assert fast.review_reasons[0]["value"] == 150


def test_points_given_before_it_is_written_are_those_that_the_job_finds(labeler):
    LabelerNumbers.objects.create(labeler=labeler, reliability=0.6, computed_at=timezone.now())
    ranked, written = make_ranking_batch("a", k=2).tasks.get(), make_demonstration_batch("b", prompts=1).tasks.get()
    with CaptureQueriesContext(connection) as queries:
        hand_in(ranked, labeler, [[u] for u in response_ids(ranked)], seconds=1)
        tasks.claim_next(by=labeler)
        Draft.objects.filter(task=written).update(active_seconds=1)
        answer = {"text": "Bees are not birds. " * 5}
        submissions.submit(task=written, submit_key=uuid.uuid4(), answer=answer, by=labeler)
    assert not any("UPDATE labeling_submission" in query["sql"] for query in queries)
    columns = ("pk", "review_priority", "review_reasons", "disagreement")
    given = list(Submission.objects.order_by("pk").values(*columns))
    assert [each["review_priority"] for each in given] == [43, 78]  # never reviewed, not reliable; too fast
    assert actions.outdate(Submission.objects.all()) == actions.refresh_some() == 2
    assert list(Submission.objects.order_by("pk").values(*columns)) == given


def test_once_reviewed_what_else_waits_of_a_labeler_is_computed_anew(
    labeler, labeler2, reviewer, django_capture_on_commit_callbacks
):
    one, two, three = (submit(task, labeler) for task in make_demonstration_batch(prompts=3).tasks.all())
    other = submit(make_demonstration_batch("more", prompts=1).tasks.get(), labeler2)
    jobs.refresh_priorities(0)
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        reviews.review(submission=one, revision=1, verdict="accepted", by=reviewer)
    assert len(callbacks) == 1
    assert actions.refresh_some() == 2
    assert (names(two), names(three), names(other)) == ({}, {}, {"never_reviewed": 25})
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        reviews.accept_many(seen={two.uuid: 1}, by=reviewer)
    assert callbacks == []
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        reviews.accept_many(seen={other.uuid: 1}, by=reviewer)
    assert len(callbacks) == 1


def test_the_job_computes_what_came_without_points_in_as_many_queries(labeler, labeler2):
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            jobs.refresh_priorities(0)
        return len(queries)

    for task in make_ranking_batch("a", prompts=1, overlap=2).tasks.all():
        submit(task, labeler)
        submit(task, labeler2)
    one = count()
    for task in make_ranking_batch("b", prompts=4, overlap=2).tasks.all():
        submit(task, labeler)
        submit(task, labeler2)
    assert count() == one
    assert not Submission.objects.filter(prioritized_at=None).exists()
    assert count() < one  # nothing is out of date


def test_what_the_numbers_say_of_gold_and_of_the_labeler(labeler, labeler2):
    task = make_ranking_batch(k=2, overlap=2).tasks.get()
    a, b = response_ids(task)
    GoldAnswer.objects.create(task=task, tiers=[[a], [b]], explanation="a is right", tolerance=0.2)
    right, wrong = submit(task, labeler, tiers=[[a], [b]]), submit(task, labeler2, tiers=[[b], [a]])
    jobs.refresh_priorities(0)
    assert "gold_missed" not in names(wrong)
    jobs.measure_quality()
    LabelerNumbers.objects.filter(labeler=labeler2).update(reliability=0.6)
    jobs.refresh_priorities(0)
    assert names(wrong) == {"disagreement": 40, "gold_missed": 30, "never_reviewed": 25, "low_reliability": 18}
    assert names(right).keys() == {"disagreement", "never_reviewed"}
    Submission.objects.filter(pk=wrong.pk).update(is_gold=True)  # made on a gold seat: no measure of others
    actions.outdate(Submission.objects.all())
    jobs.refresh_priorities(0)
    assert (names(right), names(wrong).get("disagreement")) == ({"never_reviewed": 25}, None)


# ---- the queue ------------------------------------------------------------------------------------------------------


def test_the_queue_goes_by_points_then_by_waiting(reviewer_client, reviewer, labeler):
    rows = [submit(task, labeler) for task in make_demonstration_batch(prompts=4).tasks.all()]
    for row, (priority, hours) in zip(rows, [(10, 1), (30, 1), (30, 2), (0, 9)], strict=True):
        when = timezone.now() - timedelta(hours=hours)
        reasons = [{"reason": "never_reviewed", "points": priority, "value": None}]
        Submission.objects.filter(pk=row.pk).update(
            review_priority=priority, updated_at=when, prioritized_at=when, review_reasons=reasons if priority else []
        )
        row.refresh_from_db()
    expected = [rows[2], rows[1], rows[0], rows[3]]
    page = reviewer_client.get(reverse("reviews"))
    assert list(page.context["page"]) == expected
    assert page.text.count("labeler never reviewed") == 3
    assert "nothing stands out" in page.text
    queue = {"among": Submission.objects.all(), "by": reviewer}
    after, walked = None, []
    for _ in range(5):
        after = reviews.next_waiting(after=after, **queue)
        walked.append(after)
    assert walked == [*expected, expected[0]]
    opened = reviewer_client.get(reverse("reviews_next"))
    assert opened["Location"].startswith(reverse("review", args=[rows[2].uuid]))
    assert "labeler never reviewed" in reviewer_client.get(opened["Location"]).text
    assert list(reviewer_client.get(reverse("reviews") + "?status=any").context["page"]) == rows[::-1]


def test_labelers_never_see_their_priority(labeler_client, labeler, reviewer):
    submission = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    actions.refresh_some()
    page = labeler_client.get(reverse("submission", args=[submission.uuid])).text
    assert "never reviewed" not in page
    assert not Review.objects.exists()
