"""The API against its own OpenAPI schema: requests that fit it and requests that do not, as stranger, labeler and admin.

HEED_API_CASES says how many; `make fuzz` runs 10,000. No answer may be a 5xx or unlike the schema, none may take what the schema
refuses, and nobody may be told what is not theirs.
"""

import itertools
import json
import os
import uuid
from collections import Counter

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from labeling.actions import (
    exports,
    gateway_keys,
    imports,
    model_versions,
    questions,
    reviews,
    submissions,
    tasks,
    tokens,
    webhooks,
)
from labeling.models import ApiToken, GatewayKey, Import
from tests.labeling.rows import make_demonstration_batch, make_prompt, make_ranking_batch, submit
from tests.labeling.test_api import manifest_text

CASES = int(os.environ.get("HEED_API_CASES") or 1)  # the least: once or twice each address and caller
SHARES = {"stranger": 1, "labeler": 1, "admin": 2}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SECRET = "Zebra"  # in everything that a labeler must not be told


@pytest.fixture
def known(make_user, labeler, reviewer, researcher, tmp_path, settings) -> dict[str, list]:
    """A world with something behind every address: address parameter → values that are there."""
    settings.EXPORT_DIR = tmp_path / "exports"
    other = make_user("zebra@example.org", "labeler", name=f"{SECRET} Person")
    batch = make_ranking_batch(name="ranks", prompts=4, k=3, overlap=2)
    make_demonstration_batch(prompts=6)
    make_ranking_batch(name=f"{SECRET} batch", group="held_out")
    theirs = [submit(task, other) for task in batch.tasks.order_by("id")[:2]]
    reviews.review(submission=theirs[0], revision=1, verdict="rejected", comment=SECRET, by=reviewer)
    make_prompt(f"{SECRET} in a prompt of nobody's?")
    imports.import_rows(kind="prompts", rows=[{"prompt": f"{SECRET}: held back, ann@example.org."}], by=None)
    exports.build(query={}, by=None)
    model_versions.register(manifest=manifest_text(tmp_path, f"{SECRET}-model").encode(), uri="/models/1", by=None)
    gateway_keys.create(organization=SECRET, name="key", may_train=True, by=None)
    hook = webhooks.create(url="https://example.org/hook", events=["export.ready"], by=None)
    question = questions.ask(text="Which is better?", key=uuid.uuid4(), kind="ranking", by=labeler)
    handed_in = tasks.claim_next(kind="demonstration", by=labeler).task
    mine = submissions.submit(task=handed_in, submit_key=uuid.uuid4(), answer={"text": "Bees."}, by=labeler)
    open_task = tasks.claim_next(kind="ranking", by=labeler).task
    return {
        "task_uuid": [str(open_task.uuid), str(handed_in.uuid)],
        "submission_uuid": [str(mine.uuid), *(str(each.uuid) for each in theirs)],
        "question_uuid": [str(question.uuid)],
        "key": ["v0001", "1"],
        "file_name": ["manifest.json", "prompts.jsonl"],
        "name": [f"{SECRET}-model"],
        "id": [hook.pk, batch.pk, *Import.objects.values_list("pk", flat=True), GatewayKey.objects.get().pk],
    }


@pytest.fixture
def callers(labeler, admin_user) -> dict[str, dict[str, str]]:
    """Who asks → the headers of their requests: a stranger, and people whose tokens have every scope."""

    def headers(user) -> dict[str, str]:
        secret = tokens.create(user=user, name="cases", scopes=list(ApiToken.Scope.values))[1]
        return {"Authorization": f"Bearer {secret}"}

    return {"stranger": {}, "labeler": headers(labeler), "admin": headers(admin_user)}


@pytest.fixture
def application():
    """The web process's door, on this test's connection: as for Django's own test client, it must stay open."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield get_wsgi_application()
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.django_db
@pytest.mark.timeout(3600)
def test_the_api_keeps_to_its_schema(known, callers, application):
    schema = schemathesis.openapi.from_dict(SchemaGenerator().get_schema(request=None, public=True))
    schema.app = application
    operations = [each.ok() for each in schema.get_all_operations()]
    times = -(-CASES // (len(operations) * sum(SHARES.values())))
    failures: dict[str, str] = {}
    statuses: Counter = Counter()
    for operation, who in itertools.product(operations, callers):
        try_out(operation, who, callers[who], known, times * SHARES[who], failures, statuses)
    print(f"{sum(statuses.values())} requests: {dict(statuses)}")
    assert not failures, "\n\n".join(f"{what}\n{said}" for what, said in failures.items())
    assert sum(statuses.values()) >= CASES
    assert statuses["admin", 2] > statuses["labeler", 2] > 0


def try_out(operation, who, headers, known, examples, failures, statuses) -> None:
    """Send `examples` requests to one address as one caller; note what is wrong with the answers."""

    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases(operation, known))
    def run(case):
        # a case without a token, or with an ill-formed one, is about that: our header would heal it, so a stranger sends it
        asks, sent = ("stranger", {}) if operation.schema.is_security_param_negated(case) else (who, headers)
        answer = case.call(headers=sent)
        statuses[asks, answer.status_code // 100] += 1
        what = f"{operation.label} as {asks}"
        try:
            case.validate_response(answer, checks=CHECKS, headers=sent)
            leaks(answer, asks)
        except (FailureGroup, AssertionError) as error:
            reasons = error.exceptions if isinstance(error, FailureGroup) else [error]
            for reason in reasons:
                failures.setdefault(f"{what}: {type(reason).__name__}", f"{reason}\n{case.as_curl_command()}"[:1500])

    run()


def cases(operation, known) -> st.SearchStrategy:
    """Requests that fit the schema and others, half of them about something that is there."""
    places = [{}]
    names = [parameter.name for parameter in operation.path_parameters]
    if names:
        places += [dict(zip(names, row, strict=True)) for row in itertools.product(*(known[name] for name in names))]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    return st.one_of(
        [
            operation.as_strategy(generation_mode=mode, **({"path_parameters": place} if place else {}))
            for mode, place in itertools.product(modes, places)
        ]
    )


def leaks(answer, who: str) -> None:
    """Raise AssertionError if the answer tells what this caller must not know."""
    text = answer.content.decode("utf-8", "replace")
    assert "Traceback" not in text
    if who == "stranger":
        assert answer.status_code in {401, 404, 405}, f"{answer.status_code} to a stranger"
    if who != "admin":
        assert SECRET.lower() not in text.lower().replace(json.dumps(answer.request.url).lower(), ""), text[:300]
