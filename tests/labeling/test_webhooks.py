"""Webhooks: signed as the specification says, told of what happened and nothing else, tried again, and never into a private network."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.db import transaction

from labeling import jobs, outgoing
from labeling.actions import exports, model_versions, reviews, submissions, tasks, webhooks
from labeling.errors import Invalid
from labeling.models import Submission, Webhook, WebhookDelivery
from labeling.models.webhooks import Event
from tests.labeling.rows import make_demonstration_batch, make_prompt
from tests.labeling.test_api import manifest_text

pytestmark = pytest.mark.django_db
EVERY = list(Event.values)


@pytest.fixture
def listener(settings):
    """A server on this machine: `heard` is what came, `status` what it answers."""
    settings.WEBHOOK_PRIVATE = True

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.heard.append((dict(self.headers), body))
            self.send_response(server.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.heard, server.status, server.url = [], 200, f"http://127.0.0.1:{server.server_port}/hook?a=b"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def told(event: str | None = None) -> list[dict]:
    """What webhooks are to be told, oldest first."""
    rows = WebhookDelivery.objects.filter(**{"event": event} if event else {}).order_by("id")
    return [json.loads(row.body)["data"] for row in rows]


def test_the_signature_is_the_specifications():
    """Its own example: https://github.com/standard-webhooks/standard-webhooks, spec."""
    body = b'{"test": 2432232314}'
    made = webhooks.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_sent_signed_and_once(listener, admin_user):
    hook = webhooks.create(url=listener.url, events=EVERY, by=admin_user)
    sent = webhooks.try_out(webhook=hook, by=admin_user)
    for _ in range(2):
        jobs.deliver_webhook(delivery_id=sent.pk)
    [(headers, body)] = listener.heard
    assert json.loads(body)["type"] == "webhook.test"
    signed = f"{sent.uuid}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(hook.secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert (headers["webhook-id"], headers["webhook-signature"]) == (str(sent.uuid), f"v1,{expected}")
    sent.refresh_from_db()
    assert (sent.status, sent.attempts, sent.answer) == ("delivered", 1, "200")


def test_what_is_not_taken_is_tried_again_and_given_up_after_a_day(listener, admin_user):
    hook = webhooks.create(url=listener.url, events=EVERY, by=admin_user)
    sent = webhooks.try_out(webhook=hook, by=admin_user)
    for number, listener.status in enumerate([500, 302, 404], start=1):
        with pytest.raises(webhooks.NotDelivered):
            jobs.deliver_webhook(delivery_id=sent.pk)
        sent.refresh_from_db()
        assert (sent.status, sent.attempts, sent.answer) == ("waiting", number, str(listener.status))
    assert len(listener.heard) == 3  # the redirect was not followed
    WebhookDelivery.objects.update(attempts=webhooks.MAX_ATTEMPTS - 1)
    jobs.deliver_webhook(delivery_id=sent.pk)
    sent.refresh_from_db()
    assert sent.status == "failed"
    listener.status = 410
    other = webhooks.try_out(webhook=hook, by=admin_user)
    jobs.deliver_webhook(delivery_id=other.pk)
    hook.refresh_from_db()
    assert hook.ended_at is not None  # the address asked to be told nothing more
    listener.server_close()
    again = webhooks.create(url=listener.url, events=EVERY, by=admin_user)
    listener.shutdown()
    late = webhooks.try_out(webhook=again, by=admin_user)
    with pytest.raises(webhooks.NotDelivered, match="no answer"):
        jobs.deliver_webhook(delivery_id=late.pk)


def test_retries_last_about_a_day():
    pauses = [jobs.deliver_webhook.retry_strategy.exponential_wait ** (n + 1) for n in range(webhooks.MAX_ATTEMPTS - 1)]
    assert jobs.deliver_webhook.retry_strategy.max_attempts == webhooks.MAX_ATTEMPTS
    assert 20 * 3600 < sum(pauses) < 30 * 3600


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "https://127.0.0.1/", "https://[::1]:8/", "https://10.0.0.8/", "https://169.254.169.254/",
     "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://0.0.0.0/",
     "https://224.0.0.1/", "https://user:pass@example.org/", "https://", "ftp://example.org/", "https://exa mple.org/",
     "https://example.org:99999/", "https://[bad/"],
)  # fmt: skip
def test_addresses_that_are_not_the_internets_are_refused(url):
    with pytest.raises(Invalid) as caught:
        webhooks.create(url=url, events=EVERY, by=None)
    assert [each["field"] for each in caught.value.errors] == ["url"]


def test_a_name_that_leads_into_a_private_network_gets_nothing(monkeypatch, admin_user):
    hook = webhooks.create(url="https://hooks.example.org/x", events=EVERY, by=admin_user)
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))
    private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 443))
    monkeypatch.setattr(outgoing.socket, "getaddrinfo", lambda *a, **k: [public, private])
    monkeypatch.setattr(outgoing.httpx, "Client", lambda *a, **k: pytest.fail("it was connected to"))
    sent = webhooks.try_out(webhook=hook, by=admin_user)
    with pytest.raises(webhooks.NotDelivered, match="private network"):
        jobs.deliver_webhook(delivery_id=sent.pk)


def test_a_name_is_looked_up_once_and_keeps_its_host(listener, admin_user, monkeypatch):
    asked = []

    def getaddrinfo(host, port, *arguments, **options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    hook = webhooks.create(url=f"http://hooks.example.org:{listener.server_port}/", events=EVERY, by=admin_user)
    with monkeypatch.context() as patched:
        patched.setattr(outgoing.socket, "getaddrinfo", getaddrinfo)
        # The connection itself looks its numeric address up too: that is no question to a name server.
        jobs.deliver_webhook(delivery_id=webhooks.try_out(webhook=hook, by=admin_user).pk)
    assert asked.count("hooks.example.org") == 1
    assert listener.heard[0][0]["Host"] == f"hooks.example.org:{listener.server_port}"


def test_what_happens_is_told_to_those_who_want_to_hear_it(labeler, reviewer, tmp_path, settings):
    settings.EXPORT_DIR, settings.WEBHOOK_PRIVATE = tmp_path / "exports", True
    webhooks.create(url="http://127.0.0.1:9/", events=EVERY, by=None)
    only = webhooks.create(url="http://127.0.0.1:9/", events=["model.promoted"], by=None)
    ended = webhooks.create(url="http://127.0.0.1:9/", events=EVERY, by=None)
    webhooks.end(webhook=ended, by=None)
    make_demonstration_batch(prompts=2)
    for text in ("Bees.", "Wasps."):
        task = tasks.claim_next(by=labeler).task
        made = submissions.submit(task=task, submit_key=uuid.uuid4(), answer={"text": text}, by=labeler)
    submissions.submit(task=task, submit_key=uuid.uuid4(), answer={"text": "Hornets."}, by=labeler)
    [first, second] = told("submission.made")
    assert (second["submission_id"], second["task_id"], second["kind"]) == (
        str(made.uuid),
        str(task.uuid),
        "demonstration",
    )
    assert [row["revision"] for row in told("submission.revised")] == [2]
    assert "Bees" not in str(told())  # ids, to be asked about with a token
    reviews.review(submission=made, revision=2, verdict="returned", comment="More.", by=reviewer)
    other = Submission.objects.exclude(pk=made.pk).get()
    reviews.accept_many(seen={other.uuid: 1}, by=reviewer)
    assert [(r["submission_id"], r["verdict"]) for r in told("review.made")] == [
        (str(made.uuid), "returned"), (first["submission_id"], "accepted"),
    ]  # fmt: skip
    make_prompt("In the export?")
    for _ in range(2):  # the second finds the first's data: whoever ordered it hears of it too
        exports.build(query={}, by=None)
    assert [row["name"] for row in told("export.ready")] == ["v0001", "v0001"]
    manifest = manifest_text(tmp_path).encode()  # says the second in which it was made
    version = model_versions.register(manifest=manifest, uri="/m", by=None)
    model_versions.register(manifest=manifest, uri="/m", by=None)
    model_versions.promote(model_version=version, reason="better", by=None)
    assert len(told("model.registered")) == 1
    assert told("model.promoted") == [{"name": version.name, "previous": None, "reason": "better"}] * 2
    assert only.deliveries.count() == 1
    assert not ended.deliveries.exists()


def test_what_did_not_happen_is_not_told(labeler, settings):
    settings.WEBHOOK_PRIVATE = True
    webhooks.create(url="http://127.0.0.1:9/", events=EVERY, by=None)
    make_demonstration_batch(prompts=1)
    task = tasks.claim_next(by=labeler).task
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        submissions.submit(task=task, submit_key=uuid.uuid4(), answer={"text": "Bees."}, by=labeler)
        raise ZeroDivisionError
    key = uuid.uuid4()
    for _ in range(2):
        submissions.submit(task=task, submit_key=key, answer={"text": "Bees."}, by=labeler)
    assert len(told("submission.made")) == 1
    assert Webhook.objects.count() == 1


def test_an_admin_makes_tries_and_ends_one_on_a_page(client_for, admin_user):
    client = client_for(admin_user)
    refused = client.post("/console/webhooks/", {"url": "https://10.0.0.1/x", "events": ["export.ready"]})
    assert refused.status_code == 422
    assert "https://10.0.0.1/x" in refused.content.decode()  # what was typed is still there
    assert client.post("/console/webhooks/", {"url": "https://example.org/x"}).status_code == 422
    made = client.post("/console/webhooks/", {"url": "https://example.org/x", "events": ["export.ready"]})
    hook = Webhook.objects.get()
    assert hook.secret in made.content.decode()
    path = f"/console/webhooks/{hook.pk}/"
    assert hook.secret not in client.get(path).content.decode()
    assert client.post(f"{path}test").status_code == 302
    assert "webhook.test" in client.get(path).content.decode()
    for _ in range(2):
        client.post(f"{path}end")
    hook.refresh_from_db()
    assert hook.ended_at is not None
    assert client.post(f"{path}test").status_code == 409
    assert "https://example.org/x" in client.get("/console/webhooks/").content.decode()
