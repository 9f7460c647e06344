"""Erasing an author: what is redacted, what stays, who may, and what had held them."""

import io
import json
import uuid

import pytest
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse

from labeling.actions import (
    drafts,
    erasures,
    exports,
    imports,
    questions,
    reviews,
    submissions,
    tasks,
    tokens,
    writings,
)
from labeling.actions.drafts import Seen
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import (
    Author,
    Draft,
    Erasure,
    Export,
    Import,
    LikenessKey,
    ModelVersion,
    Prompt,
    Question,
    QuestionMessage,
    Response,
    Revision,
    Slot,
    Submission,
    User,
    WorkEntry,
)
from tests import builders
from training.contract import read_export

pytestmark = pytest.mark.django_db
SECRET = "zanzibar"  # stands in everything that somebody wrote; afterwards nowhere
KEY = f"customer-{SECRET}"


@pytest.fixture
def exported(settings, tmp_path):
    settings.EXPORT_DIR = tmp_path


def somebody() -> Author:
    """An author with two prompts and their responses, and a prompt of somebody else's."""
    rows = [
        {"prompt": f"My {SECRET} {n}?", "author": KEY, "organization": SECRET, "external_id": f"{SECRET}-{n}",
         "metadata": {"note": SECRET}, "demonstration": f"Your {SECRET}."}
        for n in range(2)
    ]  # fmt: skip
    imports.import_rows(kind="prompts", rows=[*rows, {"prompt": "Another's?", "author": "another"}], by=None)
    return Author.objects.get(key=KEY)


def work(labeler, reviewer) -> Submission:
    """Everything that may hang on a prompt: a submission with a review, a draft, a question, a ranking."""
    prompt, second = Prompt.objects.filter(author__key=KEY).order_by("id")
    batch = builders.batch(overlap=2)
    builders.task(batch, prompt)
    builders.task(batch, second)
    builders.task(batch, Prompt.objects.get(author__key="another"))
    slot = tasks.claim_next(by=labeler)
    answer = {"text": f"About {SECRET}.", "comment": SECRET}
    made = submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer=answer, active_seconds=90, by=labeler)
    reviews.review(submission=made, revision=1, verdict="returned", comment=f"Say less of {SECRET}.", by=reviewer)
    slot = tasks.claim_next(by=labeler)
    seen = Seen(editor="e", version=1, base=0, revision=0)
    drafts.save_draft(task=slot.task, content={"text": SECRET}, seen=seen, by=labeler)
    questions.ask(text=f"What is {SECRET}?", key=uuid.uuid4(), task=slot.task, by=labeler)
    return made


def said_in_the_playground(*, by: User) -> str:
    """The key of a session that holds a conversation, as the playground keeps it."""
    client = Client()
    client.force_login(by)
    session = client.session
    session["playground"] = {"messages": [{"role": "user", "content": SECRET}]}
    session.save()
    return session.session_key


def everything() -> str:
    """Every table of Heed's and the queue's, as text."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        )
        found = []
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT coalesce(string_agg(t::text, chr(10)), '') FROM \"{table}\" t")
            found += [f"{table}: {line}" for line in cursor.fetchone()[0].splitlines() if SECRET in line.lower()]
    return "\n".join(found)


def test_nothing_that_was_said_is_left_and_what_counts_stays(exported, labeler, reviewer, admin_user):
    author = somebody()
    submission = work(labeler, reviewer)
    said = {"constant": {"author": KEY, "use_case": "chat"}}
    told = Import.objects.create(kind="prompts", file_name="f.csv", file_sha256="", mapping=said)
    before = exports.build(query={}, by=None)
    hours = list(WorkEntry.objects.values_list("seconds", flat=True))
    model = ModelVersion.objects.create(name="sft-1", stage="sft", export=before, manifest={}, manifest_sha256="1" * 64)
    child = ModelVersion.objects.create(name="ppo-1", stage="ppo", manifest={}, manifest_sha256="2" * 64)
    child.parents.add(model)
    plan = erasures.plan(author=author)
    assert plan.counts == {"prompts": 2, "responses": 2, "tasks": 2, "open_seats": 3, "submissions": 1, "reviews": 1,
                           "drafts": 1, "questions": 1}  # fmt: skip
    assert [(held.export, held.prompts, held.labels) for held in plan.exports] == [(before, 2, 0)]
    assert plan.models == [model, child]
    assert SECRET in everything()
    made = erasures.erase(author=author, confirmation=KEY, reason="Request 17", by=admin_user)
    assert everything() == ""
    assert made.counts == plan.counts and made.pseudonym == plan.pseudonym and list(made.exports.all()) == [before]
    told.refresh_from_db()
    assert told.mapping == {"constant": {"use_case": "chat"}}
    erased = Prompt.objects.filter(intake="erased")
    assert [prompt.messages[0]["content"] for prompt in erased] == ["[erased]"] * 2
    assert not LikenessKey.objects.filter(prompt_id__in=erased.values("pk")).exists()
    submission.refresh_from_db()
    assert (submission.status, submission.current.text) == ("accepted", "[erased]") and submission.erased_at
    assert list(WorkEntry.objects.values_list("seconds", flat=True)) == hours
    assert Slot.objects.filter(task__prompt__in=erased).exclude(status="submitted").count() == 0
    assert Response.objects.filter(prompt__in=erased).values_list("text", flat=True).distinct().get() == "[erased]"
    after = exports.build(query={}, by=None)
    assert after.counts["prompts"] == before.counts["prompts"] - 2 and after.counts["demonstrations"] == 0
    assert SECRET in (before.folder / "prompts.jsonl").read_text()  # unchanged until it is withdrawn
    task = Draft.objects.first().task
    with pytest.raises(Conflict, match="erased meanwhile"):
        submissions.submit(task=task, submit_key=uuid.uuid4(), answer={"text": "Late."}, by=labeler)
    with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
        Erasure.objects.update(reason="Another.")
    with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
        Revision.objects.update(text="The way through is closed again.")


def test_answers_kept_for_repeated_requests_go_and_nothing_is_done_twice(
    client, exported, labeler, reviewer, admin_user
):
    author = somebody()
    work(labeler, reviewer)
    headers = {"Authorization": f"Bearer {tokens.create(user=reviewer, name='t', scopes=['review'])[1]}"}
    body = {"key": str(uuid.uuid4()), "text": f"You know {SECRET}."}
    url = reverse("api_question_answer", args=[Question.objects.get().uuid])

    def send():
        said = headers | {"Idempotency-Key": "k"}
        return client.post(url, json.dumps(body), content_type="application/json", headers=said)

    assert (send().status_code, send()["Idempotent-Replayed"]) == (200, "true")
    assert "idempotencykey" in everything()
    erasures.erase(author=author, confirmation=KEY, reason="Request 22", by=admin_user)
    assert everything() == ""
    again = send()
    assert (again.status_code, again.json()["code"]) == (409, "idempotent_answer_erased")
    assert QuestionMessage.objects.count() == 2


def test_an_export_that_was_being_written_is_written_anew(exported, admin_user, monkeypatch):
    author, write = somebody(), exports._write

    def slowly(*args):
        made = write(*args)
        if Author.objects.filter(pk=author.pk).exists():
            erasures.erase(author=author, confirmation=KEY, reason="Request 22", by=admin_user)
        return made

    monkeypatch.setattr(exports, "_write", slowly)
    export = exports.build(query={}, by=None)
    assert (export.name, export.counts["prompts"]) == ("v0001", 1)
    assert SECRET not in (export.folder / "prompts.jsonl").read_text()


def test_a_labeler_goes_with_their_labels_and_their_account(exported, make_user, reviewer, admin_user):
    labeler = make_user(f"{SECRET}@example.org", "labeler", name=SECRET)
    writing = writings.begin(kind="plain", by=labeler)
    writings.hand_in(writing=writing, content={"text": f"Written by {SECRET}."}, by=labeler)
    ranking = builders.task(builders.batch("ranking", name="r", k=2), builders.prompt("Rank."), {"a": "A", "b": "B"})
    slot = tasks.claim_next(by=labeler)
    ids = [str(pk) for pk in ranking.task_responses.values_list("response__uuid", flat=True)]
    answer = builders.ranking_answer([[ids[0]], [ids[1]]], comment=SECRET)
    made = submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer=answer, active_seconds=60, by=labeler)
    export = exports.build(query={}, by=None)
    assert len(list(read_export(export.folder).rankings())) == 1
    author = Author.objects.get(user=labeler)
    (held,) = erasures.plan(author=author).exports
    assert (held.export, held.labels) == (export, 1)
    _token, secret = tokens.create(user=labeler, name="t", scopes=["read"])
    said_in_the_playground(by=labeler)
    others = said_in_the_playground(by=reviewer)
    erasures.erase(author=author, confirmation=author.key, reason="Request 18", by=admin_user)
    assert everything() == ""
    assert list(Session.objects.values_list("session_key", flat=True)) == [others]
    made.refresh_from_db()
    (tiers,) = made.current.tiers
    assert made.status == "rejected" and sorted(tiers) == sorted(ids) and made.current.ratings == {}
    user = User.objects.get(pk=labeler.pk)
    assert (user.email, user.is_active, user.has_usable_password()) == (
        f"erased-{user.pk}@erased.invalid",
        False,
        False,
    )
    assert tokens.find(secret) is None
    assert WorkEntry.objects.filter(labeler=user).count() == 2
    assert list(read_export(exports.build(query={}, by=None).folder).rankings()) == []


def test_only_admins_with_the_key_typed_and_a_reason(labeler, researcher, admin_user):
    author = somebody()
    for confirmation, reason in ((KEY + "x", "Request"), (KEY, " "), ("", "")):
        with pytest.raises(Invalid):
            erasures.erase(author=author, confirmation=confirmation, reason=reason, by=admin_user)
    with pytest.raises(Forbidden):
        erasures.erase(author=author, confirmation=KEY, reason="Request", by=researcher)
    own = erasures.author_of(user=admin_user)
    with pytest.raises(Conflict, match="admin's account"):
        erasures.erase(author=own, confirmation=own.key, reason="Request", by=admin_user)
    assert Prompt.objects.filter(author=author).count() == 2 and not Erasure.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_console_finds_shows_erases_and_withdraws(exported, client_for, admin_user):
    client = client_for(admin_user)
    author = somebody()
    export = exports.build(query={}, by=None)
    found = client.get(reverse("erasures"), {"search": SECRET}).text
    page = reverse("erasure_new", args=[author.pk])
    assert page in found
    shown = client.get(page).text
    assert f"My {SECRET} 1?" in shown and export.name in shown and "prompts by them" in shown
    wrong = client.post(page, {"confirmation": "no", "reason": "Request 19"})
    assert (
        wrong.status_code == 422 and 'value="Request 19"' in wrong.text and Author.objects.filter(pk=author.pk).exists()
    )
    sent = client.post(page, {"confirmation": KEY, "reason": "Request 19"})
    made = Erasure.objects.get()
    assert sent["Location"] == reverse("erasure", args=[made.uuid])
    assert client.post(page, {"confirmation": KEY, "reason": "Request 19"}).status_code == 404  # nobody is there twice
    after = client.get(sent["Location"]).text
    assert "Request 19" in after and f"Withdraw {export.name}" in after and SECRET not in after
    for _twice in range(2):
        assert client.post(reverse("erasure_withdraw", args=[made.uuid, export.pk])).status_code == 302
    export.refresh_from_db()
    assert (export.status, export.withdrawn_by) == ("withdrawn", admin_user)
    assert [path.name for path in export.folder.iterdir()] == ["manifest.json"]
    assert client.get(reverse("export_file", args=[export.pk, "prompts.jsonl"])).status_code == 404
    assert "withdrawn" in client.get(reverse("export", args=[export.pk])).text
    again = exports.build(query={}, by=None)
    assert again.status == "ready" and again.number == export.number + 1


def test_an_account_without_prompts_can_be_found(client_for, admin_user, labeler):
    client = client_for(admin_user)
    assert labeler.email in client.get(reverse("erasures"), {"search": labeler.email[:6]}).text
    sent = client.post(reverse("erasure_person"), {"person": labeler.pk})
    assert sent["Location"] == reverse("erasure_new", args=[Author.objects.get(user=labeler).pk])
    assert client.post(reverse("erasure_person"), {"person": "x"}).status_code == 404


def test_the_command_shows_first_and_asks_for_the_key(exported):
    somebody()
    export = exports.build(query={}, by=None)
    out = io.StringIO()
    call_command("erase_author", KEY, "--dry-run", stdout=out)
    assert "prompts: 2" in out.getvalue() and export.name in out.getvalue()
    for wrong in ([], ["--confirm", "no", "--reason", "r"], ["--confirm", KEY]):
        with pytest.raises(CommandError):
            call_command("erase_author", KEY, *wrong, stdout=out)
    assert Author.objects.filter(key=KEY).exists()
    call_command("erase_author", KEY, "--confirm", KEY, "--reason", "Request 20", "--withdraw", stdout=out)
    assert not Author.objects.filter(key=KEY).exists() and Export.objects.get().status == "withdrawn"
    with pytest.raises(CommandError, match="no author"):
        call_command("erase_author", KEY, stdout=out)


def test_the_api_plans_and_erases_for_admins_alone(client, exported, researcher, admin_user):
    somebody()
    url = reverse("api_erasures")

    def send(user, scope: str, **body):
        _token, secret = tokens.create(user=user, name=uuid.uuid4().hex, scopes=[scope])
        headers = {"Authorization": f"Bearer {secret}"}
        if not body:
            return client.get(url, headers=headers)
        return client.post(url, json.dumps(body), content_type="application/json", headers=headers)

    assert client.post(url, {}).status_code == 401
    assert send(admin_user, "train", author=KEY).status_code == 403
    assert send(researcher, "admin", author=KEY).status_code == 403
    assert send(admin_user, "admin", author="nobody").status_code == 404
    planned = send(admin_user, "admin", author=KEY)
    assert planned.status_code == 200 and planned.json()["counts"] == {"prompts": 2, "responses": 2}
    assert send(admin_user, "admin", author=KEY, confirmation="no", reason="r").status_code == 422
    done = send(admin_user, "admin", author=KEY, confirmation=KEY, reason="Request 21")
    assert done.status_code == 201 and done.json()["counts"] == planned.json()["counts"]
    (row,) = send(admin_user, "admin").json()["results"]
    assert row == {name: value for name, value in done.json().items() if name != "models"}
    assert send(researcher, "admin").status_code == 403
