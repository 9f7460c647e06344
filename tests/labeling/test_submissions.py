"""Submissions: handing in once, surplus, corrections, history — the actions and the pages over HTTP."""

import copy
import threading
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from labeling import answers
from labeling.actions import drafts
from labeling.actions import submissions as actions
from labeling.actions import tasks as task_actions
from labeling.errors import Conflict, Forbidden, HandedInElsewhere, Invalid, SavedElsewhere
from labeling.models import Draft, DraftCopy, Review, Revision, Slot, Submission
from tests import builders

pytestmark = pytest.mark.django_db

TEXTS = {"gpt": "Apple", "sft": "Pear", "ppo": "Apple", "ptx": "Plum"}  # gpt and ppo are identical


@pytest.fixture
def demonstration(labeler):
    task = builders.task(builders.batch(), builders.prompt())
    task_actions.claim_next(by=labeler)
    return task


@pytest.fixture
def ranking(labeler):
    task = builders.task(builders.batch("ranking", name="ranks", k=4), builders.prompt("Rank fruit."), TEXTS)
    task_actions.claim_next(kind="ranking", by=labeler)
    return task


def uuids(task) -> dict[str, str]:
    """Model name → response UUID."""
    rows = task.task_responses.values_list("response__model_version__name", "response__uuid")
    return {name: str(each) for name, each in rows}


def hand_in(task, by, key=None, **answer) -> Submission:
    return actions.submit(task=task, submit_key=key or uuid.uuid4(), answer=answer or {"text": "An apple."}, by=by)


def lose_seat(task, labeler, to=None):
    """The lease runs out; with `to`, another labeler takes the seat."""
    Slot.objects.filter(task=task, labeler=labeler).update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    if to:
        assert task_actions.claim_next(by=to).task == task


def review(submission, reviewer, verdict, comment="") -> Review:
    made = Review.objects.create(
        submission=submission, revision=submission.current, verdict=verdict, comment=comment, reviewer=reviewer
    )
    Submission.objects.filter(pk=submission.pk).update(status=verdict)
    return made


# Handing in ----------------------------------------------------------------------------------------------------


def test_submit_takes_the_seat_and_keeps_the_answer(demonstration, labeler):
    Draft.objects.update(active_seconds=30)
    submission = hand_in(demonstration, labeler, text="An apple.", comment="easy", prompt_flags={"ambiguous": True})
    slot = Slot.objects.get(task=demonstration)
    assert (slot.status, submission.slot, submission.is_surplus) == ("submitted", slot, False)
    assert (submission.origin, submission.labeler_group, submission.active_seconds) == ("person", "training", 30)
    revision = submission.current
    assert (revision.text, revision.comment, revision.number) == ("An apple.", "easy", 1)
    assert revision.prompt_flags["ambiguous"] is True and revision.prompt_flags["sensitive"] is None
    assert not Draft.objects.exists()


def test_group_and_origin_are_frozen(make_user):
    person = make_user("sim@example.org", "labeler", group="held_out", is_simulated=True)
    task = builders.task(builders.batch(), builders.prompt())
    task_actions.claim_next(by=person)
    submission = hand_in(task, person)
    person.group, person.is_simulated = "training", False
    person.save()
    submission.refresh_from_db()
    assert (submission.labeler_group, submission.origin) == ("held_out", "simulated")


def test_the_same_key_counts_once(demonstration, labeler):
    key = uuid.uuid4()
    first = hand_in(demonstration, labeler, key)
    assert hand_in(demonstration, labeler, key) == first
    assert Revision.objects.count() == 1


def test_the_same_key_with_another_answer_is_no_repeat(demonstration, labeler):
    """The answer to a submit was lost, the page was changed and sent again: the change must not be taken for counted."""
    key = uuid.uuid4()
    hand_in(demonstration, labeler, key)
    with pytest.raises(HandedInElsewhere):
        hand_in(demonstration, labeler, key, text="changed since")
    assert Revision.objects.get().text == "An apple."


def seen(draft=None, revision=0, editor="tab 1", version=0) -> drafts.Seen:
    return drafts.Seen(base=draft.version if draft else 0, version=version, revision=revision, editor=editor)


def test_a_stale_tab_cannot_hand_in_over_newer_work(demonstration, labeler):
    stale = seen(editor="tab 2")
    drafts.save_draft(task=demonstration, content={"text": "newer"}, seen=seen(version=1), by=labeler)
    with pytest.raises(SavedElsewhere):
        actions.submit(task=demonstration, submit_key=uuid.uuid4(), answer={"text": "older"}, seen=stale, by=labeler)
    assert not Submission.objects.exists()
    assert Draft.objects.get().content["text"] == "newer"


def test_a_stale_tab_cannot_replace_what_was_handed_in(demonstration, labeler):
    hand_in(demonstration, labeler, text="newer")
    with pytest.raises(HandedInElsewhere):
        actions.submit(task=demonstration, submit_key=uuid.uuid4(), answer={"text": "older"}, seen=seen(), by=labeler)
    assert Revision.objects.get().text == "newer"


def test_what_was_typed_while_a_submit_was_on_its_way_is_kept(demonstration, labeler):
    """The page's next save arrived before the submit that it was typed after."""
    sent = seen(version=1)
    for version, text in ((1, "handed in"), (2, "handed in, and more")):
        drafts.save_draft(task=demonstration, content={"text": text}, seen=seen(version=version), by=labeler)
    submission = actions.submit(
        task=demonstration, submit_key=uuid.uuid4(), answer={"text": "handed in"}, seen=sent, by=labeler
    )
    assert submission.current.text == "handed in"
    assert Draft.objects.get().content["text"] == "handed in, and more"


def test_the_same_answer_counts_once_whatever_its_key(demonstration, labeler):
    assert hand_in(demonstration, labeler) == hand_in(demonstration, labeler)
    assert Revision.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_submits_at_once_count_once(make_user):
    person = make_user("l@example.org", "labeler")
    task = builders.task(builders.batch(), builders.prompt())
    task_actions.claim_next(by=person)
    key, results, barrier = uuid.uuid4(), [], threading.Barrier(4)

    def run():
        try:
            barrier.wait(10)
            results.append(hand_in(task, person, key).pk)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert len(results) == 4 and len(set(results)) == 1
    assert Revision.objects.count() == Submission.objects.count() == 1


def test_an_expired_seat_still_counts(demonstration, labeler):
    lose_seat(demonstration, labeler)
    assert not hand_in(demonstration, labeler).is_surplus


def test_a_seat_given_back_but_free_still_counts(demonstration, labeler):
    lose_seat(demonstration, labeler)
    task_actions.return_expired()
    submission = hand_in(demonstration, labeler)
    assert not submission.is_surplus and submission.slot.labeler == labeler


def test_a_taken_seat_makes_surplus_and_the_other_counts(demonstration, labeler, labeler2):
    lose_seat(demonstration, labeler, to=labeler2)
    late = hand_in(demonstration, labeler, text="late")
    assert (late.is_surplus, late.slot, late.current.text) == (True, None, "late")
    assert not hand_in(demonstration, labeler2).is_surplus
    assert hand_in(demonstration, labeler, text="late") == late


def test_a_second_labeler_whose_lease_expired_does_not_block_the_first(demonstration, labeler, labeler2):
    lose_seat(demonstration, labeler, to=labeler2)
    lose_seat(demonstration, labeler2)
    assert not hand_in(demonstration, labeler).is_surplus
    assert hand_in(demonstration, labeler2, text="mine").is_surplus


def test_strangers_cannot_submit(demonstration, labeler2):
    with pytest.raises(Forbidden):
        hand_in(demonstration, labeler2)
    assert not Submission.objects.exists()


@pytest.mark.parametrize("text", ["", "   \n", None, 7, "x" * 200_001])
def test_a_demonstration_needs_text(demonstration, labeler, text):
    with pytest.raises(Invalid) as refused:
        hand_in(demonstration, labeler, text=text)
    assert refused.value.errors[0]["place"] == "Your response"
    assert not Submission.objects.exists() and Draft.objects.exists()


# Rankings ------------------------------------------------------------------------------------------------------


def test_identical_responses_are_ranked_and_rated_as_one(ranking, labeler):
    ids = uuids(ranking)
    given = builders.ranking_answer([[ids["sft"], ids["gpt"]], [ids["ptx"]]], quality=6)
    revision = hand_in(ranking, labeler, **given).current
    assert [set(tier) for tier in revision.tiers] == [{ids["sft"], ids["gpt"], ids["ppo"]}, {ids["ptx"]}]
    assert revision.ratings[ids["ppo"]]["quality"] == 6
    assert set(revision.ratings) == set(ids.values())
    assert revision.ratings[ids["sft"]]["flags"]["hallucination"] is None  # not answered is not no


def ranking_mistakes(ids: dict[str, str]) -> dict[str, tuple[dict, str]]:
    """name → (answer, what the message must name)."""
    good = builders.ranking_answer([[ids["sft"]], [ids["gpt"], ids["ppo"]], [ids["ptx"]]])
    foreign = str(uuid.uuid4())

    def changed(**fields):
        return copy.deepcopy(good) | fields

    def rated(**fields):
        return changed(ratings=good["ratings"] | {ids["sft"]: {"quality": 4, "flags": {}} | fields})

    without_rating = {each: rating for each, rating in good["ratings"].items() if each != ids["sft"]}
    return {
        "left out": (changed(tiers=[[ids["sft"]], [ids["gpt"]]]), "is not ranked yet"),
        "foreign": (changed(tiers=[*good["tiers"], [foreign]]), foreign),
        "twice": (changed(tiers=[*good["tiers"], [ids["sft"]]]), "is ranked twice"),
        "twins apart": (changed(tiers=[[ids["sft"]], [ids["gpt"]], [ids["ptx"]], [ids["ppo"]]]), "must share a place"),
        "no tiers": (changed(tiers=None), "Ranking"),
        "flat": (changed(tiers=list(ids.values())), "Ranking"),
        "numbers": (changed(tiers=[[1], [2]]), "Ranking"),
        "unrated": (changed(ratings=without_rating), "is not rated yet"),
        "no ratings": (changed(ratings=None), "Ratings"),
        "foreign rating": (changed(ratings=good["ratings"] | {foreign: {"quality": 3}}), foreign),
        "quality 0": (rated(quality=0), "rating 0"),
        "quality 8": (rated(quality=8), "rating 8"),
        "quality true": (rated(quality=True), "rating True"),
        "quality text": (rated(quality="5"), "rating '5'"),
        "unknown flag": (rated(flags={"nice": True}), "nice"),
        "flag 0": (rated(flags={"hallucination": 0}), "hallucination"),
        "prompt flag": (changed(prompt_flags={"purple": True}), "purple"),
        "comment": (changed(comment="x" * 10_001), "Comment"),
    }


@pytest.mark.parametrize("mistake", sorted(ranking_mistakes({name: name for name in TEXTS})))
def test_a_wrong_ranking_is_refused_naming_the_place(ranking, labeler, mistake):
    answer, named = ranking_mistakes(uuids(ranking))[mistake]
    with pytest.raises(Invalid) as refused:
        hand_in(ranking, labeler, **answer)
    assert any(named in f"{error['place']} {error['message']}" for error in refused.value.errors), refused.value.errors
    assert not Submission.objects.exists() and not Revision.objects.exists()
    assert Slot.objects.get(task=ranking).status == "leased"


def test_fields_and_answers_are_inverse(ranking, labeler):
    draft = Draft.objects.get(task=ranking)
    texts = {str(u): t for u, t in ranking.task_responses.values_list("response__uuid", "response__text")}
    cards = answers.cards_of(draft.shown_order, texts)
    first, second, third = [card.letter for card in cards]
    fields = {
        f"place-{first}": "2", f"place-{second}": "1", f"place-{third}": "2", f"quality-{first}": "7",
        f"flag-{second}-opinion": "no", "prompt-sensitive": "yes", "all_bad": "on", "comment": "c",
    }  # fmt: skip
    answer, problems = answers.from_fields(fields, "ranking", cards, ranking.batch.schema)
    assert problems == [] and answers.to_fields(answer, cards) == fields
    assert answers.is_empty(answers.from_fields({}, "ranking", cards, ranking.batch.schema)[0])
    for name, value in fields.items():
        if not name.startswith("place"):
            assert not answers.is_empty(answers.from_fields({name: value}, "ranking", cards, ranking.batch.schema)[0])


# Corrections ---------------------------------------------------------------------------------------------------


def test_a_correction_is_a_new_revision(demonstration, labeler, reviewer):
    submission = hand_in(demonstration, labeler, text="first")
    review(submission, reviewer, "returned", "Longer, please")
    draft = actions.reopen(submission=submission, by=labeler)
    assert draft.content["text"] == "first"
    assert actions.reopen(submission=submission, by=labeler) == draft
    corrected = hand_in(demonstration, labeler, text="second")
    assert corrected == submission and corrected.status == "submitted"
    assert [r.text for r in submission.revisions.all()] == ["first", "second"]
    assert not Draft.objects.exists()


def test_what_was_returned_must_be_changed(demonstration, labeler, reviewer):
    submission = hand_in(demonstration, labeler, text="first")
    review(submission, reviewer, "returned", "Longer, please")
    actions.reopen(submission=submission, by=labeler)
    with pytest.raises(Invalid, match="change it first"):
        hand_in(demonstration, labeler, text="first")
    submission.refresh_from_db()
    assert (submission.status, submission.revision_count, Draft.objects.count()) == ("returned", 1, 1)


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_after_the_review_nothing_changes(demonstration, labeler, reviewer, verdict):
    submission = hand_in(demonstration, labeler, text="first")
    actions.reopen(submission=submission, by=labeler)
    review(submission, reviewer, verdict)
    with pytest.raises(Conflict):
        hand_in(demonstration, labeler, text="second")
    with pytest.raises(Conflict):
        actions.reopen(submission=submission, by=labeler)
    assert Revision.objects.get().text == "first"
    assert Draft.objects.exists()  # what was typed is still there


def test_a_discarded_correction_leaves_the_submission(demonstration, labeler, labeler2):
    submission = hand_in(demonstration, labeler)
    actions.reopen(submission=submission, by=labeler)
    actions.discard_correction(submission=submission, by=labeler2)
    assert Draft.objects.exists()
    assert not DraftCopy.objects.exists()  # it said what was handed in
    Draft.objects.update(content={"text": "typed on another page"})
    actions.discard_correction(submission=submission, by=labeler)
    assert not Draft.objects.exists() and Submission.objects.exists()
    assert DraftCopy.objects.get().content["text"] == "typed on another page"


def test_another_may_not_reopen(demonstration, labeler, labeler2):
    with pytest.raises(Forbidden):
        actions.reopen(submission=hand_in(demonstration, labeler), by=labeler2)


# Pages ---------------------------------------------------------------------------------------------------------


def submit_url(task) -> str:
    return reverse("task_submit", args=[task.uuid])


def ranking_fields(task, labeler) -> dict[str, str]:
    """A complete ranking as the page sends it: every card rated 5, in shown order."""
    texts = {str(u): t for u, t in task.task_responses.values_list("response__uuid", "response__text")}
    cards = answers.cards_of(Draft.objects.get(task=task, labeler=labeler).shown_order, texts)
    fields = {f"place-{card.letter}": str(place) for place, card in enumerate(cards, start=1)}
    return fields | {f"quality-{card.letter}": "5" for card in cards} | {"submit_key": str(uuid.uuid4())}


def test_double_submit_over_http_counts_once(labeler_client, labeler, ranking):
    fields = ranking_fields(ranking, labeler)
    first, second = (labeler_client.post(submit_url(ranking), fields) for _ in range(2))
    assert (first.status_code, first.url) == (second.status_code, second.url) == (302, "/tasks/")
    assert Revision.objects.count() == 1


def test_submit_and_next_leads_to_the_same_next_task_twice(labeler_client, labeler, demonstration):
    for i in range(3):
        builders.task(demonstration.batch, builders.prompt(f"next {i}"))
    fields = {"text": "An apple.", "submit_key": str(uuid.uuid4()), "next": "1"}
    first, second = (labeler_client.post(submit_url(demonstration), fields) for _ in range(2))
    assert first.url == second.url and first.url.startswith("/tasks/")
    assert Slot.objects.filter(status="leased").count() == 1


def test_submit_for_the_script_answers_json(labeler_client, demonstration):
    fields = {"text": "", "submit_key": str(uuid.uuid4())}
    headers = {"Accept": "application/json"}
    refused = labeler_client.post(submit_url(demonstration), fields, headers=headers)
    assert refused.status_code == 422 and refused.json()["problems"][0]["field"] == "text"
    done = labeler_client.post(submit_url(demonstration), fields | {"text": "An apple."}, headers=headers)
    assert done.json() == {"url": "/tasks/"}


@pytest.mark.parametrize(
    "change", ["left out", "foreign letter", "no letter", "unknown flag", "odd flag", "place in words", "no key"]
)
def test_a_wrong_form_answers_422_and_changes_nothing(labeler_client, labeler, ranking, change):
    fields = ranking_fields(ranking, labeler) | {"comment": "typed with care"}
    letter = next(name for name in fields if name.startswith("place-"))[-1]
    if change == "left out":
        del fields[f"place-{letter}"]
        named = f"Response {letter}"
    elif change == "foreign letter":
        fields["place-Z"], named = "1", "Response Z"
    elif change == "no letter":
        fields["place"], named = "1", "is not a response of this task"
    elif change == "unknown flag":
        fields[f"flag-{letter}-nonsense"], named = "yes", "unknown flag"
    elif change == "odd flag":
        fields[f"flag-{letter}-opinion"], named = "maybe", "neither yes nor no"
    elif change == "place in words":
        fields[f"place-{letter}"], named = "first", f"Response {letter}"
    else:
        fields["submit_key"], named = "?", "submit_key"
    page = labeler_client.post(submit_url(ranking), fields)
    assert page.status_code == 422 and named in page.text
    if change != "no key":
        assert "typed with care" in page.text
        assert page.context["fields"]["comment"] == "typed with care"
    assert not Submission.objects.exists() and Slot.objects.get(task=ranking).status == "leased"


def test_surplus_is_told_kindly(labeler_client, labeler, labeler2, demonstration):
    lose_seat(demonstration, labeler, to=labeler2)
    fields = {"text": "late", "submit_key": str(uuid.uuid4())}
    page = labeler_client.post(submit_url(demonstration), fields, follow=True)
    assert "counts as extra work" in page.text
    assert "surplus" in labeler_client.get("/history/").text


def test_submit_address_opened_leads_to_the_task(labeler_client, demonstration):
    """After a lost session the login leads back to where the form was sent."""
    assert labeler_client.get(submit_url(demonstration)).url == reverse("task", args=[demonstration.uuid])


def test_a_submitted_task_leads_to_the_history(labeler_client, labeler, demonstration):
    submission = hand_in(demonstration, labeler)
    assert labeler_client.get(reverse("task", args=[demonstration.uuid])).url == f"/history/{submission.uuid}/"


def test_a_correction_after_the_review_is_kept_and_shown(labeler_client, labeler, reviewer, demonstration):
    submission = hand_in(demonstration, labeler, text="first")
    review(submission, reviewer, "accepted")
    fields = {"text": "too late a change", "submit_key": str(uuid.uuid4())}
    answer = labeler_client.post(submit_url(demonstration), fields, headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()) == (409, {"url": f"/history/{submission.uuid}/"})
    assert "too late a change" in labeler_client.get(f"/history/{submission.uuid}/").text


def test_a_ranking_corrected_too_late_is_shown_whole(labeler_client, labeler, reviewer, ranking):
    fields = ranking_fields(ranking, labeler)
    labeler_client.post(submit_url(ranking), fields)
    submission = Submission.objects.get()
    review(submission, reviewer, "rejected")
    letters = [name[-1] for name in fields if name.startswith("place-")]
    late = fields | {f"quality-{letters[0]}": "2", "comment": "a second thought", "submit_key": str(uuid.uuid4())}
    page = labeler_client.post(submit_url(ranking), late | {"revision": "1"}, follow=True)
    assert page.request["PATH_INFO"] == f"/history/{submission.uuid}/"
    kept = page.text.split("no longer counts")[1].split("<section")[0]
    assert "rated 2" in kept and "a second thought" in kept and "Plum" in kept


@pytest.mark.parametrize("wants", ["application/json", "text/html"])
def test_a_stale_page_keeps_its_text_and_may_submit_once_more(labeler_client, labeler, demonstration, wants):
    """409 with everything that was typed; sent again with what the answer says, it counts as a correction."""
    hand_in(demonstration, labeler, text="newer")
    fields = {"text": "older", "submit_key": str(uuid.uuid4()), "base": "0", "revision": "0"}
    refused = labeler_client.post(submit_url(demonstration), fields, headers={"Accept": wants})
    assert refused.status_code == 409 and Revision.objects.get().text == "newer"
    assert Draft.objects.get().content["text"] == "older"
    if wants == "application/json":
        answer = refused.json()
        assert answer["code"] == "handed_in_elsewhere" and answer["problems"][0]["message"]
        again = {"base": answer["version"], "revision": answer["revision"], "submit_key": answer["submit_key"]}
    else:
        assert "older" in refused.text and "Submit once more" in refused.text
        draft, context = refused.context["draft"], refused.context
        again = {"base": draft.version, "revision": context["revision"], "submit_key": context["submit_key"]}
    assert labeler_client.post(submit_url(demonstration), fields | again, headers={"Accept": wants}).status_code != 409
    assert [each.text for each in Revision.objects.order_by("number")] == ["newer", "older"]


def test_two_pages_without_a_script_ask_before_one_replaces_the_other(labeler_client, labeler, demonstration):
    drafts.save_draft(task=demonstration, content={"text": "newer"}, seen=seen(version=1), by=labeler)
    fields = {"text": "older", "submit_key": str(uuid.uuid4()), "base": "0", "revision": "0"}
    refused = labeler_client.post(submit_url(demonstration), fields)
    assert refused.status_code == 409 and "older" in refused.text and "from another tab" in refused.text
    assert Draft.objects.get().content["text"] == "newer" and not Submission.objects.exists()
    labeler_client.post(submit_url(demonstration), fields | {"base": refused.context["draft"].version})
    assert Revision.objects.get().text == "older"


def test_a_refused_page_without_a_script_stays_behind(labeler_client, labeler, demonstration):
    """The page that names what is missing must not pretend to know of work that was saved since the first one was loaded."""
    fields = {"text": "", "submit_key": str(uuid.uuid4()), "base": "0", "revision": "0"}
    drafts.save_draft(task=demonstration, content={"text": "newer"}, seen=seen(version=1), by=labeler)
    refused = labeler_client.post(submit_url(demonstration), fields)
    assert refused.status_code == 422 and refused.context["base"] == "0"
    again = labeler_client.post(submit_url(demonstration), fields | {"text": "mine"})
    assert again.status_code == 409 and not Submission.objects.exists()
    assert Draft.objects.get().content["text"] == "newer"


@pytest.mark.parametrize("field", ["submit_key", "version"])
def test_the_script_is_answered_in_json_whatever_is_wrong(labeler_client, demonstration, field):
    fields = {"text": "x", "submit_key": str(uuid.uuid4()), field: "nonsense"}
    refused = labeler_client.post(submit_url(demonstration), fields, headers={"Accept": "application/json"})
    assert refused.status_code == 422 and field in refused.json()["problems"][0]["message"]


def test_history_lists_ones_own(labeler_client, labeler, labeler2_client, demonstration, ranking, reviewer):
    first = hand_in(demonstration, labeler, text="mine alone")
    labeler_client.post(submit_url(ranking), ranking_fields(ranking, labeler))
    assert len(labeler_client.get("/history/").context["page"]) == 2
    assert len(labeler_client.get("/history/?kind=ranking").context["page"]) == 1
    assert "Nothing like that" in labeler_client.get("/history/?status=rejected").text
    assert "Nothing yet" in labeler2_client.get("/history/").text
    assert labeler2_client.get(f"/history/{first.uuid}/").status_code == 404


def test_history_shows_revisions_and_feedback(labeler_client, labeler, demonstration, reviewer):
    submission = hand_in(demonstration, labeler, text="first words")
    review(submission, reviewer, "returned", "Longer, please")
    hand_in(demonstration, labeler, text="second words")
    page = labeler_client.get(f"/history/{submission.uuid}/").text
    for text in ("first words", "second words", "Longer, please", "Revision 1", "Revision 2"):
        assert text in page


def test_history_of_a_ranking_names_letters_alone(labeler_client, labeler, ranking):
    labeler_client.post(submit_url(ranking), ranking_fields(ranking, labeler))
    page = labeler_client.get(f"/history/{Submission.objects.get().uuid}/").text
    assert not any(each in page for each in uuids(ranking).values())
    assert not any(model in page for model in ("gpt", "sft", "ppo", "ptx"))
    assert "Apple" in page and "rated 5" in page


@pytest.mark.parametrize("name", ["submission", "submission_reopen", "submission_discard"])
def test_history_answers_for_every_role(name, client, client_for, labeler, labeler2, reviewer, demonstration):
    address = reverse(name, args=[hand_in(demonstration, labeler).uuid])
    missing = reverse(name, args=[uuid.uuid4()])
    right, wrong = ("get", "post") if name == "submission" else ("post", "get")
    assert getattr(client, right)(address).url.startswith("/accounts/login/")
    assert getattr(client_for(reviewer), right)(address).status_code == 403
    assert getattr(client_for(labeler2), right)(address).status_code == 404
    assert getattr(client_for(labeler), right)(missing).status_code == 404
    assert getattr(client_for(labeler), wrong)(address).status_code == 405
    for _ in range(2):  # twice: a double click
        assert getattr(client_for(labeler), right)(address).status_code in (200, 302)


def test_reopen_over_http_leads_to_the_task(labeler_client, labeler, demonstration):
    submission = hand_in(demonstration, labeler, text="first")
    opened = labeler_client.post(f"/history/{submission.uuid}/reopen", follow=True)
    assert opened.status_code == 200 and "first" in opened.text and "correction" in opened.text
    assert "correction" in labeler_client.get("/tasks/").text
    labeler_client.post(f"/history/{submission.uuid}/discard")
    assert labeler_client.get(reverse("task", args=[demonstration.uuid])).status_code == 302
