"""Feedback: what reviewers said, told once, with what has changed since."""

import pytest
from django.urls import reverse

from labeling.actions import reviews
from labeling.models import Submission
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, revise, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def submission(labeler) -> Submission:
    return submit(make_demonstration_batch(prompts=1).tasks.get(), labeler, text="Bees fly.")


def decide(submission, by, verdict="returned", comment="Say why.", **options) -> None:
    seen = {"revision": submission.revision_count, "seen_review": getattr(submission.reviews.last(), "pk", 0)}
    reviews.review(submission=submission, verdict=verdict, comment=comment, by=by, **seen | options)
    submission.refresh_from_db()


def test_it_is_unread_until_it_is_opened(labeler_client, reviewer, submission):
    decide(submission, reviewer)
    assert "Unread feedback on 1 submission" in labeler_client.get(reverse("tasks")).text
    assert "unread feedback" in labeler_client.get(reverse("history")).text
    page = labeler_client.get(reverse("submission_feedback"))
    assert "1 submission has feedback" in page.text
    assert "Say why." in page.text
    assert "Rui" not in page.text
    labeler_client.get(reverse("submission", args=[submission.uuid]))
    for name in ("tasks", "history", "submission_feedback"):
        assert "nread" not in labeler_client.get(reverse(name)).text


def test_bare_acceptance_is_no_feedback(labeler_client, reviewer, submission, labeler):
    decide(submission, reviewer, "accepted", "")
    assert "Nothing yet" in labeler_client.get(reverse("submission_feedback")).text
    other = submit(make_demonstration_batch("more", prompts=1).tasks.get(), labeler)
    decide(other, reviewer, "accepted", "Very good.")
    assert "Very good." in labeler_client.get(reverse("submission_feedback")).text
    assert Submission.objects.filter(has_unread_feedback=True).get() == other


def test_the_reviewers_answer_to_a_correction(labeler_client, reviewer, submission):
    decide(submission, reviewer)
    revise(submission, text="Bees fly to eat.", comment="Is that enough?")
    decide(submission, reviewer, "accepted", "It is.")
    page = labeler_client.get(reverse("submission_feedback"))
    assert [review.comment for review in page.context["page"]] == ["It is.", "Say why."]
    assert [review.is_newest for review in page.context["page"]] == [True, False]
    assert "Correct it" not in page.text  # that is done with
    detail = labeler_client.get(reverse("submission", args=[submission.uuid])).text
    assert detail.index("It is.") < detail.index("<ins> to eat</ins>") < detail.index("Say why.")


def test_what_changed_in_a_ranking(labeler_client, labeler):
    submission = submit(make_ranking_batch(k=2).tasks.get(), labeler)
    revise(submission, tiers=submission.current.tiers[::-1], all_bad=True)
    page = labeler_client.get(reverse("submission", args=[submission.uuid])).text
    assert "<li>ranking: B &gt; A → A &gt; B</li>" in page
    assert "all bad: yes" in page


def test_only_ones_own(labeler2_client, reviewer_client, client, reviewer, submission):
    decide(submission, reviewer)
    url = reverse("submission_feedback")
    assert "Say why." not in labeler2_client.get(url).text
    assert reviewer_client.get(url).status_code == 403
    assert client.get(url).status_code == 302
    assert labeler2_client.post(url).status_code == 405
    assert labeler2_client.get(reverse("submission", args=[submission.uuid])).status_code == 404
    assert Submission.objects.get().has_unread_feedback
