"""`python -m training serve`: waits, serves, follows promotions, survives kills, and gives up a model that does not load."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.training.test_client import free_port, serve  # noqa: F401 a fixture
from tests.training.test_sample import models  # noqa: F401 a fixture
from training import engines
from training.contract import hash_file, read_model_manifest, write_model_manifest
from training.errors import StageError
from training.serve import Chooser, Config

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition, seconds: float = 150.0):
    """The first true value of `condition`, or an AssertionError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def served(port: int) -> str | None:
    """The folder that answers on the port, by the name transformers gives it."""
    body = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 2}
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    except httpx.TransportError:
        return None
    return answer.json()["model"].removesuffix("@main") if answer.is_success else None


def as_registered(folder: Path) -> dict[str, str]:
    """A model as the web half tells of it."""
    return {"name": folder.name, "uri": str(folder), "manifest_sha256": hash_file(folder / "manifest.json")}


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
def test_it_follows_promotions_and_survives_kills(serve, models, tmp_path):  # noqa: F811
    promoted: dict = {"model": None}
    web = serve(lambda *_: (200, promoted))
    broken = tmp_path / "broken"
    shutil.copytree(models / "new", broken)
    (broken / "config.json").write_text("{}")
    manifest = read_model_manifest(broken, verify=False)
    write_model_manifest(
        broken, name="broken", stage=manifest.stage, parents={}, export=None, config={}, metrics={}, seed=0
    )

    port = free_port()
    flags = ["--port", str(port), "--state", str(tmp_path / "serve.json"), "--poll-seconds", "0.2"]
    environment = os.environ | {"HEED_URL": web.url, "HEED_TOKEN": "t"}
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "training", "serve", *flags]

    def start():
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdout=log)

    process = start()
    try:
        wait_for(lambda: "waiting" in (tmp_path / "log").read_text())
        assert served(port) is None

        promoted["model"] = as_registered(models / "old")
        wait_for(lambda: served(port) == str(models / "old"))
        listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).json()["data"]
        assert [one["id"] for one in listed] == ["old"]
        foreign = {"model": "/etc", "messages": [{"role": "user", "content": "x"}]}
        assert (
            httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=foreign, trust_env=False).status_code == 404
        )

        os.kill(children(process)[0], signal.SIGKILL)  # the server dies: it is started again
        wait_for(lambda: served(port) == str(models / "old"))

        promoted["model"] = as_registered(broken)  # a bad one: the one before it goes on
        wait_for(lambda: f"serving {models / 'old'} instead" in (tmp_path / "log").read_text())
        assert served(port) == str(models / "old")

        web.shutdown()
        web.server_close()  # nobody to ask, and we are killed: the last known policy comes back
        child = children(process)[0]
        process.kill()
        process.wait()
        wait_for(lambda: not Path(f"/proc/{child}").exists())
        process = start()
        wait_for(lambda: served(port) == str(models / "old"))
        assert json.loads((tmp_path / "serve.json").read_bytes()) == {"model": str(models / "old")}

        process.terminate()
        assert process.wait(20) == 0
        assert served(port) is None
    finally:
        process.kill()
        process.wait()
        log.close()


def test_it_says_when_nothing_tells_it_what_to_serve(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEED_")}
    command = [sys.executable, "-m", "training", "serve", "--state", str(tmp_path / "s.json")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "nothing says what to serve" in result.stderr


def test_an_engines_command_line(tmp_path, monkeypatch):
    settings = {"model": "m", "engine_args": "--gpu-memory-utilization 0.45 --chat-template 'a b'"}
    program = tmp_path / "vllm"
    program.write_text("")
    monkeypatch.setattr(engines.shutil, "which", lambda name: str(program))
    made = engines.command(Config(engine="vllm", **settings), Path("/models/ppo-1"), "ppo-1", 9000)
    address = ["--host", "127.0.0.1", "--port", "9000"]
    more = ["--gpu-memory-utilization", "0.45", "--chat-template", "a b"]
    assert made == [str(program), "serve", "/models/ppo-1", *address, "--served-model-name", "ppo-1", *more]
    made = engines.command(Config(device="cpu", **settings), Path("/models/ppo-1"), "ppo-1", 9000)
    assert made[3:] == ["serve", "/models/ppo-1", *address, "--device", "cpu", "--log-level", "error", *more]
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(StageError, match="vllm is not installed"):
        Chooser(Config(engine="vllm", model="m")).check()
