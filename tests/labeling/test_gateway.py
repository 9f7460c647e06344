"""The gateway, asked by the official `openai` client over HTTP, before a policy server that is quick, slow, dead or wrong."""

import json
import logging
import threading
import time
from datetime import timedelta

import httpx
import openai
import pytest
from django.utils import timezone

from labeling.actions import gateway_keys
from labeling.models import GatewayKey, GatewayUsage, ModelVersion, Prompt
from tests.labeling.gateways import client, gateway, policy, promote_stub, run_apart, secret, serving  # noqa: F401 fixtures
from tests.labeling.policy_server import END, Cut, endless

# ruff: noqa: F811 (fixtures that are imported)
HELLO = [{"role": "user", "content": "Say hello."}]


def chat(client, messages=None, **options):
    return client.chat.completions.create(model=options.pop("model", "heed"), messages=messages or HELLO, **options)


def post(gateway, secret, body, path="/v1/chat/completions", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = ({"Authorization": f"Bearer {secret}"} if secret else {}) | headers
    return httpx.post(f"{gateway.url}{path}", content=content, headers=sent, timeout=20, trust_env=False)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(client, policy, gateway):
    raw = client.chat.completions.with_raw_response.create(
        model="heed",
        messages=HELLO,
        temperature=0.5,
        max_tokens=9,
        seed=3,
        user="u-1",
        extra_headers={"X-Unknown": "1"},
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert answer.model == raw.headers["X-Heed-Model"] == "ppo-1"
    assert "may be kept and used to train" in raw.headers["X-Heed-Notice"]
    path, body = policy.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "messages": HELLO, "temperature": 0.5, "max_tokens": 9, "seed": 3,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert not any(name.lower().startswith("access-control") for name in raw.headers)


def test_a_stream_arrives_piece_by_piece(client, policy):
    go_on = threading.Event()

    def script(body):
        yield {"text": ""}
        yield "Hel"
        assert go_on.wait(10)  # the second piece is not even made before the first is here
        yield "lo."
        yield END

    policy.script = script
    texts = []
    for chunk in chat(client, stream=True, stream_options={"include_usage": True}):
        assert chunk.model == "ppo-1"
        if not chunk.choices:
            assert chunk.usage.total_tokens == 9
            continue
        texts.append(chunk.choices[0].delta.content)
        if "Hel" in texts:
            go_on.set()
        last = chunk.choices[0].finish_reason
    assert [text for text in texts if text] == ["Hel", "lo."]
    assert last == "stop"
    assert not list(chat(client, stream=True))[-1].usage  # only where it was asked for


def test_completions_are_answered_whole_and_streamed(client, policy):
    answer = client.completions.create(model="ppo-1", prompt="Once", max_tokens=5)
    assert (answer.choices[0].text, answer.choices[0].finish_reason, answer.object) == (
        "Hello.",
        "stop",
        "text_completion",
    )
    assert policy.asked[0][0] == "/v1/completions"
    assert policy.last["prompt"] == "Once"
    pieces = list(client.completions.create(model="heed", prompt=["Once"], stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == "Hello."


def test_the_asynchronous_client_streams(gateway, secret):
    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=secret, max_retries=0) as client:
            stream = await client.chat.completions.create(model="heed", messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert run_apart(run()) == "Hello."


def test_models_are_those_that_serve(client):
    assert {model.id for model in client.models.list()} == {"heed", "ppo-1"}
    assert client.models.retrieve("ppo-1").owned_by == "heed"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("ppo-0")


def test_n_answers_are_n_calls(client, policy, gateway):
    texts = iter(["one", "two", "three"])
    policy.script = lambda body: [next(texts), END]
    answer = chat(client, n=3)
    assert sorted(choice.message.content for choice in answer.choices) == ["one", "three", "two"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 6)
    assert len(policy.asked) == 3
    assert all("n" not in body for _, body in policy.asked)
    gateway.settle()
    assert GatewayUsage.objects.get().requests == 1


def test_a_stop_sequence_ends_the_text_before_it_and_the_call(client, policy):
    policy.script = _until_stopped
    answer = chat(client, stop=["###", "never"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("One. # Two. ", "stop")
    assert policy.cancelled.acquire(timeout=10)
    pieces = [c.choices[0].delta.content or "" for c in chat(client, stop="###", stream=True)]
    assert "".join(pieces) == "One. # Two. "


def _until_stopped(body):
    yield from ["One. #", " Two. #", "#", "# Three"]
    yield from endless(body)


def test_messages_are_normalised(client, policy):
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]
    turns = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    chat(client, turns)
    assert policy.last["messages"] == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say\nhello."},
    ]  # fmt: skip
    again = chat(client)
    chat(client, [*HELLO, again.choices[0].message, {"role": "user", "content": "More."}])  # as people use the client
    assert policy.last["messages"][1] == {"role": "assistant", "content": "Hello."}


# ---- refused --------------------------------------------------------------------------------------------------------


def test_who_may_not_come_in(gateway, secret, admin_user, policy):
    key = GatewayKey.objects.get()
    for wrong in ("", secret[:-1], "sk-something", key.secret_hash):
        answer = post(gateway, wrong, {"model": "heed", "messages": HELLO})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError, match="Unknown API key"):
        chat(gateway.client("heedgw_wrong"))
    GatewayKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(openai.AuthenticationError, match="expired"):
        chat(gateway.client(secret))
    GatewayKey.objects.update(expires_at=timezone.now() + timedelta(days=1))
    assert chat(gateway.client(secret))
    gateway_keys.revoke(key=key, by=admin_user)
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        chat(gateway.client(secret))
    assert httpx.get(f"{gateway.url}/v1/models", trust_env=False).status_code == 401
    assert len(policy.asked) == 1


def test_the_rate_limit_says_when_to_come_again(gateway, policy):
    key, secret = gateway_keys.create(organization="B", name="b", may_train=False, requests_per_minute=2, by=None)
    client = gateway.client(secret)
    chat(client), chat(client)
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert 25 <= int(caught.value.response.headers["Retry-After"]) <= 30
    gateway.settle()
    usage = key.usage.get()
    assert (usage.requests, usage.limited, usage.errors) == (2, 1, 0)


def test_tokens_are_limited_too(gateway, policy):
    _, secret = gateway_keys.create(organization="B", name="b", may_train=False, tokens_per_minute=9, by=None)
    policy.script = lambda body: ["x", {"finish": "stop", "usage": (10, 8)}]
    chat(gateway.client(secret))
    gateway.settle()
    with pytest.raises(openai.RateLimitError) as caught:
        chat(gateway.client(secret))
    assert (
        60 <= int(caught.value.response.headers["Retry-After"]) <= 67
    )  # 9 too many and 1 to begin with, at 9 a minute


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x\x00"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 200_001}]}, "messages", "context_length_exceeded"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1"}}]}
                ]
            },
            "messages[0].content[0]",
            "invalid_value",
        ),
        ({"generation_config": "{}"}, "generation_config", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"n": 2, "stream": True}, "n", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
    ],
)
def test_a_wrong_request_names_the_place(gateway, secret, policy, change, param, code):
    answer = post(gateway, secret, {"model": "heed", "messages": HELLO} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"], error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    )
    assert error["message"]
    assert not policy.asked


def test_other_refusals_have_the_same_shape(gateway, secret, policy, client):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="/etc/passwd")
    assert caught.value.code == "model_not_found"
    assert post(gateway, secret, b"{").json()["error"]["code"] == "invalid_json"
    assert post(gateway, secret, b"[" * 100_000).status_code == 400
    assert post(gateway, secret, b"x" * (2 * 2**20 + 1)).status_code == 413
    assert post(gateway, secret, {}).json()["error"]["param"] == "model"
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/x", 404),
        ("OPTIONS", "/v1/models", 405),
    ):
        answer = httpx.request(
            method, f"{gateway.url}{path}", headers={"Origin": "http://evil.example"}, trust_env=False
        )
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert not policy.asked
    ModelVersion.objects.update(status="retired")
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert (caught.value.status_code, caught.value.code) == (503, "no_policy")


# ---- a policy server that is slow, dead or wrong ----------------------------------------------------------------------


def _breaks_off(body):
    yield "Hel"
    raise Cut


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (lambda body: [500], 502, "policy_error"),
        (lambda body: [422], 400, "policy_refused"),
        (lambda body: [{"error": "CUDA out of memory"}], 502, "policy_error"),
        (lambda body: [b"data: nonsense\n\n"], 502, "policy_error"),
        (lambda body: [b'data: {"choices": [3]}\n\n'], 502, "policy_error"),
        (_breaks_off, 502, "policy_cut"),
        (lambda body: [{"text": "x", "model": "/elsewhere/unknown"}], 502, "policy_unknown"),
    ],
)
def test_what_the_policy_server_does_wrong_is_told(client, gateway, policy, script, status, code):
    policy.script = script
    for is_stream in (False, True):
        if is_stream and code == "policy_cut":
            continue  # see below: it has begun by then
        with pytest.raises(openai.APIStatusError) as caught:
            list(chat(client, stream=is_stream))
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert "secret-place" not in str(caught.value)
    gateway.settle()
    assert GatewayUsage.objects.get().errors == GatewayUsage.objects.get().requests
    assert not Prompt.objects.exists() or code == "policy_cut"


def test_a_dead_server_is_told_at_once_and_a_restarting_one_waited_for(client, policy, settings):
    settings.POLICY_RESTART_SECONDS = 10.0
    policy.stop()
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert (caught.value.status_code, caught.value.code) == (503, "policy_unavailable")
    assert caught.value.response.headers["Retry-After"]
    assert time.monotonic() - began < 5
    policy.start()
    chat(client)
    policy.stop()
    timer = threading.Timer(0.7, policy.start)
    timer.start()
    assert chat(client).choices[0].message.content == "Hello."
    timer.join()
    policy.script = lambda body: iter([]) if len(policy.asked) < 6 else ["Back.", END]  # broken off before a word
    assert chat(client, stream=False).choices[0].message.content == "Back."


def test_silence_is_a_timeout_before_and_within_an_answer(client, policy, settings, gateway):
    settings.POLICY_FIRST_SECONDS = settings.POLICY_GAP_SECONDS = 0.3
    release = threading.Event()

    def silent(body):
        yield {"text": ""}  # "assistant", and then nothing
        release.wait(10)

    policy.script = silent
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client, stream=True)
    assert (caught.value.status_code, caught.value.code) == (504, "policy_timeout")

    def stuck(body):
        yield "Hel"
        release.wait(10)

    policy.script = stuck
    texts = []
    with pytest.raises(openai.APIError, match="fell silent in the middle") as caught:
        for chunk in chat(client, stream=True):
            texts.append(chunk.choices[0].delta.content)
    assert caught.value.code == "policy_timeout"
    assert "Hel" in texts
    release.set()
    gateway.settle()
    assert GatewayUsage.objects.get().errors == 2


def test_a_client_who_hangs_up_ends_the_call(client, policy, gateway, secret):
    policy.script = endless
    stream = chat(client, stream=True)
    next(iter(stream))
    stream.close()
    assert policy.cancelled.acquire(timeout=10)
    with pytest.raises(openai.APITimeoutError):
        chat(gateway.client(secret, timeout=0.3))
    assert policy.cancelled.acquire(timeout=10)
    deadline = time.monotonic() + 10
    while policy.active:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gateway.settle()
    usage = GatewayUsage.objects.get()
    assert (usage.requests, usage.errors) == (2, 0)
    assert usage.completion_tokens > 0  # guessed: the server never said


# ---- which policy ---------------------------------------------------------------------------------------------------


def test_each_answer_says_which_policy_gave_it(client, policy):
    assert chat(client).model == "ppo-1"
    promote_stub("ppo-2")
    assert chat(client).model == "ppo-1"  # the server has not changed over yet
    with pytest.raises(openai.InternalServerError, match="ppo-2 is being brought up"):
        chat(client, model="ppo-2")
    with pytest.raises(openai.NotFoundError):
        chat(client, model="ppo-1")
    policy.model = "/models/ppo-2"
    assert chat(client).model == chat(client, model="ppo-2").model == "ppo-2"


def test_n_answers_are_by_one_policy(client, policy):
    promote_stub("ppo-2")
    models = iter(["ppo-1", "ppo-2", "ppo-2", "ppo-2"])
    policy.script = lambda body: [{"text": "x", "model": f"/models/{next(models)}"}, END]
    answer = chat(client, n=2)
    assert answer.model == "ppo-2"
    assert len(answer.choices) == 2
    assert len(policy.asked) == 4


def test_other_servers_are_told_a_model(client, policy, settings):
    settings.POLICY_MODEL, settings.POLICY_RESTART_SECONDS = "{name}", 20
    policy.model = "ppo-1"
    assert chat(client).model == "ppo-1"
    assert policy.last["model"] == "ppo-1"
    policy.script = lambda body: [404] if len(policy.asked) == 2 else ["Hello.", END]  # not up yet under this name
    assert chat(client).model == "ppo-1"
    assert len(policy.asked) == 3
    settings.POLICY_MODEL, policy.model = "policy", "policy"
    assert chat(client).model == "ppo-1"
    assert policy.last["model"] == "policy"


# ---- prompts --------------------------------------------------------------------------------------------------------


def kept(gateway) -> list[str]:
    gateway.settle()
    return [prompt.text for prompt in Prompt.objects.order_by("id")]


def test_prompts_are_kept_where_they_may(client, gateway):
    chat(client, user="u-1")
    client.completions.create(model="heed", prompt="Once", user="u-2")
    list(chat(client, [{"role": "user", "content": "Third."}], stream=True, store=True))
    assert kept(gateway) == ["Say hello.", "Once", "Third."]
    first, second, third = Prompt.objects.order_by("id")
    assert (first.author.key, first.organization, first.source) == ("gateway:Acme/u-1", "Acme", "playground")
    assert first.metadata == {"endpoint": "/v1/chat/completions", "model": "ppo-1"}
    assert (second.author.key, third.author.key) == ("gateway:Acme/u-2", "gateway:Acme/")
    chat(client)
    gateway.settle()
    usage = GatewayUsage.objects.get()
    assert (usage.requests, usage.captured, usage.held_back) == (4, 3, 1)
    assert (usage.prompt_tokens, usage.completion_tokens) == (28, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"store": False},
        {"metadata": {"heed_opt_out": "true"}},
        {"extra_headers": {"X-Heed-Opt-Out": "1"}},
        {"extra_headers": {"X-Heed-Opt-Out": "please"}},
    ],
)
def test_an_opt_out_keeps_a_request_out(client, gateway, options):
    raw = client.chat.completions.with_raw_response.create(model="heed", messages=HELLO, **options)
    assert raw.headers["X-Heed-Training"] == "not used"
    assert kept(gateway) == []
    chat(client, extra_headers={"X-Heed-Opt-Out": "0"})
    assert kept(gateway) == ["Say hello."]


def test_without_consent_nothing_is_kept(gateway, policy):
    _, secret = gateway_keys.create(organization="B", name="b", may_train=False, by=None)
    raw = gateway.client(secret).chat.completions.with_raw_response.create(model="heed", messages=HELLO, store=True)
    assert raw.headers["X-Heed-Training"] == "not used"
    assert "X-Heed-Notice" not in raw.headers
    assert kept(gateway) == []


def test_what_cannot_be_kept_harms_no_answer_and_no_prompt_is_in_the_log(client, gateway, monkeypatch, caplog, policy):
    def fail(*arguments, **named):
        raise ValueError(f"Failing row contains ({HELLO[0]['content']})")

    monkeypatch.setattr("labeling.gateway.afterwards.capture", fail)
    with caplog.at_level(logging.DEBUG):
        assert chat(client).choices[0].message.content == "Hello."
        gateway.settle()
        monkeypatch.setattr("labeling.gateway.replies.Shape.whole", fail)
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client)
        policy.script = lambda body: [{"error": body["messages"][0]["content"]}]
        with pytest.raises(openai.InternalServerError):
            chat(client)
        gateway.settle()
    assert caught.value.code == "internal_error"
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("labeling", "uvicorn"))
    )
    assert "1 lost so far" in ours
    assert "ValueError" in ours
    assert "Say hello" not in ours
    health = httpx.get(f"{gateway.url}/healthz", trust_env=False).json()
    assert health["ok"]
    assert health["lost"] == gateway.inside.afterwards.lost >= 1
