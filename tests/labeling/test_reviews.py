"""Reviews: one verdict on what was seen, seats kept in balance."""

import threading

import pytest
from django.db import connection

from labeling.actions import reviews
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Review, Slot, Submission
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, revise, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def submission(labeler):
    return submit(make_demonstration_batch(prompts=1).tasks.get(), labeler, text="Bees are nice.")


def decide(submission, verdict="accepted", by=None, **options) -> Review:
    return reviews.review(submission=submission, verdict=verdict, by=by, **{"revision": 1} | options)


# ---- the action -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "comment"), [("accepted", ""), ("returned", "Shorter."), ("rejected", "Copied.")])
def test_a_verdict_sets_the_status(submission, reviewer, verdict, comment):
    review = decide(submission, verdict, reviewer, comment=comment)
    submission.refresh_from_db()
    assert submission.status == verdict
    assert (review.revision.number, review.comment, review.reviewer) == (1, comment, reviewer)


def test_a_return_needs_a_comment(submission, reviewer):
    with pytest.raises(Invalid, match="comment"):
        decide(submission, "returned", reviewer, comment="  ")
    assert not Review.objects.exists()


def test_unknown_verdicts_and_endless_comments_are_refused(submission, reviewer):
    with pytest.raises(Invalid, match="verdict"):
        decide(submission, "maybe", reviewer)
    with pytest.raises(Invalid, match="10001 characters"):
        decide(submission, "returned", reviewer, comment="x" * 10001)
    with pytest.raises(Invalid, match="NUL"):
        decide(submission, "returned", reviewer, comment="a\x00")


def test_twice_is_once(submission, reviewer):
    assert decide(submission, by=reviewer) == decide(submission, by=reviewer)
    assert Review.objects.count() == 1


def test_nobody_reviews_their_own(submission, labeler):
    labeler.grant("reviewer")
    with pytest.raises(Forbidden, match="your own"):
        decide(submission, by=labeler)


def test_only_reviewers_review(submission, labeler2):
    with pytest.raises(Forbidden):
        decide(submission, by=labeler2)
    with pytest.raises(Forbidden):
        reviews.accept_many(seen={submission.uuid: 1}, by=labeler2)


def test_a_stale_revision_is_a_conflict(submission, reviewer):
    revise(submission, text="Bees are very nice.")
    with pytest.raises(Conflict, match="revision 1, now it is 2"):
        decide(submission, by=reviewer)
    decide(submission, by=reviewer, revision=2)


def test_another_reviewers_verdict_meanwhile_is_a_conflict(submission, reviewer, make_user):
    first = decide(submission, "returned", reviewer, comment="Shorter.")
    second_reviewer = make_user("r2@example.org", "reviewer")
    with pytest.raises(Conflict, match="returned"):
        decide(submission, by=second_reviewer)
    decide(submission, by=second_reviewer, seen_review=first.pk)  # having seen it, they may decide otherwise
    submission.refresh_from_db()
    assert submission.status == "accepted"


@pytest.mark.django_db(transaction=True)
def test_two_reviewers_at_once_one_wins(submission, reviewer, make_user):
    people = [reviewer, make_user("r2@example.org", "reviewer")]
    results, barrier = [], threading.Barrier(2)

    def act(person, verdict):
        barrier.wait()
        try:
            results.append(decide(submission, verdict, person, comment="c").verdict)
        except Conflict:
            results.append("conflict")
        finally:
            connection.close()

    threads = [threading.Thread(target=act, args=a) for a in zip(people, ["accepted", "rejected"], strict=True)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results.count("conflict") == 1
    assert Review.objects.get().verdict == Submission.objects.get().status


def test_rejected_work_opens_another_seat_and_acceptance_takes_it_back(submission, reviewer):
    rejected = decide(submission, "rejected", reviewer, comment="Copied.")
    assert list(Slot.objects.order_by("seat").values_list("seat", "status")) == [(1, "submitted"), (2, "open")]
    decide(submission, "rejected", reviewer, comment="Copied, I mean it.", seen_review=rejected.pk)
    assert Slot.objects.count() == 2
    newest = Review.objects.latest("id")
    decide(submission, "accepted", reviewer, seen_review=newest.pk)
    assert Slot.objects.count() == 1


def test_a_seat_opened_by_rejection_stays_once_it_is_taken(submission, reviewer, labeler2):
    rejected = decide(submission, "rejected", reviewer, comment="Copied.")
    submit(submission.task, labeler2)
    decide(submission, "accepted", reviewer, seen_review=rejected.pk)
    assert Slot.objects.filter(status="submitted").count() == 2


def test_rejecting_surplus_work_opens_no_seat(submission, labeler2, reviewer):
    surplus = submit(submission.task, labeler2, is_surplus=True)
    decide(surplus, "rejected", reviewer)
    assert Slot.objects.count() == 1


def test_accept_many_takes_what_was_seen_and_still_waits(reviewer, labeler, labeler2, django_assert_num_queries):
    reviewer.grant("labeler")
    tasks = list(make_ranking_batch(prompts=5).tasks.all())
    plain = submit(tasks[0], labeler)
    revised = submit(tasks[1], labeler)
    revise(revised, tiers=revised.current.tiers[::-1])
    decided = submit(tasks[2], labeler)
    decide(decided, "returned", reviewer, comment="No.")
    own = submit(tasks[3], reviewer)
    twice = submit(tasks[4], labeler2)
    revise(twice, tiers=twice.current.tiers[::-1])
    seen = {s.uuid: 1 for s in (plain, revised, decided, own)} | {str(twice.uuid): 2}
    assert reviews.accept_many(seen=seen, by=reviewer) == 2
    assert set(Submission.objects.filter(status="accepted")) == {plain, twice}
    assert set(Review.objects.filter(verdict="accepted").values_list("submission__uuid", "revision__number")) == {
        (plain.uuid, 1), (twice.uuid, 2)}  # fmt: skip
    assert reviews.accept_many(seen=seen, by=reviewer) == 0


def test_next_waiting_goes_round_and_leaves_out_ones_own(reviewer, labeler):
    reviewer.grant("labeler")
    tasks = list(make_demonstration_batch(prompts=4).tasks.all())
    a, own, b, c = (submit(t, reviewer if i == 1 else labeler) for i, t in enumerate(tasks))
    queue = {"among": Submission.objects.all(), "by": reviewer}
    assert reviews.next_waiting(after=None, **queue) == a
    assert reviews.next_waiting(after=a, **queue) == b
    assert reviews.next_waiting(after=own, **queue) == b
    assert reviews.next_waiting(after=c, **queue) == a
    decide(a, by=reviewer)
    decide(b, by=reviewer)
    assert reviews.next_waiting(after=c, **queue) is None
