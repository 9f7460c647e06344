"""Questions: threads between a labeler and the team, and what all labelers may read of them."""

import re
import threading
import uuid

import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.actions import questions, tasks
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Draft, Question, QuestionMessage
from tests.labeling.rows import make_ranking_batch, response_ids, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def task(labeler):
    make_ranking_batch(prompts=1, k=2, overlap=2)
    return tasks.claim_next(by=labeler).task


@pytest.fixture
def question(labeler, task) -> Question:
    return questions.ask(text="Is **B** cut?", key=uuid.uuid4(), task=task, by=labeler)


def answer(question, by, text="Rank it as it stands.") -> QuestionMessage:
    return questions.reply(question=question, text=text, key=uuid.uuid4(), by=by)


def publish(question, by, asked="What if a response is cut?", answered="Rank it as it stands.") -> None:
    questions.publish(question=question, public_question=asked, public_answer=answered, by=by)


# ---- the actions ----------------------------------------------------------------------------------------------------


def test_a_thread_goes_to_and_fro(question, labeler, reviewer):
    assert (question.is_open, question.is_unread, question.kind) == (True, False, "ranking")
    answer(question, reviewer)
    question.refresh_from_db()
    assert (question.is_open, question.is_unread) == (False, True)
    questions.mark_read(question=question, by=reviewer)  # only its asker reads it
    assert Question.objects.get().is_unread
    answer(question, labeler, "And if both are?")
    question.refresh_from_db()
    assert (question.is_open, question.is_unread) == (True, False)
    assert list(question.messages.values_list("author", "is_answer")) == [
        (labeler.pk, False),
        (reviewer.pk, True),
        (labeler.pk, False),
    ]


def test_the_same_form_twice_is_one_message(labeler, task, reviewer):
    key = uuid.uuid4()
    first, second = (questions.ask(text="Why?", key=key, task=task, by=labeler) for _ in range(2))
    assert first == second
    for _ in range(2):
        questions.reply(question=first, text="So.", key=key, by=reviewer)
    assert QuestionMessage.objects.count() == 2


def test_who_may_not(question, labeler2, applicant, reviewer, task):
    with pytest.raises(Forbidden, match="not given to you"):
        questions.ask(text="What is it?", key=uuid.uuid4(), task=task, by=labeler2)
    with pytest.raises(Forbidden):
        questions.ask(text="?", key=uuid.uuid4(), kind="ranking", by=applicant)
    with pytest.raises(Forbidden):
        answer(question, labeler2)
    answer(question, reviewer)
    with pytest.raises(Forbidden):
        publish(question, labeler2)
    with pytest.raises(Forbidden):
        questions.withdraw(question=question, by=labeler2)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 5001])
def test_texts_must_say_something_and_not_too_much(labeler, text):
    with pytest.raises(Invalid):
        questions.ask(text=text, key=uuid.uuid4(), kind="ranking", by=labeler)
    with pytest.raises(Invalid, match="about"):
        questions.ask(text="Why?", key=uuid.uuid4(), kind="dance", by=labeler)
    assert not Question.objects.exists()


def test_messages_are_kept_as_they_were_written(question):
    message = question.messages.get()
    for change in (lambda: message.delete(), lambda: question.messages.update(text="Other.")):
        with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
            change()


def test_only_what_is_answered_and_worded_is_shown_to_all(question, reviewer):
    with pytest.raises(Conflict, match="Answer the question"):
        publish(question, reviewer)
    answer(question, reviewer)
    with pytest.raises(Invalid, match="Answer for all"):
        publish(question, reviewer, answered=" ")
    assert not Question.objects.published().exists()
    with pytest.raises(IntegrityError), transaction.atomic():
        Question.objects.update(published_at=question.created_at, published_by=reviewer)
    publish(question, reviewer)
    assert [q.public_answer for q in Question.objects.saying("CUT stands")] == ["Rank it as it stands."]
    assert not Question.objects.saying("cut melon").exists()
    questions.withdraw(question=question, by=reviewer)
    assert not Question.objects.published().exists()


# ---- a labeler's pages ----------------------------------------------------------------------------------------------


def test_asked_beside_the_task_without_touching_the_draft(labeler_client, task):
    url = reverse("task_question", args=[task.uuid])
    assert 'data-dialog="question-dialog"' in labeler_client.get(reverse("task", args=[task.uuid])).text
    Draft.objects.update(content={"comment": "begun"}, version=3)
    panel = labeler_client.get(url, headers={"HX-Request": "true"})
    assert "<html" not in panel.text
    data = {"text": "Is <b>B</b> cut?", "key": str(uuid.uuid4())}
    for _ in range(2):
        sent = labeler_client.post(url, data, headers={"HX-Request": "true"})
        assert "Asked." in sent.text
        assert "Is &lt;b&gt;B&lt;/b&gt; cut?" in sent.text
    assert Question.objects.get().task == task
    assert labeler_client.post(url, data)["Location"] == url  # without a script
    draft = Draft.objects.get()
    assert (draft.content, draft.version) == ({"comment": "begun"}, 3)


def test_what_was_typed_survives_a_refusal(labeler_client, labeler, task, question):
    long = "Why? " * 1500
    for url in (reverse("task_question", args=[task.uuid]), reverse("question", args=[question.uuid])):
        refused = labeler_client.post(url, {"text": long, "key": str(uuid.uuid4())})
        assert refused.status_code == 422
        assert long.strip() in refused.text
        assert labeler_client.post(url, {"text": "x", "key": "no"}).status_code == 422
    refused = labeler_client.post(reverse("question_ask"), {"text": "Kept.", "key": str(uuid.uuid4())})
    assert (refused.status_code, "Kept.</textarea>" in refused.text) == (422, True)


def test_asking_about_instructions(labeler_client):
    url = reverse("question_ask")
    assert 'value="ranking" selected' in labeler_client.get(url + "?kind=ranking").text
    data = {"kind": "ranking", "text": "Are ties fine?", "key": str(uuid.uuid4())}
    for _ in range(2):
        assert labeler_client.post(url, data).status_code == 302
    question = Question.objects.get()
    assert (question.kind, question.task) == ("ranking", None)
    assert "Are ties fine?" in labeler_client.get(reverse("questions")).text


def test_the_asker_is_told_and_reads(labeler_client, labeler, reviewer_client, question):
    url = reverse("question_answer", args=[question.uuid])
    data = {"text": "Rank it as it stands.", "key": str(uuid.uuid4())}
    for _ in range(2):  # a double click
        assert reviewer_client.post(url, data).status_code == 302
    (message,) = mail.outbox
    assert message.to == [labeler.email]
    assert reverse("question", args=[question.uuid]) in message.body
    assert "cut" not in message.body  # what a task says stays in Heed
    assert "question of yours was answered" in labeler_client.get(reverse("tasks")).text
    assert "new answer" in labeler_client.get(reverse("questions")).text
    assert "Rui" not in labeler_client.get(reverse("question", args=[question.uuid])).text
    assert "question of yours was answered" not in labeler_client.get(reverse("tasks")).text


def test_others_see_only_the_words_for_all(labeler2_client, question, reviewer, task):
    answer(question, reviewer, "Yes, **B** by the second model is cut.")
    assert "cut" not in labeler2_client.get(reverse("questions")).text
    publish(question, reviewer)
    page = labeler2_client.get(reverse("questions")).text
    assert "What if a response is cut?" in page
    for secret in ("Lena", "second model", "Is **B** cut", str(task.uuid), task.prompt.text, task.batch.name):
        assert secret not in page
    assert "What if a response" in labeler2_client.get(reverse("questions") + "?q=RESPONSE+cut&kind=ranking").text
    assert "Nothing like that" in labeler2_client.get(reverse("questions") + "?q=melon").text
    for url in (reverse("question", args=[question.uuid]), reverse("task_question", args=[task.uuid])):
        assert labeler2_client.get(url).status_code == 404
        assert labeler2_client.post(url, {"text": "x", "key": str(uuid.uuid4())}).status_code == 404


@pytest.mark.parametrize("name", ["questions", "question_ask", "task_question", "question"])
def test_closed_to_everyone_else(name, client, applicant_client, reviewer_client, question, task):
    arguments = {"task_question": [task.uuid], "question": [question.uuid]}.get(name, [])
    url = reverse(name, args=arguments)
    assert client.get(url)["Location"].startswith(reverse("account_login"))
    assert applicant_client.get(url).status_code == 403
    assert reviewer_client.get(url).status_code == 403
    assert reviewer_client.delete(url).status_code == 403


def test_lists_take_a_constant_number_of_queries(labeler_client, reviewer_client, labeler, reviewer, question):
    def count(client, name):
        with CaptureQueriesContext(connection) as queries:
            assert client.get(reverse(name)).status_code == 200
        return len(queries)

    answer(question, reviewer)
    publish(question, reviewer)
    asked = questions.ask(text="One?", key=uuid.uuid4(), kind="ranking", by=labeler)
    before = count(labeler_client, "questions"), count(reviewer_client, "question_queue")
    for n in range(5):
        asked = questions.ask(text=f"{n}?", key=uuid.uuid4(), kind="ranking", by=labeler)
    answer(asked, reviewer)
    publish(asked, reviewer)
    assert (count(labeler_client, "questions"), count(reviewer_client, "question_queue")) == before


# ---- the console ----------------------------------------------------------------------------------------------------


def test_the_queue_lists_what_waits_the_longest_waiting_first(reviewer_client, labeler, reviewer, question):
    later = questions.ask(text="Ties?", key=uuid.uuid4(), kind="demonstration", by=labeler)
    url = reverse("question_queue")

    def shown(query=""):
        return [q.pk for q in reviewer_client.get(url + query).context["page"]]

    assert shown() == [question.pk, later.pk]
    answer(question, reviewer, "As it stands")
    assert shown() == [later.pk]
    assert shown("?state=answered") == [question.pk]
    assert shown("?state=any&kind=ranking") == [question.pk]
    assert shown("?state=any&words=stands") == [question.pk]
    assert shown("?state=published") == []
    publish(question, reviewer)
    assert shown("?state=published") == [question.pk]


def test_answered_and_shown_to_all_from_the_page(researcher_client, question):
    url = reverse("question_review", args=[question.uuid])
    assert "can be shown to every labeler" in researcher_client.get(url).text
    to_all = reverse("question_publish", args=[question.uuid])
    words = {"public_question": "What of cut ones?", "public_answer": "As they stand."}
    assert researcher_client.post(to_all, words).status_code == 409
    refused = researcher_client.post(
        reverse("question_answer", args=[question.uuid]), {"text": " ", "key": str(uuid.uuid4())}
    )
    assert refused.status_code == 422
    answer_data = {"text": "As it stands.", "key": str(uuid.uuid4())}
    researcher_client.post(reverse("question_answer", args=[question.uuid]), answer_data)
    assert "As it stands.</textarea>" in researcher_client.get(url).text  # the answer, to be worded for all
    refused = researcher_client.post(to_all, words | {"public_answer": ""})
    assert (refused.status_code, "What of cut ones?</textarea>" in refused.text) == (422, True)
    assert researcher_client.post(to_all, words).status_code == 302
    assert Question.objects.published().get().public_question == "What of cut ones?"
    assert researcher_client.post(to_all, {"withdraw": "1"}).status_code == 302
    assert not Question.objects.published().exists()


def test_the_team_sees_what_is_asked_about_under_the_askers_letters(reviewer_client, labeler, question, task):
    """Letters are shuffled for each labeler: "B" is the second of what this one sees. Which model wrote it stays hidden."""
    url = reverse("question_review", args=[question.uuid])
    shown = response_ids(task)[::-1]  # the other way round than they were made
    Draft.objects.update(shown_order=shown, content={})
    text_of = {str(r.response.uuid): r.response.text for r in task.task_responses.select_related("response")}

    def cards() -> list[str]:
        page = reviewer_client.get(url).text
        assert "gpt" not in page
        return re.findall(r'<article class="card response".*?</article>', page, re.DOTALL)

    for letter, name, card in zip("AB", shown, cards(), strict=True):
        assert f">{letter}</span>" in card and text_of[name] in card and "Place" not in card
    Draft.objects.update(
        content={"tiers": [[shown[1]], [shown[0]]], "ratings": {shown[1]: {"quality": 6, "flags": {}}}}
    )
    first, second = cards()
    assert "Place 2" in first and "rated" not in first
    assert "Place 1" in second and "rated 6 of 7" in second
    Draft.objects.all().delete()
    submit(task, labeler, tiers=[shown], is_surplus=True)  # tied, and shown the same way round
    assert "those that the asker has submitted" in reviewer_client.get(url).text
    assert all("Place 1" in card for card in cards())


def test_nobody_answers_their_own(client_for, question, labeler):
    labeler.grant("reviewer")
    client = client_for(labeler)
    assert "somebody else answers" in client.get(reverse("question_review", args=[question.uuid])).text
    data = {"text": "Yes.", "key": str(uuid.uuid4())}
    assert client.post(reverse("question_answer", args=[question.uuid]), data).status_code == 422
    assert question.messages.count() == 1


def test_what_is_written_on_a_page_that_was_gone_back_to_is_not_lost(labeler_client, reviewer_client, labeler):
    key = str(uuid.uuid4())
    for text in ("Are ties fine?", "Are skips fine?", "Are skips fine?"):  # sent, gone back and changed, sent twice
        labeler_client.post(reverse("question_ask"), {"kind": "ranking", "text": text, "key": key})
    asked = Question.objects.order_by("id")
    assert [str(each.messages.get().text) for each in asked] == ["Are ties fine?", "Are skips fine?"]
    for text in ("Yes.", "Yes, all.", "Yes, all."):
        reviewer_client.post(reverse("question_answer", args=[asked[0].uuid]), {"text": text, "key": key})
    assert [m.text for m in asked[0].messages.order_by("id")][1:] == ["Yes.", "Yes, all."]
    assert len(mail.outbox) == 2


@pytest.mark.django_db(transaction=True)
def test_a_double_click_asks_once(make_user):
    asker, key = make_user("double@example.org", "labeler"), uuid.uuid4()
    barrier, asked = threading.Barrier(6), []

    def ask():
        barrier.wait()
        try:
            asked.append(questions.ask(text="Why?", key=key, kind="ranking", by=asker).pk)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(asked) == 6 and set(asked) == {Question.objects.get().pk}
