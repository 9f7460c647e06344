"""`python -m training sample` on tiny models and real local servers: K responses, resumable, refused where they would lie."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.test_client import serve  # noqa: F401 a fixture
from training import sample as sampling
from training import writers
from training.__main__ import main
from training.contract import read_model_manifest, write_model_manifest
from training.errors import StageError
from training.folders import hold
from training.sample import deal

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    {"messages": [{"role": "user", "content": f"Tell me of the {n} seas."}], "external_id": f"p{n}"} for n in range(6)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny models with random weights."""
    import torch

    from training.models import new_model, publish, train_tokenizer

    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["Tell me of the seas and the ships on them."], 300, 96)
    for seed, name in enumerate(["new", "old"]):
        torch.manual_seed(seed)
        model = new_model(tokenizer, width=16, layers=1, heads=2, mlp_width=16, max_tokens=96, init_std=0.02)
        publish(
            root / name,
            model,
            tokenizer,
            stage="ppo",
            parents={},
            export=None,
            config={},
            metrics={},
            log=[],
            seed=seed,
        )
    return root


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


def command(out: Path, *flags: str) -> list[str]:
    words = ["sample", "--out", str(out), "--max-new-tokens", "8", *map(str, flags)]
    return [sys.executable, "-m", "training", *words]


def sample(out: Path, *flags: str) -> subprocess.CompletedProcess:
    """What `command` does, by the same door, in this process: loading torch anew takes many times as long as the sampling."""
    words = command(out, *flags)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(words[3:])
        except SystemExit as error:
            status = error.code
    return subprocess.CompletedProcess(words, status, stderr=errors.getvalue())


def start(out: Path, *flags: str, **options) -> subprocess.Popen:
    """The command itself, as its user types it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(out, *flags), cwd=ROOT, env=environment, text=True, **options)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_k_responses_are_dealt_to_the_models_in_turn():
    assert [deal(5, 2), deal(4, 1), deal(2, 3), deal(9, 4)] == [[3, 2], [4], [1, 1, 0], [3, 2, 2, 2]]


@pytest.mark.slow
def test_it_samples_resumes_and_repeats(models, prompts, tmp_path):
    flags = ["--model", f"{models / 'new'},{models / 'old'}", "--prompts", prompts, "--k", 3, "--batch", 4, "--seed", 5]
    out = tmp_path / "responses.jsonl"
    assert sample(out, *flags).returncode == 0
    written = rows(out)
    by_prompt = {row["external_id"]: [] for row in PROMPTS}
    for row in written:
        by_prompt[row["external_id"]].append(row["model"])
        assert row["sampling"]["temperature"] == 1.0
        assert row["sampling"]["seed"] == 5
        assert row["finish_reason"] in {"stop", "length"}
    assert all(models_ == ["new", "new", "old"] for models_ in by_prompt.values())
    assert len({row["response_external_id"] for row in written}) == 18
    report = json.loads((tmp_path / "responses.jsonl.report.json").read_bytes())
    assert report["counts"]["responses"] == 18
    assert report["counts"]["distinct_responses"] > 9
    assert sum(report["finish_reasons"].values()) == 18

    # killed after some parts, then resumed: the same bytes
    again = tmp_path / "again.jsonl"
    process = start(again, *flags, stderr=subprocess.DEVNULL)
    work = tmp_path / "again.jsonl.run"
    deadline = time.monotonic() + 60
    while not list(work.glob("part-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (work / "part-000-000001.jsonl").unlink(missing_ok=True)
    assert sample(again, *flags).returncode == 0
    assert again.read_bytes() == out.read_bytes()
    assert not work.exists()

    # the same run again does nothing; another run never overwrites
    before = out.stat().st_mtime_ns
    assert sample(out, *flags).returncode == 0
    assert out.stat().st_mtime_ns == before
    refused = start(out, *flags, "--temperature", 0.5, stderr=subprocess.PIPE)
    _, errors = refused.communicate(timeout=120)
    assert refused.returncode == 1
    assert "not of this run" in errors
    assert errors.count("\n") == 1


@pytest.fixture
def done(models, prompts, tmp_path):
    """A finished file of responses, beside the folder of its model; the flags that made it, and its report."""
    shutil.copytree(models / "new", tmp_path / "new")
    flags = ["--model", tmp_path / "new", "--prompts", prompts, "--k", 1, "--limit", 2]
    assert sample(tmp_path / "out.jsonl", *flags).returncode == 0
    return tmp_path / "out.jsonl", flags, tmp_path / "out.jsonl.report.json"


def test_a_run_is_told_by_what_its_data_hold_and_not_by_where_they_lie(done, prompts, tmp_path, monkeypatch):
    out, flags, _ = done
    before = out.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    elsewhere = ["--model", "new", "--prompts", "prompts.jsonl", *flags[4:]]
    assert sample(out, *elsewhere).returncode == 0
    rest = prompts.read_text()
    prompts.write_text(rest.replace("the 5 seas", "the 9 seas"))  # past the limit
    assert (sample(out, *flags).returncode, out.stat().st_mtime_ns) == (0, before)
    prompts.write_text(rest.replace("the 1 seas", "the 9 seas"))
    refused = sample(out, *flags)
    assert (refused.returncode, "out.jsonl exists and is not of this run" in refused.stderr) == (1, True)
    prompts.write_text(rest)
    assert sample(out, *flags).returncode == 0
    retrain(tmp_path / "new")
    refused = sample(out, *flags)
    assert (refused.returncode, "out.jsonl exists and is not of this run" in refused.stderr) == (1, True)
    assert out.stat().st_mtime_ns == before


def retrain(folder: Path) -> None:
    """The same folder with another manifest, as a model that was trained anew has."""
    manifest = read_model_manifest(folder)
    facts = {name: getattr(manifest, name) for name in ("name", "stage", "parents", "export", "config", "metrics")}
    write_model_manifest(folder, **facts, seed=manifest.seed + 1)


def test_a_file_sampled_while_places_counted_is_done_for_the_same_command(done, prompts, tmp_path, monkeypatch):
    out, flags, report = done
    saved = json.loads(report.read_bytes())
    del saved["inputs"]
    report.write_text(json.dumps(saved))
    assert sample(out, *flags).returncode == 0
    monkeypatch.chdir(tmp_path)
    assert sample(out, "--model", "new", *flags[2:]).returncode == 1


def test_an_unfinished_run_goes_on_with_the_data_that_it_began_with(models, prompts, tmp_path, monkeypatch):
    flags, out = ["--model", models / "new", "--prompts", prompts, "--k", 1, "--batch", 3], tmp_path / "out.jsonl"
    rows_of, batches = sampling._rows, []

    def power_cut(*given):
        batches.append(given)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return rows_of(*given)

    with monkeypatch.context() as broken:
        broken.setattr(sampling, "_rows", power_cut)
        assert sample(out, *flags).returncode == 130
    rest = prompts.read_text()
    prompts.write_text(rest.replace("the 5 seas", "the 9 seas"))
    refused = sample(out, *flags)
    assert (refused.returncode, "the prompts have changed since this run began; remove" in refused.stderr) == (1, True)
    prompts.write_text(rest)
    monkeypatch.chdir(models)
    assert sample(out, "--model", "new", *flags[2:]).returncode == 0
    assert len(rows(out)) == 6


def test_two_processes_never_sample_to_one_file(models, prompts, tmp_path):
    work, flags = tmp_path / "out.jsonl.run", ["--model", models / "new", "--prompts", prompts, "--k", 1]
    with hold(work):
        (work / "config.json").write_text("begun")
        refused = sample(tmp_path / "out.jsonl", *flags)
        assert refused.returncode == 1
        assert refused.stderr == f"sample: {work}: another process is working on this run\n"
        assert (work / "config.json").read_text() == "begun"
    assert sample(tmp_path / "out.jsonl", *flags).returncode == 0


def test_a_folder_that_went_as_it_was_to_be_held_is_held_anew(tmp_path, monkeypatch):
    flock = fcntl.flock

    def ended_in_between(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.rmtree(tmp_path / "run")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", ended_in_between)
    with hold(tmp_path / "run"), pytest.raises(StageError, match="another process is working on this run"):
        hold(tmp_path / "run")


def test_a_sampled_nul_is_shown_since_no_database_keeps_it():
    config = sampling.Config(out="x.jsonl", model=("m",), prompts="p.jsonl")
    ask = writers.Ask({"external_id": "e", "messages": [{"role": "user", "content": "Hi"}]}, 0)
    source = sampling.Source("m", "identity", None)
    (plain,), (odd,) = (
        list(sampling._rows(config, source, [ask], [writers.Answer(text, "stop")])) for text in ("a b", "a\0b\0")
    )
    assert (odd["response"], odd["sampling"]["replaced_nul"]) == ("a␀b␀", 2)
    assert "replaced_nul" not in plain["sampling"]
    assert odd["response_external_id"] == plain["response_external_id"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give exactly one of model, policies, server"),
        (["--model", "x", "--server", "http://127.0.0.1:1"], "give exactly one of model, policies, server"),
        (["--model", "x", "--k", "0"], "--k: must be from 1 to 64"),
        (["--model", "x", "--token-ids"], "--token-ids: goes with a server"),
        (["--model", "x", "--temperature", "0"], "0 would repeat equal responses"),
        (["--model", "/nowhere"], "manifest.json: No such file"),
    ],
)
def test_misuse_is_told_in_one_line(prompts, tmp_path, flags, message):
    result = sample(tmp_path / "out.jsonl", "--prompts", prompts, *flags)
    assert result.returncode in {1, 2}
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_broken_prompts_file_is_refused_by_line(models, tmp_path):
    for line, message in [
        ('{"messages": []}', "line 2: field messages"),
        ("{", "line 2: "),
        ('{"prompt": 3}', "line 2"),
    ]:
        path = tmp_path / "broken.jsonl"
        path.write_text(json.dumps(PROMPTS[0]) + f"\n{line}\n")
        result = sample(tmp_path / "out.jsonl", "--prompts", path, "--model", models / "new")
        assert (result.returncode, message in result.stderr) == (1, True), result.stderr


def test_a_start_that_failed_holds_nobody_to_its_settings(models, tmp_path):
    path, work = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl.run"
    path.write_text(json.dumps(PROMPTS[0]) + "\n" + json.dumps({"prompt": "sea " * 200, "external_id": "long"}) + "\n")
    flags = ["--model", models / "new", "--prompts", path, "--k", 2, "--batch", 1]
    refused = sample(tmp_path / "out.jsonl", *flags)
    assert (refused.returncode, list(tmp_path.iterdir())) == (1, [path]), (
        "the last prompt stops it before the first is answered"
    )
    assert "long: " in refused.stderr and "context of 96" in refused.stderr
    work.mkdir()  # nor does one that was killed before its first answer
    (work / "config.json").write_text('{"k": 5}')
    dropped = sample(tmp_path / "out.jsonl", *flags, "--on-too-long", "drop")
    assert (dropped.returncode, work.exists()) == (0, False)
    assert "2 of 4 responses not sampled" in dropped.stderr
    report = json.loads((tmp_path / "out.jsonl.report.json").read_bytes())
    counts = {"prompts": 2, "responses": 2, "dropped_too_long": 2, "distinct_responses": 2, "with_replaced_nul": 0}
    assert report["counts"] == counts


def test_a_reward_model_writes_nothing(tmp_path, prompts):
    (tmp_path / "rm").mkdir()
    write_model_manifest(
        tmp_path / "rm", name="rm", stage="rm", parents={}, export=None, config={}, metrics={}, seed=None
    )
    result = sample(tmp_path / "out.jsonl", "--model", tmp_path / "rm", "--prompts", prompts)
    assert "a reward model scores text and writes none" in result.stderr


def completions(*, ignores: str = "") -> object:
    """An OpenAI-compatible server; `ignores` names what it does not heed."""
    count = iter(range(10**6))

    def respond(_method, path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "outside"}]}
        order = json.loads(body)
        n = 1 if ignores == "n" else order["n"]
        is_fixed = ignores == "temperature" or order["temperature"] == 0
        texts = ["same" if is_fixed and ignores != "zero" else f"text {next(count)}" for _ in range(n)]
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "length"} for text in texts]}

    return respond


def test_a_good_server_is_sampled(serve, prompts, tmp_path):  # noqa: F811
    server = serve(completions())
    result = sample(tmp_path / "out.jsonl", "--server", server.url, "--prompts", prompts, "--k", 3, "--batch", 7)
    assert result.returncode == 0, result.stderr
    written = rows(tmp_path / "out.jsonl")
    assert len(written) == len({row["response"] for row in written}) == 18
    assert {row["model"] for row in written} == {"outside"}
    assert {row["finish_reason"] for row in written} == {"length"}


def test_an_answer_by_another_model_than_was_asked_is_refused(serve, prompts, tmp_path):  # noqa: F811
    honest = completions()
    server = serve(lambda *request: (*honest(*request), ("X-Heed-Model", "other")))
    result = sample(tmp_path / "out.jsonl", "--server", server.url, "--prompts", prompts)
    assert (result.returncode, (tmp_path / "out.jsonl").exists()) == (1, False)
    assert "asked for outside, answered by other" in result.stderr


@pytest.mark.parametrize("ignores", ["n", "temperature", "zero"])
def test_a_server_that_ignores_settings_is_refused(serve, prompts, tmp_path, ignores):  # noqa: F811
    server = serve(completions(ignores=ignores))
    result = sample(tmp_path / "out.jsonl", "--server", server.url, "--prompts", prompts)
    assert result.returncode == 1
    assert f"it ignores {'n' if ignores == 'n' else 'temperature'}" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def tokens_of(text: str) -> list[int]:
    return [*text.encode(), 0]


def vllm(*, leaves_out: str = ""):
    """A server with ids as vLLM answers them: those of the prompt once, of each choice its own; `leaves_out` names what is missing."""
    plain = completions()

    def respond(method, path, body):
        status, answer = plain(method, path, body)
        if path == "/v1/models":
            return status, answer
        order = json.loads(body)
        assert (order["return_token_ids"], order["logprobs"]) == (True, True)
        answer["prompt_token_ids"] = tokens_of(order["messages"][-1]["content"])
        for choice in answer["choices"]:
            ids = tokens_of(choice["message"]["content"])
            spoken = ids[1:] if leaves_out == "a logprob" else ids
            choice["token_ids"] = ids
            choice["logprobs"] = {"content": [{"token": "?", "logprob": -n / 256} for n in spoken]}
            if leaves_out in choice:
                choice[leaves_out] = None
        answer.pop(leaves_out, None)
        return status, answer

    return respond


def test_a_server_s_own_token_ids_are_kept_and_not_made_anew_from_its_texts(serve, prompts, tmp_path, monkeypatch):  # noqa: F811
    server, pushed = serve(vllm()), []
    flags = ["--server", server.url, "--prompts", prompts, "--k", 2, "--token-ids"]
    result = sample(tmp_path / "out.jsonl", *flags)
    assert result.returncode == 0, result.stderr
    written = rows(tmp_path / "out.jsonl")
    assert len(written) == 12
    for row in written:
        ids = tokens_of(row["response"])
        assert row["tokens"]["ids"] == ids
        assert row["tokens"]["prompt_ids"] == tokens_of(row["messages"][-1]["content"])
        assert row["tokens"]["logprobs"] == [-n / 256 for n in ids]

    web = serve(
        lambda _method, _path, body: pushed.extend(json.loads(body)["rows"]) or (200, {"counts": {"created": 1}})
    )
    monkeypatch.setenv("HEED_URL", web.url)
    monkeypatch.setenv("HEED_TOKEN", "t")
    result = sample(tmp_path / "out.jsonl", *flags, "--push")
    assert result.returncode == 0, result.stderr
    assert [row["response"] for row in pushed] == [row["response"] for row in written]
    assert all("tokens" not in row for row in pushed), "the web half keeps texts"


@pytest.mark.parametrize("leaves_out", ["prompt_token_ids", "token_ids", "logprobs", "a logprob"])
def test_a_server_that_gives_no_token_ids_is_refused_where_they_were_asked_for(serve, prompts, tmp_path, leaves_out):  # noqa: F811
    server = serve(vllm(leaves_out=leaves_out))
    result = sample(tmp_path / "out.jsonl", "--server", server.url, "--prompts", prompts, "--token-ids")
    assert result.returncode == 1
    assert ("token ids and" if leaves_out == "a logprob" else "gives no token ids") in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_settings_of_a_file_sampled_before_there_were_token_ids_are_the_same():
    assert "token_ids" not in sampling._shaping(sampling.Config(out="x.jsonl", model=("m",), prompts="p.jsonl"))
    with_ids = sampling.Config(out="x.jsonl", server="http://127.0.0.1:1", prompts="p.jsonl", token_ids=True)
    assert sampling._shaping(with_ids)["token_ids"] is True
