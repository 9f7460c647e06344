"""The API for the team: who may what, the rows that come, and keys that make a repeated request do nothing twice."""

import io
import json
import threading
import uuid
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.contrib.sessions.models import Session
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.utils import timezone

from labeling import jobs
from labeling.actions import exports, imports, numbers, questions, tokens
from labeling.models import (
    ApiToken,
    Batch,
    GatewayKey,
    IdempotencyKey,
    Import,
    IntakeDecision,
    Invitation,
    Prompt,
    Question,
    Response,
    Submission,
)
from tests import builders
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, submit
from tests.labeling.test_api import assert_problem, call

pytestmark = pytest.mark.django_db
ROLES = ("applicant", "labeler", "reviewer", "researcher", "admin")
TEAM, RESEARCH = {"reviewer", "researcher", "admin"}, {"researcher", "admin"}
KEY = {"organization": "Acme", "name": "k", "may_train": False}


@pytest.fixture
def api(make_user):
    """A factory of callers: api("reviewer", "read") is a client of somebody with that role, its token with these scopes or all."""

    def make(role: str, *scopes: str) -> Client:
        number = ApiToken.objects.count()
        user = make_user(f"{role}{number}@example.org", role)
        _, secret = tokens.create(user=user, name=f"t{number}", scopes=list(scopes) or list(ApiToken.Scope.values))
        return Client(headers={"Authorization": f"Bearer {secret}"})

    return make


@pytest.fixture
def world(labeler, labeler2, settings, tmp_path) -> dict:
    """Two rankings of one task, a demonstration, a question, a key, an export: something behind every address."""
    ranks = make_ranking_batch(k=3, overlap=2)
    for person in (labeler, labeler2):
        submit(ranks.tasks.get(), person)
    demonstration = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    questions.ask(text="Which?", key=uuid.uuid4(), kind="ranking", by=labeler)
    GatewayKey.objects.create(**KEY | {"name": "old"}, prefix="heedgw_x", secret_hash="x", expires_at=timezone.now())
    rows = [{"prompt": "New?"}, {"prompt": "Write to ann@example.org, please."}]
    counts = imports.import_rows(kind="prompts", rows=rows, by=None)
    assert (counts["prompts_new"], counts["prompts_held"]) == (2, 1)
    numbers.measure()
    settings.EXPORT_DIR = tmp_path
    export = exports.build(query={}, by=None)
    return {"batch": ranks, "submission": demonstration, "question": Question.objects.get(), "export": export}


def endpoints(world) -> list[tuple]:
    """Method, path, scope, roles that may, body."""
    of = f"submissions/{world['submission'].uuid}/"
    return [
        ("GET", "submissions/?kind=demonstration", "read", TEAM, None),
        ("GET", of, "read", TEAM, None),
        ("POST", f"{of}review/", "review", {"reviewer", "admin"}, {"verdict": "accepted", "revision": 1}),
        ("GET", f"batches/{world['batch'].pk}/", "read", RESEARCH, None),
        ("PATCH", f"batches/{world['batch'].pk}/", "import", RESEARCH, {"status": "paused"}),
        ("GET", "responses/", "read", RESEARCH, None),
        ("GET", "imports/", "read", RESEARCH, None),
        ("GET", f"imports/{Import.objects.first().pk}/", "read", RESEARCH, None),
        ("POST", "prompts/use-cases/", "import", RESEARCH,
         {"rows": [{"prompt_id": str(Prompt.objects.get(intake="held").uuid), "use_case": "rewrite"}]}),
        ("GET", "intake/", "read", RESEARCH, None),
        ("POST", "intake/decisions/", "import", RESEARCH,
         {"prompt_ids": [str(Prompt.objects.get(intake="held").uuid)], "verdict": "released", "comment": "Made up."}),
        ("GET", "labelers/", "read", TEAM, None),
        ("GET", "agreement/", "read", TEAM, None),
        ("GET", "questions/?is_open=true", "read", TEAM, None),
        ("POST", f"questions/{world['question'].uuid}/answer/", "review", {"reviewer", "admin"},
         {"key": str(uuid.uuid4()), "text": "B."}),
        ("GET", "people/", "admin", {"admin"}, None),
        ("PATCH", f"people/{world['submission'].labeler_id}/", "admin", {"admin"}, {"skills": ["law"]}),
        ("POST", "invitations/", "admin", {"admin"}, {"email": "new@example.org", "role": "labeler"}),
        ("GET", "gateway-keys/", "admin", {"admin"}, None),
        ("POST", "gateway-keys/", "admin", {"admin"}, KEY),
        ("GET", f"gateway-keys/{GatewayKey.objects.first().pk}/", "admin", {"admin"}, None),
        ("PATCH", f"gateway-keys/{GatewayKey.objects.first().pk}/", "admin", {"admin"}, {"may_train": False}),
        ("POST", f"exports/{world['export'].name}/withdraw/", "admin", {"admin"}, {}),
        ("DELETE", f"gateway-keys/{GatewayKey.objects.first().pk}/", "admin", {"admin"}, None),
    ]  # fmt: skip


def test_each_endpoint_answers_those_who_may_and_refuses_the_rest(world, api):
    callers = {role: api(role) for role in ROLES}
    for method, path, scope, roles, body in endpoints(world):
        path = f"/api/v1/{path}"
        assert_problem(call(Client(), method, path, body), 401)
        without = api("admin", *(each for each in ApiToken.Scope.values if each != scope))
        assert scope in assert_problem(call(without, method, path, body), 403)["detail"]
        for role in ROLES:
            if role not in roles:
                assert_problem(call(callers[role], method, path, body), 403)
        assert_problem(call(callers["admin"], "PUT", path, {}), 405)
        if not path.endswith("review/"):  # whose verdict stands then, and another's would be a conflict
            Question.objects.update(is_open=True)
        answer = call(callers[sorted(roles)[0]], method, path, body)
        assert 200 <= answer.status_code < 300, (path, answer.content)
        if method == "GET" and "results" in answer.json():
            assert answer.json()["results"], path


def test_what_the_team_reads_is_what_is_there(world, api, labeler):
    client = api("researcher")
    batch = client.get(f"/api/v1/batches/{world['batch'].pk}/").json()
    assert (batch["progress"]["seats"], batch["progress"]["submitted"], batch["progress"]["waiting"]) == (2, 2, 2)
    shown = client.get("/api/v1/submissions/", {"kind": "ranking", "labeler_id": labeler.pk}).json()["results"]
    assert [(row["labeler"], row["group"]) for row in shown] == [("Lena Labeler", "training")]
    detail = client.get(f"/api/v1/submissions/{shown[0]['submission_id']}/").json()
    assert sorted(detail["shown_order"]) == sorted(uuid for tier in detail["answer"]["tiers"] for uuid in tier)
    agreement = client.get("/api/v1/agreement/", {"batch_id": world["batch"].pk}).json()["results"]
    share = next(f for f in agreement[0]["figures"] if (f["measure"], f["between"]) == ("share", "all"))
    assert share["value"] == 1.0  # both ranked in the same order
    names = {row["name"]: row["rankings"] for row in client.get("/api/v1/labelers/").json()["results"]}
    assert names == {"Lena Labeler": 1, "Luis Labeler": 1}
    assert client.get("/api/v1/responses/", {"model": "m0"}).json()["results"][0]["model"] == "m0"
    for wrong in ("responses/?prompt_id=x", "submissions/?colour=red", "labelers/?is_paused=perhaps"):
        assert_problem(client.get(f"/api/v1/{wrong}"), 422)
    for missing in (f"submissions/{uuid.uuid4()}/", "batches/999999/", f"imports/{2**70}/"):
        assert_problem(client.get(f"/api/v1/{missing}"), 404)


def test_a_review_and_a_status_do_what_they_do_on_the_page(world, api):
    path = f"/api/v1/submissions/{world['submission'].uuid}/review/"
    reviewer = api("reviewer")
    assert_problem(call(reviewer, "POST", path, {"verdict": "returned", "revision": 1}), 422)
    assert_problem(call(reviewer, "POST", path, {"verdict": "accepted", "revision": 2}), 409)
    made = call(reviewer, "POST", path, {"verdict": "accepted", "revision": 1}).json()
    assert (made["verdict"], made["revision"]) == ("accepted", 1)
    assert Submission.objects.get(pk=world["submission"].pk).status == "accepted"
    assert_problem(call(api("reviewer"), "POST", path, {"verdict": "rejected", "revision": 1}), 409)
    batch = f"/api/v1/batches/{world['batch'].pk}/"
    assert call(api("researcher"), "PATCH", batch, {"status": "closed"}).json()["status"] == "closed"
    assert_problem(call(api("researcher"), "PATCH", batch, {"status": "lost"}), 422)
    assert_problem(call(api("researcher"), "PATCH", batch, {"status": "active", "priority": 1001}), 422)
    changed = call(
        api("researcher"), "PATCH", batch, {"priority": 7, "skills": ["Law"], "instructions": "Be kind."}
    ).json()
    assert (changed["priority"], changed["skills"], changed["instructions"]) == (7, ["law"], "Be kind.")
    assert call(api("researcher"), "PATCH", batch, {"status": "active"}).json() == changed | {"status": "active"}


def test_an_export_and_a_key_change_as_on_their_pages(world, api):
    admin, name = api("admin"), world["export"].name
    for _ in range(2):
        assert call(admin, "POST", f"/api/v1/exports/{name}/withdraw/", {}).json()["status"] == "withdrawn"
    assert_problem(admin.get(f"/api/v1/exports/{name}/files/prompts.jsonl"), 404)
    assert_problem(call(admin, "POST", "/api/v1/exports/v0099/withdraw/", {}), 404)
    made = call(admin, "POST", "/api/v1/gateway-keys/", KEY).json()
    path, known = f"/api/v1/gateway-keys/{made['id']}/", {name: made[name] for name in made if name != "secret"}
    assert call(admin, "PATCH", path, {"may_train": True}).json() == known | {"may_train": True}
    assert call(admin, "PATCH", path, {"requests_per_minute": 5}).json()["requests_per_minute"] == 5
    assert call(admin, "PATCH", path, {"days": 1}).json()["expires_at"] < made["expires_at"]
    for wrong in ({"may_train": None}, {"days": 0}, {"organization": "Other"}):
        assert_problem(call(admin, "PATCH", path, wrong), 422)
    shown = admin.get(path).json()
    assert (shown["may_train"], shown["tokens_per_minute"]) == (True, known["tokens_per_minute"])
    assert call(admin, "DELETE", path, None).status_code == 204
    assert_problem(call(admin, "PATCH", path, {"may_train": False}), 409)


# ---- files and intake --------------------------------------------------------------------------------------------------


def upload(client: Client, content: bytes | str, name="rows.jsonl", headers=None, **fields):
    file = SimpleUploadedFile(name, content.encode() if isinstance(content, str) else content)
    return client.post("/api/v1/imports/", {"kind": "prompts", "file": file} | fields, headers=headers)


def lines(*rows: dict) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_files_go_in_as_on_the_page_for_those_who_may(api):
    content = lines({"prompt": "One?"}, {"prompt": "Two?"})
    assert_problem(upload(Client(), content), 401)
    assert_problem(upload(api("admin", "read"), content), 403)
    for role in ROLES:
        if role not in RESEARCH:
            assert_problem(upload(api(role), content), 403)
    client = api("researcher", "import", "read")
    made = upload(client, content)
    assert (made.status_code, made.json()["file_name"], made.json()["checked"]) == (201, "rows.jsonl", 2)
    assert made.json() == client.get(f"/api/v1/imports/{made.json()['id']}/").json()
    again = upload(client, content).json()["counts"]
    assert (again.get("prompts_new", 0), again["prompts_present"]) == (0, 2)
    columns = {"map": ["prompt=post", "response=sample", "model=who"], "constant": "use_case=tldr", "kind": "responses"}
    assert upload(client, 'post,sample,who\n"A post.",Short.,gpt\n', "tldr.csv", **columns).status_code == 201
    assert Response.objects.get().prompt.use_case == "tldr"
    table = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["From a table?"]}), table)
    assert upload(client, table.getvalue(), "rows.bin", format="parquet").json()["counts"]["prompts_new"] == 1
    pair = {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: Eh."}
    assert upload(client, lines(pair), format="hh-rlhf").json()["counts"]["left_out_responses"] == 1
    assert Import.objects.filter(created_by__email__startswith="researcher").count() == 5


def test_a_wrong_file_or_form_is_refused_with_its_places(api, monkeypatch):
    client = api("researcher", "import")
    said = assert_problem(upload(client, lines({"prompt": ""}, {"prompt": "Fine."}, {"prompt": 7}) + "\n{no"), 422)
    assert [error["place"] for error in said["errors"]] == [
        "rows.jsonl line 1: field prompt", "rows.jsonl line 3: field prompt", "rows.jsonl line 4"]  # fmt: skip
    fine = lines({"prompt": "Fine."})
    for fields in ({"kind": "tasks"}, {"format": "docx"}, {"colour": "red"}, {"kind": ["prompts"] * 2}, {"map": "x"},
                   {"map": "colour=x"}, {"constant": "use_case=\0"}, {"file": "text"}, {"name": "rows.txt"}):  # fmt: skip
        assert_problem(upload(client, fine, **fields), 422)
    assert_problem(upload(client, ""), 422)
    assert_problem(call(client, "POST", "/api/v1/imports/", {"kind": "prompts"}), 415)
    form = {"content_type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="file"; '
    for wrong in (b"", b"--y--", head + b"filename*=none''x\r\n\r\nx\r\n--x--", b"--x\r\n" * 6000):
        assert client.generic("POST", "/api/v1/imports/", wrong, **form).status_code in (400, 422), wrong
    monkeypatch.setattr(imports, "UPLOAD_MAX_BYTES", 20)
    assert "import_prompts" in assert_problem(upload(client, lines({"prompt": "More than 20 bytes."})), 413)["detail"]
    monkeypatch.setattr("labeling.api.imports.FORM_BYTES", 20)
    assert_problem(upload(client, fine), 413)
    assert not Prompt.objects.exists() and not Import.objects.exists()


def test_a_file_in_chunks_and_one_sent_again(api):
    client, key = api("researcher", "import"), {"Idempotency-Key": "f"}
    first, again = (upload(client, lines({"prompt": "One?"}), headers=key) for _ in range(2))
    assert (first.status_code, again.json(), again["Idempotent-Replayed"]) == (201, first.json(), "true")
    assert_problem(upload(client, lines({"prompt": "Two?"}), headers=key), 409)
    assert_problem(upload(client, lines({"prompt": "One?"}), headers=key, constant=["use_case=a", "kind=plain"]), 409)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="kind"\r\n\r\nprompts\r\n--x\r\nContent-Disposition: form-data; '
        b'name="file"; filename="r.jsonl"\r\n\r\n{"prompt": "In pieces?"}\r\n--x--\r\n'
    )
    environ = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = client.generic("POST", "/api/v1/imports/", CONTENT_TYPE="multipart/form-data; boundary=x", **environ)
    assert (answer.status_code, answer.json()["counts"]["prompts_new"]) == (201, 1)


def test_what_intake_holds_is_listed_and_decided(api, researcher):
    rows = [{"prompt": f"Mail {n}@example.org about it?", "author": "a"} for n in range(3)]
    imports.import_rows(kind="prompts", rows=[*rows, {"prompt": "Fine?"}], by=None)
    client, path = api("researcher", "read", "import"), "/api/v1/intake/"

    def ids(**query) -> list[str]:
        return [row["prompt_id"] for row in client.get(path, query).json()["results"]]

    first = client.get(path, {"limit": 2}).json()
    (held, second), (third,) = (
        first["results"],
        client.get(path, {"limit": 2, "cursor": first["next"]}).json()["results"],
    )
    assert [row["messages"][0]["content"] for row in (held, second, third)] == [row["prompt"] for row in rows]
    (finding,) = held["findings"]
    (span,) = finding["spans"]
    assert (finding["reason"], held["messages"][0]["content"][span["start"] : span["end"]]) == (
        "personal_data", "0@example.org")  # fmt: skip
    assert (held["author"], held["decision"]) == ("a", None)
    assert len(ids(reason="personal_data", import_id=held["import_id"])) == 3
    assert ids(reason="near_copy") == ids(import_id=2**40) == ids(state="refused") == []
    assert_problem(client.get(path, {"state": "lost"}), 422)

    def decide(*prompts, verdict="refused", comment="Not ours.", key="k"):
        body = {"prompt_ids": prompts, "verdict": verdict, "comment": comment}
        return send(client, "intake/decisions/", body, key)

    assert_problem(decide(held["prompt_id"], str(uuid.uuid4())), 404)
    assert_problem(decide(held["prompt_id"], comment=" "), 422)
    assert decide(held["prompt_id"], second["prompt_id"]).json() == {"decided": 2}
    assert ids(state="refused") == [held["prompt_id"], second["prompt_id"]] and ids() == [third["prompt_id"]]
    assert decide(held["prompt_id"], verdict="released", key="r").json() == {"decided": 1}
    (released,) = client.get(path, {"state": "released"}).json()["results"]
    assert (released["prompt_id"], released["decision"]["verdict"]) == (held["prompt_id"], "released")
    assert released["decision"]["decided_by"] == str(IntakeDecision.objects.latest("id").decided_by)
    builders.task(builders.batch(), Prompt.objects.get(uuid=held["prompt_id"]))
    assert_problem(decide(held["prompt_id"], key="l"), 409)


# ---- idempotency keys -------------------------------------------------------------------------------------------------


def send(client: Client, path: str, body: dict, key: str):
    return client.post(f"/api/v1/{path}", body, content_type="application/json", headers={"Idempotency-Key": key})


def test_a_repeated_key_repeats_the_answer_and_does_nothing_twice(api):
    make_demonstration_batch(name="first", prompts=1)
    client, order = api("researcher"), {"name": "b", "kind": "demonstration"}
    first, again = (send(client, "batches/", order, "k-1") for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)  # without the key the second were 200
    assert again.json() == first.json()
    assert ("Idempotent-Replayed" in first, again["Idempotent-Replayed"]) == (False, "true")
    assert (
        assert_problem(send(client, "batches/", order | {"overlap": 2}, "k-1"), 409)["code"] == "idempotency_key_reused"
    )
    assert_problem(send(client, "exports/", {}, "k-1"), 409)  # nor for another address
    assert send(api("researcher"), "batches/", order, "k-1").status_code == 200  # another person's key
    for wrong in ("", "a b", "x" * 256):
        assert_problem(send(client, "batches/", order, wrong), 422)
    assert_problem(send(client, "batches/", {"name": "c", "kind": "ranking"}, "k-2"), 422)
    assert (
        send(client, "batches/", {"name": "c", "kind": "demonstration"}, "k-2").status_code == 201
    )  # a failure is not kept
    IdempotencyKey.objects.update(created_at=timezone.now() - timedelta(hours=25))
    assert send(client, "batches/", order, "k-1").status_code == 200
    Session.objects.create(session_key="ended", expire_date=timezone.now())
    jobs.forget_old()
    assert not Session.objects.filter(session_key="ended").exists()
    assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["k-1"]
    assert Batch.objects.count() == 3


def test_a_secret_is_not_kept_with_the_answer(api):
    client = api("admin")
    first, again = (send(client, "gateway-keys/", KEY, "k").json() for _ in range(2))
    assert first["secret"].startswith("heedgw_")
    assert again == first | {"secret": None}
    link = send(client, "invitations/", {"email": "n@example.org", "role": "reviewer"}, "i").json()["link"]
    assert Client().get(link).status_code == 302
    assert Invitation.objects.get().role == "reviewer"
    assert link.rsplit("/", 2)[1] not in str(list(IdempotencyKey.objects.values("body")))


@pytest.mark.django_db(transaction=True)
def test_of_two_requests_at_once_one_does_it(api):
    """Both get the one answer, though the second came before the first was done."""
    client, answers = api("researcher"), []
    body = {"rows": [{"prompt": f"At once {n}?"} for n in range(20)]}

    def run() -> None:
        answers.append(send(client, "prompts/", body, "same"))
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.json()["counts"]["prompts_new"] for answer in answers] == [20, 20]
    assert sorted("Idempotent-Replayed" in answer for answer in answers) == [False, True]
    assert Prompt.objects.count() == 20
