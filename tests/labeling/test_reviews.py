"""Reviews: one verdict on what was seen, seats kept in balance."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import numbers, reviews
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import ModelVersion, Review, Slot, Submission
from tests.conftest import PASSWORD
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, response_ids, revise, submit

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
    told = reviews.why_passed_over(seen={str(uuid): number for uuid, number in seen.items()}, by=reviewer)
    assert [row for row, _ in told] == [revised, decided, own]
    assert [reason.split(":")[0] for _, reason in told] == [
        "revised since",
        "Rui Reviewer has decided",
        "it is your own",
    ]


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


# ---- the pages ------------------------------------------------------------------------------------------------------


def post_decision(client, submission, verdict="accepted", query="", **data):
    data = {"verdict": verdict, "comment": "", "revision": 1, "seen_review": 0} | data
    return client.post(reverse("review_decide", args=[submission.uuid]) + query, data)


def test_the_list_shows_what_waits_and_filters(reviewer_client, submission, labeler2, reviewer):
    ranked = submit(make_ranking_batch().tasks.get(), labeler2)
    decide(ranked, by=reviewer)
    url = reverse("reviews")

    def shown(query=""):
        return [s.uuid for s in reviewer_client.get(url + query).context["page"]]

    assert shown() == [submission.uuid]
    assert shown("?status=any") == [ranked.uuid, submission.uuid]
    assert shown("?status=accepted") == [ranked.uuid]
    assert shown(f"?status=any&batch={submission.task.batch_id}") == [submission.uuid]
    assert shown(f"?status=any&task={ranked.task.uuid}") == [ranked.uuid]
    assert shown("?status=any&kind=ranking") == [ranked.uuid]
    assert shown(f"?status=any&labeler={labeler2.pk}") == [ranked.uuid]
    assert shown("?status=any&origin=simulated") == []
    assert shown("?status=any&surplus=yes") == []
    assert shown("?status=any&since=2999-01-01") == []
    assert len(shown("?status=any&until=2999-01-01")) == 2
    today = timezone.localdate().isoformat()
    assert len(shown(f"?status=any&since={today}&until={today}")) == 2
    yesterday = (timezone.localdate() - timedelta(days=1)).isoformat()
    assert shown(f"?status=any&until={yesterday}") == []
    assert len(shown("?status=any&since=0001-01-01&until=9999-12-31")) == 2


@pytest.mark.parametrize(
    "query", ["?batch=x", "?since=yesterday", "?status=lost", "?task=1", "?labeler=99999", "?page=x"]
)
def test_a_senseless_filter_is_said_and_dropped(reviewer_client, submission, query):
    response = reviewer_client.get(reverse("reviews") + query)
    assert response.status_code == 200
    assert query == "?page=x" or "errorlist" in response.text or response.context["filters"].errors


def test_lists_and_pages_take_a_constant_number_of_queries(reviewer_client, labeler, labeler2):
    tasks = list(make_ranking_batch(prompts=8, overlap=2).tasks.all())
    first, _behind_it = submit(tasks[0], labeler), submit(tasks[1], labeler)

    def count(url):
        with CaptureQueriesContext(connection) as queries:
            assert reviewer_client.get(url).status_code == 200
        return len(queries)

    before = count(reverse("reviews")), count(reverse("review", args=[first.uuid]))
    submit(tasks[0], labeler2)
    revise(first, tiers=first.current.tiers[::-1])
    for task in tasks[2:]:
        submit(task, labeler)
    assert (count(reverse("reviews")), count(reverse("review", args=[first.uuid]))) == before


def test_review_is_blind_until_the_models_are_asked_for(reviewer_client, labeler):
    prompt_batch = make_ranking_batch(k=2)
    submission = submit(prompt_batch.tasks.get(), labeler)
    for n, response in enumerate(submission.task.task_responses.all()):
        ModelVersion.objects.filter(pk=response.response.model_version_id).update(name=f"secret-policy-{n}")
    url = reverse("review", args=[submission.uuid])
    assert "secret-policy" not in reviewer_client.get(url).text
    assert "secret-policy-1" in reviewer_client.get(f"{url}?models=1").text


def test_the_page_shows_the_ranking_as_its_labeler_gave_it(reviewer_client, labeler, labeler2):
    batch = make_ranking_batch(prompts=2, k=3, overlap=2)
    task, other_task = batch.tasks.all()
    submit(other_task, labeler2)
    a, b, c = response_ids(task)  # the labeler saw them in reverse: c is A, b is B, a is C
    flag = batch.schema.response_flags[2]
    ratings = {a: {"quality": 6, "flags": {flag["name"]: True}}, b: {"quality": None, "flags": {flag["name"]: False}}}
    submission = submit(task, labeler, tiers=[[a], [b, c]], ratings=ratings, prompt_flags={"ambiguous": True})
    submit(task, labeler2, tiers=[[c], [b], [a]])
    context = reviewer_client.get(reverse("review", args=[submission.uuid])).context["reading"]
    assert [(r.letter, r.tier, r.quality) for r in context.rated] == [("C", 1, 6), ("A", 2, None), ("B", 2, None)]
    assert context.rated[0].yes == [flag["label"]]
    assert context.rated[2].no == [flag["label"]]
    assert context.prompt_flags == ["Ambiguous"]
    assert [column.ranking for column in context.table] == ["C > A = B", "A > B > C"]
    assert [cell["rank"] for cell in context.table[1].cells] == [1, 2, 3]


def test_revisions_are_shown_with_their_differences(reviewer_client, submission, reviewer):
    decide(submission, "returned", reviewer, comment="Say why.")
    revise(submission, text="Bees are nice, because they pollinate.")
    page = reviewer_client.get(reverse("review", args=[submission.uuid])).text
    assert "<ins>, because they pollinate</ins>" in page
    assert "Say why." in page


def test_what_people_wrote_is_shown_as_text(reviewer_client, labeler):
    batch = make_demonstration_batch("<b>batch</b>", prompts=1)
    submission = submit(batch.tasks.get(), labeler, text="<script>alert(1)</script>", comment="<img src=x>")
    revise(submission, text="<i>new</i>")
    page = reviewer_client.get(reverse("review", args=[submission.uuid])).text
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert "<i>new" not in page


def test_accepting_leads_to_the_next_in_the_same_list(reviewer_client, labeler):
    batch = make_demonstration_batch(prompts=2)
    make_demonstration_batch("other", prompts=1)
    first, second = (submit(task, labeler) for task in batch.tasks.all())
    query = f"?batch={batch.pk}"
    response = post_decision(reviewer_client, first, query=query)
    assert response["Location"] == reverse("review", args=[second.uuid]) + query
    response = post_decision(reviewer_client, second, query=query)
    assert response["Location"] == reverse("reviews") + query
    assert set(Submission.objects.values_list("status", flat=True)) == {"accepted"}


def test_a_double_click_counts_once(reviewer_client, submission):
    for _ in range(2):
        assert post_decision(reviewer_client, submission, "returned", comment="Shorter.\r\nPlease.").status_code == 302
    assert Review.objects.get().comment == "Shorter.\nPlease."


def test_a_comment_sent_after_the_session_ended_waits_for_its_writer_alone(client, submission, reviewer, make_user):
    other, address = make_user("r2@example.org", "reviewer"), reverse("review_decide", args=[submission.uuid])
    sent = {"verdict": "returned", "comment": "Say <b>why</b>, at length.", "revision": "1", "seen_review": "0"}

    def ended(person) -> None:
        client.force_login(person)
        client.get(reverse("reviews"))
        del client.cookies["sessionid"]

    def log_in(person, url: str) -> None:
        assert client.post(url, {"login": person.email, "password": PASSWORD}).url == reverse("unsent_form")

    ended(reviewer)
    log_in(other, client.post(address + "?batch=1", sent).url)  # somebody else sits down at this computer
    answer = client.get(reverse("unsent_form"))
    assert answer.url == reverse("home") and "at length" not in client.get(reverse("unsent_form"), follow=True).text
    ended(reviewer)
    log_in(reviewer, client.post(address + "?batch=1", sent).url)
    page = client.get(reverse("unsent_form"))
    assert "Say &lt;b&gt;why&lt;/b&gt;, at length." in page.text and f'action="{address}?batch=1"' in page.text
    assert client.post(page.context["path"], dict(page.context["fields"])).status_code == 302
    assert Review.objects.get().comment == sent["comment"]
    assert client.post(reverse("unsent_form")).url == reverse("home")
    assert client.get(reverse("unsent_form")).url == reverse("home")
    ended(reviewer)
    htmx = {
        "HX-Request": "true",
        "HX-Current-URL": "http://testserver/console/reviews/?status=any",
        "HX-Target": "content",
    }
    log_in(reviewer, client.post(address, sent, headers=htmx).headers["HX-Redirect"])
    assert "at length" in client.get(reverse("unsent_form")).text
    ended(reviewer)
    part = client.get(reverse("reviews"), headers=htmx)
    assert part.status_code == 403 and "%3Fstatus%3Dany" in part.text and 'id="content"' in part.text
    assert "<html" not in part.text
    del client.cookies["heed_owner"]
    assert client.post(address, sent).url.endswith("decide")  # a stranger's is not kept
    assert reverse("unsent_form") not in client.post(reverse("task_next"), {"kind": "ranking"}).url


def test_refusals_say_why(reviewer_client, submission, reviewer, client_for):
    response = post_decision(reviewer_client, submission, "returned")
    assert response.status_code == 422
    assert "A comment is needed" in response.text
    assert post_decision(reviewer_client, submission, "maybe").status_code == 422
    assert post_decision(reviewer_client, submission, revision="").status_code == 422
    revise(submission, text="Newer.")
    response = post_decision(reviewer_client, submission)
    assert response.status_code == 409
    assert "revised" in response.text
    assert not Review.objects.exists()


def test_a_conflict_leads_back_to_the_submission_as_it_is_now(reviewer_client, submission, make_user):
    rival = make_user("r2@example.org", "reviewer", name="Rita Rival")
    decide(submission, "returned", rival, comment="Shorter.")
    answer = post_decision(reviewer_client, submission, query="?status=any", comment="<Fine> & good.")
    assert answer.status_code == 409
    assert "Rita Rival has decided on this since you opened it: returned." in answer.text
    assert str(submission.uuid) not in str(answer.context["problem"])
    assert "&lt;Fine&gt; &amp; good.</textarea>" in answer.text
    assert "Shorter." in answer.text
    seen = answer.context["reading"].seen_review  # what the form on the page now sends
    assert post_decision(reviewer_client, submission, seen_review=seen, comment="Fine.").status_code == 302
    submission.refresh_from_db()
    assert submission.status == "accepted"


def test_after_a_revision_the_decision_is_asked_for_again(reviewer_client, labeler):
    ranked = submit(make_ranking_batch().tasks.get(), labeler)
    revise(ranked, tiers=ranked.current.tiers[::-1])
    answer = post_decision(reviewer_client, ranked, "returned", comment="Longer, please.")
    assert answer.status_code == 409
    assert "Lena Labeler has revised this since you opened it: you saw revision 1, now it is 2." in answer.text
    assert "Longer, please.</textarea>" in answer.text
    assert 'name="revision" value="2"' in answer.text
    assert f'href="{reverse("review", args=[ranked.uuid])}?models=1"' in answer.text  # this page is not at that address


def test_ones_own_submission_cannot_be_decided(client_for, submission, labeler):
    labeler.grant("reviewer")
    client = client_for(labeler)
    assert "another reviewer decides" in client.get(reverse("review", args=[submission.uuid])).text
    assert post_decision(client, submission).status_code == 403


def test_who_works_on_a_task_does_not_see_others_answers(reviewer_client, reviewer, labeler):
    task = make_ranking_batch(overlap=2).tasks.get()
    submission = submit(task, labeler)
    slot = task.slots.get(status="open")
    slot.lease(reviewer, timezone.now())
    slot.save()
    response = reviewer_client.get(reverse("review", args=[submission.uuid]))
    assert response.status_code == 403
    assert "working on this task yourself" in response.text


def test_ticked_rows_are_accepted_as_they_were_seen(reviewer_client, submission, labeler):
    other = submit(make_demonstration_batch("other", prompts=1).tasks.get(), labeler)
    revise(other, text="Newer.")
    data = {"seen": [f"{submission.uuid}:1", f"{other.uuid}:1"]}
    page = reviewer_client.post(reverse("reviews_accept") + "?status=any", data, follow=True).text
    assert "1 submission accepted." in page
    assert "1 passed over, look again: Lena Labeler: revised since: you saw revision 1, now it is 2" in page
    assert list(Submission.objects.order_by("id").values_list("status", flat=True)) == ["accepted", "submitted"]
    for wrong in ({}, {"seen": "x"}, {"seen": f"{other.uuid}:y"}):
        assert reviewer_client.post(reverse("reviews_accept"), wrong).status_code == 422


def test_next_goes_to_the_oldest_or_says_that_there_is_none(reviewer_client, submission, reviewer):
    assert reviewer_client.get(reverse("reviews_next"))["Location"].startswith(
        reverse("review", args=[submission.uuid])
    )
    decide(submission, by=reviewer)
    assert "Nothing waits" in reviewer_client.get(reverse("reviews_next"), follow=True).text


@pytest.mark.django_db(transaction=True)
def test_a_review_and_the_job_that_measures_do_not_wait_for_each_other(labeler, reviewer, monkeypatch):
    """The job holds the task and writes of the submission; the review holds the submission and will want the task."""
    made, finished = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler), []

    def measure() -> None:
        try:
            finished.append(numbers.measure_tasks([made.task_id]))
        finally:
            connection.close()

    def meanwhile(**_labelers) -> None:
        job = threading.Thread(target=measure)
        job.start()
        job.join(20)
        assert finished == [None], "it waits for the review"

    monkeypatch.setattr(reviews.priorities, "known_from_now", meanwhile)
    assert reviews.review(submission=made, revision=1, verdict="accepted", by=reviewer).verdict == "accepted"
