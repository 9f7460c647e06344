"""Exercises: from files and the console, what they may be, how answers are compared; practice before the first task of a kind."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.urls import reverse

from labeling import exercise_answers
from labeling.actions import exercises as actions
from labeling.actions import tasks
from labeling.errors import Conflict, Forbidden, Invalid, NotPrepared
from labeling.models import Attempt, Exercise, LabelSchema
from tests import builders
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db

FLAGGING = {"purpose": "practice", "part": "flagging", "prompt": "A cruel joke?", "explanation": "It **is** cruel.",
            "reference": {"prompt_flags": {"sensitive": True}}}  # fmt: skip
RANKING = {"purpose": "practice", "part": "ranking", "prompt": "Name a fruit.",
           "responses": {"a": "A pear.", "b": "An apple.", "c": "A stone."}, "reference": {"tiers": [["a", "b"], ["c"]]}}  # fmt: skip
DEMONSTRATION = {"purpose": "practice", "part": "demonstration", "prompt": "Greet me.", "reference": {"text": "Hello!"}}


@pytest.fixture
def practice():
    actions.load(rows=[FLAGGING, RANKING, DEMONSTRATION], by=None)


def places(attempt, *order):
    """Form fields that rank the responses with these ids: "a=b" ties."""
    letters = exercise_answers.letters_of(attempt.shown_order)
    return {f"place-{letters[r]}": n for n, tier in enumerate(order, start=1) for r in tier.split("=")}


# ---- what an exercise may be ----------------------------------------------------------------------------------------


def test_the_set_that_ships_loads_once_and_covers_every_part(capsys):
    call_command("load_exercises", "--default")
    call_command("load_exercises", "--default")
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 exercises are new")
    by = {(e.purpose, e.part) for e in Exercise.objects.all()}
    assert len(by) == 6
    assert Exercise.objects.filter(purpose="screening", part="demonstration").count() == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"part": "cooking"}, "part"),
        ({"prompt": " "}, "prompt"),
        ({"colour": "red"}, "colour"),
        ({"responses": {"a": "A"}}, "responses"),
        ({"responses": ["a"]}, "responses"),
        ({"reference": {"tiers": [["a"], ["b"]]}}, "reference.tiers"),
        ({"reference": {"tiers": [["a"], ["b"], ["c", "a"]]}}, "reference.tiers"),
        ({"reference": {"tiers": [["a", "b", "c"]], "ratings": {"a": {"quality": 3}}}}, "reference.ratings"),
        ({"part": "flagging"}, "reference.prompt_flags"),
        ({"part": "demonstration"}, "reference.text"),
        ({"reference_by": "x" * 201}, "reference_by"),
    ],
)
def test_what_is_wrong_is_named(change, field):
    with pytest.raises(Invalid, match=field):
        actions.add(row=RANKING | change, by=None)


def test_a_refusal_is_in_the_readers_language(researcher_client, monkeypatch):
    monkeypatch.setattr("labeling.actions.exercises._", "<{}>".format)
    form = {"purpose": "practice", "prompt": "Write a haiku.", "explanation": "Because."}
    refused = researcher_client.post(reverse("exercise_new", args=["demonstration"]), form)
    assert refused.status_code == 422
    assert "&lt;reference.text: practice needs a demonstration to compare with&gt;" in refused.text


def test_a_file_loads_whole_or_not_at_all(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(RANKING) + "\n\n{broken\n" + json.dumps(FLAGGING | {"part": "x"}) + "\n")
    with pytest.raises(CommandError) as error:
        call_command("load_exercises", path)
    assert "mine.jsonl line 3" in str(error.value) and "mine.jsonl line 4: part" in str(error.value)
    assert not Exercise.objects.exists()


# ---- scores, against numbers worked by hand -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiers", "agreed"),
    [
        ([["a", "b"], ["c"]], 3),  # a=b, a>c, b>c: all three
        ([["a"], ["b"], ["c"]], 2),  # a>b is not a tie
        ([["a", "b", "c"]], 1),  # only a=b
        ([["c"], ["b"], ["a"]], 0),
        ([["c"], ["a", "b"]], 1),
    ],
)
def test_comparisons_agree_ties_counted(tiers, agreed):
    exercise = actions.add(row=RANKING, by=None)
    assert exercise_answers.score({"tiers": tiers}, exercise) == (agreed, 3)
    assert sum(c.agrees for c in exercise_answers.comparisons({"tiers": tiers}, exercise, ["b", "c", "a"])) == agreed


def test_flags_agree_one_by_one():
    row = FLAGGING | {"reference": {"prompt_flags": {"sensitive": True, "ambiguous": False}}}
    exercise = actions.add(row=row, by=None)
    assert exercise_answers.score({"prompt_flags": {"sensitive": True, "ambiguous": True}}, exercise) == (1, 2)


# ---- practice -------------------------------------------------------------------------------------------------------


def test_practice_comes_before_the_first_task_of_its_kind(practice, labeler, labeler_client):
    task = builders.task(builders.batch("ranking"), builders.prompt("Rank."), {"x": "X", "y": "Y"})
    assert "a short practice" in labeler_client.get("/tasks/").text
    assert labeler_client.post("/tasks/next").url == "/practice/ranking/"
    assert "2 short exercises" in labeler_client.get("/practice/ranking/").text
    # flags first
    item = labeler_client.post("/practice/ranking/next").url
    page = labeler_client.get(item)
    assert "cruel joke" in page.text and "It <strong>is</strong> cruel" not in page.text
    refused = labeler_client.post(item, {})
    assert refused.status_code == 422 and "not answered yet" in refused.text
    assert labeler_client.post(item, {"flag-sensitive": "no"}).url == item
    assert "It <strong>is</strong> cruel" in labeler_client.get(item).text
    assert (
        labeler_client.post(item, {"flag-sensitive": "yes"}).url == item
    )  # too late: what counts is what was handed in
    assert (Attempt.objects.get().agreed, Attempt.objects.get().compared) == (0, 1)
    # then the ranking
    item = labeler_client.post("/practice/ranking/next").url
    attempt = Attempt.objects.get(exercise__part="ranking")
    incomplete = labeler_client.post(item, places(attempt, "b", "a"))
    assert incomplete.status_code == 422 and "has no place yet" in incomplete.text
    assert incomplete.text.count(" selected>") == 2  # what was chosen is still there
    labeler_client.post(item, places(attempt, "b", "a", "c"))
    assert "2 of 3 comparisons agree" in labeler_client.get(item).text
    with pytest.raises(Conflict):
        actions.save_attempt(attempt=attempt, content={"tiers": []}, by=labeler)
    assert labeler_client.post("/practice/ranking/next").url == "/tasks/"
    assert labeler_client.post("/tasks/next").url == f"/tasks/{task.uuid}/"


def test_who_has_handed_in_work_need_not_practise(practice, labeler):
    batch = builders.batch()
    first, second = (builders.task(batch, builders.prompt(f"{n}?")) for n in (1, 2))
    with pytest.raises(NotPrepared, match="practice"):
        tasks.claim_next(by=labeler)
    from tests.labeling.rows import submit

    submit(first, labeler)
    assert tasks.claim_next(by=labeler).task == second


def test_what_is_typed_is_kept_as_it_is_typed(practice, labeler, labeler_client):
    item = labeler_client.post("/practice/demonstration/next").url
    page = labeler_client.get(item).context["page_key"]
    saved = labeler_client.post(item + "save", {"text": "Hel\x00lo", "page": page})
    assert "Saved" in saved.text
    assert ">\nHello</textarea>" in labeler_client.get(item).text
    labeler_client.post(item, {"text": "", "page": page})  # refused, and kept as it was sent
    assert Attempt.objects.get().content == {"text": ""}
    labeler_client.post(
        item + "save", {"text": "older", "page": page}
    )  # a save that was overtaken by its page's button
    assert Attempt.objects.get().content == {"text": ""}
    labeler_client.post(item, {"text": "Hi!"})
    assert labeler_client.post(item + "save", {"text": "late"}).status_code == 409
    assert Attempt.objects.get().content == {"text": "Hi!"}


def test_what_was_sent_after_the_session_ended_waits_for_the_log_in(practice, labeler, labeler2, client):
    client.force_login(labeler)
    item = client.post("/practice/demonstration/next").url
    owner = client.get(item).context["owner_key"]
    client.logout()
    answer = client.post(item, {"text": "a long answer", "owner": owner})
    assert answer.url.startswith("/accounts/login/")
    client.post(answer.url, {"login": labeler.email, "password": PASSWORD})
    page = client.get(item).text
    assert "a long answer" in page and "You had been logged out" in page
    client.logout()  # what saves as it is typed leads the whole page to the log-in, and no part of it
    saved = client.post(item + "save", {"text": "a longer answer", "owner": owner}, headers={"HX-Request": "true"})
    assert saved.headers["HX-Redirect"].startswith("/accounts/login/") and saved.content == b""
    client.post(saved.headers["HX-Redirect"], {"login": labeler.email, "password": PASSWORD})
    assert "a longer answer" in client.get(item).text


def test_others_attempts_are_not_there(
    practice, labeler, labeler_client, labeler2_client, client_for, reviewer, applicant, client
):
    item = labeler_client.post("/practice/demonstration/next").url
    assert labeler2_client.get(item).status_code == 404
    assert labeler2_client.post(item, {"text": "x"}).status_code == 404
    for person in (reviewer, applicant):
        assert client_for(person).get(item).status_code == 403
        assert client_for(person).post("/practice/demonstration/next").status_code == 403
    assert client.get(item).status_code == 302
    assert labeler_client.get("/practice/cooking/").status_code == 404
    assert labeler_client.get("/practice/ranking/next").status_code == 405
    with pytest.raises(Forbidden):
        actions.save_attempt(attempt=Attempt.objects.get(), content={}, by=reviewer)


def test_ids_of_responses_and_the_reference_are_not_in_the_page(labeler_client):
    row = RANKING | {
        "responses": {"best-id": "X", "worst-id": "Y"},
        "reference": {"tiers": [["best-id"], ["worst-id"]]},
    }
    actions.add(row=row, by=None)
    page = labeler_client.get(labeler_client.post("/practice/ranking/next").url).text
    assert "best-id" not in page and "worst-id" not in page


# ---- the console ----------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(client_for, researcher):
    return client_for(researcher)


RANKING_FORM = {"purpose": "screening", "prompt": "Name a tree.", "response-A": "Oak", "place-A": "1", "response-B": "Elm",
                "place-B": "1", "response-C": "Rose", "place-C": "2", "explanation": "Trees."}  # fmt: skip


def test_the_default_set_is_one_click(desk):
    assert "Load the set that ships" in desk.get(reverse("exercises")).text
    for _ in range(2):
        desk.post(reverse("exercises_default"))
    assert Exercise.objects.count() == 34
    assert "18" in desk.get(reverse("exercises") + "?purpose=screening&part=flagging").text


def test_exercises_are_written_and_changed(desk):
    made = desk.post(reverse("exercise_new", args=["ranking"]), RANKING_FORM)
    exercise = Exercise.objects.get()
    assert exercise.reference == {"tiers": [["A", "B"], ["C"]]}
    page = desk.get(made.url).text
    assert "Name a tree." in page and "Elm" in page
    edited = desk.post(reverse("exercise_edit", args=[exercise.pk]), RANKING_FORM | {"prompt": "Name a flower."})
    assert edited.url == made.url and Exercise.objects.get().preview == "Name a flower."
    flagging = {"purpose": "practice", "prompt": "Hm.", "flag-sensitive": "no"}
    assert desk.post(reverse("exercise_new", args=["flagging"]), flagging).status_code == 302
    demonstration = {"purpose": "screening", "prompt": "Console me."}
    assert desk.post(reverse("exercise_new", args=["demonstration"]), demonstration).status_code == 302


def test_an_exercise_keeps_the_form_that_it_was_made_with(desk, labeler, labeler_client):
    """A later form without the flag, and with another scale, changes neither the words nor the scale of what is asked."""
    rated = {"ratings": {name: {"quality": 7} for name in "abc"}}
    ranking = actions.add(row=RANKING | {"reference": RANKING["reference"] | rated}, by=None)
    flagging = actions.add(row=FLAGGING, by=None)
    first = LabelSchema.latest()
    label = next(flag["label"] for flag in first.prompt_flags if flag["name"] == "sensitive")
    new = {"quality": {"min": 1, "max": 5}, "response_flags": [], "prompt_flags": [{"name": "odd", "label": "Odd?"}]}
    second = LabelSchema.objects.create(version=first.version + 1, content=new)
    pages = [
        labeler_client.get(reverse("practice_item", args=[actions.begin(exercise=each, user=labeler).uuid])).text
        for each in (flagging, ranking)
    ]
    assert label in pages[0] and ">sensitive<" not in pages[0]
    assert 'name="quality-A"' in pages[1] and 'value="7"' in pages[1] and "to 7 (" in pages[1]
    edited = desk.get(reverse("exercise_edit", args=[flagging.pk])).text
    assert label in edited and "Odd?" not in edited
    assert "Odd?" in desk.get(reverse("exercise_new", args=["flagging"])).text
    made = actions.add(row=RANKING | {"prompt": "New.", "reference": RANKING["reference"] | rated}, by=None)
    assert made.schema == first, "the newest form whose scale its ratings are on"
    assert actions.add(row=RANKING | {"prompt": "Newer."}, by=None).schema == second
    with pytest.raises(Invalid, match="from 1 to 5"):
        actions.add(
            row=RANKING | {"reference": RANKING["reference"] | {"ratings": {n: {"quality": 9} for n in "abc"}}}, by=None
        )


def test_a_wrong_exercise_keeps_what_was_typed(desk):
    refused = desk.post(reverse("exercise_new", args=["ranking"]), RANKING_FORM | {"place-B": ""})
    assert refused.status_code == 422 and "Elm" in refused.text and "reference.tiers" in refused.text
    assert desk.post(reverse("exercise_new", args=["cooking"]), {}).status_code == 404
    assert not Exercise.objects.exists()


def test_one_that_was_begun_is_replaced(desk, labeler):
    exercise = actions.add(row=DEMONSTRATION, by=None)
    attempt = actions.begin(exercise=exercise, user=labeler)
    url = desk.post(
        reverse("exercise_edit", args=[exercise.pk]), {"purpose": "practice", "prompt": "Greet us.", "text": "Hi!"}
    ).url
    exercise.refresh_from_db()
    attempt.refresh_from_db()
    assert exercise.retired_at and attempt.exercise == exercise and exercise.preview == "Greet me."
    assert url == reverse("exercise", args=[exercise.replaced_by.get().pk])
    again = desk.post(reverse("exercise_edit", args=[exercise.pk]), {"purpose": "practice", "prompt": "x", "text": "y"})
    assert again.status_code == 409


def test_retired_ones_are_not_given_out(desk, labeler, practice):
    exercise = Exercise.objects.get(part="demonstration")
    url = reverse("exercise_retire", args=[exercise.pk])
    for _ in range(2):
        desk.post(url, {"retired": "yes"})
    assert actions.next_practice(kind="demonstration", by=labeler) is None
    desk.post(url, {"retired": "no"})
    assert actions.next_practice(kind="demonstration", by=labeler).exercise == exercise


def test_what_was_handed_in_and_what_was_begun_stay(practice, labeler):
    attempt = actions.begin(exercise=Exercise.objects.get(part="demonstration"), user=labeler)
    actions.submit_practice(attempt=attempt, content={"text": "Hi"}, by=labeler)
    for change in (
        lambda: Attempt.objects.update(content={"text": "better"}),
        lambda: Attempt.objects.all().delete(),
        lambda: Exercise.objects.filter(part="demonstration").update(reference={"text": "other"}),
        lambda: (
            actions.add(row=RANKING, by=None)
            and Exercise.objects.filter(part="flagging").update(
                retired_at=None, content_sha256=Exercise.objects.get(part="ranking").content_sha256
            )
        ),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()
