"""Every address of the console, for every role: who may open it, who may not, with which method."""

import hashlib
import io
import logging
import uuid

import pytest
from django.urls import URLPattern, get_resolver, reverse
from django.utils import timezone

from labeling.actions import applications, exercises, gateway_keys, gold, questions, screenings, webhooks
from labeling.models import Author, Erasure, Export
from tests.labeling.rows import make_demonstration_batch, make_model, make_ranking_batch, response_ids, submit

pytestmark = pytest.mark.django_db
STAFF = {"reviewer", "researcher", "admin"}
RESEARCH = {"researcher", "admin"}
EVERYBODY = ["applicant", "labeler", "reviewer", "researcher", "admin"]

# name of the address → (methods that it answers, roles that may)
ADDRESSES = {
    "reviews": ("GET", STAFF),
    "reviews_next": ("GET", {"reviewer", "admin"}),
    "reviews_accept": ("POST", {"reviewer", "admin"}),
    "review": ("GET", STAFF),
    "review_decide": ("POST", {"reviewer", "admin"}),
    "adjudications": ("GET", STAFF),
    "second_review_list": ("GET", STAFF),
    "second_review_next": ("GET", {"reviewer", "admin"}),
    "second_review": ("GET", {"reviewer", "admin"}),
    "second_review_decide": ("POST", {"reviewer", "admin"}),
    "second_review_rate": ("POST", RESEARCH),
    "task_adjudication": ("GET", STAFF),
    "task_adjudicate": ("POST", {"reviewer", "admin"}),
    "labelers": ("GET", STAFF),
    "labelers_csv": ("GET", STAFF),
    "labeler": ("GET", STAFF),
    "labeler_pause": ("POST", STAFF),
    "labeler_rules": ("GET", STAFF),
    "labeler_rule_new": ("POST", RESEARCH),
    "labeler_rule_end": ("POST", RESEARCH),
    "agreement_reports": ("GET", STAFF),
    "agreement_report": ("GET", STAFF),
    "agreement_csv": ("GET", STAFF),
    "agreement_rows": ("GET", STAFF),
    "agreement_labelers": ("GET", STAFF),
    "agreement_labelers_csv": ("GET", STAFF),
    "agreement_measure": ("POST", STAFF),
    "gold": ("GET", STAFF),
    "intake": ("GET POST", RESEARCH),
    "erasures": ("GET", {"admin"}),
    "erasure_person": ("POST", {"admin"}),
    "erasure_new": ("GET POST", {"admin"}),
    "erasure": ("GET", {"admin"}),
    "erasure_withdraw": ("POST", {"admin"}),
    "intake_prompt": ("GET POST", RESEARCH),
    "gold_new": ("GET POST", RESEARCH),
    "gold_end": ("POST", RESEARCH),
    "hours_all": ("GET", STAFF),
    "hours_all_csv": ("GET", STAFF),
    "pay_rule": ("POST", RESEARCH),
    "question_queue": ("GET", STAFF),
    "question_review": ("GET", STAFF),
    "question_answer": ("POST", STAFF),
    "question_publish": ("POST", STAFF),
    "batches": ("GET", STAFF),
    "batch_new": ("GET POST", RESEARCH),
    "batch": ("GET", STAFF),
    "batch_status": ("POST", RESEARCH),
    "batch_edit": ("POST", RESEARCH),
    "batch_evaluation": ("GET", STAFF),
    "batch_evaluation_rows": ("GET", STAFF),
    "batch_evaluation_csv": ("GET", STAFF),
    "use_cases": ("GET POST", RESEARCH),
    "label_schemas": ("GET", STAFF),
    "label_schema": ("GET", STAFF),
    "label_schema_new": ("GET POST", RESEARCH),
    "instructions_list": ("GET", STAFF),
    "instructions": ("GET", STAFF),
    "instructions_edit": ("GET POST", RESEARCH),
    "exercises": ("GET", RESEARCH),
    "exercises_default": ("POST", RESEARCH),
    "exercise_new": ("GET POST", RESEARCH),
    "exercise": ("GET", RESEARCH),
    "exercise_edit": ("GET POST", RESEARCH),
    "exercise_retire": ("POST", RESEARCH),
    "imports": ("GET POST", RESEARCH),
    "exports": ("GET POST", RESEARCH),
    "export": ("GET", RESEARCH),
    "export_zip": ("GET", RESEARCH),
    "export_file": ("GET", RESEARCH),
    "model_versions": ("GET", RESEARCH),
    "model_version": ("GET", RESEARCH),
    "model_compare": ("GET", RESEARCH),
    "model_promote": ("POST", {"admin"}),
    "model_rollback": ("POST", {"admin"}),
    "gateway_keys": ("GET POST", {"admin"}),
    "gateway_key": ("GET POST", {"admin"}),
    "gateway_key_revoke": ("POST", {"admin"}),
    "webhooks": ("GET POST", {"admin"}),
    "webhook": ("GET", {"admin"}),
    "webhook_test": ("POST", {"admin"}),
    "webhook_end": ("POST", {"admin"}),
    "dashboards": ("GET", STAFF),
    "throughput": ("GET", STAFF),
    "agreement": ("GET", STAFF),
    "policies": ("GET", STAFF),
    "rounds": ("GET", STAFF),
    "policy_pair": ("GET", STAFF),
    "dashboard_csv": ("GET", STAFF),
    "dashboard_refresh": ("POST", STAFF),
    "candidates": ("GET", RESEARCH),
    "candidate": ("GET", RESEARCH),
    "candidate_decide": ("POST", RESEARCH),
    "grading": ("GET", RESEARCH),
    "grade": ("GET POST", RESEARCH),
    "screening_rules": ("GET POST", RESEARCH),
    "people": ("GET", {"admin"}),
    "person": ("GET POST", {"admin"}),
    "person_active": ("POST", {"admin"}),
    "applicant_accept": ("POST", {"admin"}),
    "invitation_create": ("POST", {"admin"}),
    "invitation_withdraw": ("POST", {"admin"}),
}


def patterns() -> dict[str, URLPattern]:
    """The console's addresses, as the site knows them."""
    found = get_resolver().url_patterns
    return {p.name: p for p in found if isinstance(p, URLPattern) and str(p.pattern).startswith("console/")}


def handed_in_screening(applicant):
    """A try with one demonstration, handed in by somebody who still applies."""
    sent = {"name": "Ada", "why": "So.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    applications.save(**sent, send=True, by=applicant)
    screening = screenings.begin(by=applicant)
    attempt = screening.attempts.get()
    exercises.save_attempt(attempt=attempt, content={"text": "Hello!"}, by=applicant)
    said = dict.fromkeys((*screening.rules.groups, *screening.rules.topics), "yes")
    screenings.save_self_assessment(screening=screening, groups=said, topics=said, comment="", by=applicant)
    return screenings.hand_in(screening=screening, by=applicant)


@pytest.fixture
def arguments(labeler, applicant):
    """What each address needs to lead somewhere."""
    submission = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    model = make_model("p", stage="ppo", manifest={}, manifest_sha256=hashlib.sha256(b"p").hexdigest())
    export = Export.objects.create(
        query={}, status="ready", number=1, finished_at=timezone.now(), manifest={"files": {}}
    )
    key, _ = gateway_keys.create(organization="o", name="n", may_train=False, by=None)
    exercise = exercises.add(row={"purpose": "screening", "part": "demonstration", "prompt": "Hello?"}, by=None)
    screening = handed_in_screening(applicant)
    known = make_ranking_batch("known").tasks.get()
    tiers = [[pk] for pk in response_ids(known)]
    gold_answer = gold.make(task=known, tiers=tiers, explanation="So it is.", by=None)
    pks = {
        "exercise": exercise.pk,
        "second": 999_999,
        "batch": submission.task.batch_id,
        "export": export.pk,
        "model": model.pk,
        "person": applicant.pk,
        "gateway": key.pk,
        "webhook": webhooks.create(url="https://example.org/", events=["export.ready"], by=None).pk,
        "labeler": labeler.pk,
        "gold": gold_answer.pk,
    }

    author = Author.objects.create(key="somebody", split="train")
    erasure = Erasure.objects.create(pseudonym="p-1", reason="Asked for.")
    erasure.exports.add(export)
    question = questions.ask(text="Why?", key=uuid.uuid4(), task=submission.task, by=labeler)

    ranked = make_ranking_batch().tasks.get()

    def of(name: str) -> list:
        if name in ("task_adjudication", "task_adjudicate", "gold_new"):
            return [ranked.uuid]
        if name == "erasure_new":
            return [author.pk]
        if name in ("erasure", "erasure_withdraw"):
            return [erasure.uuid, export.pk][: 1 + (name == "erasure_withdraw")]
        if name == "intake_prompt":
            return [submission.task.prompt.uuid]
        if name in ("question_review", "question_answer", "question_publish"):
            return [question.uuid]
        if name in ("review", "review_decide"):
            return [submission.uuid]
        if name in ("candidate", "candidate_decide", "grade"):
            return [screening.uuid if name != "grade" else screening.attempts.get().uuid]
        if name == "label_schema":
            return [1]
        if name in ("policy_pair", "dashboard_csv"):
            return [model.pk, model.pk + 1] if name == "policy_pair" else ["progress"]
        if name == "exercise_new":
            return ["ranking"]
        if name in ("instructions", "instructions_edit"):
            return ["ranking"]
        if name == "export_file":
            return [export.pk, "manifest.json"]
        if "<int:pk>" not in str(patterns()[name].pattern):
            return []
        return (
            [pks["person" if name == "applicant_accept" else name.partition("_")[0]]]
            if name != "invitation_withdraw"
            else [1]
        )

    return of


def test_every_address_of_the_console_is_in_the_table():
    assert set(patterns()) == set(ADDRESSES)


@pytest.mark.parametrize("name", ADDRESSES)
def test_strangers_are_sent_to_log_in(client, arguments, name):
    for method in ADDRESSES[name][0].split():
        response = getattr(client, method.lower())(reverse(name, args=arguments(name)))
        assert response.status_code == 302
        assert response["Location"].startswith(reverse("account_login"))


@pytest.mark.parametrize("name", ADDRESSES)
def test_each_role_may_open_what_is_its_own(client_for, arguments, request, make_user, name):
    methods, allowed = ADDRESSES[name]
    url = reverse(name, args=arguments(name))
    for role in EVERYBODY:
        client = client_for(make_user(f"{role}-{uuid.uuid4().hex[:6]}@example.org", role))
        for method in methods.split():
            status = getattr(client, method.lower())(url).status_code
            if role in allowed:
                assert status in (200, 302, 404, 422), f"{role} {method} {url}: {status}"
            else:
                assert status == 403, f"{role} {method} {url}: {status}"


@pytest.mark.parametrize("name", ADDRESSES)
def test_other_methods_are_refused(client_for, arguments, admin_user, name):
    client, methods = client_for(admin_user), ADDRESSES[name][0].split()
    for method in {"GET", "POST", "PUT", "DELETE"} - set(methods):
        assert getattr(client, method.lower())(reverse(name, args=arguments(name))).status_code == 405


@pytest.mark.parametrize("name", [name for name, pattern in patterns().items() if "<" in str(pattern.pattern)])
def test_what_is_not_there_is_not_found(client_for, admin_user, name):
    pattern = str(patterns()[name].pattern)
    missing = {
        "<uuid:uuid>": str(uuid.uuid4()),
        "<int:pk>": "999999",
        "<str:name>": "x",
        "<str:kind>": "x",
        "<str:part>": "x",
        "<int:first>": "999999",
        "<int:second>": "999998",
        "<slug:name>": "x",
        "<uuid:screening_uuid>": str(uuid.uuid4()),
        "<uuid:attempt_uuid>": str(uuid.uuid4()),
    }
    for part, value in missing.items():
        pattern = pattern.replace(part, value)
    method = ADDRESSES[name][0].split()[-1].lower()
    assert getattr(client_for(admin_user), method)(f"/{pattern}", {"verdict": "accepted"}).status_code == 404


def test_a_person_locked_out_is_a_stranger(client_for, reviewer):
    client = client_for(reviewer)
    reviewer.is_active = False
    reviewer.save()
    assert client.get(reverse("reviews")).status_code == 302


def test_a_refused_page_takes_one_line_of_the_log(labeler_client, monkeypatch):
    [handler] = [each for each in logging.getLogger().handlers if each.name == "stderr"]
    said = io.StringIO()
    monkeypatch.setattr(handler, "stream", said)
    assert labeler_client.get(reverse("reviews")).status_code == 403
    [line] = said.getvalue().splitlines()
    assert "Forbidden (Permission denied): /console/" in line
