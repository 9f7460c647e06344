"""Reward model and DPO against TRL 1.16.0's own trainers: the same model folder, the same token ids, loss and gradients."""

from collections import Counter

import pytest
import torch

from training import contract, data, dpo, models, rankings, rm
from training.contract import read_export

UNLIMITED = data.LengthLimits(10_000, 10_000)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(export, tokenizer):
    """Four rankings of four responses without ties, so that TRL's mean over pairs is the mean over rankings."""
    found = data.read_comparisons(read_export(export), tokenizer, "train", UNLIMITED, Counter(), for_training=True)
    chosen = [comparison for comparison in found if len(comparison.pairs) == 6][:4]
    assert len(chosen) == 4
    assert len({len(example.ids) for comparison in chosen for example in comparison.examples}) > 4, "ragged"
    return chosen


def settings(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,  # its name in every version that we run on: transformers 5.17 knows no other
        "max_length": None,
        "disable_tqdm": True,
    }


def pairs(batch):
    return [(c.examples[w], c.examples[l]) for c in batch for w, l in c.pairs]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("encoding", ["shared", "responses"])
def test_reward_loss_and_gradients_equal_trls(encoding, batch, reward_model, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [{"chosen_ids": better.ids, "rejected_ids": worse.ids} for better, worse in pairs(batch)]
    theirs = models.load_reward_model(reward_model)
    trainer = RewardTrainer(
        model=theirs,
        args=RewardConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    loss = trainer.compute_loss(theirs, trainer.data_collator(rows))
    loss.backward()
    ours = models.load_reward_model(reward_model)
    runner = rankings.runner_for(ours, encoding, tokenizer.pad_token_id)
    mean, _ = rm.backward_mean(runner, batch, parts=2)
    assert mean == pytest.approx(loss.item(), abs=1e-5)
    assert_same_gradients(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("encoding", ["shared", "responses"])
def test_dpo_loss_and_gradients_equal_trls(encoding, batch, base, sft_model, tokenizer, tmp_path):
    """The policy is not the reference here, so that both log-probabilities count."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    beta = 0.3
    trainer = DPOTrainer(
        model=models.load_policy(sft_model),
        ref_model=models.load_policy(base),
        args=DPOConfig(beta=beta, **settings(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer,
    )
    rows = [
        {
            "prompt_ids": better.ids[: better.prompt_tokens],
            "chosen_ids": better.ids[better.prompt_tokens :],
            "rejected_ids": worse.ids[worse.prompt_tokens :],
        }
        for better, worse in pairs(batch)
    ]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    runners = [
        rankings.runner_for(models.load_policy(folder), encoding, tokenizer.pad_token_id)
        for folder in (sft_model, base)
    ]
    reference = dpo.logprobs_of(runners[1], batch, batch=3)
    figures = dpo.backward_mean(runners[0], batch, reference, beta, parts=2)
    assert figures["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert figures["reward_margin"] == pytest.approx(trainer._metrics["eval"]["rewards/margins"][0], abs=1e-4)
    assert_same_gradients(gradients(runners[0].model), gradients(trainer.model))


def test_an_export_with_pairs_trains_under_trl_as_it_is(export, reward_model, tokenizer, tmp_path):
    """What `datasets` loads from the folder goes into the trainer without a word of ours between."""
    from datasets import load_dataset
    from trl import RewardConfig, RewardTrainer

    rows = read_export(export)
    everything = {"prompts": rows.prompts(), "demonstrations": rows.demonstrations(), "rankings": rows.rankings()}
    folder = tmp_path / "v0002"
    manifest = contract.write_export(folder, version=2, query={}, pairs=True, **everything)
    assert (
        len(load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))) == manifest.counts["rankings"]
    )
    loaded = load_dataset(str(folder), "pairs", cache_dir=str(tmp_path / "cache"))
    counted = {split: manifest.counts[f"pairs_{split}"] for split in contract.PAIR_SPLITS}
    assert {name: len(rows) for name, rows in loaded.items()} == {split: n for split, n in counted.items() if n}
    train = loaded["train"]
    assert train[0]["prompt"][-1]["role"] == "user"
    assert train[0]["chosen"][0]["role"] == "assistant"
    assert len(train) > len(loaded["held_out"]) > 0
    trainer = RewardTrainer(
        model=models.load_reward_model(reward_model),
        args=RewardConfig(**settings(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, save_strategy="no"),
        train_dataset=train.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
    )
    result = trainer.train()
    assert trainer.state.global_step == 1
    assert 0 < result.training_loss < 10
