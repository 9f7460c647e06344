"""Instructions: published by version, acknowledged before the next task of their kind, work in hand untouched."""

import uuid

import pytest
from django.db import IntegrityError, transaction
from django.urls import reverse

from labeling.actions import instructions as actions
from labeling.actions import submissions, tasks
from labeling.errors import Conflict, Forbidden, Invalid, NotPrepared
from labeling.models import Acknowledgement, Instructions, InstructionsDraft, Submission
from tests import builders

pytestmark = pytest.mark.django_db


@pytest.fixture
def published(researcher):
    return actions.publish(kind="demonstration", text="Be *kind*.", examples="> Good\n", by=researcher)


@pytest.fixture
def two_tasks():
    batch = builders.batch()
    return [builders.task(batch, builders.prompt(f"Question {n}?")) for n in (1, 2)]


def read_url(kind="demonstration"):
    return reverse("instructions_read", args=[kind])


def acknowledge(client, version, **fields):
    return client.post(
        reverse("instructions_acknowledge", args=["demonstration"]), {"version": version, "read": "on"} | fields
    )


# ---- labelers -------------------------------------------------------------------------------------------------------


def test_without_instructions_tasks_are_given_at_once(two_tasks, labeler):
    assert tasks.claim_next(by=labeler)


def test_the_next_task_waits_for_the_acknowledgement(two_tasks, published, labeler, labeler_client):
    assert "Before your first demonstration" in labeler_client.get("/tasks/").text
    assert labeler_client.post("/tasks/next").url == read_url()
    assert not labeler.slots.exists()
    page = labeler_client.get(read_url())
    assert "<em>kind</em>" in page.text and "Examples" in page.text
    assert acknowledge(labeler_client, "9" * 5000).status_code == 404
    refused = acknowledge(labeler_client, 1, read="")
    assert refused.status_code == 422 and "Tick the box" in refused.text
    for _ in range(2):  # a double click
        assert acknowledge(labeler_client, 1).url == "/tasks/"
    assert Acknowledgement.objects.count() == 1
    assert labeler_client.post("/tasks/next").url.startswith("/tasks/")
    assert "I have read" not in labeler_client.get(read_url()).text


def test_a_kind_without_instructions_is_not_held_back(published, labeler):
    ranking = builders.task(builders.batch("ranking"), builders.prompt("Rank."), {"a": "A", "b": "B", "c": "C"})
    assert tasks.claim_next(by=labeler).task == ranking


def test_work_in_hand_is_finished_first_and_the_next_task_waits(two_tasks, labeler, labeler_client, researcher):
    slot = tasks.claim_next(by=labeler)
    actions.publish(kind="demonstration", text="New rules.", by=researcher)
    assert labeler_client.post("/tasks/next").url == f"/tasks/{slot.task.uuid}/"  # still theirs
    form = {"text": "An answer.", "submit_key": uuid.uuid4(), "next": "1"}
    assert labeler_client.post(f"/tasks/{slot.task.uuid}/submit", form).url == read_url()
    assert Submission.objects.get().current.text == "An answer."


def test_a_draft_whose_seat_ran_out_is_gone_on_with(two_tasks, labeler, researcher):
    slot = tasks.claim_next(by=labeler)
    slot.refresh_from_db()
    slot.free()
    slot.save()
    actions.publish(kind="demonstration", text="New rules.", by=researcher)
    assert tasks.claim_next(by=labeler).task == slot.task


def test_a_new_version_is_acknowledged_again(two_tasks, published, labeler, labeler_client, researcher):
    acknowledge(labeler_client, 1)
    actions.publish(kind="demonstration", text="Be kinder.", note="One word.", by=researcher)
    page = labeler_client.get("/tasks/").text
    assert "The instructions changed" in page
    with pytest.raises(NotPrepared):
        tasks.claim_next(by=labeler)
    assert "One word." in labeler_client.get(read_url()).text
    assert acknowledge(labeler_client, 1).url == read_url()  # a page from before: read the new one
    assert acknowledge(labeler_client, 2).url == "/tasks/"
    assert tasks.claim_next(by=labeler)


def test_skipping_leads_to_new_instructions_too(two_tasks, labeler, labeler_client, researcher):
    slot = tasks.claim_next(by=labeler)
    actions.publish(kind="demonstration", text="New rules.", by=researcher)
    assert labeler_client.post(f"/tasks/{slot.task.uuid}/skip", {"reason": "unclear"}).url == read_url()


def test_the_task_shows_the_instructions_and_the_batchs_own(labeler, labeler_client, published):
    actions.acknowledge(instructions=published, by=labeler)
    builders.task(builders.batch(instructions="In *French*, please."), builders.prompt("Hello?"))
    page = labeler_client.post("/tasks/next", follow=True).text
    assert "<em>French</em>" in page and "<em>kind</em>" in page


def test_simulated_labelers_do_not_read(two_tasks, published, make_user):
    assert tasks.claim_next(by=make_user("sim@example.org", "labeler", is_simulated=True))


def test_who_may_read(client, client_for, published, labeler_client, applicant, reviewer):
    assert client.get(read_url()).url.startswith("/accounts/login/")
    for person in (applicant, reviewer):
        assert client_for(person).get(read_url()).status_code == 403
        assert acknowledge(client_for(person), 1).status_code == 403
    assert labeler_client.get(read_url("ranking")).status_code == 404  # none published
    assert labeler_client.get(read_url("cooking")).status_code == 404
    assert labeler_client.post(read_url()).status_code == 405
    for version in ("7", "x", ""):
        assert acknowledge(labeler_client, version).status_code == 404


# ---- the console ----------------------------------------------------------------------------------------------------


def edit(client, button="publish", seen=0, **fields):
    form = {"text": "Do this.", "examples": "", "note": "", "seen": seen, button: "1"} | fields
    return client.post(reverse("instructions_edit", args=["demonstration"]), form)


def test_the_default_text_waits_to_be_published(client_for, researcher):
    page = client_for(researcher).get(reverse("instructions_edit", args=["demonstration"]))
    assert page.context["form"].initial == actions.default_text("demonstration") | {"note": "", "seen": 0}
    assert edit(client_for(researcher), **actions.default_text("demonstration")).status_code == 302
    assert (Instructions.objects.get().version, Instructions.objects.get().published_by) == (1, researcher)


def test_a_preview_keeps_what_is_written_unseen_by_labelers(client_for, researcher, labeler_client):
    client = client_for(researcher)
    page = client.get(edit(client, "preview", text="Do **this**.").url)
    assert "<strong>this</strong>" in page.text
    assert labeler_client.get(read_url()).status_code == 404
    assert InstructionsDraft.objects.get().text == "Do **this**."
    assert "Do **this**." in client.get(reverse("instructions_edit", args=["demonstration"])).text


def test_what_another_wrote_meanwhile_is_not_overwritten_unknowingly(client_for, researcher, admin_user):
    edit(client_for(admin_user), "preview", text="Theirs.")
    refused = edit(client_for(researcher), text="Mine.")
    assert refused.status_code == 409
    assert "Mine." in refused.text and "Amir Admin" in refused.text
    assert not Instructions.objects.exists()
    assert edit(client_for(researcher), text="Mine.", seen=refused.context["form"].data["seen"]).status_code == 302
    assert Instructions.objects.get().text == "Mine."


def test_an_empty_text_is_refused_and_nothing_is_lost(client_for, researcher):
    refused = edit(client_for(researcher), text=" ", examples="An example.")
    assert refused.status_code == 422
    assert "An example." in refused.text
    assert not Instructions.objects.exists()


def test_publishing_twice_makes_one_version(client_for, researcher):
    client = client_for(researcher)
    for _ in range(2):
        assert edit(client).status_code == 302
    assert Instructions.objects.count() == 1


def test_who_has_acknowledged_is_told(client_for, researcher, published, labeler, labeler2):
    actions.acknowledge(instructions=published, by=labeler)
    assert "1 of 2 labelers" in client_for(researcher).get(reverse("instructions_list")).text
    people = client_for(researcher).get(reverse("instructions", args=["demonstration"])).context["page"]
    assert [(person, person.is_done) for person in people] == [(labeler2, False), (labeler, True)]


def test_older_versions_stay_readable(client_for, reviewer, researcher, published):
    actions.publish(kind="demonstration", text="Second.", by=researcher)
    page = client_for(reviewer).get(reverse("instructions", args=["demonstration"]) + "?version=1")
    assert "<em>kind</em>" in page.text and "replaced" in page.text


def test_pages_ask_the_same_number_of_questions_whatever_the_rows(
    client_for, researcher, published, make_user, django_assert_max_num_queries
):
    for n in range(12):
        actions.acknowledge(instructions=published, by=make_user(f"l{n}@example.org", "labeler"))
    client = client_for(researcher)
    with django_assert_max_num_queries(10):
        client.get(reverse("instructions_list"))
    with django_assert_max_num_queries(10):
        client.get(reverse("instructions", args=["demonstration"]))


# ---- the rows -------------------------------------------------------------------------------------------------------


def test_actions_refuse(researcher, labeler, published):
    with pytest.raises(Forbidden):
        actions.publish(kind="demonstration", text="x", by=labeler)
    with pytest.raises(Invalid):
        actions.publish(kind="cooking", text="x", by=researcher)
    with pytest.raises(Conflict):
        actions.publish(kind="demonstration", text="x", seen=0, by=researcher)


def test_versions_and_acknowledgements_are_kept_as_written(published, labeler):
    done = actions.acknowledge(instructions=published, by=labeler)
    for change in (
        lambda: Instructions.objects.update(text="other"),
        lambda: done.delete(),
        lambda: Acknowledgement.objects.update(user=published.published_by),
        lambda: Instructions.objects.create(kind="demonstration", version=1, text="x"),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()


def test_a_submission_by_the_old_version_stays(two_tasks, labeler, researcher):
    slot = tasks.claim_next(by=labeler)
    actions.publish(kind="demonstration", text="New.", by=researcher)
    assert submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer={"text": "kept"}, by=labeler)
