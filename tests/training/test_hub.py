"""A model that is no folder here: the hub is asked once, and what it says, or that it says nothing, is told in one line."""

import pytest
from huggingface_hub import constants

from tests.training.test_client import free_port, serve  # noqa: F401 a fixture
from training import hub
from training.__main__ import main


@pytest.fixture
def at(monkeypatch):
    """Lets the hub be at an address."""

    def move(url):
        monkeypatch.setattr(hub, "hf_hub_url", lambda name, file: f"{url}/{name}/resolve/main/{file}")
        hub.why_not.cache_clear()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield move
    hub.why_not.cache_clear()


def refusal(name, export, tmp_path, capsys) -> str:
    out = tmp_path / "out"
    assert main(["sft", "--out", str(out), "--base-model", name, "--export", str(export)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m training sft: --base-model: {name}: there is no such folder, and ")
    assert not list(tmp_path.iterdir())
    return line


def test_a_name_that_is_nowhere_is_told_in_one_line(at, serve, export, tmp_path, capsys):  # noqa: F811
    answers = {"gone": "RepoNotFound", "kept": "GatedRepo"}
    server = serve(lambda _method, path, _body: (401, {}, ("X-Error-Code", answers[path.split("/")[1]])))
    at(server.url)
    assert "has no model of that name" in refusal("gone", export, tmp_path, capsys)
    assert "only whom it has let in" in refusal("kept", export, tmp_path, capsys)
    assert "no name of a model" in refusal("a--b c", export, tmp_path, capsys)
    assert [(method, path) for method, path, *_ in server.requests] == [
        ("HEAD", "/gone/resolve/main/config.json"),
        ("HEAD", "/kept/resolve/main/config.json"),
    ], "each was asked for once"
    at(f"http://127.0.0.1:{free_port()}")
    assert "cannot be reached" in refusal("gone", export, tmp_path, capsys)


def test_what_the_hub_has_is_left_to_the_loader_and_what_was_fetched_is_found_without_it(at, serve, monkeypatch):  # noqa: F811
    at(serve(lambda *_: (200, {}, ("ETag", '"1"'))).url)
    assert hub.why_not("org/known") is None
    at(serve(lambda *_: (404, {}, ("X-Error-Code", "EntryNotFound"))).url)
    assert hub.why_not("org/adapter") is None, "it has no config.json, and may be a model"
    assert not constants.HF_HUB_OFFLINE
    at(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    assert hub.why_not("org/fetched") is None
    assert constants.HF_HUB_OFFLINE, "nothing asks again"
