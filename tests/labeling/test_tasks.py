"""Tasks: claiming, leases, drafts, skipping — the actions under real concurrency, the pages over HTTP."""

import html
import re
import threading
import uuid
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from labeling.actions import drafts
from labeling.actions import submissions as submission_actions
from labeling.actions import tasks as actions
from labeling.errors import Forbidden, Invalid, SavedElsewhere
from labeling.models import Author, Draft, DraftCopy, Skip, Slot, Submission
from labeling.views.drafts import owner_key
from tests import builders
from tests.conftest import PASSWORD
from tests.labeling import rows

pytestmark = pytest.mark.django_db

TEXTS = {"gpt": "Apple", "sft": "Pear", "ppo": "Apple"}  # two are identical


@pytest.fixture
def demonstration():
    return builders.task(builders.batch(), builders.prompt())


@pytest.fixture
def ranking():
    return builders.task(builders.batch("ranking", name="ranks", k=3), builders.prompt("Rank fruit."), TEXTS)


def claimed(task, labeler):
    """The task, given to the labeler."""
    slot = actions.claim_next(kind=task.kind, by=labeler)
    assert slot.task_id == task.id
    return task


def let_lease_expire(task, labeler):
    past = timezone.now() - timedelta(minutes=1)
    assert Slot.objects.filter(task=task, labeler=labeler).update(lease_expires_at=past) == 1


def draft_of(task, labeler) -> Draft:
    return Draft.objects.get(task=task, labeler=labeler)


def test_next_and_skip_go_on_with_what_was_chosen(labeler, labeler_client):
    """A newcomer to demonstrations who has begun with rankings is not led to the instructions for demonstrations."""
    rows.make_demonstration_batch("first", prompts=3, priority=9)
    rows.make_ranking_batch("ranks & more", prompts=2, k=2)
    rows.make_ranking_batch("further", prompts=2, k=2, priority=5)
    for chosen, batch in (({"kind": "ranking"}, "further"), ({"batch": "ranks & more"}, "ranks & more")):
        address = labeler_client.post(reverse("task_next"), chosen).url
        for step in ("submit", "skip"):
            page = labeler_client.get(address)
            task = page.context["task"]
            assert task.batch.name == batch
            asked = {"submit": r'action="([^"]*/submit[^"]*)"', "skip": r'formaction="([^"]*/skip[^"]*)"'}[step]
            to = html.unescape(re.search(asked, page.text)[1])
            said = {"place-A": "1", "place-B": "2", "quality-A": "6", "quality-B": "2", "reason": "unclear"}
            sent = labeler_client.post(to, said | {"submit_key": str(uuid.uuid4()), "next": "1"})
            assert sent.status_code == 302, sent.text
            address = sent.url
            if step == "submit":
                assert labeler_client.get(address).context["task"].batch.name == batch
        if "batch" in chosen:  # two tasks, both done with
            assert address == reverse("tasks")
            assert "Nothing is left of what you chose" in labeler_client.get(address).text
    assert Submission.objects.filter(labeler=labeler).count() == Skip.objects.filter(labeler=labeler).count() == 2


# Claiming ------------------------------------------------------------------------------------------------------


def test_claim_leases_a_seat_and_makes_a_draft(ranking, labeler, settings):
    slot = actions.claim_next(by=labeler)
    assert (slot.task, slot.labeler, slot.status) == (ranking, labeler, "leased")
    assert slot.lease_expires_at - slot.leased_at == timedelta(minutes=settings.LEASE_MINUTES)
    uuids = {str(u) for u in ranking.task_responses.values_list("response__uuid", flat=True)}
    assert set(draft_of(ranking, labeler).shown_order) == uuids


def test_claiming_again_gives_the_same_seat(demonstration, labeler):
    builders.task(demonstration.batch, builders.prompt("another"))
    assert actions.claim_next(by=labeler) == actions.claim_next(by=labeler)


def test_claim_takes_priority_then_seat_then_age(labeler, labeler2):
    low = builders.batch(name="low", overlap=2)
    tasks = [builders.task(low, builders.prompt(f"low {i}")) for i in range(2)]
    urgent = builders.task(builders.batch("ranking", name="urgent", priority=5), builders.prompt("urgent"), TEXTS)
    order = []
    for person in (labeler, labeler2, labeler, labeler2, labeler):
        slot = actions.claim_next(by=person)
        order.append((slot.task, slot.seat))
        submission = {"text": "x"} if slot.kind == "demonstration" else answer(slot.task, person)
        submission_actions.submit(task=slot.task, submit_key=uuid.uuid4(), answer=submission, by=person)
    assert order == [(urgent, 1), (tasks[0], 1), (tasks[1], 1), (tasks[1], 2), (tasks[0], 2)]


def test_claim_compares_walks_by_what_may_really_be_taken(labeler):
    """The head of the labeler's own group is a task they have done: its lower-priority rest must not win."""
    own = builders.batch(name="own", group="training", priority=5, overlap=2)
    done = builders.task(own, builders.prompt("done"))
    submission_actions.submit(task=claimed(done, labeler), submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler)
    builders.task(builders.batch(name="own, later", group="training"), builders.prompt("later"))
    middle = builders.task(builders.batch(name="for all", priority=3), builders.prompt("middle"))
    assert actions.claim_next(by=labeler).task == middle


@pytest.mark.parametrize("change", ["paused", "other group", "own prompt", "skipped", "submitted"])
def test_claim_leaves_out_what_is_not_for_them(change, demonstration, labeler, labeler2):
    if change == "paused":
        demonstration.batch.status = "paused"
        demonstration.batch.save()
    elif change == "other group":
        demonstration.batch.group = "held_out"
        demonstration.batch.save()
    elif change == "own prompt":
        author = Author.objects.create(key="me", split="train", user=labeler)
        mine = builders.prompt("mine", author=author)
        demonstration.prompt = mine
        demonstration.save()
    elif change == "skipped":
        actions.skip(task=claimed(demonstration, labeler), reason="unclear", by=labeler)
    elif change == "submitted":
        claimed(demonstration, labeler)
        submission_actions.submit(task=demonstration, submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler)
        Slot.objects.create(task=demonstration, seat=9, batch=demonstration.batch, kind="demonstration")
    assert actions.claim_next(by=labeler) is None


def test_claim_narrows_to_kind_and_batch(demonstration, ranking, labeler, labeler2):
    assert actions.claim_next(kind="ranking", by=labeler).task == ranking
    assert actions.claim_next(batch_id=demonstration.batch_id, by=labeler2).task == demonstration


def test_claim_is_for_labelers(demonstration, reviewer, admin_user):
    for person in (reviewer, admin_user):
        with pytest.raises(Forbidden):
            actions.claim_next(by=person)


def test_expired_seat_that_still_bears_the_name_is_kept(demonstration, labeler):
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    slot = actions.claim_next(by=labeler)
    assert slot.task == demonstration
    assert slot.lease_expires_at > timezone.now()


def test_expired_seat_goes_to_another_but_comes_back_while_free(demonstration, labeler, labeler2):
    builders.task(demonstration.batch, builders.prompt("another"))
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    assert actions.return_expired() == 1
    assert actions.claim_next(by=labeler).task == demonstration  # still free: back to whoever began it
    let_lease_expire(demonstration, labeler)
    assert actions.claim_next(by=labeler2).task == demonstration  # given back in the claim itself
    assert actions.claim_next(by=labeler).task != demonstration


def test_return_expired_is_bounded(labeler, labeler2):
    batch = builders.batch()
    past = timezone.now() - timedelta(hours=1)
    for i in range(5):
        builders.task(batch, builders.prompt(f"p{i}"))
    Slot.objects.update(status="leased", labeler=labeler2, leased_at=past, lease_expires_at=past)
    assert [actions.return_expired(limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_task_that_was_put_back_comes_last(demonstration, labeler):
    another = builders.task(demonstration.batch, builders.prompt("another"))
    actions.release(task=claimed(demonstration, labeler), by=labeler)
    actions.release(task=demonstration, by=labeler)
    assert Slot.objects.get(task=demonstration).status == "open"
    assert actions.claim_next(by=labeler).task == another
    submission_actions.submit(task=another, submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler)
    assert actions.claim_next(by=labeler).task == demonstration


# Real transactions ---------------------------------------------------------------------------------------------


def together(*calls):
    """Run the calls at once, each in a thread with a connection of its own; what they returned or raised."""
    results, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(index, call):
        try:
            barrier.wait(10)
            results[index] = call()
        except Exception as error:
            results[index] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    return results


@pytest.mark.django_db(transaction=True)
def test_many_labelers_claiming_at_once_get_different_seats(make_user):
    batch = builders.batch(overlap=2)
    for i in range(4):
        builders.task(batch, builders.prompt(f"p{i}"))
    people = [make_user(f"l{i}@example.org", "labeler") for i in range(10)]
    slots = together(*(lambda p=p: actions.claim_next(by=p) for p in people))
    taken = [slot.pk for slot in slots if slot is not None]
    assert len(set(taken)) == len(taken) == 8  # every seat once; two labelers find nothing left
    assert Slot.objects.filter(status="leased").count() == 8


@pytest.mark.django_db(transaction=True)
def test_one_labeler_claiming_twice_at_once_gets_one_seat(make_user):
    batch = builders.batch()
    for i in range(4):
        builders.task(batch, builders.prompt(f"p{i}"))
    person = make_user("l@example.org", "labeler")
    slots = together(*(lambda: actions.claim_next(by=person) for _ in range(4)))
    assert len({slot.pk for slot in slots}) == 1
    assert Slot.objects.filter(status="leased").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_claim_does_not_wait_for_a_locked_seat(make_user):
    batch = builders.batch()
    first, second = (builders.task(batch, builders.prompt(f"p{i}")) for i in range(2))
    person = make_user("l@example.org", "labeler")
    with transaction.atomic():
        Slot.objects.select_for_update().get(task=first)
        [slot] = together(lambda: actions.claim_next(by=person))
    assert slot.task == second


# Working -------------------------------------------------------------------------------------------------------


def save(task, by, version, base=0, editor="tab 1", revision=0, **content):
    seen = drafts.Seen(base=base, version=version, revision=revision, editor=editor)
    return drafts.save_draft(task=task, content=content, seen=seen, by=by)


def test_draft_is_kept_and_renews_the_lease(demonstration, labeler):
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    draft, seat = save(demonstration, labeler, 1, text="half")
    assert (draft.version, seat) == (1, "held")
    assert draft_of(demonstration, labeler).content["text"] == "half"
    assert Slot.objects.get(task=demonstration).lease_expires_at > timezone.now()


def test_an_older_save_never_overwrites_a_newer_one(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 2, text="newer")
    draft, _seat = save(demonstration, labeler, 1, text="older, arriving late")
    assert (draft.version, draft.content["text"]) == (2, "newer")


def test_another_tab_is_refused_until_it_says_so(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="tab 1")
    with pytest.raises(SavedElsewhere):
        save(demonstration, labeler, 5, base=0, editor="tab 2", text="tab 2")
    assert draft_of(demonstration, labeler).content["text"] == "tab 1"
    save(demonstration, labeler, 2, base=1, editor="tab 2", text="tab 2 on purpose")
    assert draft_of(demonstration, labeler).content["text"] == "tab 2 on purpose"


def test_the_same_answer_again_is_no_new_version(demonstration, labeler):
    """A page that was loaded between two equal saves must not be told that there is other work."""
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="half")
    save(demonstration, labeler, 2, text="half")
    draft, _seat = save(demonstration, labeler, 3, base=1, editor="loaded between", text="half, and more")
    assert (draft.version, draft.content["text"]) == (3, "half, and more")


def test_a_page_that_goes_on_with_anothers_work_says_so(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 5, text="arrived, but the page never heard")
    found = drafts.Seen(base=0, version=6, revision=0, editor="tab 2", takes=(("tab 1", 5),))
    draft, _seat = drafts.save_draft(task=demonstration, content={"text": "found here"}, seen=found, by=labeler)
    assert draft.content["text"] == "found here"
    with pytest.raises(SavedElsewhere):
        save(demonstration, labeler, 9, text="the first page was not closed after all")


def test_work_that_its_page_has_gone_on_with_is_not_taken_over(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 3, text="saved since it was found")
    found = drafts.Seen(base=0, version=2, revision=0, editor="tab 2", takes=(("tab 1", 2),))
    with pytest.raises(SavedElsewhere):
        drafts.save_draft(task=demonstration, content={"text": "found"}, seen=found, by=labeler)
    assert draft_of(demonstration, labeler).content["text"] == "saved since it was found"
    assert DraftCopy.objects.get().content["text"] == "found"


def test_another_pages_lower_number_is_no_reason_to_drop_its_words(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 6, text="six saves of tab 1")
    found = drafts.Seen(base=0, version=2, revision=0, editor="tab 2", takes=(("tab 1", 6),))
    draft, _seat = drafts.save_draft(task=demonstration, content={"text": "of tab 2"}, seen=found, by=labeler)
    assert (draft.content["text"], draft.version) == ("of tab 2", 7)


def test_what_is_refused_or_replaced_by_choice_is_kept_as_a_copy(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="tab 1")
    for _ in range(2):  # once, however often it is sent
        with pytest.raises(SavedElsewhere):
            save(demonstration, labeler, 1, editor="tab 2", text="tab 2")
    knowing = drafts.Seen(base=1, version=2, revision=0, editor="tab 2", knowingly=True)
    drafts.save_draft(task=demonstration, content={"text": "tab 2, on purpose"}, seen=knowing, by=labeler)
    assert [copy.content["text"] for copy in DraftCopy.objects.order_by("pk")] == ["tab 2", "tab 1"]
    draft = drafts.use_copy(copy=DraftCopy.objects.get(content__text="tab 1"), by=labeler)
    assert (draft.content["text"], draft.version) == ("tab 1", 3)
    assert DraftCopy.objects.filter(content__text="tab 2, on purpose").exists()


def test_a_copy_is_its_labelers_and_is_not_made_of_nothing(demonstration, labeler, labeler2):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="mine")
    assert drafts.set_aside(task=demonstration, content={"text": ""}, by=labeler) is None
    assert drafts.set_aside(task=demonstration, content={"text": "mine"}, by=labeler) is None
    copy = drafts.set_aside(task=demonstration, content={"text": "other"}, by=labeler)
    with pytest.raises(Forbidden):
        drafts.set_aside(task=demonstration, content={"text": "x"}, by=labeler2)
    with pytest.raises(Forbidden):
        drafts.use_copy(copy=copy, by=labeler2)
    with pytest.raises(IntegrityError, match="kept as they were"), transaction.atomic():
        copy.delete()


def test_pages_without_a_script_are_never_taken_for_one_page(demonstration, labeler):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, editor="", text="first page")
    with pytest.raises(SavedElsewhere):
        save(demonstration, labeler, 2, editor="", text="second page, opened before")


def test_a_page_from_before_the_submit_never_overwrites_a_correction(demonstration, labeler):
    """The correction's draft counts its saves anew, so its version alone says nothing to an older page."""
    claimed(demonstration, labeler)
    submission = submission_actions.submit(
        task=demonstration, submit_key=uuid.uuid4(), answer={"text": "done"}, by=labeler
    )
    submission_actions.reopen(submission=submission, by=labeler)
    save(demonstration, labeler, 1, editor="tab 1", revision=1, text="a correction")
    with pytest.raises(SavedElsewhere):
        save(demonstration, labeler, 2, base=1, editor="tab 2", revision=0, text="from before")
    assert draft_of(demonstration, labeler).content["text"] == "a correction"


def test_a_draft_is_kept_after_the_seat_is_lost(demonstration, labeler, labeler2):
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    claimed(demonstration, labeler2)
    _draft, seat = save(demonstration, labeler, 1, text="late")
    assert (seat, draft_of(demonstration, labeler).content["text"]) == ("lost", "late")
    assert Slot.objects.get(task=demonstration).labeler == labeler2
    assert actions.renew(task=demonstration, by=labeler) == "lost"


def test_a_late_save_after_the_submit_is_kept_only_if_it_differs(demonstration, labeler):
    claimed(demonstration, labeler)
    submission_actions.submit(task=demonstration, submit_key=uuid.uuid4(), answer={"text": "done"}, by=labeler)
    assert save(demonstration, labeler, 3, text="done")[1] == "submitted"
    assert not Draft.objects.exists()
    save(demonstration, labeler, 4, text="done, and more")
    assert draft_of(demonstration, labeler).content["text"] == "done, and more"


def test_time_worked_cannot_exceed_time_passed(demonstration, labeler):
    claimed(demonstration, labeler)
    Draft.objects.update(created_at=timezone.now() - timedelta(seconds=100))
    first, second = (drafts.Seen(base=0, version=version, revision=0, editor="e") for version in (1, 2))
    arguments = {"task": demonstration, "content": {}, "by": labeler}
    assert drafts.save_draft(seen=first, active_seconds=40, **arguments)[0].active_seconds == 40
    assert drafts.save_draft(seen=second, active_seconds=9999, **arguments)[0].active_seconds <= 101


def test_nothing_works_on_a_task_that_was_not_given(demonstration, labeler):
    for act in (
        lambda: save(demonstration, labeler, 1, text="x"),
        lambda: actions.renew(task=demonstration, by=labeler),
        lambda: actions.skip(task=demonstration, reason="unclear", by=labeler),
        lambda: submission_actions.submit(
            task=demonstration, submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler
        ),
    ):
        with pytest.raises(Forbidden):
            act()
    assert not (Draft.objects.exists() or Skip.objects.exists() or Submission.objects.exists())


def test_skip_needs_a_reason_and_frees_the_seat(demonstration, labeler):
    claimed(demonstration, labeler)
    for reason, comment in (("", ""), ("bored", ""), ("other", " ")):
        with pytest.raises(Invalid):
            actions.skip(task=demonstration, reason=reason, comment=comment, by=labeler)
    first = actions.skip(task=demonstration, reason="other", comment="because", by=labeler)
    assert actions.skip(task=demonstration, reason="broken", by=labeler) == first
    assert Slot.objects.get(task=demonstration).status == "open"


# Pages ---------------------------------------------------------------------------------------------------------


def answer(task, labeler, **fields) -> dict:
    """A complete ranking in shown order."""
    order = draft_of(task, labeler).shown_order
    texts = {str(u): t for u, t in task.task_responses.values_list("response__uuid", "response__text")}
    groups: dict[str, list[str]] = {}
    for each in order:
        groups.setdefault(texts[each], []).append(each)
    return builders.ranking_answer(list(groups.values()), **fields)


def url(name, task) -> str:
    return reverse(name, args=[task.uuid])


POSTS = ["task_draft", "task_aside", "task_renew", "task_submit", "task_skip", "task_release"]


def test_a_page_of_another_person_changes_nothing(labeler, labeler2, client_for):
    """Two people share a browser: the one's open page must not save or submit as the other."""
    task = builders.task(builders.batch(overlap=2), builders.prompt("Share"))
    for person in (labeler, labeler2):
        claimed(task, person)
    owner = client_for(labeler).get(url("task", task)).context["owner_key"]
    fields = {
        "owner": owner,
        "text": "by the first",
        "version": 1,
        "submit_key": str(uuid.uuid4()),
        "reason": "unclear",
    }
    for name in POSTS:
        refused = client_for(labeler2).post(url(name, task), fields, headers={"Accept": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (409, "other_person"), name
    assert not Submission.objects.exists() and not Skip.objects.exists()
    assert {draft.version for draft in Draft.objects.all()} == {0}
    assert client_for(labeler).post(url("task_draft", task), fields).status_code == 200


def test_copies_are_shown_and_gone_on_with(labeler_client, labeler, labeler2_client, demonstration):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="the draft")
    aside = labeler_client.post(url("task_aside", demonstration), {"text": "found on a computer"}).json()
    assert "kept here" in aside["html"] and f'href="{url("task", demonstration)}#copies"' in aside["html"]
    assert labeler_client.post(url("task_aside", demonstration), {"text": "the draft"}).json()["html"] == ""
    page = labeler_client.get(url("task", demonstration)).text
    assert "Another version of your work" in page and "found on a computer" in page
    address = reverse("task_use_copy", args=[demonstration.uuid, DraftCopy.objects.get().content_sha256])
    assert labeler2_client.post(address).status_code == 404
    assert labeler_client.post(address).url == url("task", demonstration)
    assert draft_of(demonstration, labeler).content["text"] == "found on a computer"
    assert "the draft" in labeler_client.get(url("task", demonstration)).text


def test_work_found_after_the_seat_was_lost_can_be_reached(labeler_client, labeler, labeler2, demonstration):
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    claimed(demonstration, labeler2)
    assert labeler_client.get(url("task", demonstration)).status_code == 302
    labeler_client.post(url("task_aside", demonstration), {"text": "typed in a tunnel"})
    assert "first" in labeler_client.get("/tasks/").text  # the prompt, among what is begun
    assert "typed in a tunnel" in labeler_client.get(url("task", demonstration)).text


def test_put_back_twice_without_a_script_keeps_both_texts(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    for text in ("first part", "first part, second part"):
        draft = draft_of(demonstration, labeler)
        labeler_client.post(url("task_release", demonstration), {"text": text, "base": draft.version, "revision": 0})
        assert draft_of(demonstration, labeler).content["text"] == text


@pytest.mark.parametrize("name", ["task_submit", "task_release", "task_skip"])
def test_what_was_sent_without_a_script_after_the_session_ended_waits_for_the_login(
    client, labeler, labeler2, demonstration, name
):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 1, text="the draft")
    owner = owner_key(demonstration, labeler)
    sent = {"text": "sent too late", "submit_key": str(uuid.uuid4()), "owner": owner, "reason": "unclear"}
    answer = client.post(url(name, demonstration), sent)
    assert answer.url == f"/accounts/login/?next={url('task', demonstration)}"
    client.post(answer.url, {"login": labeler.email, "password": PASSWORD})
    page = client.get(url("task", demonstration))
    assert page.status_code == 200 and page.context["fields"]["text"] == "sent too late"
    assert "You had been logged out" in page.text and not Submission.objects.exists()
    assert client.get(url("task", demonstration)).context["fields"]["text"] == "the draft"  # once


def test_what_another_sent_is_not_shown_to_who_logs_in_next(client, labeler, labeler2):
    task = builders.task(builders.batch(overlap=2), builders.prompt("Share"))
    for person in (labeler, labeler2):
        claimed(task, person)
    client.post(url("task_submit", task), {"text": "private", "owner": owner_key(task, labeler)})
    client.post("/accounts/login/", {"login": labeler2.email, "password": PASSWORD})
    assert "private" not in client.get(url("task", task)).text


def test_handing_in_after_a_skip_takes_the_skip_back(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    labeler_client.post(url("task_skip", demonstration), {"reason": "unclear"})
    saved = labeler_client.post(url("task_draft", demonstration), {"text": "after all", "version": 1})
    assert saved.json()["seat"] == "skipped"
    fields = {"text": "after all", "submit_key": str(uuid.uuid4()), "base": 1, "version": 1}
    assert labeler_client.post(url("task_submit", demonstration), fields).status_code == 302
    assert Submission.objects.count() == 1 and not Skip.objects.exists()


def test_a_save_tells_that_its_page_was_handed_in(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    fields = {"text": "done", "submit_key": str(uuid.uuid4()), "base": 0, "revision": 0}
    labeler_client.post(url("task_submit", demonstration), fields)
    again = labeler_client.post(url("task_draft", demonstration), fields | {"version": 1, "editor": "e"}).json()
    assert again["url"] == "/tasks/" and not Draft.objects.exists()
    changed = labeler_client.post(url("task_draft", demonstration), fields | {"text": "more", "version": 2}).json()
    assert "url" not in changed and Draft.objects.exists()


def test_queue_shows_begun_returned_left_and_done(labeler_client, labeler, demonstration, reviewer):
    from labeling.models import Review

    returned = builders.task(demonstration.batch, builders.prompt("Come back to me"))
    for task in (demonstration, returned):
        submission_actions.submit(
            task=claimed(task, labeler), submit_key=uuid.uuid4(), answer={"text": "x"}, by=labeler
        )
    submission = Submission.objects.get(task=returned)
    Review.objects.create(
        submission=submission, revision=submission.current, verdict="returned", comment="Too short", reviewer=reviewer
    )
    Submission.objects.filter(pk=submission.pk).update(status="returned")
    begun = builders.task(demonstration.batch, builders.prompt("Begun already"))
    save(claimed(begun, labeler), labeler, 1, text="half")
    builders.task(demonstration.batch, builders.prompt("Not seen yet"))
    page = labeler_client.get("/tasks/")
    for text in ("Come back to me", "Too short", "Begun already", "kept for you", "2 tasks done today", "first"):
        assert text in page.text
    assert page.context["left"][0].count == 1


def test_queue_when_all_is_done(labeler_client):
    assert "All done" in labeler_client.get("/tasks/").text


def test_a_batch_that_is_no_number_is_refused(labeler_client, demonstration):
    assert labeler_client.post("/tasks/next", {"batch": "²"}).status_code == 422


def test_next_leads_to_the_task_twice_the_same(labeler_client, demonstration):
    builders.task(demonstration.batch, builders.prompt("another"))
    first, second = labeler_client.post("/tasks/next"), labeler_client.post("/tasks/next")
    assert first.url == second.url == url("task", demonstration)
    assert labeler_client.get(first.url).status_code == 200


def test_next_with_nothing_left_says_so(labeler_client):
    page = labeler_client.post("/tasks/next", follow=True)
    assert "nothing left" in page.text


@pytest.mark.parametrize("field", [{"kind": "nonsense"}, {"batch": "one"}])
def test_next_refuses_nonsense(labeler_client, field):
    assert labeler_client.post("/tasks/next", field).status_code == 422


@pytest.mark.parametrize("name", ["tasks", "history"])
def test_lists_are_for_labelers(name, client, applicant_client, reviewer_client):
    assert client.get(reverse(name)).url.startswith("/accounts/login/")
    assert applicant_client.get(reverse(name)).status_code == 403
    assert reviewer_client.get(reverse(name)).status_code == 403


@pytest.mark.parametrize("name", ["task_next", *POSTS])
def test_posts_answer_for_every_role(name, client, demonstration, labeler, client_for, labeler2, reviewer, admin_user):
    claimed(demonstration, labeler)
    address = reverse(name) if name == "task_next" else url(name, demonstration)
    assert client.post(address).url.startswith("/accounts/login/")
    for person in (reviewer, admin_user):
        assert client_for(person).post(address).status_code == 403
    if name != "task_next":
        assert client_for(labeler2).post(address).status_code == 404  # another's task
        assert client_for(labeler).post(reverse(name, args=[uuid.uuid4()])).status_code == 404
    if name != "task_submit":
        assert client_for(labeler).get(address).status_code == 405


def test_task_page_answers_for_every_role(client, demonstration, labeler, client_for, labeler2, reviewer):
    claimed(demonstration, labeler)
    assert client.get(url("task", demonstration)).url.startswith("/accounts/login/")
    assert client_for(reviewer).get(url("task", demonstration)).status_code == 403
    assert client_for(labeler2).get(url("task", demonstration)).status_code == 404
    assert client_for(labeler).get(reverse("task", args=[uuid.uuid4()])).status_code == 404
    assert client_for(labeler).post(url("task", demonstration)).status_code == 405
    assert client_for(labeler).get(url("task", demonstration)).status_code == 200


def test_demonstration_page_shows_a_conversation_safely(labeler_client, labeler):
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": "<script>alert(1)</script> **bold** [x](javascript:alert(2)) ![i](http://e.org/i.png)",
        },
        {"role": "assistant", "content": "```python\nx = 1\n```"},
        {"role": "user", "content": "Go on"},
    ]
    task = claimed(builders.task(builders.batch(), builders.prompt(messages)), labeler)
    page = labeler_client.get(url("task", task)).text
    assert "<strong>bold</strong>" in page and 'class="language-python"' in page
    assert "&lt;script&gt;" in page and "<script>alert" not in page
    assert 'href="javascript' not in page and '<img src="http' not in page
    assert page.index("Be kind.") < page.index("bold") < page.index("Go on")
    plain = labeler_client.get(url("task", task) + "?plain").text
    assert "**bold**" in plain


def test_ranking_page_names_responses_by_letters_alone(labeler_client, labeler, ranking):
    claimed(ranking, labeler)
    page = labeler_client.get(url("task", ranking)).text
    for response in [each.response for each in ranking.task_responses.select_related("response__model_version")]:
        assert str(response.uuid) not in page
        assert response.model_version.name not in re.sub(r"csrf\S+", "", page)
    assert not re.search(rf'["/=]{ranking.pk}["/]', page)
    assert len(re.findall(r'<article class="card response"', page)) == 2  # the identical two share a card
    assert re.search(r"[ABC] = [BC]</h2>", page)


def test_ranking_page_keeps_its_order(labeler_client, labeler, ranking):
    claimed(ranking, labeler)
    first = draft_of(ranking, labeler).shown_order
    texts = [
        re.findall(r'response-text"[^>]*>\s*<p>(\w+)', labeler_client.get(url("task", ranking)).text) for _ in range(3)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert draft_of(ranking, labeler).shown_order == first


def test_draft_over_http_is_restored_on_reload(labeler_client, labeler, ranking):
    claimed(ranking, labeler)
    letters = [card.letter for card in _cards(ranking, labeler)]
    fields = {
        f"quality-{letters[0]}": "6",
        f"flag-{letters[0]}-hallucination": "no",
        f"place-{letters[1]}": "1",
        "prompt-ambiguous": "yes",
        "comment": "half way",
    }
    saved = labeler_client.post(url("task_draft", ranking), fields | {"version": 1, "base": 0, "editor": "e"})
    assert saved.json()["version"] == 1 and saved.json()["seat"] == "held"
    page = labeler_client.get(url("task", ranking))
    assert page.context["fields"] == fields
    rating = draft_of(ranking, labeler).content["ratings"][_cards(ranking, labeler)[0].uuids[0]]
    assert rating["flags"]["hallucination"] is False and rating["flags"]["opinion"] is None


def _cards(task, labeler):
    from labeling.views.drafts import cards_of as cards

    return cards(task, draft_of(task, labeler).shown_order)


def test_draft_of_another_tab_answers_409(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    save(demonstration, labeler, 3, text="tab 1")
    fields = {"text": "tab 2", "version": 4, "base": 0, "editor": "tab 2"}
    refused = labeler_client.post(url("task_draft", demonstration), fields)
    assert (refused.status_code, refused.json()["version"]) == (409, 3)
    assert draft_of(demonstration, labeler).content["text"] == "tab 1"


@pytest.mark.parametrize("version", ["x", "-1", "9" * 30, "²"])
def test_draft_refuses_nonsense_versions(labeler_client, labeler, demonstration, version):
    claimed(demonstration, labeler)
    assert labeler_client.post(url("task_draft", demonstration), {"version": version}).status_code == 422


def test_draft_survives_odd_text(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    text = "nul \x00, line\r\nend, \u202eturned, 😀 " + "long " * 30_000
    saved = labeler_client.post(url("task_draft", demonstration), {"text": text, "version": 1})
    assert saved.status_code == 200
    kept = draft_of(demonstration, labeler).content["text"]
    assert kept == text.replace("\x00", "").replace("\r\n", "\n")


def test_renew_tells_the_state_of_the_seat(labeler_client, labeler, labeler2, demonstration):
    claimed(demonstration, labeler)
    assert labeler_client.post(url("task_renew", demonstration)).json() == {"seat": "held"}
    let_lease_expire(demonstration, labeler)
    claimed(demonstration, labeler2)
    assert labeler_client.post(url("task_renew", demonstration)).json() == {"seat": "lost"}


def test_page_of_a_lost_seat(labeler_client, labeler, labeler2, demonstration):
    claimed(demonstration, labeler)
    let_lease_expire(demonstration, labeler)
    claimed(demonstration, labeler2)
    gone = labeler_client.get(url("task", demonstration), follow=True)
    assert "gone to someone else" in gone.text  # nothing was begun, so there is nothing to show
    save(demonstration, labeler, 1, text="begun")
    assert "begun" in labeler_client.get(url("task", demonstration)).text


def test_skip_over_http(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    refused = labeler_client.post(url("task_skip", demonstration), {"text": "typed so far"})
    assert refused.status_code == 422 and "typed so far" in refused.text
    long = {"reason": "unclear", "skip_comment": "x" * 10_001}
    refused = labeler_client.post(url("task_skip", demonstration), long)
    assert refused.status_code == 422 and "10001 characters" in refused.text and "x" * 10_001 in refused.text
    assert not Skip.objects.exists()
    fields = {"reason": "unclear", "skip_comment": "which fruit?", "prompt-ambiguous": "yes"}
    for _ in range(2):  # a double click
        assert labeler_client.post(url("task_skip", demonstration), fields).status_code == 302
    skip = Skip.objects.get()
    assert (skip.reason, skip.comment, skip.prompt_flags["ambiguous"]) == ("unclear", "which fruit?", True)
    assert "You skipped this task" in labeler_client.get(url("task", demonstration), follow=True).text


def test_release_over_http_keeps_what_was_typed_without_a_script(labeler_client, labeler, demonstration):
    claimed(demonstration, labeler)
    for _ in range(2):
        assert labeler_client.post(url("task_release", demonstration), {"text": "typed"}).url == "/tasks/"
    assert draft_of(demonstration, labeler).content["text"] == "typed"
    assert Slot.objects.get(task=demonstration).status == "open"
    assert "draft kept" in labeler_client.get("/tasks/").text


def test_pages_carry_nothing_that_a_strict_policy_would_block(labeler_client, labeler, ranking):
    claimed(ranking, labeler)
    for address in ("/tasks/", url("task", ranking), "/history/"):
        page = labeler_client.get(address)
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert not re.search(r'\sstyle="|\son\w+="|<style', page.text)
        assert not re.search(r'<script(?![^>]*(src=|type="application/json"))', page.text)


def test_queries_per_page_do_not_grow(labeler_client, labeler, django_assert_max_num_queries):
    batch = builders.batch("ranking", k=12, overlap=3)
    for i in range(12):
        builders.task(batch, builders.prompt(f"p{i}"), {f"m{j}": f"text {i} {j}" for j in range(12)})
    slot = actions.claim_next(by=labeler)
    labeler_client.get("/tasks/")
    with django_assert_max_num_queries(24):
        labeler_client.get("/tasks/")
    with django_assert_max_num_queries(25):
        labeler_client.get(url("task", slot.task))
