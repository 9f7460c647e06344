"""Promotions and rollbacks while people ask: no request is lost, and each is answered by one policy, which it names."""

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from labeling.actions import gateway_keys, model_versions
from tests.labeling.gateways import gateway, serving  # noqa: F401 fixtures
from tests.labeling.test_model_versions import make_folder
from training import engines, serve
from training.front import Front

pytestmark = pytest.mark.django_db
REQUESTS, CALLERS = 1000, 16


@pytest.fixture
def stub_engines(monkeypatch):
    """Engines that are up in a moment."""

    def command(config, folder, name, port):
        return [sys.executable, "-m", "tests.labeling.policy_server", str(port), str(folder)]

    monkeypatch.setattr(engines, "command", command)


class Serving:
    """`python -m training serve` in this process, and what it is told to serve."""

    def __init__(self, tmp_path: Path, **options):
        self.pointer = tmp_path / "pointer"
        self.config = serve.Config(
            pointer=str(self.pointer), state=str(tmp_path / "state.json"), **{"poll_seconds": 0.05} | options
        )
        self.front = Front("127.0.0.1", 0)
        self.watch = serve.Watch(self.config, serve.Chooser(self.config), self.front)

    def point_to(self, *folders: Path) -> None:
        """What is promoted."""
        self.pointer.write_text(str(folders[0]))

    def run(self, until: threading.Event) -> None:
        """Look again and again."""
        while not until.wait(0.05):
            self.watch.step()


@pytest.fixture
def site(tmp_path, stub_engines):
    made = Serving(tmp_path)
    yield made
    made.watch.stop()


@pytest.fixture
def policy(site, settings):
    """Where the gateway finds the policies."""
    settings.POLICY_URL = site.front.address


@pytest.fixture
def folders(tmp_path):
    return [make_folder(tmp_path / name, name, "ppo") for name in ("old", "new", "broken")]


def ask(url: str, **body) -> httpx.Response:
    given = {"messages": [{"role": "user", "content": "Who?"}], "stream": True} | body
    return httpx.post(f"{url}/v1/chat/completions", json=given, timeout=20, trust_env=False)


def text_of(answer: httpx.Response) -> str:
    events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def test_a_thousand_requests_during_a_promotion_and_a_rollback(gateway, site, folders):  # noqa: F811
    for folder in folders:
        model_versions.register_folder(folder=folder, by=None)
    old, new, broken = (model_versions.ModelVersion.objects.get(name=folder.name) for folder in folders)
    secret = gateway_keys.create(organization="A", name="n", may_train=False, requests_per_minute=10**6, by=None)[1]
    headers, answers, done = {"Authorization": f"Bearer {secret}"}, [], threading.Event()

    def change(change_over, *names):
        """In the gateway's database thread, whose connection this test shares; then for `serve` to find."""
        promotion = gateway.inside.database._threads.submit(change_over).result()
        site.point_to(folders[names.index(promotion.model_version.name)])

    def promote(version):
        change(lambda: model_versions.promote(model_version=version, reason="r", by=None), "old", "new", "broken")

    def roll_back():
        change(lambda: model_versions.rollback(reason="r", by=None), "old", "new", "broken")

    steps = {200: lambda: promote(new), 500: roll_back, 700: lambda: promote(broken), 800: roll_back}
    promote(old)
    watching = threading.Thread(target=site.run, args=(done,))
    watching.start()
    try:
        with ThreadPoolExecutor(CALLERS) as pool, httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
            body = {"model": "heed", "messages": [{"role": "user", "content": "Who?"}]}

            def call(number: int) -> None:
                if number in steps:
                    steps[number]()
                answers.append(client.post(f"{gateway.url}/v1/chat/completions", json=body))

            for finished in [pool.submit(call, number) for number in range(REQUESTS)]:
                finished.result()
    finally:
        done.set()
        watching.join()
    assert not [answer.text for answer in answers if answer.status_code != 200]
    by = Counter()
    for answer in answers:
        said = answer.json()
        text = said["choices"][0]["message"]["content"]
        assert (answer.headers["X-Heed-Model"], text) == (said["model"], f"I am {said['model']}")
        by[said["model"]] += 1
    assert len(answers) == REQUESTS and set(by) == {"old", "new"} and min(by.values()) > 50
    assert model_versions.serving_policy() == old


def test_requests_under_way_end_on_the_old_policy_which_is_stopped_then(site, folders, monkeypatch):
    old, new, broken = folders
    site.point_to(old)
    site.watch.step()
    first = site.watch.engines[old]
    with httpx.stream(
        "POST", f"{site.front.address}/v1/chat/completions", json={"messages": [], "stream": True}, trust_env=False
    ) as answer:
        site.point_to(broken)
        site.watch.step()  # it does not come up: the old one goes on serving
        assert text_of(ask(site.front.address)) == "I am old" and broken not in site.watch.engines
        site.point_to(new)
        first.served.in_flight += 1  # an answer that takes long
        site.watch.step()
        assert ask(site.front.address).headers["X-Heed-Model"] == "new"
        answer.read()
        assert (answer.headers["X-Heed-Model"], text_of(answer)) == ("old", "I am old")
    site.watch.step()
    assert first.is_alive
    site.point_to(old)  # back before it was stopped: at once, without a start
    site.watch.step()
    assert ask(site.front.address).headers["X-Heed-Model"] == "old" and site.watch.engines[old] is first
    first.served.in_flight -= 1
    site.watch.step()
    assert list(site.watch.engines) == [old]
    start = engines.Engine.start

    def slow(engine):
        start(engine)
        site.point_to(old)  # rolled back while it started

    site.point_to(new)
    with monkeypatch.context() as patch:
        patch.setattr(engines.Engine, "start", slow)
        site.watch.step()
    assert ask(site.front.address).headers["X-Heed-Model"] == "old"
    site.watch.step()
    assert list(site.watch.engines) == [old]
    first.process.kill()
    first.process.wait()
    site.watch.step()  # what died is started again
    assert text_of(ask(site.front.address)) == "I am old"


def test_several_policies_at_once_and_their_prefixes(tmp_path, stub_engines, folders):
    prompted = make_folder(tmp_path / "p", "prompted", "ppo", few_shot_prefix="Q: 1? A: 2.\n")
    site = Serving(tmp_path, models=(str(folders[0]), str(prompted), str(folders[2])))
    try:
        site.watch.step()
        url = site.front.address
        listed = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
        assert [one["id"] for one in listed] == ["old", "prompted"]
        assert text_of(ask(url)) == text_of(ask(url, model="old")) == "I am old"
        assert ask(url, model="prompted").headers["X-Heed-Model"] == "prompted"
        assert text_of(ask(url, model="heed")) == text_of(ask(url, model=None)) == "I am old", "whatever serves"
        for model in ("new", 5, ["old"], "x" * 1000):
            answer = ask(url, model=model)
            assert answer.status_code == 404 and "X-Heed-Model" not in answer.headers
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == (
                "invalid_request_error",
                "model",
                "model_not_found",
            )
        answer = ask(url, model="broken")  # wanted, and did not come up
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_policy")
        assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok", "models": ["old", "prompted"]}
        assert httpx.post(f"{url}/load_model", json={"model": "/etc"}, trust_env=False).status_code == 404
    finally:
        site.watch.stop()
    same = serve.Config(models=(str(folders[0]), str(folders[0])))
    with pytest.raises(serve.StageError, match="one name"):
        serve.Chooser(same).check()
    judge = make_folder(tmp_path / "judge", "judge", "rm")
    for given in ({"model": str(judge)}, {"models": (str(folders[0]), str(judge))}):
        with pytest.raises(serve.StageError, match="judge: a reward model writes no text"):
            serve.run(serve.Config(**given))
    with pytest.raises(serve.ContractError, match="nosuch"):
        serve.run(serve.Config(model=str(tmp_path / "nosuch")))


def test_requests_wait_while_serve_starts_and_while_it_falls_back_and_are_refused_when_nothing_comes(
    tmp_path, stub_engines, folders
):
    with ThreadPoolExecutor(4) as pool:
        site = Serving(tmp_path)
        try:
            early = [pool.submit(ask, site.front.address) for _ in range(4)]
            time.sleep(0.5)  # `serve` has its port, and looks a little later
            site.point_to(folders[0])
            site.watch.step()
            assert [one.result().status_code for one in early] == [200] * 4
            site.watch.engines[folders[0]].process.kill()
            site.watch.engines[folders[0]].process.wait()
            site.point_to(folders[2])  # broken: what was up last has to be started again
            falling_back = pool.submit(site.watch.step)
            answers = [pool.submit(ask, site.front.address) for _ in range(3)]
            assert [text_of(one.result()) for one in answers] == ["I am old"] * 3
            falling_back.result()
        finally:
            site.watch.stop()
        rarely, stop = Serving(tmp_path / "rarely", model=str(folders[0]), poll_seconds=60), serve.Stop()

        def look_now_and_then():
            while not stop.is_set:
                rarely.watch.step()
                rarely.watch.rest(stop)

        looking = pool.submit(look_now_and_then)
        try:
            assert ask(rarely.front.address).status_code == 200
            named, seconds = rarely.watch.chooser.folders, [0, 0.8]  # that the web half takes to say who serves
            rarely.watch.chooser.folders = lambda: (time.sleep(seconds.pop(0)), named())[1]
            while seconds:  # it dies between looks, and the next one does not wait for its time
                rarely.watch.shown[0].process.kill()
                rarely.watch.shown[0].process.wait()
                assert text_of(ask(rarely.front.address)) == "I am old"
        finally:
            stop(0, None)
            looking.result()
            rarely.watch.stop()
        nothing = Serving(tmp_path / "nothing")
        try:
            nothing.watch.step()
            assert ask(nothing.front.address).status_code == 503
        finally:
            nothing.watch.stop()


def test_where_memory_holds_one_policy_requests_wait_for_the_next(tmp_path, stub_engines, folders):
    site = Serving(tmp_path, stop_first=True)
    try:
        site.point_to(folders[0])
        site.watch.step()
        first = site.watch.engines[folders[0]]
        site.point_to(folders[1])
        with ThreadPoolExecutor(5) as pool:
            changing = pool.submit(site.watch.step)
            answers = [pool.submit(ask, site.front.address) for _ in range(8)]
            changing.result()
            assert {answer.result().status_code for answer in answers} == {200}
        assert not first.is_alive and list(site.watch.engines) == [folders[1]]
        site.point_to(folders[2])
        site.watch.step()  # broken: the one before comes back
        assert text_of(ask(site.front.address)) == "I am new"
    finally:
        site.watch.stop()
    with pytest.raises(httpx.ConnectError):
        ask(site.front.address)
