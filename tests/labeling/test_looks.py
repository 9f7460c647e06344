"""Labelers who are reviewers or researchers too: what they were shown answered is never theirs to label afterwards."""

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse

from labeling.actions import gold, numbers, tasks, tokens
from labeling.models import Batch, DraftCopy, Look, Revision, Slot, Submission
from tests import builders
from tests.labeling.rows import make_ranking_batch, response_ids, submit
from tests.labeling.test_submissions import ranking_fields, submit_url

pytestmark = pytest.mark.django_db


@pytest.fixture
def rita(labeler2):
    """A labeler, and a reviewer and researcher as well."""
    labeler2.grant("reviewer")
    labeler2.grant("researcher")
    return labeler2


@pytest.fixture
def task(labeler):
    """Ranked by one labeler, with a seat for another."""
    made = make_ranking_batch(k=3, overlap=2).tasks.get()
    submit(made, labeler)
    return made


def api(person) -> Client:
    _, secret = tokens.create(user=person, name="t", scopes=["label", "read"])
    return Client(headers={"Authorization": f"Bearer {secret}"})


def ways(task) -> dict[str, str]:
    """Every address that shows others' answers to one task, or to some."""
    first, models = task.submissions.first(), [r.response.model_version_id for r in task.task_responses.order_by("pk")]
    return {
        "page": reverse("review", args=[first.uuid]),
        "api": f"/api/v1/submissions/{first.uuid}/",
        "adjudication": reverse("task_adjudication", args=[task.uuid]),
        "gold": reverse("gold_new", args=[task.uuid]),
        "judgments": reverse("agreement_rows") + "?measure=quality",
        "policies": reverse("policy_pair", args=models[:2]),
    }


@pytest.mark.parametrize("way", ["page", "api", "adjudication", "gold", "judgments", "policies"])
def test_who_was_shown_others_answers_is_given_the_task_no_more(client_for, rita, task, make_user, way):
    submit(task, make_user("third@example.org", "labeler"), is_surplus=True)
    client, caller = client_for(rita), api(rita)
    client.post(reverse("task_next"))
    assert Slot.objects.get(labeler=rita).status == "leased"
    address, name = ways(task)[way], task.submissions.first().labeler.email
    held = (caller if way == "api" else client).get(address)
    assert held.status_code == 403 or name not in held.text, "while they work on it"
    assert not Look.objects.exists()

    fields = ranking_fields(task, rita) | {"comment": "typed before"}
    client.post(reverse("task_release", args=[task.uuid]), fields)
    read = (caller if way == "api" else client).get(address)
    assert read.status_code == 200 and Look.objects.get().task == task
    if way in ("page", "api"):
        refused = client.post(submit_url(task), fields)
        assert refused.status_code == 409 and "shown others" in refused.text and "typed before" in refused.text
        answer = builders.ranking_answer([response_ids(task)], comment="typed there")
        sent = {"submit_key": fields["submit_key"], "answer": answer}
        over_api = caller.post(f"/api/v1/tasks/{task.uuid}/submit/", sent, content_type="application/json")
        assert over_api.status_code == 409 and DraftCopy.objects.filter(content__comment="typed there").exists()
    assert not Submission.objects.filter(labeler=rita).exists()
    client.post(reverse("task_next"))
    assert caller.post("/api/v1/tasks/next/", {}, content_type="application/json").status_code == 204
    assert not Slot.objects.filter(labeler=rita).exists() and task.slots.filter(status="open").count() == 1


def test_what_they_handed_in_stays_once_they_have_read_others(client_for, rita, task):
    client = client_for(rita)
    client.post(reverse("task_next"))
    fields = ranking_fields(task, rita)
    client.post(submit_url(task), fields)
    mine = Submission.objects.get(labeler=rita)
    own, again = reverse("submission", args=[mine.uuid]), reverse("submission_reopen", args=[mine.uuid])
    assert "Change it" in client.get(own).text
    client.post(again)
    assert client.get(reverse("review", args=[mine.uuid])).status_code == 200
    assert client.post(submit_url(task), fields).status_code == 302, "the same again is still the same"
    later = ranking_fields(task, rita) | {"base": "0", "revision": "1", "comment": "on second thoughts"}
    later |= {"place-A": "3", "place-C": "1"}
    refused = client.post(submit_url(task), later)
    assert refused.url == own and Revision.objects.filter(submission=mine).count() == 1
    shown = client.get(own).text
    assert "stays as you handed it in" in shown and "on second thoughts" in shown and "Change it" not in shown
    assert client.post(again).status_code == 409


def test_reading_ones_own_alone_is_no_look_and_a_look_is_kept(client_for, rita):
    task = make_ranking_batch(k=3, overlap=2).tasks.get()
    page = reverse("review", args=[submit(task, rita).uuid])
    assert client_for(rita).get(page).status_code == 200 and not Look.objects.exists()
    Look.objects.create(task=task, labeler=rita)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM labeling_look")


def test_gold_is_not_mixed_in_for_who_may_read_it(client_for, labeler, rita, monkeypatch):
    monkeypatch.setattr(gold.DICE, "random", lambda: 0.0)
    batch = make_ranking_batch(prompts=3, k=2, overlap=2)
    Batch.objects.update(gold_percent=50)
    known = batch.tasks.first()
    gold.make(task=known, tiers=[[name] for name in response_ids(known)], explanation="So.", by=None)
    assert tasks.claim_next(by=labeler).task == known
    numbers.measure()
    client = client_for(rita)
    assert known.gold_answers.get().explanation in client.get(reverse("gold")).text
    client.post(reverse("task_next"))
    assert Slot.objects.get(labeler=rita).task != known
