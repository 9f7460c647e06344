"""Eligibility: batches that ask for a language or for skills are only for labelers who have them."""

import pytest
from django.urls import reverse

from labeling.actions import batches, people, submissions, tasks
from labeling.errors import Forbidden, Invalid
from labeling.models import Batch, Prompt, Slot, User
from tests import builders
from tests.labeling.test_api import assert_problem, call
from tests.labeling.test_api_tasks import api  # noqa: F401 a fixture

pytestmark = pytest.mark.django_db


@pytest.fixture
def task():
    return builders.task(builders.batch(language="de", skills=["law", "tax"]), builders.prompt())


@pytest.fixture
def enable(labeler, admin_user):
    """enable("de", "law"): the labeler's languages (two letters) and skills are these."""

    def change(*names: str) -> User:
        people.set_languages(user=labeler, codes=[name for name in names if len(name) == 2], by=labeler)
        people.set_skills(user=labeler, skills=[name for name in names if len(name) > 2], by=admin_user)
        return User.objects.get(pk=labeler.pk)

    return change


def test_only_who_has_all_of_it_is_given_a_seat(task, enable):
    for lacking in ([], ["de", "law"], ["en", "law", "tax"]):
        person = enable(*lacking)
        assert tasks.claim_next(by=person) is None
        assert not Slot.objects.claimable_by(person).exists()
    person = enable("de", "en", "law", "medicine", "tax")
    assert Slot.objects.claimable_by(person).exists()
    assert tasks.claim_next(by=person).task == task


def test_what_changes_while_they_hold_a_seat_takes_it_from_nobody(task, enable):
    able = ("de", "law", "tax")
    slot = tasks.claim_next(by=enable(*able))
    unable = enable("de")
    assert tasks.claim_next(by=unable).pk == slot.pk
    assert tasks.renew(task=task, by=unable) == "held"
    Slot.objects.update(lease_expires_at="2000-01-01T00:00:00Z")
    tasks.return_expired()
    assert tasks.claim_next(by=unable) is None  # once it is gone, it is for those who may
    assert tasks.claim_next(by=enable(*able)).pk == slot.pk
    batches.edit(batch=task.batch, instructions="", priority=0, language="", skills=["Piano "], by=None)
    made = submissions.submit(task=task, submit_key=task.uuid, answer={"text": "x"}, by=unable)
    assert not made.is_surplus
    assert Batch.objects.get().skills == ["piano"]


def test_a_labeler_sees_why_nothing_is_left_and_names_their_languages(task, labeler_client, enable):
    enable("en", "tax")
    page = labeler_client.get(reverse("tasks")).text
    assert "a language that you have not named as yours: Deutsch." in page
    assert "a skill that the team has not given you: law." in page
    assert labeler_client.post(reverse("task_next"), {"batch": task.batch.name}).status_code == 422, "as if it were not"
    url = reverse("own_languages")
    assert 'value="en"' in labeler_client.get(url).text
    assert labeler_client.post(url, {"languages": ["de", "xx"]}).status_code == 422
    assert labeler_client.post(url, {"languages": ["de", "en"]}).url == reverse("tasks")
    page = labeler_client.get(reverse("tasks")).text
    assert "not named" not in page and "Your languages: Deutsch, English" in " ".join(page.split())
    enable("de", "law", "tax")
    page = labeler_client.get(reverse("tasks")).text
    assert task.batch.name in page and "has not given you" not in page
    assert labeler_client.post(url, {}).status_code == 302  # none of them: a choice too
    assert not enable().languages


def test_languages_are_ones_own(client, client_for, labeler, reviewer):
    url = reverse("own_languages")
    assert client.get(url).status_code == 302 and "login" in client.get(url).url
    assert client_for(reviewer).get(url).status_code == 403
    assert client_for(labeler).put(url).status_code == 405
    with pytest.raises(Forbidden):
        people.set_languages(user=labeler, codes=["de"], by=reviewer)
    with pytest.raises(Forbidden):
        people.set_skills(user=labeler, skills=["law"], by=labeler)


def test_an_admin_says_who_can_what(client_for, admin_user, labeler):
    client, url = client_for(admin_user), reverse("person", args=[labeler.pk])
    sent = {"roles": ["labeler"], "group": "training", "skills": " Tax  law, , medicine,tax law", "languages": ["he"]}
    assert client.post(url, sent).status_code == 302
    labeler.refresh_from_db()
    assert (labeler.skills, labeler.languages) == (["medicine", "tax law"], ["he"])
    refused = client.post(url, sent | {"skills": "x" * 51, "group": "held_out"})
    assert refused.status_code == 422 and "at most 50 characters" in refused.text and "x" * 51 in refused.text
    labeler.refresh_from_db()
    assert (labeler.group, labeler.skills) == ("training", ["medicine", "tax law"]), "nothing changed"
    assert '<option value="tax law">' in client.get(url).text


def test_a_batch_is_ordered_and_changed_with_both(researcher_client):
    for text, language in (("Sag etwas.", "de"), ("Say something.", "en"), ("?", "")):
        builders.prompt(text, language=language)
    order = {"name": "b", "kind": "demonstration", "overlap": 1, "seed": 0, "priority": 0}
    made = researcher_client.post(reverse("batch_new"), order | {"language": "de", "skills": "Law"})
    batch = Batch.objects.get()
    assert made.url == reverse("batch", args=[batch.pk])
    assert [each.prompt for each in batch.tasks.all()] == [Prompt.objects.get(language="de")]
    assert (batch.language, batch.skills, batch.query["skills"]) == ("de", ["law"], ["law"])
    page = researcher_client.get(made.url).text
    assert "for who knows de" in page and "skills: law" in page
    url = reverse("batch_edit", args=[batch.pk])
    assert researcher_client.post(url, {"priority": 0, "language": "xx"}).status_code == 422
    assert researcher_client.post(url, {"priority": 0, "language": "", "skills": "tax"}).status_code == 302
    batch.refresh_from_db()
    assert (batch.language, batch.skills, batch.query["language"]) == ("", ["tax"], "de"), "the order stays as it was"
    with pytest.raises(Invalid):
        batches.create_batch(name="c", kind="demonstration", language="xx", by=None)


def test_programs_set_both(api, admin_user, researcher, labeler, task):  # noqa: F811
    admin, url = api(admin_user, "admin"), f"/api/v1/people/{labeler.pk}/"
    shown = call(admin, "PATCH", url, {"skills": ["Tax", "law"], "languages": ["de"]})
    assert (shown.status_code, shown.json()["skills"], shown.json()["languages"]) == (200, ["law", "tax"], ["de"])
    assert call(admin, "PATCH", url, {"languages": []}).json()["skills"] == ["law", "tax"]
    assert_problem(call(admin, "PATCH", url, {"languages": ["xx"]}), 422)
    assert_problem(call(admin, "PATCH", url, {"skills": ["a,b"]}), 422)
    assert_problem(call(admin, "PATCH", "/api/v1/people/999999/", {}), 404)
    assert_problem(call(api(researcher, "admin"), "PATCH", url, {}), 403)
    mine = api(labeler)
    assert_problem(call(mine, "POST", "/api/v1/tasks/next/", {"batch": task.batch.name}), 422)
    assert call(mine, "POST", "/api/v1/tasks/next/", {}).status_code == 204
    call(admin, "PATCH", url, {"languages": ["de"]})
    assert call(mine, "POST", "/api/v1/tasks/next/", {}).status_code == 200
    builders.prompt("Sag etwas.", language="de")
    order = {"name": "b", "kind": "demonstration", "language": "de", "skills": ["Law"]}
    made = call(api(researcher, "import"), "POST", "/api/v1/batches/", order)
    assert (made.status_code, made.json()["language"], made.json()["skills"]) == (201, "de", ["law"])
