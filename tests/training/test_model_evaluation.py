"""`python -m training evaluate by-model` on tiny models: who may judge, what the figures are, resume after a kill, the registry."""

# ruff: noqa: F811 the fixture `serve` is another file's

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.test_client import serve  # noqa: F401 a fixture
from tests.training.test_judge import completion, texts_shown
from training import answers, contract, intervals, models
from training.__main__ import main
from training.data import pairs_of

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"max-prompts": 12, "prompt-tokens": 200, "response-tokens": 16, "temperature": 0.7, "threads": 1}


def words(out: Path, flags: dict) -> list[str]:
    given = {"out": out} | SETTINGS | flags
    return ["evaluate", "by-model", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def remade(folder: Path, target: Path, stage: str, parents: dict[str, Path], **fields) -> Path:
    """A copy of a model folder that says it was made from these."""
    shutil.copytree(folder, target)
    refs = {role: contract.parent_ref(parent) for role, parent in parents.items()}
    (target / "manifest.json").unlink()
    defaults = {"export": None, "config": {}, "metrics": {}, "seed": 0}
    contract.write_model_manifest(target, name=target.name, stage=stage, parents=refs, **defaults | fields)
    return target


def longest(_method, path, body):
    """A judge that prefers the longer answer, and names the first shown where they are about as long."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "judge-1"}]}
    first, second = map(len, texts_shown(body))
    return 200, completion(f"Verdict: {'first' if first > second - 5 else 'second'}")


def test_reward_model_and_judge_compare_on_the_same_prompts(base, sft_model, reward_model, export, serve, tmp_path):
    server = serve(longest)
    flags = {"policy": sft_model, "against": base, "export": export, "reward-model": reward_model, "judge": server.url}
    people = {"people-export": export, "people-origins": "simulated", "people-pairs": 20}
    assert main(words(tmp_path / "out.json", flags | people)) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["by"], result["model"], result["against"]) == ("model", "sft", ["base"])

    prompts = answers.prompts_of(contract.read_export(export), "test", 12)
    drawn = {"max_new_tokens": 16, "temperature": 0.7, "seed": 0, "batch": 256, "device": torch.device("cpu")}
    ours, theirs = (answers.answers_of(str(folder), prompts, **drawn) for folder in (sft_model, base))
    scores = [rewards(reward_model, prompts, one) for one in (ours, theirs)]
    points = [(a > b) + 0.5 * (a == b) for a, b in zip(*scores, strict=True)]
    reward = result["reward"]
    assert reward["win_rate"] == pytest.approx(sum(points) / 12) and reward["n"] == 12
    assert reward["difference"] == pytest.approx(sum(a - b for a, b in zip(*scores, strict=True)) / 12, abs=1e-5)
    assert (reward["low"], reward["high"]) == pytest.approx(intervals.wilson(sum(points) / 12, 12))
    assert reward["trained_against"] == []

    by_hand = [0.5 if abs(len(a) - len(b)) < 5 else float(len(a) > len(b)) for a, b in zip_texts(ours, theirs)]
    judged = result["judge"]
    assert judged["win_rate"] == sum(by_hand) / 12
    assert judged["same_text"] == sum(a == b for a, b in zip_texts(ours, theirs))
    assert judged["turned_with_order"] == by_hand.count(0.5) - judged["same_text"]
    agreement = result["agreement"]
    assert agreement["judge"]["n"] == 20 and agreement["judge"]["people_ties"] == agreement["reward"]["people_ties"] > 0
    assert agreement["reward"]["agreement"] == pytest.approx(agreed(reward_model, export))
    assert agreement["reward"]["low"] < agreement["reward"]["agreement"] < agreement["reward"]["high"]
    page = (tmp_path / "out.html").read_text()
    assert "sft" in page and "win rate" in page and not re.search(r"(src|href)=|url\(|@import|<script", page)


def zip_texts(ours, theirs):
    return zip((text.strip() for text in ours.texts), (text.strip() for text in theirs.texts), strict=True)


def rewards(folder, prompts, given) -> list[float]:
    """Each answer alone through the model's own forward pass."""
    model, tokenizer = models.load_reward_model(folder), models.load_tokenizer(folder)
    found = []
    for prompt, text, finished in zip(prompts, given.texts, given.finished, strict=True):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        ids = [*ids, *tokenizer.encode(text, add_special_tokens=False), *[tokenizer.eos_token_id] * finished]
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            found.append(float(model.score(hidden)) + model.config.reward_bias)
    return found


def agreed(folder, export) -> float:
    """The share of people's ordered pairs that the reward model orders alike, straight from the rows."""
    hits = []
    for row in contract.read_export(export).rankings():
        prompt = [{"role": m.role, "content": m.content} for m in row.messages]
        texts = [r.text for r in row.responses]
        given = answers.Answers("", texts, [r.finish_reason != "length" for r in row.responses])
        scores = dict(
            zip((r.response_id for r in row.responses), rewards(folder, [prompt] * len(texts), given), strict=True)
        )
        for ranking in row.rankings:
            tiers = [[scores[i] for i in tier] for tier in ranking.tiers]
            hits += [a > b for a, b in pairs_of(tiers)]
    return sum(hits) / len(hits)


def test_a_reward_model_does_not_judge_what_was_trained_against_it(
    sft_model, reward_model, export, base, tmp_path, capsys
):
    """Neither PPO's own reward model, nor one that an ancestor was trained or chosen by; with the flag the result says so."""
    ppo = remade(sft_model, tmp_path / "ppo-1", "ppo", {"policy": sft_model, "rm": reward_model})
    later = remade(sft_model, tmp_path / "ppo-2", "ppo", {"policy": ppo})
    other = remade(reward_model, tmp_path / "rm-other", "rm", {"sft": sft_model}, seed=1)
    out = tmp_path / "out.json"
    flags = {"against": base, "export": export, "max-prompts": 2}
    for policy, against in ((ppo, base), (later, base), (base, later)):
        assert main(words(out, flags | {"policy": policy, "against": against, "reward-model": reward_model})) == 1
        assert "was trained or chosen by the reward model" in capsys.readouterr().err
    assert main(words(out, flags | {"policy": later, "reward-model": other})) == 0
    assert json.loads(out.read_text())["reward"]["trained_against"] == []
    assert main([*words(out, flags | {"policy": later, "reward-model": reward_model}), "--allow-trained-against"]) == 0
    assert json.loads(out.read_text())["reward"]["trained_against"] == ["ppo-2"]


def test_a_few_shot_prefix_goes_before_the_prompt_and_not_to_the_judge(base, export, serve, tmp_path, monkeypatch):
    prompted = remade(base, tmp_path / "prompted", "sft", {"base": base}, few_shot_prefix="Q: hi A: ho ")
    prompts = answers.prompts_of(contract.read_export(export), "test", 3)
    asked = []
    monkeypatch.setattr(answers, "encode_prompt", lambda _, messages: asked.append(messages) or [5])
    drawn = {"max_new_tokens": 2, "temperature": 0.0, "seed": 0, "batch": 4, "device": torch.device("cpu")}
    answers.answers_of(str(prompted), prompts, **drawn)
    assert [m[0]["content"] for m in asked] == ["Q: hi A: ho " + prompt[0]["content"] for prompt in prompts]
    monkeypatch.undo()
    server = serve(longest)
    flags = {"policy": prompted, "against": base, "export": export, "judge": server.url, "max-prompts": 2}
    assert main(words(tmp_path / "out.json", flags)) == 0
    assert not any(b"Q: hi" in body for _, _, body, _ in server.requests)


def test_answers_from_a_file_and_the_registry(base, export, serve, tmp_path, monkeypatch, capsys):
    """Another program's answers are a file of `sample`; figures are recorded under the candidate's name, equal ones the same way."""
    prompts = answers.prompts_of(contract.read_export(export), "test", 4)
    rows = [
        {"messages": p, "model": "outside", "response": f"Answer {i}.", "finish_reason": "stop"}
        for i, p in enumerate(prompts)
    ]
    (tmp_path / "outside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pushed = []

    def respond(method, path, body):
        if path.startswith("/api/v1/"):
            pushed.append((path, json.loads(body)))
            return 200, {}
        return longest(method, path, body)

    server = serve(respond)
    monkeypatch.setenv("HEED_URL", server.url)
    monkeypatch.setenv("HEED_TOKEN", "t")
    flags = {
        "policy": base,
        "against": tmp_path / "outside.jsonl",
        "export": export,
        "judge": server.url,
        "max-prompts": 4,
    }
    for out in ("a.json", "b.json"):
        assert main([*words(tmp_path / out, flags), "--push"]) == 0
    (path, body), again = pushed
    assert path == "/api/v1/models/base/evaluations/" and again == (path, body), "equal figures, one evaluation"
    assert body["metrics"]["by"] == "model" and body["metrics"]["against"] == ["outside"]
    assert body["metrics"]["judge"]["n"] == 4 and "out" not in body["config"]
    assert main(words(tmp_path / "c.json", flags | {"max-prompts": 5})) == 1
    assert "no answer to 1 of 5 prompts" in capsys.readouterr().err
    (tmp_path / "outside.jsonl").write_text(
        json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"response": None}) + "\n"
    )
    assert main(words(tmp_path / "c.json", flags)) == 1
    assert "outside.jsonl line 2: needs messages, model, response (a text)" in capsys.readouterr().err
    assert main(words(tmp_path / "c.json", flags | {"seed": 2**63})) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_verdicts_it_has(base, sft_model, export, serve, tmp_path):
    """The command itself, killed after some verdicts; the next run asks only for the rest."""
    release = [9]

    def slowly(method, path, body):
        if path != "/v1/models":
            release[0] -= 1
            while release[0] < 0:
                time.sleep(0.01)
        return longest(method, path, body)

    server = serve(slowly)
    arguments = words(
        tmp_path / "out.json", {"policy": sft_model, "against": base, "export": export, "judge": server.url}
    )
    command = [sys.executable, "-m", "training", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    kept = tmp_path / "out.json.verdicts.jsonl"
    deadline = time.monotonic() + 120
    while (not kept.exists() or kept.read_bytes().count(b"\n") < 9) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert kept.read_bytes().count(b"\n") == 9
    release[0] = 10_000
    server.requests.clear()
    assert main(arguments) == 0
    result = json.loads((tmp_path / "out.json").read_text())["judge"]
    asked = sum(path != "/v1/models" for _, path, _, _ in server.requests)
    assert asked == 2 * (12 - result["same_text"]) - 9
    assert result["n"] == 12
