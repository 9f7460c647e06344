"""A labeler's day over the API: the next task, drafts, handing in once, correcting, passing on; nothing that tells too much."""

import json
import uuid

import pytest
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from labeling.actions import instructions, reviews, tokens
from labeling.models import ApiToken, Draft, DraftCopy, Skip, Slot, Submission
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch
from tests.labeling.test_api import assert_problem, call

pytestmark = pytest.mark.django_db


@pytest.fixture
def api():
    """A factory of callers: api(labeler) has a token of theirs with the scope that labelers need, or with these."""

    def make(user, *scopes: str) -> Client:
        _, secret = tokens.create(user=user, name=f"t{ApiToken.objects.count()}", scopes=list(scopes) or ["label"])
        return Client(headers={"Authorization": f"Bearer {secret}"})

    return make


def claim(client: Client, **wanted) -> dict:
    answer = call(client, "POST", "/api/v1/tasks/next/", wanted)
    assert answer.status_code == 200, answer.content
    return answer.json()


def ranking(task: dict, **fields) -> dict:
    """All responses in one order, each rated."""
    ids = [response["response_id"] for response in task["responses"]]
    return {"tiers": [[i] for i in ids], "ratings": {i: {"quality": 4, "flags": {}} for i in ids}} | fields


def send(client: Client, task: dict, verb: str, body: dict, method: str = "POST"):
    return call(client, method, f"/api/v1/tasks/{task['task_id']}/{verb}/", body)


def test_a_ranking_is_claimed_kept_handed_in_and_corrected(api, labeler, reviewer):
    make_ranking_batch(k=3)
    client = api(labeler)
    task = claim(client)
    assert claim(client)["task_id"] == task["task_id"]  # a second call leads to the same one
    assert [r["letter"] for r in task["responses"]] == ["A", "B", "C"]
    assert (task["kind"], task["seat"], task["version"], task["revision"]) == ("ranking", "held", 0, 0)
    assert task["form"]["quality"]["max"] == 7
    half = {"tiers": [[task["responses"][1]["response_id"]]], "comment": "a\r\nb"}
    kept = send(client, task, "draft", {"answer": half, "version": 0, "active_seconds": 5}, "PUT")
    assert (kept.status_code, kept.json()["version"], kept.json()["seat"]) == (200, 1, "held")
    again = client.get(f"/api/v1/tasks/{task['task_id']}/").json()
    assert (again["answer"]["tiers"], again["answer"]["comment"]) == (half["tiers"], "a\nb")
    problem = assert_problem(send(client, task, "submit", {"submit_key": str(uuid.uuid4()), "answer": half}), 422)
    assert {error["place"] for error in problem["errors"]} == {"Response A", "Response B", "Response C"}
    body = {"submit_key": str(uuid.uuid4()), "answer": ranking(task)}
    made = [send(client, task, "submit", body) for _ in range(2)]
    assert [answer.status_code for answer in made] == [200, 200]
    assert made[0].json() == made[1].json()
    assert Submission.objects.get().revisions.count() == 1
    other = {"submit_key": body["submit_key"], "answer": ranking(task, all_bad=True)}
    assert assert_problem(send(client, task, "submit", other), 409)["code"] == "handed_in_elsewhere"
    assert DraftCopy.objects.get().content["all_bad"] is True  # what came is kept
    corrected = send(client, task, "submit", other | {"submit_key": str(uuid.uuid4())}).json()
    assert corrected["revision"] == 2
    stale = other | {"submit_key": str(uuid.uuid4()), "revision": 1, "answer": ranking(task, comment="late")}
    assert_problem(send(client, task, "submit", stale), 409)
    submission = Submission.objects.get()
    reviews.review(submission=submission, revision=2, verdict="returned", comment="Look at B again.", by=reviewer)
    shown = client.get(f"/api/v1/me/submissions/{corrected['submission_id']}/").json()
    assert (shown["status"], shown["answer"]["all_bad"]) == ("returned", True)
    assert [(f["verdict"], f["comment"], f["revision"]) for f in shown["feedback"]] == [
        ("returned", "Look at B again.", 2)
    ]
    assert reviewer.email not in json.dumps(shown)


def test_a_demonstration_is_handed_in_and_another_passed_on(api, labeler):
    make_demonstration_batch(prompts=2)
    client = api(labeler)
    task = claim(client, kind="demonstration", batch="demos")
    assert task["responses"] == []
    wrong = assert_problem(send(client, task, "draft", {"answer": {"text": "x", "all_bad": True}}, "PUT"), 422)
    assert [error["place"] for error in wrong["errors"]] == ["answer.all_bad"]
    done = send(client, task, "submit", {"submit_key": str(uuid.uuid4()), "answer": {"text": "Bees hum."}})
    assert done.json()["status"] == "submitted"
    task = claim(client)
    assert send(client, task, "renew", {"active_seconds": 1}).json()["seat"] == "held"
    assert_problem(send(client, task, "skip", {"reason": "other"}), 422)
    assert_problem(send(client, task, "skip", {"reason": "unclear", "prompt_flags": {"\0": True}}), 422)
    for _ in range(2):
        assert send(client, task, "skip", {"reason": "unclear"}).status_code == 204
    assert Skip.objects.get().labeler == labeler
    assert send(client, task, "renew", {}).json()["seat"] == "skipped"
    assert call(client, "POST", "/api/v1/tasks/next/", {}).status_code == 204
    assert call(client, "POST", "/api/v1/tasks/next/").status_code == 204  # without a body too
    assert_problem(call(client, "POST", "/api/v1/tasks/next/", {"batch": "none"}), 422)
    listed = client.get("/api/v1/me/submissions/").json()
    assert [row["submission_id"] for row in listed["results"]] == [done.json()["submission_id"]]


def test_a_seat_that_is_put_back_or_lost_keeps_the_work(api, labeler, labeler2):
    make_demonstration_batch(prompts=1)
    client, other = api(labeler), api(labeler2)
    task = claim(client)
    send(client, task, "draft", {"answer": {"text": "Half a"}, "version": 0}, "PUT")
    assert send(client, task, "release", {}).status_code == 204
    assert claim(other)["task_id"] == task["task_id"]
    assert client.get(f"/api/v1/tasks/{task['task_id']}/").json()["seat"] == "lost"
    late = send(client, task, "submit", {"submit_key": str(uuid.uuid4()), "answer": {"text": "Half a bee."}})
    assert late.json()["is_surplus"] is True
    assert Slot.objects.get().labeler == labeler2


def test_work_from_another_page_is_not_overwritten(api, labeler, labeler_client):
    make_demonstration_batch(prompts=1)
    client = api(labeler)
    task = claim(client)
    page = {"text": "Typed in the browser.", "base": 0, "version": 1, "revision": 0, "editor": "tab"}
    assert labeler_client.post(f"/tasks/{task['task_id']}/draft", page).status_code == 200
    stale = send(client, task, "draft", {"answer": {"text": "From a program."}, "version": 0}, "PUT")
    assert assert_problem(stale, 409)["code"] == "saved_elsewhere"
    assert Draft.objects.get().content["text"] == "Typed in the browser."
    assert DraftCopy.objects.get().content["text"] == "From a program."


def test_others_tasks_and_submissions_are_as_if_they_were_not(api, labeler, labeler2, researcher):
    make_ranking_batch(k=2)
    client, stranger = api(labeler), api(labeler2)
    task = claim(client)
    done = send(client, task, "submit", {"submit_key": str(uuid.uuid4()), "answer": ranking(task)}).json()
    body = {"submit_key": str(uuid.uuid4()), "answer": ranking(task)}
    for method, verb in [("GET", ""), ("PUT", "draft/"), ("POST", "submit/"), ("POST", "renew/"), ("POST", "release/")]:
        given = {"answer": {}} if method == "PUT" else body if verb == "submit/" else {}
        assert_problem(call(stranger, method, f"/api/v1/tasks/{task['task_id']}/{verb}", given), 404)
    assert_problem(stranger.get(f"/api/v1/me/submissions/{done['submission_id']}/"), 404)
    assert_problem(call(api(labeler, "read"), "POST", "/api/v1/tasks/next/"), 403)  # the token's scope
    assert_problem(call(api(researcher, "label"), "POST", "/api/v1/tasks/next/"), 403)  # the person's role
    assert_problem(call(Client(), "POST", "/api/v1/tasks/next/"), 401)
    known = json.dumps([task, done, client.get("/api/v1/me/submissions/").json()])
    for secret in ("m0", "m1", "gold", "model", labeler2.email, f'"id": {Submission.objects.get().pk}'):
        assert secret not in known


def test_a_submit_brings_the_next_task_along(api, labeler):
    make_demonstration_batch(prompts=2)
    make_ranking_batch(k=2)
    client = api(labeler)
    task = claim(client, kind="demonstration")
    body = {"submit_key": str(uuid.uuid4()), "answer": {"text": "Bees hum."}}
    assert_problem(send(client, task, "submit", body | {"and_next": {"batch": "none"}}), 422)
    assert not Submission.objects.exists(), "nothing changed"
    made = [send(client, task, "submit", body | {"and_next": {"kind": "demonstration"}}).json() for _ in range(2)]
    assert made[0] == made[1] and made[0]["next"]["kind"] == "demonstration"
    assert made[0]["next"] == claim(client), "it is theirs, and the same as asked for by itself"
    body = {"submit_key": str(uuid.uuid4()), "answer": {"text": "They dance."}}
    last = send(client, made[0]["next"], "submit", body | {"and_next": {}}).json()["next"]
    assert (last["kind"], last["seat"], len(last["responses"])) == ("ranking", "held", 2)
    done = send(client, last, "submit", {"submit_key": str(uuid.uuid4()), "answer": ranking(last), "and_next": {}})
    assert done.json()["next"] is None


def test_instructions_come_before_the_first_task(api, labeler, researcher):
    make_demonstration_batch(prompts=1)
    begun = claim(api(labeler))
    make_demonstration_batch("more", prompts=1)
    instructions.publish(kind="demonstration", text="Read me.", by=researcher)
    body = {"submit_key": str(uuid.uuid4()), "answer": {"text": "Bees hum."}, "and_next": {}}
    handed_in = send(api(labeler), begun, "submit", body)
    assert (handed_in.json()["status"], handed_in.json()["next"]) == ("submitted", None)
    problem = assert_problem(call(api(labeler), "POST", "/api/v1/tasks/next/"), 409)
    assert (problem["code"], problem["detail"]) == ("not_prepared", "Read the instructions first.")


def test_own_submissions_come_in_pages_that_tell_nothing(api, labeler):
    make_demonstration_batch(prompts=5)
    client = api(labeler)
    made = []
    for _ in range(5):
        body = {"submit_key": str(uuid.uuid4()), "answer": {"text": "Bees."}}
        made.append(send(client, claim(client), "submit", body).json()["submission_id"])
    Submission.objects.update(submitted_at=Submission.objects.first().submitted_at)  # a tie is no gap
    seen, cursor = [], None
    while cursor != "":
        page = client.get("/api/v1/me/submissions/", {"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [row["submission_id"] for row in page["results"]]
        cursor = page["next"] or ""
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5
    assert client.get("/api/v1/me/submissions/", {"status": "accepted"}).json()["results"] == []
    for cursor in ("AAAA", "!", "MjAyNi0wMS0wMSB4"):
        assert_problem(client.get("/api/v1/me/submissions/", {"cursor": cursor}), 422)


def test_a_session_has_no_say_in_what_comes_with_a_token_and_both_are_guarded_alike(api, researcher, client_for):
    browser = client_for(researcher)
    assert browser.get("/api/v1/schema/").status_code == 200
    assert browser.get("/api/v1/schema/", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert browser.get("/api/v1/models/", headers={"Authorization": "Token x"}).status_code == 401
    guards = ("Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy")
    answers = [
        browser.get("/console/batches/"),
        api(researcher, "read").get("/api/v1/models/"),
        browser.get("/api/v1/models/"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 401]
    assert len({tuple(answer[name] for name in guards) for answer in answers}) == 1


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_died_between_requests_is_opened_anew(api, labeler):
    make_ranking_batch(prompts=2, k=4)
    client, database = api(labeler), connections["default"]
    task = claim(client)
    died = database.connection
    for has_died in (True, False):
        database.health_check_enabled, database.health_check_done = True, False  # as at the start of a request
        if has_died:
            died.pgconn.exec_(f"SELECT pg_terminate_backend({died.info.backend_pid})".encode())
        assert claim(client)["task_id"] == task["task_id"]
    assert database.connection is not died
    database.close()


def times_planned(name):
    """How often a prepared statement ran on this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT generic_plans + custom_plans FROM pg_prepared_statements WHERE name = %s", [name])
        return (cursor.fetchone() or [0])[0]


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_claim_and_a_submit_cost_few_queries(api, labeler, settings, is_prepared):
    """As many on the last task as on the first; written down so that a rise is noticed. Behind a pooler they are as many."""
    settings.PREPARED_STATEMENTS = is_prepared
    make_ranking_batch(prompts=4, k=4)
    client = api(labeler)
    counts, before = [], times_planned("heed_lines")
    for _ in range(3):
        with CaptureQueriesContext(connection) as claiming:
            task = claim(client)
        body = {"submit_key": str(uuid.uuid4()), "answer": ranking(task)}
        with CaptureQueriesContext(connection) as submitting:
            assert send(client, task, "submit", body).status_code == 200
        counts.append((len(claiming), len(submitting)))
    assert counts[1] == counts[2]
    assert any("heed_lines" in query["sql"] for query in claiming.captured_queries), "whoever counts them sees them"
    assert times_planned("heed_lines") == before
    claim(client)
    assert (times_planned("heed_lines") == before + 1) == is_prepared
    assert counts[2][0] <= 11
    assert counts[2][1] <= 16
