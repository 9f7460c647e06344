"""Model folders: head, bias, scores by length, and what other programs find in them."""

import json
import math
import resource
import shutil
import signal
from collections import Counter
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from training import data, generation, models, ppo, rm
from training.contract import ContractError, read_export, read_model_manifest
from training.errors import StageError

UNLIMITED = data.LengthLimits(10_000, 10_000)
ASK = [{"role": "user", "content": "Write a story about a fox."}]


def test_the_head_starts_with_deviation_one_over_root_d_plus_one(tokenizer, tmp_path):
    torch.manual_seed(0)
    wide = models.new_model(tokenizer, width=1024, layers=1, heads=2, mlp_width=8, max_tokens=64, init_std=0.02)
    wide.save_pretrained(tmp_path)
    weight = models.head_of(models.reward_model_from(tmp_path, seed=0)).weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert torch.equal(weight, models.head_of(models.reward_model_from(tmp_path, seed=0)).weight), "seeded"


def test_demonstrations_score_zero_on_average_and_the_bias_survives_the_disk(reward_model, export, tokenizer):
    model = models.load_reward_model(reward_model)
    assert model.config.reward_bias != 0
    rows = data.read_demonstrations(read_export(export), "train", Counter())
    examples = data.encode_demonstrations(tokenizer, rows, UNLIMITED, Counter())
    scores = rm.score_all(model, examples, tokenizer.pad_token_id, 8, torch.device("cpu"))
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-4)
    valid = data.encode_demonstrations(
        tokenizer, data.read_demonstrations(read_export(export), "valid", Counter()), UNLIMITED, Counter()
    )
    held_out = rm.score_all(model, valid, tokenizer.pad_token_id, 8, torch.device("cpu"))
    told = read_model_manifest(reward_model).metrics["demonstrations_valid_mean"]
    assert told == pytest.approx(held_out.mean().item(), abs=1e-5)
    error = scores.std().item() / math.sqrt(len(valid))
    assert abs(told) < 3 * error, "0 within its error on demonstrations that set no bias, too"
    assert abs(told - model.config.reward_bias) > 3 * error, "which without the bias it would not be"


def test_the_critic_equals_the_reward_model_at_step_zero(base, reward_model, export, tokenizer):
    fields = {"out": "x", "policy": str(base), "reward_model": str(reward_model), "export": str(export)}
    players = ppo.load_players(ppo.Config(**fields), torch.device("cpu"))
    batch = data.collate([data.encode_dialogue(tokenizer, ASK, "A fox.")], tokenizer.pad_token_id)
    inputs = (batch.ids_BT, batch.keep_BT, batch.positions_BT)
    assert torch.equal(models.token_scores(players.critic, *inputs), models.token_scores(players.reward_model, *inputs))


def test_finished_and_truncated_score_differently_when_pad_is_eos(reward_model, tokenizer):
    """A reward found by token id would be read before the EOS, where both texts are the same."""
    model = models.load_reward_model(reward_model)
    finished = data.encode_dialogue(tokenizer, ASK, "A fox.", finished=True)
    truncated = data.encode_dialogue(tokenizer, ASK, "A fox.", finished=False)
    long = data.encode_dialogue(tokenizer, ASK, "A fox went to the garden. " * 3)
    eos = tokenizer.eos_token_id
    scores = rm.score_all(model, [finished, truncated, long], eos, 8, torch.device("cpu"))
    alone = [rm.score_all(model, [example], eos, 8, torch.device("cpu")) for example in (finished, truncated, long)]
    assert scores[0].item() != pytest.approx(scores[1].item(), abs=1e-6)
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_rollout_is_scored_at_its_last_token(reward_model, tokenizer):
    model = models.load_reward_model(reward_model)
    prompts = [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("Hi", "Tell me more.")]
    responses = [data.encode_response(tokenizer, "A fox."), data.encode_response(tokenizer, "It slept well, it did.")]
    width = max(map(len, responses))
    prompts_BP, keep_BP = data.pad_left(prompts, tokenizer.eos_token_id)
    padded = torch.tensor([r + [tokenizer.eos_token_id] * (width - len(r)) for r in responses])
    lengths = torch.tensor([len(r) for r in responses])
    rollout = generation.Rollout(
        prompts_BP, keep_BP, padded, lengths, torch.tensor([True, True]), torch.zeros(padded.shape)
    )
    examples = [data.Example(p + r, len(p)) for p, r in zip(prompts, responses, strict=True)]
    expected = rm.score_all(model, examples, tokenizer.eos_token_id, 8, torch.device("cpu"))
    torch.testing.assert_close(generation.end_scores(model, rollout), expected, rtol=1e-4, atol=1e-5)


def test_folders_load_with_transformers_alone(base, reward_model):
    settings = json.loads((base / "generation_config.json").read_text())
    assert (settings["do_sample"], settings.get("temperature", 1.0)) == (True, 1.0)
    policy = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    assert policy.generate(ids, max_new_tokens=3).shape[1] <= ids.shape[1] + 3
    judge = AutoModelForSequenceClassification.from_pretrained(reward_model)
    example = data.encode_dialogue(tokenizer, ASK, "A fox.")
    theirs = judge(torch.tensor([example.ids])).logits[0, 0] + judge.config.reward_bias
    ours = rm.score_all(models.load_reward_model(reward_model), [example], 1, 8, torch.device("cpu"))
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)


def test_a_policy_is_no_reward_model(base):
    with pytest.raises(StageError, match="not a reward model"):
        models.load_reward_model(base)


def test_manifests_name_parents_export_config_and_metrics(base, sft_model, reward_model, export):
    manifest = read_model_manifest(reward_model)
    assert manifest.stage == "rm"
    assert manifest.parents == {"sft": models.parent_of(sft_model)}
    assert manifest.export == read_export(export).ref
    assert manifest.config["learning_rate"] == 1e-3
    assert manifest.metrics["skipped_held_out"] == 1
    assert manifest.metrics["rankings"] > 0
    assert 0 <= manifest.metrics["accuracy_train_held_out"] <= 1, "held-out labels are scored, apart"
    assert read_model_manifest(sft_model).parents["base"].name == base.name


def test_a_parent_with_a_flipped_byte_is_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ContractError, match=r"model\.safetensors: does not match its checksum"):
        models.parent_of(folder)


def test_a_model_without_a_manifest_is_named_by_its_files(base, tmp_path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    first = models.parent_of(folder)
    (folder / "config.json").write_text("{}")
    assert first.name == "stranger"
    assert models.parent_of(folder).manifest_sha256 != first.manifest_sha256


@pytest.mark.parametrize("load", [models.load_tokenizer, models.load_policy, models.load_reward_model])
def test_a_folder_that_is_not_there_is_named_in_one_line(load, tmp_path):
    for missing in ("/no/such/folder", "./models/sft-1", "var/models/sft-1", tmp_path / "sft-1"):
        with pytest.raises(StageError) as caught:
            load(missing)
        assert str(caught.value) == f"{missing}: there is no such folder"
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match=r"file: not a folder$"):
        load(tmp_path / "file")


def test_a_name_that_nobody_has_is_told_in_one_line(monkeypatch):
    def refuse(name):
        raise OSError("We could not connect.\nCheckout your internet connection or see …")

    monkeypatch.setattr(models.hub, "why_not", lambda name: None)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(StageError) as caught:
        models.load_tokenizer("org/nobody")
    assert str(caught.value) == "org/nobody: no folder here, and no model to be fetched (We could not connect.)"


@pytest.mark.parametrize("load", [models.load_policy, partial(models.reward_model_from, seed=0)])
def test_a_reward_model_is_no_policy(load, reward_model):
    with pytest.raises(StageError, match=f"{reward_model}: a reward model, where a policy is needed"):
        load(reward_model)


def test_a_disk_that_is_full_as_a_model_is_published_is_called_so(policy, tokenizer, tmp_path):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    facts = {"stage": "sft", "parents": {}, "export": None, "config": {}, "metrics": {}, "log": [], "seed": 0}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(StageError, match=rf"{tmp_path}/full: .*File too large.*; the run's last checkpoint"):
            models.publish(tmp_path / "full", policy, tokenizer, **facts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
