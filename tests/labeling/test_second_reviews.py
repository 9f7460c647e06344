"""Second reviews: sampled at a rate, given blind by another reviewer, compared."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import reviews, second_reviews, tokens
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import SecondReview, SecondReviewRate, Slot, Submission
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def all_sampled(researcher):
    second_reviews.set_rate(percent=100, by=researcher)


@pytest.fixture
def rita(make_user):
    return make_user("rita@example.org", "reviewer", name="Rita Reviewer")


@pytest.fixture
def second(all_sampled, labeler, reviewer) -> SecondReview:
    """Rui returned it."""
    submission = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler, text="Bees fly.", comment="short")
    reviews.review(submission=submission, revision=1, verdict="returned", comment="Say why it flies.", by=reviewer)
    return SecondReview.objects.get()


def decided(labeler, reviewer, other, verdicts) -> None:
    """Submissions with these pairs of verdicts."""
    batch = make_demonstration_batch(f"batch of {len(verdicts)}", prompts=len(verdicts))
    for task, (first, again) in zip(batch.tasks.all(), verdicts, strict=True):
        made = reviews.review(submission=submit(task, labeler), revision=1, verdict=first, comment="c", by=reviewer)
        second_reviews.decide(second=made.second_review, verdict=again, by=other)


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_the_rate_decides_how_many_are_sampled(labeler, reviewer, researcher, monkeypatch):
    draws = iter([0.049, 0.05, 0.2, 0.1])
    monkeypatch.setattr("labeling.actions.second_reviews.random.random", lambda: next(draws))
    rows = [submit(task, labeler) for task in make_demonstration_batch(prompts=4).tasks.all()]
    assert reviews.accept_many(seen={row.uuid: 1 for row in rows[:2]}, by=reviewer) == 2
    assert SecondReview.objects.count() == 1  # 5 % unless somebody says otherwise
    second_reviews.set_rate(percent=20, by=researcher)
    for row in rows[2:]:
        reviews.review(submission=row, revision=1, verdict="accepted", by=reviewer)
    assert SecondReview.objects.count() == 2
    assert {(s.first_verdict, s.first_reviewer) for s in SecondReview.objects.all()} == {("accepted", reviewer)}


def test_the_rate_is_a_researchers_and_kept(researcher, reviewer):
    assert SecondReviewRate.current() == 5
    for _ in range(2):
        second_reviews.set_rate(percent=0, by=researcher)
    assert (SecondReviewRate.current(), SecondReviewRate.objects.count()) == (0, 1)
    with pytest.raises(Invalid):
        second_reviews.set_rate(percent=101, by=researcher)
    with pytest.raises(Forbidden):
        second_reviews.set_rate(percent=50, by=reviewer)


# ---- deciding -------------------------------------------------------------------------------------------------------


def test_a_second_verdict_is_final_and_decides_nothing(second, rita, reviewer):
    for _ in range(2):
        given = second_reviews.decide(second=second, verdict="accepted", comment="Fine.", by=rita)
    assert (given.verdict, given.reviewer, given.agrees) == ("accepted", rita, False)
    assert Submission.objects.get().status == "returned"
    with pytest.raises(Conflict):
        second_reviews.decide(second=second, verdict="rejected", by=rita)
    for change in (lambda: SecondReview.objects.update(verdict="returned"), lambda: given.delete()):
        with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
            change()


def test_who_may_not(second, reviewer, labeler, researcher, rita, client_for):
    labeler.grant("reviewer")
    for person in (reviewer, labeler, researcher):
        with pytest.raises(Forbidden):
            second_reviews.decide(second=second, verdict="accepted", by=person)
    with pytest.raises(Invalid):
        second_reviews.decide(second=second, verdict="maybe", by=rita)
    with pytest.raises(IntegrityError), transaction.atomic():
        SecondReview.objects.update(verdict="accepted", reviewer=reviewer, decided_at=second.sampled_at)
    task = second.review.submission.task  # they work on it themselves
    seat = Slot(task=task, seat=2, batch=task.batch, kind=task.kind)
    seat.lease(rita, timezone.now())
    seat.save()
    with pytest.raises(Forbidden):
        second_reviews.decide(second=second, verdict="accepted", by=rita)
    assert client_for(rita).get(reverse("second_review", args=[second.pk])).status_code == 404
    assert "Nothing waits" in client_for(rita).get(reverse("second_review_next"), follow=True).text
    assert not SecondReview.objects.decided().exists()


# ---- the pages ------------------------------------------------------------------------------------------------------


def test_the_page_is_blind_to_the_first_verdict(client_for, second, rita, reviewer, labeler):
    client = client_for(rita)
    opened = client.get(reverse("second_review_next"), follow=True)
    assert opened.redirect_chain[-1][0] == reverse("second_review", args=[second.pk])
    assert "Bees fly." in opened.text
    assert "short" in opened.text
    for secret in ("Rui", "Say why it flies", "returned for changes", "tag-warn"):
        assert secret not in opened.text
    submission, secrets = second.review.submission, ("Rui", "Say why it flies", "returned for changes", "tag-warn")
    pages = [reverse("review", args=[submission.uuid]), reverse("reviews") + "?status=any"]
    _, token = tokens.create(user=rita, name="t", scopes=["read"])
    ask = {"path": f"/api/v1/submissions/{submission.uuid}/", "headers": {"Authorization": f"Bearer {token}"}}
    assert not [secret for secret in secrets if secret in client.get(pages[0]).text]
    assert "tag-warn" not in client.get(pages[1]).text
    told = Client().get(**ask).json()
    assert (told["status"], told["reviews"]) == (None, [])
    second_reviews.decide(second=second, verdict="accepted", by=rita)
    assert all(secret in client.get(pages[0]).text for secret in secrets)
    told = Client().get(**ask).json()
    assert (told["status"], told["reviews"][0]["comment"]) == ("returned", "Say why it flies.")


def test_who_gave_the_first_verdict_is_not_asked_again(client_for, second, reviewer, labeler):
    for other in (reviewer, labeler):
        other.grant("reviewer")
        assert client_for(other).get(reverse("second_review", args=[second.pk])).status_code == 404
        assert "Nothing waits" in client_for(other).get(reverse("second_review_next"), follow=True).text


def test_a_ranking_with_what_others_said(client_for, all_sampled, labeler, labeler2, reviewer, rita):
    task = make_ranking_batch(k=2, overlap=2).tasks.get()
    first, other = submit(task, labeler), submit(task, labeler2)
    reviews.review(submission=first, revision=1, verdict="accepted", by=reviewer)
    page = client_for(rita).get(reverse("second_review", args=[SecondReview.objects.get().pk])).text
    assert "Luis Labeler: <strong>B &gt; A</strong>" in page
    assert other.current.tiers == first.current.tiers


def test_given_from_the_page_then_the_next(client_for, second, rita):
    client, url = client_for(rita), reverse("second_review_decide", args=[second.pk])
    refused = client.post(url, {"comment": "Kept."})
    assert (refused.status_code, "Kept.</textarea>" in refused.text) == (422, True)
    data = {"verdict": "accepted", "comment": "Fine."}
    for _ in range(2):
        assert client.post(url, data)["Location"] == reverse("second_review_next")
    other = client.post(url, data | {"verdict": "rejected"})
    assert other.status_code == 409 and "You have given your verdict already" in other.text
    assert "Somebody else" not in other.text and SecondReview.objects.get().verdict == "accepted"


def test_how_far_reviewers_agree_with_the_rows(researcher_client, all_sampled, labeler, reviewer, rita):
    assert "No second verdict yet" in researcher_client.get(reverse("second_review_list")).text
    accept, back = ("accepted", "accepted"), ("returned", "returned")
    decided(labeler, reviewer, rita, [accept, accept, accept, back, ("accepted", "returned")])
    page = researcher_client.get(reverse("second_review_list"))
    assert (page.context["same"], page.context["total"]) == (4, 5)
    assert "80 %" in page.text
    # Ten judgments, 7 "accepted" and 3 "returned"; one pair of five differs: α = 1 − 9 · 2 / (2 · 7 · 3).
    assert page.context["alpha"] == pytest.approx(1 - 9 * 2 / 42)
    assert [counts for _verdict, counts in page.context["matrix"]] == [[3, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert [(row["person"], row["n"], row["same"]) for row in page.context["by_reviewer"]] == [(reviewer, 5, 4)]
    assert [(s.first_verdict, s.verdict) for s in page.context["page"]] == [("accepted", "returned")]
    everything = researcher_client.get(reverse("second_review_list") + f"?all=1&first={reviewer.pk}&second=x")
    assert len(everything.context["page"]) == 5
    assert len(researcher_client.get(reverse("second_review_list") + f"?all=1&first={rita.pk}").context["page"]) == 0


def test_the_list_takes_a_constant_number_of_queries(
    researcher_client, all_sampled, labeler, reviewer, rita, make_user
):
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert researcher_client.get(reverse("second_review_list") + "?all=1").status_code == 200
        return len(queries)

    decided(labeler, reviewer, rita, [("accepted", "accepted")])
    before = count()
    decided(labeler, rita, make_user("third@example.org", "reviewer"), [("accepted", "returned")] * 4)
    assert count() == before


def test_the_rate_is_set_from_the_page(researcher_client):
    url = reverse("second_review_rate")
    assert researcher_client.post(url, {"percent": "12"}).status_code == 302
    assert "12 % of verdicts" in researcher_client.get(reverse("second_review_list")).text
    for wrong in ("", "x", "101", "-1"):
        assert researcher_client.post(url, {"percent": wrong}).status_code == 422
    assert SecondReviewRate.current() == 12
