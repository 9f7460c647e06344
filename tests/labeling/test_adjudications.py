"""Adjudications: rankings side by side, settled by a reviewer, some returned in the same step."""

import uuid

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import adjudications, priorities, reviews
from labeling.actions.adjudications import SeenRanking
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Adjudication, ModelVersion, Review, Submission, Task
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, response_ids, revise, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def third(make_user):
    return make_user("labeler3@example.org", "labeler", name="Lola Labeler")


@pytest.fixture
def task(labeler, labeler2, third) -> Task:
    """Three rankings of A, B, C (in the order of their UUIDs): A > B > C; A = B > C; C > B > A."""
    task = make_ranking_batch(k=3, overlap=3).tasks.get()
    a, b, c = adjudications.response_ids(task)
    submit(task, labeler, tiers=[[a], [b], [c]], comment="B is terse")
    submit(task, labeler2, tiers=[[a, b], [c]])
    submit(task, third, tiers=[[c], [b], [a]])
    priorities.refresh_some()
    task.refresh_from_db()
    return task


def seen(task) -> dict[str, SeenRanking]:
    rows = Submission.objects.filter(task=task)
    return {str(s.uuid): SeenRanking(s.revision_count, s.reviews.last().pk if s.reviews.exists() else 0) for s in rows}


def settle(task, by, tiers=None, **options) -> Adjudication:
    a, b, c = adjudications.response_ids(task)
    fields = {"tiers": tiers or [[b], [a, c]], "seen": seen(task), "key": uuid.uuid4()} | options
    return adjudications.adjudicate(task=task, by=by, **fields)


# ---- the action -----------------------------------------------------------------------------------------------------


def test_a_ranking_of_the_reviewers_own_beside_the_raw_ones(task, reviewer):
    a, b, c = adjudications.response_ids(task)
    before = list(Submission.objects.order_by("id").values())
    made = settle(task, reviewer, comment="B says why.\r\n")
    assert (made.tiers, made.comment, made.reviewer) == ([[b], [a, c]], "B says why.", reviewer)
    assert made.compared.count() == 3
    assert list(Submission.objects.order_by("id").values()) == before
    task.refresh_from_db()
    assert task.adjudicated_at
    settle(task, reviewer, tiers=[[a], [b], [c]])
    assert task.adjudications.last().tiers == [[a], [b], [c]]


def test_some_are_returned_in_the_same_step(task, reviewer, third, labeler):
    wrong = Submission.objects.get(labeler=third)
    settle(task, reviewer, returned={str(wrong.uuid): "C is made up."})
    review = Review.objects.get()
    assert (review.submission, review.verdict, review.comment) == (wrong, "returned", "C is made up.")
    assert Submission.objects.get(labeler=labeler).status == "submitted"


def test_all_or_nothing(task, reviewer, third):
    wrong = str(Submission.objects.get(labeler=third).uuid)
    with pytest.raises(Invalid, match="comment"):
        settle(task, reviewer, returned={wrong: " "})
    with pytest.raises(Invalid, match="not one of these"):
        settle(task, reviewer, returned={str(uuid.uuid4()): "No."})
    assert not Adjudication.objects.exists()
    task.refresh_from_db()
    assert task.adjudicated_at is None


def test_the_same_form_twice_is_once(task, reviewer, third):
    wrong = str(Submission.objects.get(labeler=third).uuid)
    options = {"key": uuid.uuid4(), "seen": seen(task), "returned": {wrong: "Look again."}}
    assert settle(task, reviewer, **options) == settle(task, reviewer, **options)
    assert (Adjudication.objects.count(), Review.objects.count()) == (1, 1)


def test_other_words_from_a_page_that_was_gone_back_to_are_not_passed_over_in_silence(task, reviewer, third, labeler):
    key, (a, b, c) = uuid.uuid4(), adjudications.response_ids(task)
    wrong, other = (str(Submission.objects.get(labeler=each).uuid) for each in (third, labeler))
    returned, before = {wrong: "C is made up."}, seen(task)
    settle(task, reviewer, key=key, returned=returned, seen=before)
    for changed in (
        {"tiers": [[a], [b], [c]]},
        {"comment": "On second thoughts."},
        {"returned": {}},
        {"returned": {wrong: "Say why."}},
        {"returned": returned | {other: "You too."}},
    ):
        with pytest.raises(Conflict):
            settle(task, reviewer, key=key, **{"returned": returned, "seen": before} | changed)
    assert (Adjudication.objects.count(), Review.objects.count()) == (1, 1)
    assert settle(task, reviewer, tiers=[[a], [b], [c]]).tiers == [[a], [b], [c]]


@pytest.mark.parametrize("wrong", ["short", "twice", "foreign"])
def test_a_ranking_must_be_whole(task, reviewer, wrong):
    a, b, c = adjudications.response_ids(task)
    tiers = {"short": [[a], [b]], "twice": [[a], [b], [c, a]], "foreign": [[a], [b], [c, str(uuid.uuid4())]]}[wrong]
    with pytest.raises(Invalid):
        settle(task, reviewer, tiers=tiers)
    with pytest.raises(IntegrityError, match="exactly once"), transaction.atomic():
        Adjudication.objects.create(task=task, tiers=tiers, reviewer=reviewer, key=uuid.uuid4())


def test_it_is_kept_as_it_was_made(task, reviewer):
    rows = Adjudication.objects.filter(pk=settle(task, reviewer).pk)
    for change in (lambda: rows.update(comment="x"), lambda: rows._raw_delete("default")):
        with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
            change()


def test_what_has_changed_since_is_a_conflict(task, reviewer, labeler, make_user):
    before = seen(task)
    mine = Submission.objects.get(labeler=labeler)
    with pytest.raises(Conflict, match="Lena Labeler has handed in another"):
        settle(task, reviewer, seen={name: each for name, each in before.items() if name != str(mine.uuid)})
    reviews.review(submission=mine, revision=1, verdict="accepted", by=make_user("r2@example.org", "reviewer"))
    with pytest.raises(Conflict, match="decided on the ranking of Lena"):
        settle(task, reviewer, seen=before)
    revise(mine, tiers=mine.current.tiers[::-1])
    with pytest.raises(Conflict, match="Lena Labeler has revised"):
        settle(task, reviewer, seen=before)
    settle(task, reviewer)


def test_who_may_not(task, researcher, labeler, reviewer):
    with pytest.raises(Forbidden):
        settle(task, researcher)
    labeler.grant("reviewer")
    with pytest.raises(Forbidden, match="yourself"):
        settle(task, labeler)
    with pytest.raises(Invalid, match="no ranking"):
        demonstration = make_demonstration_batch(prompts=1).tasks.get()
        adjudications.adjudicate(task=demonstration, tiers=[], seen={}, key=uuid.uuid4(), by=reviewer)


# ---- the pages ------------------------------------------------------------------------------------------------------


def test_the_list_begins_with_the_most_disagreement(reviewer_client, reviewer, task, labeler, labeler2):
    same, apart, alone = make_ranking_batch("more", prompts=3, k=3, overlap=2).tasks.all()
    for one in (same, apart):
        ids = response_ids(one)
        submit(one, labeler, tiers=[[i] for i in ids])
        submit(one, labeler2, tiers=[[i] for i in (ids if one == same else ids[::-1])])
    submit(alone, labeler)
    priorities.refresh_some()
    # On the task of the fixture: 1 of 3 comparisons differs, 3, and 3: 7 of 9.
    assert task.disagreement == pytest.approx(7 / 9)
    url = reverse("adjudications")
    assert list(reviewer_client.get(url).context["page"]) == [apart, task]
    assert "78 %" in reviewer_client.get(url).text
    settle(task, reviewer)
    assert list(reviewer_client.get(url).context["page"]) == [apart]
    assert list(reviewer_client.get(url + "?settled=1").context["page"]) == [task]


def test_side_by_side_under_letters_of_the_pages_own(reviewer_client, task):
    ModelVersion.objects.filter(name="m0").update(name="secret-policy")
    page = reviewer_client.get(reverse("task_adjudication", args=[task.uuid]))
    assert [side.tiers for side in page.context["sides"]] == [
        [["A"], ["B"], ["C"]], [["A", "B"], ["C"]], [["C"], ["B"], ["A"]]]  # fmt: skip
    assert "B is terse" in page.text
    assert "secret-policy" not in page.text
    # Most put A and B before C: the third is against most on both; on A and B the three say three things.
    minority = [[cell.minority for cell in side.cells] for side in page.context["sides"]]
    assert minority == [[0, 0, 0], [0, 0, 0], [1, 1, 2]]
    contests = [(c.first, c.second, c.better, c.tied, c.worse) for c in page.context["contests"]]
    assert contests == [("A", "B", 1, 1, 1), ("A", "C", 2, 0, 1), ("B", "C", 2, 0, 1)]


def test_begun_with_somebodys_ranking(reviewer_client, task, labeler2):
    start = Submission.objects.get(labeler=labeler2).uuid
    page = reviewer_client.get(reverse("task_adjudication", args=[task.uuid]) + f"?start={start}")
    assert [row["place"] for row in page.context["responses"]] == ["1", "1", "2"]


def test_settled_from_the_page(reviewer_client, task, third):
    page = reviewer_client.get(reverse("task_adjudication", args=[task.uuid]))
    wrong = Submission.objects.get(labeler=third)
    data = {
        "place-A": "1", "place-B": "3", "place-C": "3", "comment": "A alone is right.", "return": str(wrong.uuid),
        "return_comment": "", "key": str(page.context["key"]), "seen": [side.seen for side in page.context["sides"]],
    }  # fmt: skip
    url = reverse("task_adjudicate", args=[task.uuid])
    refused = reviewer_client.post(url, data)
    assert refused.status_code == 422
    assert "A alone is right.</textarea>" in refused.text
    assert [row["place"] for row in refused.context["responses"]] == ["1", "3", "3"]
    assert f'value="{wrong.uuid}" checked' in " ".join(refused.text.split())
    data["return_comment"] = "Why is C best?"
    for _ in range(2):  # a double click
        assert reviewer_client.post(url, data)["Location"] == reverse("adjudications")
    a, b, c = adjudications.response_ids(task)
    assert Adjudication.objects.get().tiers == [[a], [b, c]]
    assert Review.objects.get().comment == "Why is C best?"
    data |= {"key": str(uuid.uuid4())}
    now = reviewer_client.get(reverse("task_adjudication", args=[task.uuid])).context
    fresh = data | {"return": [], "seen": [side.seen for side in now["sides"]], "comment": "On other grounds."}
    late = reviewer_client.post(url, fresh | {"settled": "0"})  # opened before it was settled
    assert late.status_code == 409 and "has settled this since you opened it" in late.text
    assert "On other grounds." in late.text and Adjudication.objects.count() == 1
    assert reviewer_client.post(url, fresh | {"settled": str(late.context["settled"])}).status_code == 302
    assert reviewer_client.post(url, data).status_code == 409  # the return is a decision since
    for wrong_seen in ("x", f"{wrong.uuid}:1", f"{wrong.uuid}:a:0"):
        assert reviewer_client.post(url, data | {"seen": wrong_seen}).status_code == 422
    assert "Settled before" in reviewer_client.get(reverse("task_adjudication", args=[task.uuid])).text


def test_researchers_read_and_those_who_rank_it_do_not(researcher_client, client_for, task, reviewer, labeler):
    url = reverse("task_adjudication", args=[task.uuid])
    assert "Settle it" not in researcher_client.get(url).text
    labeler.grant("reviewer")
    assert client_for(labeler).get(url).status_code == 403
    slot = task.slots.create(seat=9, batch=task.batch, kind="ranking")
    slot.lease(reviewer, timezone.now())
    slot.save()
    assert client_for(reviewer).get(url).status_code == 403
    demonstration = make_demonstration_batch(prompts=1).tasks.get()
    assert researcher_client.get(reverse("task_adjudication", args=[demonstration.uuid])).status_code == 404


def test_pages_take_a_constant_number_of_queries(reviewer_client, task, labeler, labeler2, make_user):
    def count(url):
        with CaptureQueriesContext(connection) as queries:
            assert reviewer_client.get(url).status_code == 200
        return len(queries)

    urls = [reverse("adjudications"), reverse("task_adjudication", args=[task.uuid])]
    before = [count(url) for url in urls]
    for one in make_ranking_batch("more", prompts=3, k=3, overlap=2).tasks.all():
        submit(one, labeler)
        submit(one, labeler2, tiers=[[i] for i in response_ids(one)[::-1]])
    for n in range(3):
        submit(task, make_user(f"more{n}@example.org", "labeler"))
    priorities.refresh_some()
    assert [count(url) for url in urls] == before
