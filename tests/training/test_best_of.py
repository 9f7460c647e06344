"""Best-of-n: the response that is kept has the highest reward of the n that were drawn, and says so."""

import json
import shutil

import pytest
import torch

from tests.training.test_client import serve  # noqa: F401 a fixture
from tests.training.test_sample import completions, retrain
from training import data, models, rm, sample, writers
from training.config import ConfigError, from_flags
from training.errors import StageError

ASKS = ["Write a story about a fox.", "Hi", "Which color is the sea?"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "external_id": f"p{i}"}) + "\n" for i, text in enumerate(ASKS)))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_for(out, prompts, **fields):
    shared = {"prompts": str(prompts), "k": 2, "max_new_tokens": 8, "seed": 5, "batch": 4, "device": "cpu"}
    return sample.Config(out=str(out), **shared | fields)


def independent_rewards(reward_model, row, texts, reasons):
    tokenizer = models.load_tokenizer(reward_model)
    examples = [
        data.encode_dialogue(tokenizer, row["messages"], text, finished=reason == "stop")
        for text, reason in zip(texts, reasons, strict=True)
    ]
    return rm.score_all(models.load_reward_model(reward_model), examples, 1, 8, torch.device("cpu")).tolist()


def test_the_best_of_n_is_kept_by_reward_and_recorded(base, reward_model, prompts, tmp_path):
    chosen = {"model": (str(base),), "best_of": 4, "reward_model": str(reward_model)}
    kept = rows_of(sample.run(config_for(tmp_path / "best.jsonl", prompts, **chosen)))
    assert len(kept) == 6
    config = config_for(tmp_path / "x.jsonl", prompts, **chosen)
    writer = writers.FolderWriter(config, sample._source(base))
    found = 0
    for start in (0, 4):  # batches of 4: each draws four rounds, numbered on
        batch = kept[start : start + 4]
        asks = [writers.Ask(row, row["sampling"]["number"]) for row in batch]
        rounds = [writer.write(asks, start // 4 * 4 + n) for n in range(4)]
        for place, row in enumerate(batch):
            drawn = [answers[place] for answers in rounds]
            rewards = independent_rewards(
                reward_model, row, [answer.text for answer in drawn], [answer.finish_reason for answer in drawn]
            )
            assert max(rewards) - min(rewards) > 1e-6, "there was something to choose"
            assert row["sampling"]["reward"] == pytest.approx(max(rewards), abs=1e-5)
            best = drawn[rewards.index(max(rewards))].text
            assert row["response"] == best.replace("\x00", sample.SHOWN_NUL)  # which PostgreSQL cannot store
            found += 1
    assert found == 6
    assert {(row["sampling"]["best_of"], row["sampling"]["reward_model"]) for row in kept} == {(4, reward_model.name)}


def test_it_repeats_itself_and_is_another_run_than_plain_sampling(base, reward_model, prompts, tmp_path):
    chosen = {"best_of": 2, "reward_model": str(reward_model)}
    best, again, plain = (
        sample.run(config_for(tmp_path / f"{name}.jsonl", prompts, model=(str(base),), **fields))
        for name, fields in (("best", chosen), ("again", chosen), ("plain", {}))
    )
    assert best.read_bytes() == again.read_bytes()
    ids = [{row["response_external_id"] for row in rows_of(path)} for path in (best, plain)]
    assert ids[0].isdisjoint(ids[1])
    assert all("best_of" not in row["sampling"] for row in rows_of(plain))
    with pytest.raises(StageError, match="not of this run"):
        sample.run(config_for(best, prompts, model=(str(base),)))
    judge = shutil.copytree(reward_model, tmp_path / "judge")
    elsewhere = chosen | {"reward_model": str(judge)}
    assert sample.run(config_for(best, prompts, model=(str(base),), **elsewhere)) == best
    retrain(judge)
    with pytest.raises(StageError, match="not of this run"):
        sample.run(config_for(best, prompts, model=(str(base),), **elsewhere))


def test_a_server_is_asked_anew_for_each_round(serve, reward_model, prompts, tmp_path):  # noqa: F811
    asked, respond = [], completions()

    def listen(method, path, body):
        if path != "/v1/models" and json.loads(body)["messages"][0]["content"] in ASKS:
            order = json.loads(body)
            asked.append((order["messages"][0]["content"], order["seed"]))
        return respond(method, path, body)

    chosen = {"server": serve(listen).url, "best_of": 3, "reward_model": str(reward_model)}
    rows = rows_of(sample.run(config_for(tmp_path / "out.jsonl", prompts, **chosen)))
    assert len(asked) == len(set(asked)) == 9, "three prompts, three rounds, each with a seed of its own"
    assert len({row["response"] for row in rows}) == 6


def test_a_reward_model_that_scores_nan_chooses_nothing(base, reward_model, prompts, tmp_path, monkeypatch):
    load = models.load_reward_model

    def broken(*given):
        model = load(*given)
        torch.nn.init.constant_(models.head_of(model).weight, float("nan"))
        return model

    monkeypatch.setattr(models, "load_reward_model", broken)
    chosen = {"model": (str(base),), "best_of": 2, "reward_model": str(reward_model)}
    with pytest.raises(StageError, match="the reward model rm scores a response nan"):
        sample.run(config_for(tmp_path / "out.jsonl", prompts, **chosen))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--best-of", "4"], "--best-of: above 1 goes with a reward_model"),
        (["--reward-model", "r"], "best_of: above 1 goes with a reward_model"),
        (["--best-of", "2", "--reward-model", "r", "--temperature", "0", "--k", "1"], "0 would draw one sample"),
    ],
)
def test_misuse_is_told(flags, message):
    with pytest.raises(ConfigError, match=message):
        from_flags(sample.Config, ["--out", "o", "--model", "m", "--prompts", "p", *flags], "sample")


def test_only_a_reward_model_may_choose(base, prompts, tmp_path):
    chosen = {"model": (str(base),), "best_of": 2, "reward_model": str(base)}
    with pytest.raises(StageError, match="not a reward model but a model of stage pretrain"):
        sample.run(config_for(tmp_path / "out.jsonl", prompts, **chosen))
