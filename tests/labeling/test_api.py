"""The API: every endpoint for every caller, problem JSON, keyset pages, repeatable writes, and the client against a server."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test import Client
from django.utils import timezone

from labeling import jobs
from labeling.actions import batches, exports, imports, model_versions, prompts, tokens
from labeling.models import ApiToken, Batch, Evaluation, Export, ModelVersion, Promotion, Prompt, Response
from tests.labeling.rows import make_demonstration_batch, make_prompt, submit
from tests.training.test_sample import models  # noqa: F401 a fixture
from training.client import ClientError, HeedClient
from training.contract import ExportRef, parent_ref, read_export, write_model_manifest

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]
ALL = list(ApiToken.Scope.values)

VERDICT = {
    "name": "KL",
    "figure": "model.kl_after",
    "value": 9.0,
    "floor": None,
    "ceiling": 6.0,
    "required": True,
    "reason": "9",
}
ENDPOINTS = [  # method, path, scope, body
    ("GET", "/api/v1/prompts/", "read", None),
    ("GET", "/api/v1/prompts/least-covered/?task=ranking&split=train&limit=3&seed=1", "read", None),
    ("POST", "/api/v1/prompts/", "import", {"rows": [{"prompt": "New?"}]}),
    ("POST", "/api/v1/responses/", "import", {"rows": [{"prompt": "New?", "model": "m", "response": "r"}]}),
    ("GET", "/api/v1/batches/", "read", None),
    ("POST", "/api/v1/batches/", "import", {"name": "b", "kind": "demonstration"}),
    ("GET", "/api/v1/exports/", "read", None),
    ("POST", "/api/v1/exports/", "train", {"query": {}}),
    ("POST", "/api/v1/exports/count/", "read", {"query": {"review": ["accepted"]}}),
    ("GET", "/api/v1/exports/v0001/", "read", None),
    ("GET", "/api/v1/exports/v0001/files/prompts.jsonl", "read", None),
    ("GET", "/api/v1/models/", "read", None),
    ("POST", "/api/v1/models/", "train", "a manifest"),
    ("GET", "/api/v1/models/org/policy-1/", "read", None),
    ("GET", "/api/v1/models/org/policy-1/evaluations/", "read", None),
    ("POST", "/api/v1/models/org/policy-1/evaluations/", "train", {"name": "e", "metrics": {"win": 0.7}}),
    ("POST", "/api/v1/models/org/policy-1/promote/", "promote", {"reason": "it is better"}),
    ("GET", "/api/v1/models/org/policy-1/labels/", "read", None),
    ("GET", "/api/v1/models/org/policy-1/gate-checks/", "read", None),
    ("POST", "/api/v1/models/org/policy-1/gate-checks/", "train", {"rules": "", "verdicts": [VERDICT]}),
    ("GET", "/api/v1/promotions/", "read", None),
    ("GET", "/api/v1/promotions/serving/", "read", None),
]


@pytest.fixture(autouse=True)
def export_dir(settings, tmp_path):
    settings.EXPORT_DIR = tmp_path / "exports"


@pytest.fixture
def api(researcher):
    """A factory of callers: api("read", "train") is a client with a token of these scopes, for a researcher."""

    def make(*scopes: str, user=researcher) -> Client:
        _, secret = tokens.create(user=user, name=f"t{ApiToken.objects.count()}", scopes=list(scopes))
        return Client(headers={"Authorization": f"Bearer {secret}"})

    return make


def call(client: Client, method: str, path: str, body=None):
    data = json.dumps(body) if body is not None else None
    return client.generic(method, path, data or "", content_type="application/json")


def assert_problem(answer, status: int) -> dict:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "code", "detail", "errors"}
    assert body["status"] == status
    return body


def manifest_text(tmp_path: Path, name: str = "org/policy-1", stage: str = "ppo", **fields) -> str:
    folder = tmp_path / name.replace("/", "-")
    folder.mkdir(exist_ok=True)
    options = {"parents": {}, "export": None, "config": {}, "metrics": {}, "seed": 1} | fields
    write_model_manifest(folder, name=name, stage=stage, **options)
    return (folder / "manifest.json").read_text()


@pytest.fixture
def world(tmp_path, labeler):
    """A prompt, an export v0001 and a registered policy: what every endpoint needs to answer 2xx."""
    make_prompt("Known?")
    exports.build(query={}, by=None)
    model_versions.register(manifest=manifest_text(tmp_path).encode(), uri="/models/1", by=None)
    return tmp_path


# ---- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "scope", "body"), ENDPOINTS, ids=lambda value: str(value)[:60])
def test_each_endpoint_answers_each_caller(world, api, make_user, admin_user, method, path, scope, body):
    if body == "a manifest":
        body = {"manifest": manifest_text(world, "fresh"), "uri": "/models/2"}
    for stranger in (
        Client(),
        Client(headers={"Authorization": "Bearer heed_wrong"}),
        Client(headers={"Authorization": "x"}),
    ):
        answer = call(stranger, method, path, body)
        assert_problem(answer, 401)
        assert answer["WWW-Authenticate"].startswith("Bearer")
    logged_in = Client()
    logged_in.force_login(admin_user)
    assert_problem(call(logged_in, method, path, body), 401)  # a browser's session is no token: nothing to forge
    others = [other for other in ALL if other != scope]
    assert scope in assert_problem(call(api(*others), method, path, body), 403)["detail"]
    for role in ("applicant", "labeler", "reviewer"):
        person = make_user(f"{role}2@example.org", role)
        assert_problem(call(api(*ALL, user=person), method, path, body), 403)
    for person in ({}, {"user": admin_user}):
        answer = call(api(scope, **person), method, path, body)
        assert 200 <= answer.status_code < 300, answer.content
    assert_problem(call(api(*ALL), "DELETE", path), 405)


def test_an_expired_withdrawn_or_disabled_token_is_refused(api, researcher):
    client = api("read")
    assert call(client, "GET", "/api/v1/prompts/").status_code == 200
    token = ApiToken.objects.get()
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert_problem(call(client, "GET", "/api/v1/prompts/"), 401)
    ApiToken.objects.update(expires_at=timezone.now() + timedelta(days=1))
    tokens.revoke(token=token, by=researcher)
    assert_problem(call(client, "GET", "/api/v1/prompts/"), 401)
    client = api("read")
    researcher.is_active = False
    researcher.save()
    assert_problem(call(client, "GET", "/api/v1/prompts/"), 401)


def test_a_secret_is_shown_once_and_stored_as_a_hash(researcher, tmp_path, capsys):
    call_command("create_token", researcher.email, "nightly", "--scope", "read", "--scope", "train")
    secret = capsys.readouterr().out.strip()
    token = ApiToken.objects.get()
    assert secret.startswith("heed_")
    assert secret not in str(vars(token))
    assert token.scopes == ["read", "train"]
    call_command("create_token", researcher.email, "file", "--scope", "read", "--write", str(tmp_path / "token"))
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert tokens.find((tmp_path / "token").read_text().strip()).name == "file"
    for arguments, message in [
        (["none@example.org", "x", "--scope", "read"], "no account"),
        ([researcher.email, "x", "--scope", "fly"], "Unknown scope"),
        ([researcher.email, "nightly", "--scope", "read"], "already"),
        ([researcher.email, "x", "--scope", "read", "--days", "0"], "1 to 3650"),
    ]:
        with pytest.raises(CommandError, match=message):
            call_command("create_token", *arguments)


def test_what_does_not_exist_says_so_to_those_who_may_know(api, world):
    client = api(*ALL)
    missing = (
        "nothing/", "exports/v0099/", "exports/77/", "exports/v0001/files/../manifest.json", "models/none/",
        "exports/v0001/files/secrets.txt", "exports/%00/", "models/%00/", "models/%0A/promote/",
        "models/none/evaluations/",
    )  # fmt: skip
    for path in missing:
        assert_problem(call(client, "GET", f"/api/v1/{path}"), 404)
        assert_problem(call(Client(), "GET", f"/api/v1/{path}"), 401)


def test_documentation_is_for_those_who_may_use_it(api, client_for, researcher, labeler):
    assert_problem(Client().get("/api/v1/schema/"), 401)
    assert Client().get("/api/v1/docs/").headers["Location"] == "/accounts/login/?next=/api/v1/docs/"
    for path in ("/api/v1/schema/", "/api/v1/docs/"):
        assert_problem(client_for(labeler).get(path), 403)
        assert client_for(researcher).get(path).status_code == 200
        assert api("read").get(path).status_code == 200
    page = client_for(researcher).get("/api/v1/docs/")
    assert b"http://" not in page.content.replace(b"http://testserver", b"")
    assert b"cdn" not in page.content
    assert "unsafe-inline" not in page["Content-Security-Policy"].split("style-src")[0]


def test_the_schema_is_valid_and_knows_every_endpoint(settings):
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.validation import validate_schema

    schema = SchemaGenerator().get_schema(request=None, public=True)
    validate_schema(schema)
    known = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    templates = {"v0001": "{key}", "prompts.jsonl": "{file_name}", "org/policy-1": "{name}"}
    for method, path, _, _ in ENDPOINTS:
        for text, template in templates.items():
            path = path.replace(text, template)
        assert (method, path.partition("?")[0]) in known


# ---- prompts and responses --------------------------------------------------------------------------------------------


def test_prompts_come_in_pages_and_filtered(api):
    rows = [{"prompt": f"P{n}", "split": "train" if n % 2 else "test", "use_case": "chat"} for n in range(25)]
    imports.import_rows(kind="prompts", rows=rows, by=None)
    client, seen, cursor = api("read"), [], ""
    while cursor is not None:
        answer = client.get("/api/v1/prompts/", {"limit": 10} | ({"cursor": cursor} if cursor else {})).json()
        seen += [row["messages"][0]["content"] for row in answer["results"]]
        cursor = answer["next"]
    assert seen == [f"P{n}" for n in range(25)]

    def texts(**query) -> set[str]:
        return {row["messages"][0]["content"] for row in client.get("/api/v1/prompts/", query).json()["results"]}

    assert len(texts(split="train")) == 12
    assert texts(use_case="none") == set()
    imports.import_rows(
        kind="responses", rows=[{"prompt": "P1", "model": "m", "response": "r", "split": "train"}], by=None
    )
    assert texts(not_sampled_by="m", split="train") == {f"P{n}" for n in range(3, 25, 2)}
    make_demonstration_batch(prompts=1)
    assert not any(text.startswith("demos:") for text in texts(without_tasks="demonstration"))
    assert any(text.startswith("demos:") for text in texts(without_tasks="ranking"))


@pytest.mark.parametrize(
    ("query", "place"),
    [({"limit": 0}, "limit"), ({"limit": 1001}, "limit"), ({"limit": "x"}, "limit"), ({"cursor": "!!"}, "cursor"),
     ({"cursor": "AAAA"}, "cursor"), ({"split": "all"}, "split"), ({"colour": "red"}, "colour"),
     ({"use_case": "\0"}, "use_case"), ({"split": ["train", "test"]}, "split")],
)  # fmt: skip
def test_a_wrong_query_is_refused(api, query, place):
    problem = assert_problem(api("read").get("/api/v1/prompts/", query), 422)
    assert [error["place"] for error in problem["errors"]] == [place]


def test_prompts_that_came_without_a_use_case_are_given_one_once(api, django_capture_on_commit_callbacks):
    bare, other, chat = make_prompt("A"), make_prompt("B"), make_prompt("C", use_case="chat")
    assert prompts.use_cases() == ["chat"]

    def give(**given):
        rows = [
            {"prompt_id": str({"bare": bare, "other": other, "chat": chat}[n].uuid), "use_case": case}
            for n, case in given.items()
        ]
        with django_capture_on_commit_callbacks(execute=True):
            return api("import").post("/api/v1/prompts/use-cases/", {"rows": rows}, content_type="application/json")

    problem = assert_problem(give(bare="rewrite", chat="rewrite"), 422)
    assert problem["errors"] == [{"place": str(chat.uuid), "message": "its use case is chat already"}]
    bare.refresh_from_db()
    assert bare.use_case == ""
    assert give(bare="rewrite", chat="chat").json() == {"given": 1}
    assert give(bare="rewrite").json() == {"given": 0}
    assert prompts.use_cases() == ["chat", "rewrite"]
    unknown = {
        "rows": [
            {"prompt_id": str(uuid.uuid4()), "use_case": "chat"},
            {"prompt_id": str(other.uuid), "use_case": "chat"},
        ]
    }
    assert_problem(api("import").post("/api/v1/prompts/use-cases/", unknown, content_type="application/json"), 422)
    assert list(Prompt.objects.filter(use_case="").values_list("uuid", flat=True)) == [other.uuid]


def test_the_least_covered_prompts_fill_use_cases_to_the_same_level(api):
    chat = [make_prompt(f"Chat {n}", use_case="chat") for n in range(5)]
    for n in range(2):
        make_prompt(f"Extract {n}", use_case="extract")
    make_prompt("Held", use_case="extract", intake="held")
    for name, taken in (("one", chat[:1]), ("two", chat[:2])):
        batches.create_batch(name=name, kind="demonstration", prompt_ids=[p.uuid for p in taken], by=None)

    def asked(**query):
        answer = api("read").get("/api/v1/prompts/least-covered/", {"task": "demonstration", **query})
        return [(row["use_case"], row["tasks"]) for row in answer.json()["results"]]

    # Three tasks on five chats: the next one brings them to 4/5, then 5/5 …; those on extract bring it to 1/2 and 2/2.
    everything = asked()
    assert everything[:2] == [("extract", 0), ("chat", 0)]
    assert sorted(everything[2:4]) == [("chat", 0), ("extract", 0)]  # both to 1: the dice say which
    assert everything[4:] == [("chat", 0), ("chat", 1), ("chat", 2)]
    assert asked(limit="4", seed="7")[:2] == everything[:2]
    assert asked(use_case="extract") == [("extract", 0)] * 2
    assert {tasks for _case, tasks in asked(task="ranking")} == {0}
    assert_problem(api("read").get("/api/v1/prompts/least-covered/", {"task": "poem"}), 422)


def test_rows_are_all_or_nothing_and_repeat_without_doubling(api):
    client = api("import")
    wrong = {"rows": [{"prompt": "A"}, {"prompt": "", "kind": "odd"}]}
    problem = assert_problem(call(client, "POST", "/api/v1/prompts/", wrong), 422)
    assert [error["place"] for error in problem["errors"]] == ["rows[1]: field prompt", "rows[1]: field kind"]
    assert not Prompt.objects.exists()
    row = {"prompt": "A", "model": "m", "response": "r", "response_external_id": "1", "finish_reason": "stop"}
    for new in (1, 0, 0):
        counts = call(client, "POST", "/api/v1/responses/", {"rows": [row]}).json()["counts"]
        assert (counts["responses_new"], counts["responses_present"]) == (new, 1 - new)
    assert Response.objects.get().finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 422), (b"{}", 422), (b'{"rows": []}', 422), (b'{"rows": [1]}', 422), (b'{"rows": {}}', 422),
     (b'{"rows": [{"prompt": "x"}], "more": 1}', 422), (b"\xff", 400), (b"[" * 100_000, 400), (b'{"rows": NaN}', 400),
     (b'{"rows": [{"prompt": "a", "prompt": "b"}]}', 400)],
)  # fmt: skip
def test_a_malformed_body_is_refused(api, body, status):
    answer = api("import").generic("POST", "/api/v1/prompts/", body, content_type="application/json")
    assert answer.status_code in {status, 422}, answer.content
    assert_problem(answer, answer.status_code)


def test_a_body_may_be_longer_than_a_page_form(api, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000  # above it, only forms are refused
    rows = [{"prompt": f"How large is {n}?"} for n in range(100)]
    answer = call(api("import"), "POST", "/api/v1/prompts/", {"rows": rows})
    assert answer.status_code == 200, answer.content
    assert answer.json()["counts"]["prompts_new"] == 100


def in_chunks(client: Client, body: bytes):
    environ = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return client.generic("POST", "/api/v1/prompts/", CONTENT_TYPE="application/json", **environ)


def test_a_body_in_chunks_is_read_up_to_the_limit(api, monkeypatch):
    body = json.dumps({"rows": [{"prompt": "In pieces?"}]}).encode()
    answer = in_chunks(api("import"), body)
    assert answer.status_code == 200, answer.content
    assert Prompt.objects.filter(messages__0__content="In pieces?").exists()
    monkeypatch.setattr("labeling.api.base.MAX_BODY_BYTES", len(body) - 1)
    assert "larger than" in assert_problem(in_chunks(api("import"), body), 413)["detail"]


def test_what_is_no_json_or_too_large_is_refused(api, monkeypatch):
    client = api("import")
    assert_problem(client.post("/api/v1/prompts/", {"rows": "x"}), 415)
    monkeypatch.setattr("labeling.api.base.MAX_BODY_BYTES", 100)
    assert_problem(call(client, "POST", "/api/v1/prompts/", {"rows": [{"prompt": "x" * 200}]}), 413)


# ---- batches, exports, models -----------------------------------------------------------------------------------------


def test_a_batch_is_made_once(api):
    make_prompt("One?")
    client, order = api("import"), {"name": "b", "kind": "demonstration", "overlap": 2}
    made = call(client, "POST", "/api/v1/batches/", order)
    assert (made.status_code, made.json()["counts"]["tasks"]) == (201, 1)
    again = call(client, "POST", "/api/v1/batches/", order)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    assert_problem(call(client, "POST", "/api/v1/batches/", order | {"overlap": 3}), 409)
    problem = assert_problem(call(client, "POST", "/api/v1/batches/", {"name": "c", "kind": "ranking"}), 422)
    assert problem["errors"][0]["place"] == "k"
    assert Batch.objects.count() == 1


def test_an_export_is_ordered_built_and_fetched(api, labeler):
    submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    client = api("read", "train")
    ordered = call(client, "POST", "/api/v1/exports/", {"query": {"groups": ["training"]}})
    assert (ordered.status_code, ordered.json()["status"], ordered.json()["name"]) == (202, "building", None)
    key = ordered.json()["id"]
    assert call(client, "POST", "/api/v1/exports/", {"query": {"groups": ["training"]}}).json()["id"] == key
    jobs.build_export(export_id=key)
    ready = client.get(f"/api/v1/exports/{key}/").json()
    assert (ready["status"], ready["name"], ready["counts"]["demonstrations"]) == ("ready", "v0001", 1)
    again = call(client, "POST", "/api/v1/exports/", {"query": {"groups": ["training"]}}).json()
    jobs.build_export(export_id=again["id"])
    assert client.get(f"/api/v1/exports/{again['id']}/").json() == ready
    assert [row["name"] for row in client.get("/api/v1/exports/").json()["results"]] == ["v0001"]
    for name in ready["files"]:
        answer = client.get(f"/api/v1/exports/v0001/files/{name}")
        data = b"".join(answer.streaming_content)
        assert data == (Export.objects.get(number=1).folder / name).read_bytes()
        assert int(answer["Content-Length"]) == len(data)
    problem = assert_problem(call(client, "POST", "/api/v1/exports/", {"query": {"origins": ["alien"]}}), 422)
    assert problem["errors"][0]["place"] == "query.origins"


def test_a_model_is_registered_evaluated_and_promoted_once(api, tmp_path):
    client = api(*ALL)
    body = {"manifest": manifest_text(tmp_path), "uri": "/models/1"}
    assert client.get("/api/v1/promotions/serving/").json() == {"model": None}
    assert [call(client, "POST", "/api/v1/models/", body).status_code for _ in range(2)] == [201, 200]
    changed = {"manifest": manifest_text(tmp_path, seed=2), "uri": "/models/1"}
    assert_problem(call(client, "POST", "/api/v1/models/", changed), 409)
    assert_problem(call(client, "POST", "/api/v1/models/", body | {"manifest": "{}"}), 422)
    detail = client.get("/api/v1/models/org/policy-1/").json()
    assert (detail["status"], detail["manifest"]["name"]) == ("candidate", "org/policy-1")
    path = "/api/v1/models/org/policy-1/"
    for _ in range(2):
        call(client, "POST", f"{path}evaluations/", {"name": "gold", "metrics": {"win": 0.7}})
        call(client, "POST", f"{path}promote/", {"reason": "better", "metrics": {"win": 0.7}})
    assert (Evaluation.objects.count(), Promotion.objects.count(), ModelVersion.objects.count()) == (1, 1, 1)
    judged = {"name": "judge", "metrics": {"by": "model", "win_rate": 0.6}}
    assert call(client, "POST", f"{path}evaluations/", judged).json()["measured_by"] == "model"
    assert_problem(call(client, "POST", f"{path}evaluations/", judged | {"measured_by": "people"}), 422)
    assert client.get("/api/v1/promotions/serving/").json()["model"]["name"] == "org/policy-1"
    assert [p["reason"] for p in client.get("/api/v1/promotions/").json()["results"]] == ["better"]
    assert_problem(call(client, "POST", f"{path}evaluations/", {"name": "gold", "metrics": {}}), 422)
    assert_problem(call(client, "POST", f"{path}promote/", {"reason": ""}), 422)
    imports.import_rows(kind="responses", rows=[{"prompt": "x", "model": "outside", "response": "r"}], by=None)
    assert_problem(call(client, "POST", "/api/v1/models/outside/promote/", {"reason": "no"}), 422)


def test_a_policy_walks_back_to_its_label_ids(api, labeler, tmp_path):
    done = [submit(task, labeler, text="Shown.") for task in make_demonstration_batch(prompts=2).tasks.order_by("id")]
    export = exports.build(query={"review": ["unreviewed"]}, by=None)
    ref = ExportRef(name=export.name, data_sha256=export.data_sha256)
    texts = [manifest_text(tmp_path, "sft", "sft", export=ref)]
    texts.append(manifest_text(tmp_path, "ppo", parents={"policy": parent_ref(tmp_path / "sft")}))
    for text in texts:
        model_versions.register(manifest=text.encode(), uri="/m", by=None)
    (behind,) = api("read").get("/api/v1/models/ppo/labels/").json()["exports"]
    assert (behind["export"], behind["models"], behind["rankings"]) == (export.name, ["sft"], [])
    assert sorted(behind["demonstrations"]) == sorted(str(submission.uuid) for submission in done)
    (export.folder / "rankings.parquet").unlink()
    assert_problem(api("read").get("/api/v1/models/ppo/labels/"), 409)


def test_a_refused_promotion_keeps_its_verdicts(api, admin_user, tmp_path):
    client, path = api(*ALL), "/api/v1/models/org/policy-1/"
    call(client, "POST", "/api/v1/models/", {"manifest": manifest_text(tmp_path), "uri": "/models/1"})
    gate = {"rules": "[[rule]]", "verdicts": [VERDICT]}
    for _ in range(2):
        problem = assert_problem(call(client, "POST", f"{path}promote/", {"reason": "night 1", "gate": gate}), 409)
    assert (problem["code"], problem["errors"]) == ("gate_refused", [{"place": "KL", "message": "9"}])
    (kept,) = client.get(f"{path}gate-checks/").json()["results"]
    assert (kept["holds"], kept["verdicts"], kept["rules"]) == (False, [VERDICT | {"holds": False}], "[[rule]]")
    override = {"reason": "a demo", "override_by": "Ada"}
    assert_problem(call(client, "POST", f"{path}promote/", override), 403)
    assert_problem(
        call(client, "POST", f"{path}promote/", {"reason": "x", "gate": {"rules": "", "verdicts": [{}]}}), 422
    )
    mended = {"rules": "[[rule]]", "verdicts": [VERDICT | {"value": 1.0}]}
    assert call(client, "POST", f"{path}gate-checks/", mended).json()["holds"] is True
    for more in ({}, {"gate": mended}, {"gate": mended | {"rules": ""}}):  # said by no admin, it lifts nothing
        problem = assert_problem(call(client, "POST", f"{path}promote/", {"reason": "it holds now"} | more), 409)
        assert (problem["code"], problem["errors"]) == ("gate_refused", [{"place": "KL", "message": "9"}])
    assert client.get("/api/v1/promotions/serving/").json() == {"model": None}
    admin = api(*ALL, user=admin_user)
    made = call(admin, "POST", f"{path}promote/", override).json()
    assert (made["gate_holds"], made["override_by"], made["model"]["status"]) == (False, "Ada", "serving")
    back = {"reason": "worse", "seen_serving": "org/policy-1"}
    assert_problem(call(client, "POST", "/api/v1/promotions/rollback/", back), 409)  # nothing came before
    for stranger, status in ((Client(), 401), (api("read", "train"), 403)):
        assert_problem(call(stranger, "POST", "/api/v1/promotions/rollback/", back), status)
    call(client, "POST", "/api/v1/models/", {"manifest": manifest_text(tmp_path, "policy-2"), "uri": "/models/2"})
    assert call(client, "POST", "/api/v1/models/policy-2/promote/", {"reason": "better"}).json()["gate_holds"] is None
    assert_problem(call(client, "POST", "/api/v1/promotions/rollback/", back), 409)  # another serves
    undone = call(client, "POST", "/api/v1/promotions/rollback/", back | {"seen_serving": "policy-2"}).json()
    assert (undone["model"]["name"], undone["model"]["status"]) == ("org/policy-1", "serving")

    again = "/api/v1/models/policy-2/promote/"
    for seen in ("", "policy-3"):
        problem = assert_problem(call(client, "POST", again, {"reason": "r", "seen_serving": seen}), 409)
        assert problem["code"] == "conflict" and "org/policy-1 serves now" in problem["detail"]
    for _ in range(2):  # the second time it serves already
        made = call(client, "POST", again, {"reason": "r", "seen_serving": "org/policy-1"}).json()
        assert made["model"]["status"] == "serving"
    assert_problem(call(client, "POST", f"{path}promote/", {"reason": "r"}), 409)
    assert call(admin, "POST", f"{path}gate-checks/", mended).json()["holds"] is True
    made = call(client, "POST", f"{path}promote/", {"reason": "an admin says that it holds"}).json()
    assert (made["gate_holds"], made["override_by"]) == (True, "")


def test_a_fault_of_ours_is_a_problem_too(api, monkeypatch, caplog):
    monkeypatch.setattr(model_versions, "serving_policy", lambda: 1 / 0)
    problem = assert_problem(api("read").get("/api/v1/promotions/serving/"), 500)
    assert "division" not in json.dumps(problem)
    assert "division" in caplog.text


# ---- the training half's client against a real server, with a real worker ----------------------------------------------


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_client_goes_round_the_loop(live_server, environment, researcher, labeler, tmp_path, settings):
    settings.EXPORT_DIR = settings.VAR_DIR / "exports"  # where the worker, a process of its own, writes
    submit(make_demonstration_batch(prompts=2).tasks.order_by("id")[0], labeler, text="Shown.")
    _, secret = tokens.create(user=researcher, name="loop", scopes=ALL)
    with HeedClient(live_server.url, secret, patience_seconds=60) as heed:
        go_round(heed, environment, tmp_path)
    with HeedClient(live_server.url, "heed_wrong") as stranger, pytest.raises(ClientError, match="401"):
        stranger.serving_model()


def go_round(heed: HeedClient, environment: dict[str, str], tmp_path: Path) -> None:
    """Export, register, evaluate, promote, sample, import, order: each step, and its repeat."""
    worker = [sys.executable, "manage.py", "procrastinate", "worker", "--one-shot"]

    def work() -> None:
        while not Export.objects.exists():
            time.sleep(0.1)
        connection.close()  # this thread's own
        subprocess.run(worker, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60)

    thread = threading.Thread(target=work)
    thread.start()
    export = heed.build_export({"origins": ["person"]}, poll_seconds=0.1)
    thread.join()
    folder = heed.fetch_export(export["name"], tmp_path / "exports")
    assert [row.response for row in read_export(folder).demonstrations()] == ["Shown."]

    ref = read_export(folder).ref
    for name in ("policy-1", "policy-2"):
        manifest_text(tmp_path, name, export=ref)
        assert heed.register_model(tmp_path / name)["export"] == export["name"]
        assert heed.record_evaluation(name, name="gold", metrics={"win": 0.6}, config={})["metrics"] == {"win": 0.6}
        heed.promote(name, reason="better")
    assert heed.serving_model()["name"] == "policy-2"
    assert [model["name"] for model in heed.promoted_models(2)] == ["policy-2", "policy-1"]

    prompts = list(heed.prompts())
    assert len(prompts) == 2
    rows = [
        {"prompt_id": p["prompt_id"], "model": m, "response": f"By {m}.", "response_external_id": "1"}
        for p in prompts
        for m in ("policy-1", "policy-2")
    ]
    assert heed.bring_responses(rows)["responses_new"] == 4
    assert heed.bring_responses(rows)["responses_new"] == 0
    order = {"name": "next", "kind": "ranking", "k": 2, "must_include": ["policy-2"]}
    assert heed.create_batch(**order)["counts"]["tasks"] == 2
    assert heed.create_batch(**order)["counts"]["tasks"] == 2
    assert Batch.objects.filter(name="next").count() == 1
    with pytest.raises(ClientError, match=r"422 .*no model named 'none'"):
        heed.create_batch(name="bad", kind="ranking", k=2, model_names=["none"])


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_sampling_takes_policies_and_prompts_from_here_and_brings_responses(live_server, researcher, models, tmp_path):  # noqa: F811
    for name in ("old", "new"):
        version = model_versions.register_folder(folder=models / name, by=None)
        model_versions.promote(model_version=version, reason="newest", by=None)
    imports.import_rows(
        kind="prompts",
        rows=[{"prompt": f"Tell me of {n} seas.", "split": "train" if n else "test"} for n in range(4)],
        by=None,
    )
    _, secret = tokens.create(user=researcher, name="sampler", scopes=["read", "import"])
    flags = ["--policies", "2", "--from-server", "--split", "train", "--k", "3", "--max-new-tokens", "6", "--push"]
    command = [sys.executable, "-m", "training", "sample", "--out", str(tmp_path / "r.jsonl"), *flags]
    settings = os.environ | {"HEED_URL": live_server.url, "HEED_TOKEN": secret, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert Response.objects.count() == 9
    by_model = Response.objects.values_list("model_version__name", flat=True)
    assert sorted(by_model) == ["new"] * 6 + ["old"] * 3
    response = Response.objects.first()
    assert response.prompt.split == "train"
    assert (response.sampling["temperature"], response.sampling["seed"]) == (1.0, 0)
    assert response.finish_reason in {"stop", "length"}
