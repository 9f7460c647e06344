"""The playground: who may enter, a conversation by way of the real gateway, and what happens when something is away."""

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from django.db import OperationalError, connection
from django.urls import reverse

from labeling.actions import gateway_keys, playground
from labeling.actions.capture import capture
from labeling.gateway.turns import signed
from labeling.models import GatewayUsage, Prompt
from tests import builders
from tests.labeling.gateways import policy, promote_stub, running_gateway  # noqa: F401 a fixture
from tests.labeling.policy_server import END

# ruff: noqa: F811 (fixtures that are imported)
ADDRESSES = {"playground": "GET POST", "playground_answer": "GET", "playground_stop": "POST", "playground_again": "POST",
             "playground_clear": "POST"}  # fmt: skip
HTMX = {"headers": {"HX-Request": "true"}}


@pytest.fixture
def nowhere(settings):
    """No gateway listens."""
    settings.GATEWAY_URL = "http://127.0.0.1:9"


@pytest.fixture
def real(transactional_db, policy, settings):
    """A gateway with connections of its own, before a policy that serves."""
    promote_stub()
    with running_gateway() as made:
        settings.GATEWAY_URL = made.url
        yield made


def turn_in(page) -> str:
    return re.search(r'name="turn" value="([^"]+)"', page.text)[1]


def say(client, text: str, **more):
    return client.post(reverse("playground"), {"text": text, "turn": str(uuid.uuid4())} | more)


def wait_for(condition, seconds: float = 15):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


# ---- who ------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("name", ADDRESSES)
def test_who_may_enter(client, client_for, make_user, nowhere, name):
    url = reverse(name)
    for method in ADDRESSES[name].split():
        assert getattr(client, method.lower())(url)["Location"].startswith(reverse("account_login"))
        assert getattr(client_for(make_user(f"{method}@x.org", "applicant")), method.lower())(url).status_code == 403
        for role in ("labeler", "reviewer", "researcher", "admin"):
            status = getattr(client_for(make_user(f"{role}-{method}@x.org", role)), method.lower())(url).status_code
            assert status in (200, 302, 400), f"{role} {method}: {status}"
    last = client_for(make_user("last@x.org", "labeler"))
    for method in {"GET", "POST", "PUT", "DELETE"} - set(ADDRESSES[name].split()):
        assert getattr(last, method.lower())(url).status_code == 405


@pytest.mark.django_db
def test_the_notice_is_there_and_csrf_holds(labeler_client, heldout_labeler_client, nowhere, labeler):
    assert "may be kept and used to train models" in labeler_client.get(reverse("playground")).text
    page = heldout_labeler_client.get(reverse("playground")).text
    assert "nothing that you write here is used" in page
    assert 'name="opt_out"' not in page
    labeler_client.handler.enforce_csrf_checks = True
    assert say(labeler_client, "Hello.").status_code == 403


@pytest.mark.django_db
def test_what_was_typed_stays_when_it_cannot_be_said(labeler_client, nowhere):
    page = say(labeler_client, "Kept <text>.", opt_out="on")
    assert page.status_code == 503
    assert "Kept &lt;text&gt;.</textarea>" in page.text
    assert "does not answer just now" in page.text
    page = labeler_client.post(reverse("playground"), {"text": "Kept.", "turn": str(uuid.uuid4())}, **HTMX)
    assert page.status_code == 409  # so that HTMX shows it
    assert "Kept.</textarea>" in page.text
    assert say(labeler_client, "   ").status_code == 422
    assert say(labeler_client, "x" * 40_001).status_code == 422
    assert say(labeler_client, "x", turn="1").status_code == 400
    assert "New conversation" not in labeler_client.get(reverse("playground")).text


# ---- a conversation -------------------------------------------------------------------------------------------------


def test_a_conversation(real, policy, labeler, reviewer, client_for):
    client, go_on = client_for(labeler), threading.Event()

    def script(body):
        yield "An **app"
        assert go_on.wait(15)
        yield "le**."
        yield END

    policy.script = script
    turn = turn_in(client.get(reverse("playground")))
    for _ in range(2):  # a double click
        said = client.post(reverse("playground"), {"text": "Name\r\na fruit.", "turn": turn})
        assert said["Location"] == reverse("playground")
    wait_for(lambda: "An **app" in client.get(reverse("playground_answer")).text)
    page = client.get(reverse("playground"))  # a reload loses nothing
    assert "writes" in page.text
    assert "a fruit." in page.text
    assert say(client, "And another?").status_code == 409  # not while this one is written; what was typed is kept
    assert "And another?</textarea>" in say(client, "And another?").text
    go_on.set()
    over = wait_for(lambda: (p := client.get(reverse("playground_answer"))).get("HX-Retarget") and p)
    assert "An <strong>apple</strong>." in over.text
    assert "hx-get" not in over.text
    assert "ppo-1" not in over.text  # labelers never learn which model wrote what
    policy.script = lambda body: ["A pear.", END]
    page = client.post(reverse("playground"), {"text": "Another?", "turn": str(uuid.uuid4()), "opt_out": "on"}, **HTMX)
    assert 'hx-swap-oob="true"' in page.text
    wait_for(lambda: "A pear." in client.get(reverse("playground")).text)
    assert [message["content"] for message in policy.last["messages"]] == [
        "Name\na fruit.",
        "An **apple**.",
        "Another?",
    ]
    assert len(policy.asked) == 2
    assert re.search(r'name="opt_out"\s+checked', client.get(reverse("playground")).text)  # remembered
    real.settle()
    prompt = Prompt.objects.get()  # the first; the second opted out
    assert (prompt.text, prompt.author.user, prompt.source) == ("Name\na fruit.", labeler, "playground")
    usage = GatewayUsage.objects.get()
    assert (usage.key, usage.requests, usage.captured) == (None, 2, 1)
    client.post(reverse("playground_clear"))
    assert "fruit" not in client.get(reverse("playground")).text

    staff = client_for(reviewer)
    say(staff, "Hello?")
    wait_for(lambda: "ppo-1" in staff.get(reverse("playground")).text)


def test_answers_that_fail_stop_or_are_lost(real, policy, labeler, heldout_labeler, client_for):
    client = client_for(labeler)
    policy.script = lambda body: [500]
    say(client, "Name a fruit.")
    failed = wait_for(lambda: "could not answer" in (p := client.get(reverse("playground")).text) and p)
    assert "Try again" in failed
    policy.script = lambda body: iter(lambda: time.sleep(0.01) or "and ", None)
    assert client.post(reverse("playground_again")).status_code == 302
    wait_for(lambda: "and and" in client.get(reverse("playground")).text)
    stopped = client.post(reverse("playground_stop"), **HTMX).text
    assert "and and" in stopped
    assert "writes" not in stopped
    assert policy.cancelled.acquire(timeout=10)  # the policy server was told
    # Another's answer is nobody else's, and the gateway believes the web half alone.
    turn = uuid.uuid4()
    playground.begin(turn=turn, messages=[{"role": "user", "content": "x"}], opts_out=True, by=labeler)
    with pytest.raises(playground.Gone):
        playground.read(turn=turn, by=heldout_labeler)
    for forged in (b"", b"{}", signed({"turn": str(turn), "person": labeler.pk})[:-1] + b"x"):
        answer = httpx.post(f"{real.url}/playground/read", content=forged, trust_env=False)
        assert answer.status_code == 403
    assert not playground.stop(turn=turn, by=labeler).error
    # A gateway that was started again knows nothing of the answer.
    go_on = threading.Event()
    policy.script = lambda body: [go_on.wait(15) and "late", END]
    say(client, "More?")
    real.inside.turns._turns.clear()
    assert "The answer was lost" in client.get(reverse("playground")).text
    go_on.set()
    # A held-out labeler's prompts are never kept.
    policy.script = lambda body: ["A pear.", END]
    other = client_for(heldout_labeler)
    say(other, "Held out?")
    wait_for(lambda: "A pear." in other.get(reverse("playground")).text)
    real.settle()
    assert not Prompt.objects.filter(author__user=heldout_labeler).exists()
    assert not Prompt.objects.filter(messages__0__content="Held out?").exists()


# ---- beside labelers, and while the database is away ----------------------------------------------------------------


def test_fifty_slow_answers_hold_neither_a_labeler_nor_the_database(real, policy, labeler, client_for, monkeypatch):
    _, secret = gateway_keys.create(organization="A", name="a", may_train=True, requests_per_minute=1000, by=None)
    builders.task(builders.batch(), builders.prompt())
    monkeypatch.setattr("labeling.gateway.afterwards.FIRST_PAUSE_SECONDS", 0.01)
    go_on = threading.Event()

    def script(body):
        yield {"text": ""}
        assert go_on.wait(30)
        yield body["messages"][0]["content"]
        yield END

    policy.script = script

    def ask(number: int) -> str:
        body = {"model": "heed", "messages": [{"role": "user", "content": f"Question {number}"}]}
        headers = {"Authorization": f"Bearer {secret}"}
        answer = httpx.post(f"{real.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
        return answer.json()["choices"][0]["message"]["content"]

    def connections() -> tuple[int, int]:
        """Of others than this test: (all, those at work)."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return cursor.fetchone()

    before, _busy = connections()  # a live server of an earlier test may have left one
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(ask, number) for number in range(50)]
        wait_for(lambda: policy.active == 50, 30)
        client = client_for(labeler)
        assert client.get(reverse("tasks")).status_code == 200
        assert client.post(reverse("task_next")).status_code == 302
        held, busy = connections()
        assert held - before <= 4
        assert busy == 0
        assert policy.active == 50  # all the while
        fails = iter([True] * 5)
        monkeypatch.setattr(
            "labeling.gateway.afterwards.capture", lambda **asked: _fail_at_first(fails, asked, capture)
        )
        go_on.set()
        assert sorted(future.result() for future in asked) == sorted(f"Question {number}" for number in range(50))
    assert policy.most_active == 50
    real.settle(30)
    usage = GatewayUsage.objects.get()
    assert (usage.requests, usage.captured, usage.errors) == (50, 50, 0)  # each once, in spite of five failures
    assert real.inside.afterwards.lost == 0
    assert Prompt.objects.filter(source="playground").count() == 50


def _fail_at_first(fails, asked, capture):
    if next(fails, False):
        raise OperationalError("the database crashed")
    return capture(**asked)
